"""Compiles every launch that a call makes, for every architecture, and reads its machine code.

    make compile-report

No GPU is needed: the calls are made on CPU tensors with recorders in place of the kernels, and what
was recorded is compiled for each architecture. For each launch: registers, spilled bytes (stack),
shared memory and matrix instructions by name. Prints a table and writes
benchmarks/results/compile_report.json; ``--kernel NAME`` and ``--capability CC`` take a part, which
goes to ``--out``. More shared memory than the card has is an error, and so is a spill or another
instruction than INT4's own in the INT4 kernel; how many other launches spill is said.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from _package import ROOT, load_package

load_package()

import torch  # noqa: E402
import triton  # noqa: E402
from paro_attention.kernels import BlockMask  # noqa: E402
from paro_attention.kernels import triton as kernels  # noqa: E402
from paro_attention.kernels.int4_launch import int4_serves  # noqa: E402
from paro_attention.kernels.triton import int4  # noqa: E402
from paro_attention.kernels.triton.call_plan import CallPlan, CallShape  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "compile_report.json"
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Shared memory of one program, KiB (CUDA programming guide, table of compute capabilities).
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
BITS = ((8, 8), (8, 16), (16, 16), (4, 4))
HEAD_DIMS = (64, 96, 128, 256)
BLOCKS = ((64, 64), (64, 128))
TOKENS = 512
MATRIX = re.compile(r"\b((?:[HIQ]G?MMA|UTC\w*MMA|OMMA)\S*)")
TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int8: "i8",
    torch.int16: "i16", torch.int32: "i32", torch.float8_e4m3fn: "fp8e4nv",
}  # fmt: skip
NATIVE_INT4 = "IMMA.16864"


@dataclass(frozen=True, slots=True)
class Case:
    """A call: compute capability, head dimension, bits, block, and whether tokens are extra."""

    capability: int
    head_dim: int
    bits: tuple[int, int]
    block: tuple[int, int]
    extra: bool

    def __str__(self) -> str:
        tokens = "joint" if self.extra else "grid"
        bits, block = (f"{a}{sign}{b}" for (a, b), sign in ((self.bits, "/"), (self.block, "x")))
        return f"head_dim {self.head_dim}, bits {bits}, blocks {block}, {tokens}"


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with what decides its machine code."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]


class Recorder:
    """Stands for a kernel and writes its launches down."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, _grid: object) -> Any:
        return self._record

    def _record(self, *given: Any, **named: Any) -> None:
        names = self.kernel.arg_names
        constants = {names[p.num]: named[p.name] for p in self.kernel.params if p.is_constexpr}
        signature = {n: "constexpr" for n in constants}
        aligned = []
        for place, (name, value) in enumerate(zip(names, given, strict=False)):
            signature[name] = _type_of(value)
            fixed = self.kernel.params[place].do_not_specialize
            if not fixed and (isinstance(value, torch.Tensor) or _divisible(value)):
                aligned.append(place)
        options = {n: value for n, value in named.items() if n not in constants}
        self.launches.append(
            Launch(
                self.kernel,
                tuple((n, signature[n]) for n in names),
                tuple(constants.items()),
                tuple(aligned),
                tuple(options.items()),
            )
        )


def _divisible(value: Any) -> bool:
    return isinstance(value, int) and value % 16 == 0


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, int | float):
        return "i32" if isinstance(value, int) else "fp32"
    shape = ", ".join(map(str, value.block_shape))
    return f"tensordesc<{TYPES[value.base.dtype]}[{shape}]>"


@contextmanager
def recording(capability: tuple[int, int]) -> Iterator[list[Launch]]:
    """Within it, launches are written down as on a card of this compute capability."""
    launches: list[Launch] = []
    names = ["attend", "prepass", "statistics"]
    if int4.GLUON_SERVES:
        names += ["int4_attention", "int4_prepass"]
    modules = [importlib.import_module(f"{kernels.__name__}.{name}") for name in names]
    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda.get_device_capability", lambda _=None: capability))
        for module in modules:
            for name, value in list(vars(module).items()):
                if name.endswith("_kernel") and isinstance(value, triton.JITFunction):
                    stack.enter_context(patch.object(module, name, Recorder(value, launches)))
        yield launches


def launches_of(case: Case) -> list[Launch]:
    """The launches of a call, none of them twice."""
    capability = divmod(case.capability, 10)
    extra = 64 if case.extra else 0
    size = (1, TOKENS + extra, 2, case.head_dim)
    q, k, v = (torch.zeros(size, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
    blocks = tuple(-(-TOKENS // side) for side in case.block)
    mask = BlockMask.from_dense(torch.ones(2, *blocks, dtype=torch.bool), case.block, TOKENS)
    order = torch.arange(TOKENS + extra, dtype=torch.int32)[None]
    given = {
        "q": q, "k": k, "v": v, "permutation": order,
        "order_of_head": torch.zeros(2, dtype=torch.int32), "row_offsets": mask.row_offsets,
        "kv_indices": mask.kv_indices, "computed_bits": mask.computed_bits,
        "tail_bias": torch.zeros(2), "key_bias": torch.zeros(1, max(extra, 1)),
    }  # fmt: skip
    scale = case.head_dim**-0.5
    with recording(capability) as launches:
        if case.bits == (4, 4) and int4_serves(capability, case.head_dim, case.block):
            assert int4.int4_attention is not None, "this Triton cannot build the INT4 kernel"
            int4.int4_attention(*given.values(), case.extra, TOKENS, *case.block, True, scale)
        else:
            shape = CallShape(
                device=0, dtype=q.dtype, sizes=tuple(q.shape),
                strides=(*q.stride(), *k.stride(), *v.stride()), aligned=(True,) * len(given),
                lists=(*mask.computed_bits.shape[1:], int(case.extra)), grid_tokens=TOKENS,
                block=case.block, qk_bits=case.bits[0], pv_bits=case.bits[1],
                fp8=case.bits[1] == 8 and capability >= (8, 9), tail=True, biased=case.extra,
                scale=scale,
            )  # fmt: skip
            kernels._record(CallPlan.of(shape), given, torch.empty_like(q))
    return list(dict.fromkeys(launches))


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel of a launch, as Triton's compiler gives it."""
    kind = ASTSource
    if launch.kernel.is_gluon():
        from triton.experimental.gluon._runtime import GluonASTSource as kind
    attributes = {(place,): [["tt.divisibility", 16]] for place in launch.aligned}
    source = kind(launch.kernel, dict(launch.signature), dict(launch.constants), attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=dict(launch.options))


def read_machine_code(kernel: Any) -> dict[str, Any]:
    """Registers, spilled bytes, shared memory and matrix instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    shared = int(kernel.metadata.shared)
    mma = matrix_instructions(code)
    return {"registers": registers, "spill_bytes": stack, "shared": shared, "mma": mma}


def matrix_instructions(code: str) -> dict[str, int]:
    """Matrix instructions of a disassembly by full name, with their number."""
    return dict(Counter(MATRIX.findall(code)).most_common())


def problems_of(row: dict[str, Any]) -> list[str]:
    """What a shipped launch must not have."""
    found = []
    if row["shared"] > SHARED_KIB[int(row["arch"][3:])] * 1024:
        found.append(f"{row['shared']} bytes of shared memory, more than the card has")
    if row["spill_bytes"] and row["kernel"] == "int4_attention_kernel":
        found.append(f"{row['spill_bytes']} bytes spilled")
    integer = [name for name in row["mma"] if name.startswith("IMMA")]
    if row["kernel"] == "int4_attention_kernel" and not (
        {name.split(".", 2)[2] for name in integer} == {"S4.S4", "U4.U4"}
        and all(name.startswith(NATIVE_INT4) for name in integer)
    ):
        found.append(f"not INT4's own instructions: {', '.join(integer)}")
    if "attention" in row["kernel"] and not row["mma"]:
        found.append("no matrix instructions")
    return [f"{row['arch']} {row['kernel']} ({row['launch']}): {what}" for what in found]


def cases_for(capability: int, head_dims: list[int]) -> Iterator[Case]:
    """Calls whose kernels are looked at: every number format, blocks of 64 and of 128 keys."""
    for head_dim in head_dims:
        for bits in BITS:
            for block in BLOCKS:
                for extra in (False, True):
                    yield Case(capability, head_dim, bits, block, extra)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", "--json", type=Path, default=RESULT)
    parser.add_argument("--capability", type=int, nargs="*", default=list(SHARED_KIB))
    parser.add_argument("--head-dim", type=int, nargs="*", default=list(HEAD_DIMS))
    parser.add_argument("--kernel", default="", help="only kernels with this in their names")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for capability in given.capability:
        seen: set[Launch] = set()
        for case in cases_for(capability, given.head_dim):
            for launch in launches_of(case):
                name = launch.kernel.__name__
                if launch in seen or given.kernel not in name:
                    continue
                seen.add(launch)
                row = {"kernel": name, "arch": f"sm_{capability}", "launch": str(case)}
                row |= read_machine_code(compiled(launch, capability))
                rows.append(row)
                mma = " ".join(f"{n}x{k}" for n, k in row["mma"].items())
                print(
                    f"{row['arch']:7} {name:24} {row['launch']:46} regs {row['registers']:3d} "
                    f"spill {row['spill_bytes']:4d} shared {row['shared'] / 1024:5.1f} KiB {mma}",
                    flush=True,
                )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    given.out.write_text(f"[\n{lines}\n]\n")
    print(f"triton {triton.__version__}: wrote {given.out}")
    spilling = [row for row in rows if row["spill_bytes"]]
    worst = max((row["spill_bytes"] for row in spilling), default=0)
    print(f"{len(spilling)} of {len(rows)} launches spill, at most {worst} bytes a thread")
    problems = [problem for row in rows for problem in problems_of(row)]
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
