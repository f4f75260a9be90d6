"""The functions that are timed at one shape: each passes a correctness gate, then all take turns.

The gate is attention in float32 over the same blocks. One of ours that fails it ends the run; a
peer that fails, or cannot run, is listed with the reason and not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from bench_cases import Inputs, random_mask, relative_error
from demo_masks import DemoHeads
from kernel_parts import call, parts
from overhead import PREFIX
from peers import BASELINE, Peer
from timing import sustained_ms

ERROR_BUDGET = {
    (16, 16): 0.006,
    (8, 16): 0.016,
    (8, 8): 0.045,
    (16, 8): 0.045,
    (4, 4): 0.35,
    (4, 8): 0.3,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to call our attention; ``alone`` times its kernel without the pre-pass as well."""

    density: float
    block: tuple[int, int] = (64, 128)
    bits: tuple[int, int] = (8, 8)
    tail: bool = True
    masks: str = "random"
    alone: bool = False

    def __str__(self) -> str:
        parts = [f"PARO {self.bits[0]}/{self.bits[1]}", f"{self.block[0]}x{self.block[1]}"]
        parts += [f"density {self.density}"]
        parts += ["no tail"] * (not self.tail) + ["demo masks"] * (self.masks == "demo")
        return ", ".join(parts)


@dataclass(slots=True)
class Bench:
    """The functions of one shape, what is known of each, and what could not run."""

    inputs: Inputs
    capability: tuple[int, int]
    functions: dict[str, Callable[[], object]] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_run: list[dict[str, str]] = field(default_factory=list)

    def add_peer(self, peer: Peer, densities: Iterable[float]) -> None:
        shape, q, k, v = self.inputs.shape, self.inputs.q, self.inputs.k, self.inputs.v
        reason = peer.available(self.capability, shape.head_dim)
        if reason is not None:
            self._skip(peer.name, reason)
            return
        for density in densities if peer.sparse else (1.0,):
            name = f"{peer.name}, density {density}" if peer.sparse else peer.name
            mask = None
            try:
                if peer.block is not None:
                    mask = random_mask(shape.heads, shape.tokens, peer.block, density, q.device)
                function = peer.bind(q, k, v, mask, density)
                error, shown = peer.error(function(), q, k, v, mask)
            except Exception as problem:
                self._skip(name, f"{type(problem).__name__}: {problem}".splitlines()[0][:200])
                continue
            if not error <= peer.budget:
                self._skip(name, f"relative error {error:.4f} over its budget {peer.budget:.4f}")
                continue
            self.functions[name] = function
            self.details[name] = {
                "ours": False, "baseline": peer.name == BASELINE, "peer": peer.key,
                "whole_call": peer.whole_call, "block": list(mask.block) if mask else None,
                "density": mask.density() if mask else density,
                "qk_bits": peer.bits[0], "pv_bits": peer.bits[1], "rel_err": shown,
                "gate_err": error, "own_blocks": peer.own_blocks, "note": peer.note,
            }  # fmt: skip

    def _skip(self, name: str, reason: str) -> None:
        print(f"{name:52s} not run: {reason}", flush=True)
        self.not_run.append({"name": name, "shape": str(self.inputs.shape), "reason": reason})

    def add(self, setting: Setting, demo: DemoHeads | None) -> None:
        inputs, shape, name = self.inputs, self.inputs.shape, str(setting)
        if setting.masks == "demo":
            assert demo is not None
            inputs = replace(inputs, permutation=demo.permutation(shape, inputs.q.device))
            mask = demo.mask(shape, setting.block, setting.density, inputs.q.device)
        else:
            tokens, device = shape.grid_tokens, inputs.q.device
            mask = random_mask(shape.heads, tokens, setting.block, setting.density, device)
        run = call(inputs, mask, setting.bits, setting.tail)
        run()  # the first call of a shape is launched in another way than those that follow
        taken = parts(run) if setting.alone else None
        error = max(
            relative_error(
                out, inputs.q, inputs.k, inputs.v, mask, inputs.permutation, setting.tail
            )
            for out in (run(), *((taken.out,) if taken else ()))
        )
        budget = ERROR_BUDGET[setting.bits] * (1.0 if setting.density == 1.0 else 1.3)
        if not error <= budget:
            raise SystemExit(
                f"{name} on {shape}: relative error {error:.4f} over its budget {budget:.4f}"
            )
        details = {
            "ours": True, "baseline": False, "whole_call": True, "block": list(setting.block),
            "density": mask.density(), "qk_bits": setting.bits[0], "pv_bits": setting.bits[1],
            "rel_err": error, "tail": setting.tail, "masks": setting.masks,
        }  # fmt: skip
        self.functions[name], self.details[name] = run, details
        if taken is not None:
            self.functions[f"{name}, kernel alone"] = taken.attend
            self.details[f"{name}, kernel alone"] = details | {"whole_call": False}

    def timed(self, seconds: float) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Rows of the report, and the times of the overhead's parts."""
        shape = self.inputs.shape
        timings = sustained_ms(self.functions, seconds, 5 if shape.flops < 5e13 else 3)
        base, rows = timings[BASELINE], []
        for name, details in self.details.items():
            row = {
                "name": name, "whole_call": True, "batch": shape.batch, "heads": shape.heads,
                "tokens": shape.tokens, "extra_tokens": shape.extra_tokens,
                "head_dim": shape.head_dim,
            }  # fmt: skip
            ms = timings[name]
            row |= details | {"ms": ms, "speed_up": base / ms}
            share_of_grid = (shape.grid_tokens / shape.tokens) ** 2 if row["ours"] else 1.0
            done = 1.0 - share_of_grid * (1.0 - row["density"])
            row["tflops"] = shape.flops * done / ms / 1e9
            rows.append(row)
            print(
                f"{name:52s} S={shape.tokens:6d} E={shape.extra_tokens:3d} D={shape.head_dim:3d} "
                f"{ms:8.3f} ms {row['tflops']:5.0f} TFLOP/s {base / ms:6.2f}x "
                f"error {row['rel_err']:.4f}",
                flush=True,
            )
        return rows, {name: ms for name, ms in timings.items() if name.startswith(PREFIX)}
