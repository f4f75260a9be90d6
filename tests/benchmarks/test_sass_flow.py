"""benchmarks/sass_flow.py: which reads of uniform registers it finds undefined."""

from __future__ import annotations

import importlib
import re
import textwrap

import pytest


@pytest.fixture(scope="module")
def flow():
    return importlib.import_module("sass_flow")


def listing(*functions: str) -> str:
    """Instructions, one a line from address 0 on, in the form that cuobjdump prints."""
    lines = ["Fatbin elf code:", "================", "arch = sm_90"]
    for place, text in enumerate(functions):
        lines.append(f"\t\tFunction : kernel_{place}")
        for number, line in enumerate(textwrap.dedent(text).strip().splitlines()):
            lines.append(f"        /*{number * 16:04x}*/  {line} ;  /* 0x0000000a00067ab9 */")
            lines.append(f"{'':60}/* 0x000fe20000000a00 */")
    return "\n".join(lines)


def found(flow, *functions: str) -> list[tuple[str, str]]:
    """Registers and the address of each read that is found."""
    texts = "\n".join(flow.undefined_uniforms(listing(*functions)))
    return re.findall(r"^(.+) at 0x(\w+) ", texts, re.M)


# Two loops that multiply by UR4..UR7; the first is skipped where P0 says so.
LOOPS = """
    UMOV UR6, 0x10
    UMOV UR7, 0x4000
    {before}
    @!P0 BRA 0x80
    {preheader}
    IGMMA.64x128x32.S8.S8 R24, gdesc[UR4], R24
    @P1 BRA 0x50
    NOP
    IGMMA.64x128x32.S8.S8 R24, gdesc[UR4], R24
    @P2 BRA 0x80
    EXIT
    BRA 0xb0
    NOP
"""


def test_a_value_of_a_loop_that_was_skipped_is_undefined(flow):
    code = LOOPS.format(before="NOP", preheader="ULDC.64 UR4, c[0x0][0x210]")
    texts = flow.undefined_uniforms(listing(code))
    assert texts == ["UR4, UR5 at 0x0080 IGMMA.64x128x32.S8.S8 R24, gdesc[UR4], R24"]


def test_a_value_of_both_loops_is_defined_before_them(flow):
    code = LOOPS.format(before="ULDC.64 UR4, c[0x0][0x210]", preheader="NOP")
    assert found(flow, code) == []


def test_a_loop_does_not_define_what_its_first_step_reads(flow):
    code = """
        UIADD3 UR4, UR4, 0x1, URZ
        @P0 BRA 0x0
        EXIT
    """
    assert found(flow, code) == [("UR4", "0000")]


@pytest.mark.parametrize(
    ("branch", "expected"),
    [
        ("@P0 BRA 0x30", [("UR4", "0030")]),
        ("@!UP1 BRA 0x30", [("UR4", "0030")]),
        ("BRA.U UP0, 0x30", [("UR4", "0030")]),
        ("@!P0 BRA P1, 0x30", [("UR4", "0030")]),
        ("@P0 CALL.REL.NOINC 0x30", [("UR4", "0030")]),
        ("@P0 EXIT", []),
        ("BSSY B0, 0x30", []),
        ("BRA 0x10", []),
    ],
    ids=str,
)
def test_a_write_that_a_branch_goes_around(flow, branch, expected):
    code = f"""
        {branch}
        UMOV UR4, 0x1
        NOP
        MOV R0, UR4
        EXIT
    """
    assert found(flow, code) == expected


@pytest.mark.parametrize(
    ("line", "goes_on"),
    [
        ("EXIT", False),
        ("@P0 EXIT", True),
        ("RET.REL.NODEC R2 0x0", False),
        ("@!P1 RET.REL.NODEC R2 0x0", True),
        ("BRA 0x20", False),
        ("BRA.U !UP0, 0x20", True),
        ("BSYNC B0", True),
        ("@P0 BRX R2 -0x10", True),
    ],
    ids=str,
)
def test_what_does_not_go_on_leaves_the_rest_unread(flow, line, goes_on):
    assert found(flow, f"{line}\nMOV R0, UR4\nEXIT") == ([("UR4", "0010")] if goes_on else [])


def test_a_write_under_a_predicate_counts(flow):
    code = """
        @UP0 UMOV UR4, 0x1
        @UP0 UIADD3 UR5, UP1, UR4, UR6, URZ
        @P0 R2UR UR6, R3
        EXIT
    """
    assert found(flow, code) == [("UR6", "0010")]


def test_what_is_called_returns_after_the_call(flow):
    code = """
        CALL.REL.NOINC 0x40
        MOV R0, UR4
        MOV R1, UR5
        EXIT
        MOV R2, UR4
        UMOV UR5, 0x1
        RET.REL.NODEC R20 0x0
    """
    assert found(flow, code) == [("UR4", "0010"), ("UR5", "0020"), ("UR4", "0040")]


def test_the_targets_of_a_jump_table_are_what_nothing_else_reaches(flow):
    code = """
        UMOV UR4, 0x1
        {second}
        {jump}
        UMOV UR7, 0x1
        @P1 BRA 0x60
        MOV R0, UR7
        @!P0 BRA 0x30
        MOV R0, UR4
        EXIT
        MOV R1, UR6
        EXIT
        UMOV UR6, 0x1
        MOV R1, UR5
        @P0 BRA 0x90
        EXIT
        BRA 0xf0
    """
    # Two targets: 0x30, a loop whose parts reach each other, and 0xb0, which alone leads to 0x90.
    jump = "BRX R2 -0x30"
    assert found(flow, code.format(second="NOP", jump=jump)) == [("UR5", "00c0")]
    assert found(flow, code.format(second="UMOV UR5, 0x2", jump=jump)) == []
    # Without a table the rest is never run.
    assert found(flow, code.format(second="NOP", jump="EXIT")) == []


def test_a_jump_table_under_a_predicate_also_goes_on(flow):
    code = """
        @P0 BRX R2 -0x10
        UMOV UR4, 0x1
        EXIT
        MOV R0, UR4
        EXIT
    """
    assert found(flow, code) == [("UR4", "0030")]


@pytest.mark.parametrize(
    ("write", "read", "missing"),
    [
        ("ULDC.64 UR4, c[0x0][0x210]", "UIADD3.64 UR8, UR4, 0x2, URZ", ""),
        ("ULDC UR4, c[0x0][0x210]", "UIADD3.64 UR8, UR4, 0x2, URZ", "UR5"),
        ("LDCU.128 UR4, c[0x0][0x380]", "STG.E desc[UR6][R2.64], R4", ""),
        ("LDCU.64 UR4, c[0x0][0x380]", "LDG.E R0, desc[UR6][R2.64+0x4]", "UR6, UR7"),
        ("UIMAD.WIDE.U32 UR4, URZ, 0x1, URZ", "UIMAD.WIDE UR8, UR4, 0x4, UR4", ""),
        ("R2UR UR4, R3", "UIMAD.WIDE UR8, UR4, 0x4, UR4", "UR5"),
        ("UIADD3.64 UR4, UPT, UPT, URZ, 0x2, URZ", "ISETP.GE.S64.AND P0, PT, R2, UR4, PT", ""),
        ("UIADD3 UR4, UP0, UPT, URZ, 0x2, URZ", "UISETP.NE.U64.AND UP0, UPT, UR4, URZ", "UR5"),
        ("ULOP3.LUT UP0, UR4, URZ, 0xf, URZ, 0xc0, !UPT", "MOV R0, UR4", ""),
        ("ULOP3.LUT UP0, URZ, URZ, 0xf, URZ, 0xc0, !UPT", "MOV R0, UR4", "UR4"),
        ("VOTEU.ANY UR4, UPT, PT", "REDUX.SUM.S32 UR5, R4", ""),
        ("REDUX.SUM.S32 UR4, R4", "STS.64 [R2+UR4+0x80], R6", ""),
        ("UISETP.GE.AND UP0, UPT, URZ, 0x1, UPT", "FMUL R0, R1, -UR4", "UR4"),
        ("UMOV.64 UR6, 0x0", "QGMMA.64x64x32.F32.E4M3.E4M3 R24, R8, gdesc[UR4], R24", ""),
        ("UMOV.64 UR6, 0x0", "HGMMA.64x64x16.F32 R24, gdesc[UR4].tnspB, RZ, !UPT", "UR4, UR5"),
        ("UMOV.64 UR4, 0x0", "HGMMA.64x64x16.F32 R24, gdesc[UR4].tnspB, RZ, !UPT", "UR6, UR7"),
        ("LDCU.128 UR4, c[0x0][0x0]", "UTMALDG.2D [UR4], [UR8]", "UR8, UR9"),
        ("LDCU.128 UR4, c[0x0][0x0]", "UTMALDG.3D [UR4], [UR6]", "UR8"),
        ("S2UR UR4, SR_CTAID.X", "SYNCS.EXCH.64 URZ, [UR4+0x8], UR4", "UR5"),
    ],
    ids=str,
)
def test_an_operand_takes_as_many_registers_as_its_instruction_says(flow, write, read, missing):
    expected = [(missing, "0010")] if missing else []
    assert found(flow, f"{write}\n{read}\nEXIT") == expected


def test_scheduling_behind_an_instruction_is_not_read(flow):
    code = """
        LDCU.64 UR4, c[0x0][0x380]   &wr=0x0 ?trans1
        @P0 BRA 0x30                 ?WAIT5_END_GROUP
        UMOV UR6, 0x1                &req={1} ?trans2
        MOV R0, UR6                  &req={0} &rd=0x1 ?WAIT4_END_GROUP
        EXIT                         ?trans5
    """
    assert found(flow, code) == [("UR6", "0030")]


def test_functions_are_read_apart(flow):
    first, second = "UMOV UR4, 0x1\nEXIT", "MOV R0, UR4\nEXIT"
    assert found(flow, first, second) == [("UR4", "0000")]
    assert found(flow, second, first) == [("UR4", "0000")]


def test_what_is_no_disassembly_is_refused(flow):
    with pytest.raises(ValueError, match="no instruction"):
        flow.undefined_uniforms("cuobjdump info : no SASS")
