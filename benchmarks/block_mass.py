"""Choice of token orders and block mass in calibration: ``python benchmarks/block_mass.py``.

First, on real attention of the demo model: do the sampled rows choose the orders that all rows
choose, and what does a head's recall lose where they do not? Whole blocks, fewer of them, stand
beside for comparison. Then, on a GPU only, what calibration of one layer costs in units of one
dense attention of the same q, k, v: the exact mass of one order per head, the choice among all
candidate orders, the fit of the profiles and the error curves. Results are checked against PyTorch
before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _package import load_package

load_package()

from paro_attention.calibration import TokenGrid  # noqa: E402
from paro_attention.calibration.block_layout import checked_block, default_block  # noqa: E402
from paro_attention.calibration.block_mass import block_mass  # noqa: E402
from paro_attention.calibration.extra_keys import RecordedCall  # noqa: E402
from paro_attention.calibration.grid_orders import GridOrders  # noqa: E402
from paro_attention.calibration.joint_sequence import JointLayout  # noqa: E402
from paro_attention.calibration.order_choice import CHOICES, choose_orders  # noqa: E402
from paro_attention.calibration.order_scores import (  # noqa: E402
    ENERGY,
    ERROR_DENSITIES,
    MAPS,
    RETAINED,
    order_scores,
)
from paro_attention.calibration.profile_geometry import ProfileGeometry  # noqa: E402
from paro_attention.calibration.row_sample import RowSample  # noqa: E402
from paro_attention.calibration.sampled_maps import (  # noqa: E402
    map_errors,
    maps_are_served,
    scores_of_heads,
)
from paro_attention.calibration.token_order import candidate_orders  # noqa: E402
from paro_attention.demo.experiment import draw_prompts  # noqa: E402
from paro_attention.demo.sampler import CFG, sample  # noqa: E402
from paro_attention.demo.vocabulary import encode  # noqa: E402
from paro_attention.demo.wan import load_demo_model  # noqa: E402
from paro_attention.kernels import block_mass_of  # noqa: E402

DENSITY = 0.3
LARGEST_RECALL_LOSS = 0.005  # mean over heads
SAMPLING_STEPS = 4
RECORDED_STEPS = (0, 2)


class Case(NamedTuple):
    """One size: its candidates and where their blocks lie."""

    grid: TokenGrid
    block: tuple[int, int]
    names: tuple[str, ...]
    orders: GridOrders

    @classmethod
    def of(cls, grid: TokenGrid, block: tuple[int, int]) -> Case:
        names = candidate_orders(grid, block, "tiles")
        return cls(grid, block, names, GridOrders(grid, block))

    def permutations(self, device: torch.device) -> list[Tensor]:
        return [self.orders.permutation(name, device) for name in self.names]

    def profiles(self, device: torch.device, sample: RowSample | None) -> list[ProfileGeometry]:
        """Geometries for the blocks of a sample, the recorder's own when None."""
        if sample is None:
            return [self.orders.geometry(name, device, sampled=True) for name in self.names]
        bins = self.orders.bins
        return [
            ProfileGeometry(bins, self.grid, name, self.block, device, sample.blocks)
            for name in self.names
        ]


def whole_call(q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid) -> RecordedCall:
    return RecordedCall(q, k, v, JointLayout.of(q.shape[2], grid, 0), None)


def demo_attention(
    grid: TokenGrid, layers: list[int], device: torch.device, dtype: torch.dtype
) -> list[tuple[int, Tensor, Tensor, Tensor]]:
    """(layer, q, k, v [1, H, S, D]) of some layers in RECORDED_STEPS of one sampling run."""
    model = load_demo_model(device)
    kept: list[tuple[int, Tensor, Tensor, Tensor]] = []
    step = [0]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if layer in layers and step[0] in RECORDED_STEPS:
            first, second, third = (x[:1].to(dtype, copy=True) for x in (q, k, v))
            kept.append((layer, first, second, third))
        q, k, v = (x.to(dtype) if device.type == "cuda" else x for x in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v).to(torch.float32)

    sample(
        model, encode(draw_prompts(1, 0)[0])[0].to(device), encode("")[0].to(device),
        (grid.frames, 2 * grid.height, 2 * grid.width), SAMPLING_STEPS, CFG, 7, attention=attend,
        on_step=lambda done, *_: step.__setitem__(0, done + 1),
    )  # fmt: skip
    return kept


def scores_by_head(call: RecordedCall, case: Case, sample: RowSample | None) -> Tensor:
    """[H, O, SCORE_COLUMNS] by PyTorch, from the rows of a sample."""
    device, profiles = call.q.device, case.profiles(call.q.device, sample)
    scale = call.q.shape[-1] ** -0.5
    return torch.stack(
        [
            order_scores(
                *call.inputs_of(0, head), case.permutations(device), case.block, DENSITY, scale,
                profiles=profiles, sample=sample,
            )
            for head in range(call.q.shape[1])
        ]
    )  # fmt: skip


def recorders_scores(call: RecordedCall, case: Case) -> Tensor:
    """[H, O, SCORE_COLUMNS] as the recorder takes them."""
    if not maps_are_served(call.q):
        return scores_by_head(call, case, None)
    permutations = torch.stack(case.permutations(call.q.device)).int()
    profiles = case.profiles(call.q.device, None)
    scale = call.q.shape[-1] ** -0.5
    return scores_of_heads(call, permutations, profiles.__getitem__, case.block, DENSITY, scale)


def agreement(case: Case, layers: list[int], device: torch.device) -> list[dict[str, object]]:
    """How each rule chooses, against all rows; scores are summed over the recorded steps."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    tokens, side = case.grid.tokens, case.block[0]
    rules: dict[str, Callable[[RecordedCall], Tensor]] = {
        "all rows": lambda call: scores_by_head(
            call, case, RowSample.everything(tokens, side, device)
        ),
        "recorder": lambda call: recorders_scores(call, case),
        "16 whole blocks": lambda call: scores_by_head(
            call, case, RowSample.of(tokens, side, device, whole=True)
        ),
    }
    maps = demo_attention(case.grid, layers, device, dtype)
    sums: dict[str, dict[int, Tensor]] = {rule: {} for rule in rules}
    seconds = dict.fromkeys(rules, 0.0)
    for layer, q, k, v in maps:
        call = whole_call(q, k, v, case.grid)
        for rule, scores in rules.items():
            begin = time.perf_counter()
            found = scores(call).cpu().double()
            seconds[rule] += time.perf_counter() - begin
            sums[rule][layer] = sums[rule].get(layer, 0) + found
    tables = {rule: torch.stack(list(of_layer.values())) for rule, of_layer in sums.items()}
    exact = tables["all rows"]
    recall = exact[..., RETAINED] / exact[..., MAPS]  # [L, H, O] at DENSITY
    rows: list[dict[str, object]] = []
    for criterion in CHOICES[:2]:
        best = choose_orders(exact, criterion, 0.5)
        for rule in list(rules)[1:]:
            order = choose_orders(tables[rule], criterion, 0.5).order
            loss = recall.gather(2, best.order[..., None]) - recall.gather(2, order[..., None])
            ratio = best.error.gather(2, order[..., None]) / best.error.gather(
                2, best.order[..., None]
            )
            rows.append(
                {
                    "criterion": criterion,
                    "rule": rule,
                    "heads": order.numel(),
                    "same_order": round(float((order == best.order).float().mean()), 3),
                    "recall_loss_mean": round(float(loss.mean()), 5),
                    "recall_loss_max": round(float(loss.max()), 5),
                    "error_ratio_mean": round(float(ratio.mean()), 4),
                    "error_ratio_max": round(float(ratio.max()), 4),
                    "seconds": round(seconds[rule], 2),
                }
            )
    return rows


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Median time of some work on the GPU, by its own clock."""
    work()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def check(case: Case, q: Tensor, k: Tensor, v: Tensor) -> dict[str, float]:
    """Largest differences between kernels and PyTorch; stops where they are too large."""
    small = min(4096, q.shape[2] - 37)
    part = [x[:, :2, :small] for x in (q, k)]
    order = torch.randperm(small, device=q.device).int()[None]
    got, want = (
        block_mass_of(*part, order, case.block, implementation=implementation)
        for implementation in ("triton", "reference")
    )
    mass = float(((got - want).abs() / want.mean()).max())
    call = whole_call(q[:, :1], k[:, :1], v[:, :1], case.grid)
    few = case._replace(names=case.names[:2])
    scores, expected = recorders_scores(call, few), scores_by_head(call, few, None)
    off = (scores - expected).abs()
    energy = expected[..., ENERGY, None]
    score = float(torch.cat([off[..., : ENERGY + 1] / energy, off[..., [RETAINED]]], -1).max())
    first, second = (
        torch.cat(
            [x for _, x in block_mass(q, k, case.permutations(q.device)[-1][None], case.block)]
        )
        for _ in range(2)
    )
    assert torch.equal(first, second), "block mass changed from one run to the next"
    assert mass < 1e-3, f"block mass is off by {mass} of its mean"
    assert score < 1e-2, f"scores are off by {score}"
    return {"mass_difference": round(mass, 6), "score_difference": round(score, 5)}


def timings(case: Case, heads: int, head_dim: int, repeats: int) -> dict[str, object]:
    """What the parts of calibration cost for one layer."""
    device = torch.device("cuda")
    shape = (1, case.grid.tokens, heads * head_dim)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))
    q, k, v = (x.view(1, -1, heads, head_dim).transpose(1, 2) for x in (q, k, v))
    result: dict[str, object] = {"checked": check(case, q, k, v)}
    call = whole_call(q, k, v, case.grid)
    permutations, profiles = case.permutations(device), case.profiles(device, None)
    stacked, scale = torch.stack(permutations).int(), head_dim**-0.5
    # Every head in another order, as heads choose.
    names = len(case.names)
    chosen = sorted(((head, head % names) for head in range(heads)), key=lambda pair: pair[1])
    per_head = [permutations[head % names][None] for head in range(heads)]
    full = case.orders.geometry(case.names[-1], device)
    one_head = block_mass(q[:, :1], k[:, :1], permutations[-1][None], case.block)
    mass = torch.cat([x for _, x in one_head])

    def measure_mass() -> None:
        for _ in block_mass(q, k, per_head, case.block):
            pass

    work: dict[str, Callable[[], object]] = {
        "dense_sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v),
        "exact_mass": measure_mass,
        "choice": lambda: recorders_scores(call, case),
        "error_curves": lambda: map_errors(
            call, 0, chosen, stacked, profiles.__getitem__, case.block, ERROR_DENSITIES, scale
        ),
        "profile_fit_one_head": lambda: full.fit(mass),
    }
    times = {name: median_ms(call_it, repeats) for name, call_it in work.items()}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for name in ("exact_mass", "choice"):
        torch.cuda.reset_peak_memory_stats()
        work[name]()
        peak = torch.cuda.max_memory_allocated() - before
        result[f"{name}_extra_mib"] = round(peak / (1 << 20), 1)
    dense = times["dense_sdpa"]
    result["milliseconds"] = {name: round(value, 3) for name, value in times.items()}
    result["of_dense"] = {name: round(value / dense, 3) for name, value in times.items()}
    result["mass_and_choice_of_dense"] = round((times["exact_mass"] + times["choice"]) / dense, 3)
    # What calibration did before the kernels: one head, from PyTorch.
    part = [x[:, :1] for x in (q, k)]
    one = stacked[:1]
    before_mass = median_ms(
        lambda: block_mass_of(*part, one, case.block, implementation="reference"), 1
    )
    few = case._replace(names=case.names[:2])
    alone = whole_call(q[:, :1], k[:, :1], v[:, :1], case.grid)
    before_choice = median_ms(lambda: scores_by_head(alone, few, None), 1)
    result["pytorch_of_dense"] = {
        "exact_mass": round(before_mass * heads / dense, 1),
        "choice": round(before_choice / 2 * len(case.names) * heads / dense, 1),
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grid", type=int, nargs=3, default=(8, 16, 16), help="demo model's")
    parser.add_argument("--layers", type=int, nargs="*", default=[0, 3, 6])
    parser.add_argument("--timed-grid", type=int, nargs=3, default=(8, 64, 64))
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--block", type=int, nargs=2, help="default: calibration's own")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--skip-agreement", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args()
    device = torch.device(given.device)
    result: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }

    def case_of(sides: tuple[int, int, int]) -> Case:
        grid = TokenGrid(*sides)
        return Case.of(grid, checked_block(given.block or default_block(grid.tokens)))

    if not given.skip_agreement:
        case = case_of(given.grid)
        rows = agreement(case, given.layers, device)
        result["agreement"] = {
            "grid": list(case.grid.shape), "block": list(case.block),
            "orders": len(case.names), "density": DENSITY, "rows": rows,
        }  # fmt: skip
        for row in rows:
            print(" ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if device.type == "cuda":
        case = case_of(given.timed_grid)
        result["timings"] = {
            "grid": list(case.grid.shape), "block": list(case.block), "heads": given.heads,
            "head_dim": given.head_dim, "orders": len(case.names),
            **timings(case, given.heads, given.head_dim, given.repeats),
        }  # fmt: skip
    text = json.dumps(result, indent=2)
    print(text)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(text + "\n", encoding="utf-8")
    if not given.skip_agreement:
        lost = max(float(r["recall_loss_mean"]) for r in rows if r["rule"] == "recorder")  # type: ignore[arg-type]
        if lost > LARGEST_RECALL_LOSS:
            sys.exit(f"the recorder's choice loses {lost} of the recall of the exact choice")


if __name__ == "__main__":
    main()
