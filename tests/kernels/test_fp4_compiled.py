"""What Triton makes of the FP4 kernels for sm_120: their machine code, and the numbers it gives.

There is no such card here. The PTX is executed on the CPU by ``ptx_machine``, which reads the ISA
as the comments of Triton's own lowering do; the card itself has the last word.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The scripts compile for real: not in this process, whose Triton may be the interpreter.
COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], capture_output=True, text=True,
        timeout=600, env=COMPILING,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def _triton_3_6():
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not triton.__version__.startswith("3.6."):
        pytest.skip("what the machine knows is what Triton 3.6 compiles to")


def test_both_products_are_native_and_nothing_spills(tmp_path):
    out = tmp_path / "report.json"
    run("benchmarks/compile_report.py", "--capability", "120", "--head-dim", "64", "128",
        "--kernel", "fp4", "--out", str(out))  # fmt: skip
    rows = json.loads(out.read_text())
    attention = [row for row in rows if row["kernel"] == "fp4_attention_kernel"]
    assert len(attention) == 8  # two head dimensions, 64 and 128 keys, without and with extra
    assert len(rows) > len(attention)  # and the pre-pass
    for row in rows:
        assert row["spill_bytes"] == 0
    for row in attention:
        own = {name: count for name, count in row["mma"].items() if name.startswith("OMMA")}
        channels = 128 if "head_dim 128" in row["launch"] else 64
        keys = 128 if "64x128" in row["launch"] else 64
        # 16 rows of a warp by 8 columns, 64 summed: Q.K and P.V, once in the loop.
        count = keys // 8 * channels // 64 + channels // 8 * keys // 64
        assert own == {"OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X": count}


def test_the_code_for_sm_120_computes_what_the_reference_says():
    """In the rounding of the output and of the tail: 2**-9 and 2**-12 of a value."""
    lines = run("tests/helpers/fp4_on_sm120.py").splitlines()
    assert len(lines) == 4
    for line in lines:
        bound = 2e-3 if "bfloat16" in line else 3e-4
        assert float(line.split()[0]) < bound, line
