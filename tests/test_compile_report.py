"""benchmarks/compile_report.py: what it reads off a disassembly, and what it vouches for."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from benchmark_scripts import benchmark_script

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "compile_report.py"
COMMITTED = ROOT / "benchmarks" / "results" / "compile_report.json"
KEYS = {"kernel", "arch", "launch", "registers", "spill_bytes", "shared", "mma"}
ARCHITECTURES = {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}
REPORTED_WITH = "3.6.0"
LISTING = """
        /*0100*/                   IGMMA.64x128x32.S8.S8 R24, gdesc[UR4], RZ ;
        /*0110*/                   FFMA R1, R2, R3, R4 ;
        /*0120*/                   QGMMA.64x128x32.F32.E4M3.E4M3 R88, R20, gdesc[UR8], R88 ;
        /*0130*/              @!P0 BRA 0x100 ;
        /*0140*/                   IMMA.16864.U4.U4 R4, R8.ROW, R12.COL, RZ ;
        /*0150*/                   IMMA.16864.U4.U4 R4, R8.ROW, R12.COL, R4 ;
"""
NO_BARRIER = ".visible .entry kernel()\n{\n\tret;\n}\n"
# The script compiles for real: not in this process, whose Triton may be the interpreter.
COMPILING = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.fixture(scope="module")
def report():
    pytest.importorskip("triton", reason="the report compiles with Triton, which is not installed")
    return benchmark_script("compile_report")


def test_matrix_instructions_are_counted_by_name(report):
    assert report.matrix_instructions(LISTING) == {
        "IGMMA.64x128x32.S8.S8": 1,
        "QGMMA.64x128x32.F32.E4M3.E4M3": 1,
        "IMMA.16864.U4.U4": 2,
    }


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"spill_bytes": 8}, "spilled"),
        ({"shared": 200_000}, "shared memory"),
        ({"mma": {"IMMA.16832.S8.S8": 4, "IMMA.16864.U4.U4": 4}}, "not INT4's own"),
        ({"mma": {"IMMA.16864.S4.S4": 4}}, "not INT4's own"),
        ({"mma": {}}, "no matrix instructions"),
        ({"undefined": ["UR4 at 0x0100 IGMMA", "UR8 at 0x0120 QGMMA"]}, "2 reads of undefined"),
        ({"reused": ["0x9800 by 2, first st.shared.b32"]}, "1 barriers stored over while valid"),
        ({"idle": ["%full"]}, "barriers that are initialised and not used: %full"),
    ],
    ids=str,
)
def test_a_launch_that_must_not_ship_is_named(report, change, problem):
    row = {
        "kernel": "int4_attention_kernel", "arch": "sm_86", "launch": "", "registers": 168,
        "spill_bytes": 0, "shared": 1024, "mma": {"IMMA.16864.S4.S4": 4, "IMMA.16864.U4.U4": 4},
    } | change  # fmt: skip
    found = report.problems_of(row)
    assert any(problem in text for text in found) if problem else not found


def test_what_the_machine_code_reads_undefined_is_in_the_row(report, monkeypatch):
    defined = LISTING.replace("FFMA R1, R2, R3, R4", "UMOV.64 UR10, 0x0")
    defined = "        /*00f0*/   LDCU.128 UR4, c[0x0][0x0] ;" + defined
    undefined = [
        "UR4, UR5, UR6, UR7 at 0x0100 IGMMA.64x128x32.S8.S8 R24, gdesc[UR4], RZ",
        "UR10, UR11 at 0x0120 QGMMA.64x128x32.F32.E4M3.E4M3 R88, R20, gdesc[UR8], R88",
    ]
    for code, expected in ((LISTING, undefined), (defined, None)):
        printed = {"-res-usage": "REG:168 STACK:8 SHARED:0", "-sass": code}

        def run(command, printed=printed, **_options):
            return SimpleNamespace(stdout=printed[command[1]])

        monkeypatch.setattr(report.subprocess, "run", run)
        asm = {"cubin": b"", "ptx": NO_BARRIER, "ttgir": ""}
        kernel = SimpleNamespace(asm=asm, metadata=SimpleNamespace(shared=1024))
        row = report.read_machine_code(kernel)
        assert (row["registers"], row["spill_bytes"], row["shared"]) == (168, 8, 1024)
        assert row.get("undefined") == expected
        assert not row.keys() & {"reused", "idle"}


def test_barriers_that_are_stored_over_and_idle_are_in_the_row(report, monkeypatch):
    printed = {"-res-usage": "REG:168 STACK:0 SHARED:0", "-sass": "        /*0000*/   EXIT ;"}
    monkeypatch.setattr(
        report.subprocess, "run", lambda command, **_: SimpleNamespace(stdout=printed[command[1]])
    )
    ptx = """
        .visible .entry kernel() {
            mov.b32 %r1, global_smem;
            mbarrier.init.shared::cta.b64 [%r1], 1;
            st.shared.b32 [%r1+4], %r2;
            ret;
        }
    """
    asm = {"cubin": b"", "ptx": ptx, "ttgir": "ttng.init_barrier %full, 1 : !ttg.memdesc<1xi64>"}
    row = report.read_machine_code(SimpleNamespace(asm=asm, metadata=SimpleNamespace(shared=8)))
    assert row["reused"] == ["0x0 by 1, first st.shared.b32 [%r1+4], %r2"]
    assert row["idle"] == ["%full"]
    assert "undefined" not in row


def test_the_int4_kernel_is_native_and_spills_nothing(report, tmp_path):
    if not importlib.import_module("compile_cases").int4.GLUON_SERVES:
        pytest.skip("this Triton lacks the Gluon that the INT4 kernel needs")
    out = tmp_path / "report.json"
    part = ["--capability", "86", "--head-dim", "128", "--kernel", "int4", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *part], capture_output=True, text=True, timeout=600,
        env=COMPILING,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    rows = json.loads(out.read_text())
    attention = [row for row in rows if row["kernel"] == "int4_attention_kernel"]
    assert len(attention) == 4  # 64 and 128 keys, without and with extra tokens
    for row in attention:
        assert row["spill_bytes"] == 0
        assert {name for name in row["mma"] if name.startswith("IMMA")} == {
            "IMMA.16864.S4.S4",
            "IMMA.16864.U4.U4",
        }
    if report.triton.__version__ == REPORTED_WITH:
        committed = json.loads(COMMITTED.read_text())
        assert all(row in committed for row in rows), "run make compile-report and commit it"


def test_the_committed_report_has_every_architecture():
    rows = json.loads(COMMITTED.read_text())
    assert all(set(row) == KEYS for row in rows)
    assert {row["arch"] for row in rows} == ARCHITECTURES
    for arch in ("sm_80", "sm_86", "sm_89"):
        assert any(r["arch"] == arch and r["kernel"] == "int4_attention_kernel" for r in rows)


def test_no_launch_spills_but_those_that_are_known(report):
    rows = json.loads(COMMITTED.read_text())
    assert report.new_problems(rows) == []
    for arch, kernel, launch in report.KNOWN:
        of_launch = [
            row for row in rows
            if (row["arch"], row["kernel"]) == (arch, kernel) and re.search(launch, row["launch"])
        ]  # fmt: skip
        found = [problem for row in of_launch for problem in report.problems_of(row)]
        assert found, f"{arch} {kernel} {launch} has no problem any more: take it off the list"


def test_a_problem_that_is_not_known_is_new(report):
    row = {
        "kernel": "attention_kernel", "arch": "sm_89", "registers": 255, "spill_bytes": 8,
        "launch": "head_dim 128, bits 8/8, blocks 64x128, grid", "shared": 1024,
        "mma": {"IMMA.16832.S8.S8.SAT": 4},
    }  # fmt: skip
    assert len(report.new_problems([row])) == 1
    known = row | {"arch": "sm_90", "launch": "head_dim 128, bits 4/8, blocks 64x128, joint"}
    assert report.new_problems([known]) == []
    assert report.new_problems([known | {"spill_bytes": 1000}])
    assert len(report.new_problems([known | {"undefined": ["UR4 at 0x0100 IGMMA"]}])) == 2
    assert len(report.new_problems([known | {"reused": ["0x9800 by 2, first st.shared"]}])) == 2
    assert len(report.new_problems([known | {"idle": ["%full"]}])) == 2
