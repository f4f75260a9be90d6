"""Attention by the PTX that Triton makes of the FP4 kernels for sm_120, executed on the CPU.

Run as a script, in a process without Triton's interpreter; prints the error of every case.
"""

from __future__ import annotations

import importlib
import itertools
import struct
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

HELPERS = Path(__file__).resolve().parent
sys.path[:0] = [str(HELPERS), str(HELPERS.parents[1] / "benchmarks")]

import torch  # noqa: E402
from _package import load_package  # noqa: E402

load_package()

from attention_cases import CASES, JOINT, Case, make_inputs, relative_error  # noqa: E402
from compile_cases import Launch, Recorder  # noqa: E402
from compile_report import compiled  # noqa: E402
from fp4_model import arguments, of_reference  # noqa: E402
from paro_attention.kernels.reference import reference_attention  # noqa: E402
from ptx_machine import Machine, Memory  # noqa: E402

# The package's attribute of the same name is the function.
fp4_attention = importlib.import_module("paro_attention.kernels.triton.fp4_attention")
fp4_prepass = importlib.import_module("paro_attention.kernels.triton.fp4_prepass")
CAPABILITY = 120
# Case, tail, dtype, and whether asynchronous copies land late.
RUN = (
    (replace(CASES[1], heads=1, tokens=150), True, torch.bfloat16, True),
    (
        Case("128 channels, 128 keys, extra keys with a bias", heads=1, tokens=200, head_dim=128,
             block=(64, 128), extra=(0, 40), hidden=(5,)),
        True, torch.float16, False,
    ),
    (replace(JOINT[0], heads=1, head_dim=128, tokens=128), False, torch.float16, True),
    (Case("32 queries", heads=1, tokens=96, head_dim=40, block=(32, 64)), True, torch.bfloat16,
     False),
)  # fmt: skip


class Executed:
    """Stands for a kernel and runs what it is compiled to for sm_120."""

    def __init__(self, kernel: Any, late: bool) -> None:
        self.kernel = kernel
        self.late = late

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*given: Any, **named: Any) -> None:
            launches: list[Launch] = []
            Recorder(self.kernel, launches)[grid](*given, **named)
            code = compiled(launches[0], CAPABILITY)
            threads = 32 * code.metadata.num_warps
            machine = Machine(code.asm["ptx"], threads, code.metadata.shared, self.late)
            memory = Memory([x for x in given if isinstance(x, torch.Tensor)])
            columns, rows, layers = (range(n) for n in (*grid, 1, 1)[:3])
            for program in itertools.product(columns, rows, layers):
                machine.run(program, [*map(_bits, given), 0, 0], memory)
            memory.store()

        return run


def _bits(x: Any) -> int:
    if isinstance(x, torch.Tensor):
        return x.data_ptr()
    return struct.unpack("<I", struct.pack("<f", x))[0] if isinstance(x, float) else int(x)


def error_of(case: Case, tail: bool, late: bool, dtype: torch.dtype) -> float:
    """Of the executed kernels against the reference."""
    inputs = make_inputs(case, dtype)
    with ExitStack() as stack:
        for module, name in (
            (fp4_prepass, "fp4_prepass_kernel"), (fp4_attention, "fp4_attention_kernel"),
        ):  # fmt: skip
            stack.enter_context(patch.object(module, name, Executed(vars(module)[name], late)))
        got = fp4_attention.fp4_attention(*arguments(inputs, case, tail))
    given, named = of_reference(inputs, case, tail)
    want = reference_attention(*given, qk_bits=4, pv_bits=4, fp4=True, **named)
    return relative_error(got, want)


def main() -> None:
    for case, tail, dtype, late in RUN:
        sys.stdout.write(f"{error_of(case, tail, late, dtype):.2e} {dtype} {case.name}\n")


if __name__ == "__main__":
    main()
