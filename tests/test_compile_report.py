"""What benchmarks/compile_report.py reads off a disassembly."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LISTING = """
        /*0100*/                   IGMMA.64x128x32.S8.S8 R24, gdesc[UR4], RZ ;
        /*0110*/                   FFMA R1, R2, R3, R4 ;
        /*0120*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R88, R20, gdesc[UR8], R88 ;
        /*0130*/              @!P0 BRA 0x100 ;
        /*0140*/                   FADD R1, R1, R2 ;
        /*0150*/               @P1 BRA 0x140 ;
        /*0160*/               @P1 BRA 0x100 ;
        /*0170*/                   BRA 0x170 ;
"""


@pytest.fixture(scope="module")
def report():
    pytest.importorskip("triton", reason="the report compiles with Triton, which is not installed")
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        spec = importlib.util.spec_from_file_location(
            "compile_report", ROOT / "benchmarks" / "compile_report.py"
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["compile_report"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    return module


def test_matrix_instructions_are_counted_by_name(report):
    assert report.matrix_instructions(LISTING) == {
        "IGMMA.64x128x32.S8.S8": 1,
        "QGMMA.64x128x32.F32.E4M3.E4M3": 1,
    }


def test_the_main_loop_is_the_tightest_that_multiplies(report):
    assert report.main_loop_length(LISTING) == 4
    assert report.main_loop_length(LISTING.replace("GMMA", "ADD")) == 0
