"""benchmarks/ptx_barriers.py: which barriers it finds stored over while they may be valid."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "helpers" / "barriers_on_sm90.py"


@pytest.fixture(scope="module")
def barriers():
    return importlib.import_module("ptx_barriers")


@pytest.fixture(scope="module")
def texts() -> dict[str, dict[str, str]]:
    """PTX and GPU IR of kernels by their names, from beside a Triton that may be interpreting."""
    pytest.importorskip("triton", reason="compiles with Triton, which is not installed")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, timeout=600,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    texts = json.loads(done.stdout)
    if not texts:
        pytest.skip("this Triton lacks the Gluon that the Hopper kernels need")
    return texts


@pytest.fixture(scope="module")
def compiled(texts) -> dict[str, str]:
    return {name: text["ptx"] for name, text in texts.items()}


def kernel(body: str, threads: int = 128) -> str:
    """PTX as Triton's compiler prints it: a barrier at 0x100 (%r8), the thread in %r1."""
    return f"""
.extern .shared .align 16 .b8 global_smem[];
.visible .entry some_kernel(
\t.param .u64 .ptr .global .align 1 some_kernel_param_0
)
.reqntid {threads}
{{
\t.reg .pred \t%p<9>;
\t.loc\t1 60 0                          // some.py:60:0
\tmov.b32 \t%r9, global_smem;
\tmov.u32 \t%r1, %tid.x;
\tsetp.eq.b32 \t%p1, %r1, 0;
\tadd.s32 \t%r8, %r9, 256;
\t// begin inline asm
\t@%p1 mbarrier.init.shared::cta.b64 [%r8], 1;
\t// end inline asm
{textwrap.indent(textwrap.dedent(body), chr(9))}
\tret;
}}
"""


def found(barriers, *bodies: str) -> list[str]:
    """Offset of each barrier and the number of stores onto it."""
    texts = barriers.reused_barriers("".join(map(kernel, bodies)))
    return [text.split(", first ")[0] for text in texts]


WAIT = """
{
\t.reg .pred complete;
\twaitLoop:
\tmbarrier.try_wait.parity.shared.b64 complete, [%r8], %r7;
\t@!complete bra.uni waitLoop;
}
"""
INVALIDATE = "@%p1 mbarrier.inval.shared::cta.b64 [%r8];"
STORE = "st.shared.b32 [%r8], %r7;"


def test_a_barrier_is_not_to_be_stored_over_until_it_is_invalidated(barriers):
    assert found(barriers, WAIT + STORE) == ["0x100 by 1"]
    assert found(barriers, WAIT + STORE + STORE) == ["0x100 by 2"]
    assert found(barriers, WAIT + INVALIDATE + STORE) == []
    assert found(barriers, WAIT + STORE + INVALIDATE) == ["0x100 by 1"]
    assert found(barriers, WAIT) == []


def test_what_is_found_is_named(barriers):
    texts = barriers.reused_barriers(kernel(WAIT + "st.shared.v2.b32 [%r8+-8], {%r7, %r6};\n" * 2))
    assert texts == []
    texts = barriers.reused_barriers(kernel(WAIT + "st.shared.v2.b32 [%r8+-4], {%r7, %r6};\n" * 2))
    assert texts == ["0x100 by 2, first st.shared.v2.b32 [%r8+-4], {%r7, %r6}"]


@pytest.mark.parametrize(
    ("store", "hits"),
    [
        ("st.shared.b32 [%r9+252], %r7;", False),
        ("st.shared.v4.b32 [%r9+240], {%r7, %r7, %r7, %r7};", False),
        ("st.shared.v4.b32 [%r9+244], {%r7, %r7, %r7, %r7};", True),
        ("st.shared.b8 [%r9+263], %rs1;", True),
        ("st.shared.b8 [%r9+264], %rs1;", False),
        ("@%p2 st.shared.b32 [ %r8 + 0 ], %r7;", True),
        ("st.global.b32 [%r8], %r7;", False),
        ("ld.shared.b32 %r7, [%r8];", False),
        ("atom.shared.add.u32 %r7, [%r8], 1;", True),
        ("red.shared.add.u32 [%r8+4], 1;", True),
        ("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r9+244], {%r7, %r7, %r7, %r7};", True),
        ("cp.async.ca.shared.global [ %r9 + 252 ], [ %rd7 + 0 ], 0x4, %r7;", False),
        ("cp.async.cg.shared.global [ %r9 + 252 ], [ %rd7 + 0 ], 0x10, %r7;", True),
        ("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
         "[%r8], [%rd3, {%r6, %r7}], [%r5];", True),
        ("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
         "[%r9], [%rd3, {%r6, %r7}], [%r8];", False),
        ("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%rd3, {%r6, %r7}], [%r8];", False),
        ("mbarrier.init.shared::cta.b64 [%r8], 1;", True),
        ("mbarrier.arrive.expect_tx.shared.b64 _, [%r8], 4096;", False),
    ],
    ids=str,
)  # fmt: skip
def test_a_store_reaches_as_far_as_its_bytes(barriers, store, hits):
    assert found(barriers, store) == (["0x100 by 1"] if hits else [])


@pytest.mark.parametrize(
    ("address", "hits"),
    [
        # 128 threads, 4 bytes each, from 0 or from 256 on, and 256 that the barrier is behind.
        ("shl.b32 %r2, %r1, 2; add.s32 %r3, %r9, %r2;", True),
        ("shl.b32 %r2, %r1, 2; and.b32 %r4, %r2, 252; add.s32 %r3, %r9, %r4;", False),
        ("and.b32 %r2, %r1, 63; shl.b32 %r4, %r2, 2; add.s32 %r3, %r9, %r4;", False),
        ("and.b32 %r2, %r1, 63; shl.b32 %r4, %r2, 2; or.b32 %r5, %r4, 256;"
         " add.s32 %r3, %r9, %r5;", True),
        ("shl.b32 %r2, %r1, 2; xor.b32 %r4, %r2, 16; add.s32 %r3, %r4, %r9;", True),
        ("shl.b32 %r2, %r1, 5; and.b32 %r4, %r2, 3808; add.s32 %r3, %r4, %r9;", False),
        ("bfe.s32 %r2, %r1, 4, 1; and.b32 %r4, %r2, 260; add.s32 %r3, %r4, %r9;", True),
        ("bfe.u32 %r2, %r1, 5, 2; shl.b32 %r4, %r2, 6; add.s32 %r3, %r4, %r9;", False),
        ("shr.u32 %r2, %r1, 5; shl.b32 %r4, %r2, 7; add.s32 %r3, %r4, %r9;", True),
        ("shfl.sync.idx.b32 %r2, %r1, 0, 31, -1; shl.b32 %r4, %r2, 3; add.s32 %r3, %r4, %r9;",
         True),
        ("selp.b32 %r2, 256, 0, %p3; add.s32 %r3, %r2, %r9;", True),
        ("selp.b32 %r2, 64, 128, %p3; add.s32 %r3, %r2, %r9;", False),
        ("sub.s32 %r3, %r8, 16;", False),
        ("cvt.u64.u32 %rd1, %r8; cvt.u32.u64 %r3, %rd1;", True),
        ("mov.b32 %r3, %r8;", True),
        ("ld.global.b32 %r2, [%rd4]; add.s32 %r3, %r8, %r2;", False),  # cannot be told
    ],
    ids=str,
)  # fmt: skip
def test_the_width_of_a_tile_is_what_threads_may_add(barriers, address, hits):
    body = address + "st.shared.b32 [%r3], %r7;"
    assert found(barriers, body) == (["0x100 by 1"] if hits else [])


@pytest.mark.parametrize(
    ("guard", "hits"),
    [
        ("setp.lt.u32 %p3, %r1, 64;", False),
        ("setp.lt.s32 %p3, %r1, 64;", False),
        ("setp.lt.s32 %p3, %r1, 66;", True),
        ("setp.ne.b32 %p3, %r1, 64;", True),
        ("setp.lt.u32 %p2, %r1, 64; setp.ne.b32 %p4, %r1, 0; and.pred %p3, %p2, %p4;", False),
        ("setp.lt.u32 %p2, %r1, 64; setp.ne.b32 %p4, %r1, 0; or.pred %p3, %p2, %p4;", True),
    ],
    ids=str,
)
def test_a_guard_bounds_the_threads_that_store(barriers, guard, hits):
    body = f"{guard} shl.b32 %r2, %r1, 2; add.s32 %r3, %r9, %r2; @%p3 st.shared.b32 [%r3], %r7;"
    assert found(barriers, body) == (["0x100 by 1"] if hits else [])
    assert found(barriers, body.replace("@%p3", "@!%p3")) == ["0x100 by 1"]


@pytest.mark.parametrize(
    ("body", "hits"),
    [
        (f"@%p2 bra $L__BB0_1; {INVALIDATE} $L__BB0_1: {STORE}", True),
        (f"@%p2 bra $L__BB0_1; {STORE} $L__BB0_1: {INVALIDATE}", True),
        (f"{INVALIDATE} @%p2 bra $L__BB0_1; bar.sync 0; $L__BB0_1: {STORE}", False),
        (f"@%p2 bra $L__BB0_1; {INVALIDATE} {STORE} $L__BB0_1: bar.sync 0;", False),
        (f"bra.uni $L__BB0_1; {STORE} $L__BB0_1: bar.sync 0;", False),
        (f"@%p2 bra $L__BB0_1; ret; $L__BB0_1: {STORE}", True),
        (f"ret; {STORE}", False),
        (f"$L__BB0_1: {INVALIDATE} {STORE} @%p2 bra $L__BB0_1;", False),
        (f"$L__BB0_1: {STORE} {INVALIDATE} @%p2 bra $L__BB0_1;", True),
        (f"{INVALIDATE} $L__BB0_1: {STORE} mbarrier.init.shared::cta.b64 [%r8], 1; "
         "@%p2 bra $L__BB0_1;", True),
    ],
)  # fmt: skip
def test_a_barrier_is_valid_if_one_path_leaves_it_so(barriers, body, hits):
    assert bool(found(barriers, body)) is hits


def test_waits_that_repeat_their_label_are_loops_of_their_own(barriers):
    assert found(barriers, WAIT + INVALIDATE + WAIT + STORE) == []
    assert found(barriers, INVALIDATE + WAIT + STORE + WAIT) == []
    assert found(barriers, WAIT + STORE + WAIT + INVALIDATE) == ["0x100 by 1"]


def test_barriers_and_functions_are_apart(barriers):
    other = "add.s32 %r6, %r9, 264; mbarrier.init.shared::cta.b64 [%r6], 1;"
    assert found(barriers, other + INVALIDATE + STORE) == []
    assert found(barriers, other + INVALIDATE + "st.shared.b64 [%r8+8], %rd1;") == ["0x108 by 1"]
    assert found(barriers, other + "st.shared.v2.b64 [%r8], {%rd1, %rd2};") == [
        "0x100 by 1", "0x108 by 1",
    ]  # fmt: skip
    assert found(barriers, WAIT, STORE) == ["0x100 by 1"]


def test_no_more_threads_than_a_kernel_has(barriers):
    body = "shl.b32 %r2, %r1, 2; add.s32 %r3, %r9, %r2; st.shared.b32 [%r3], %r7;"
    assert barriers.reused_barriers(kernel(body, threads=64)) == []
    assert barriers.reused_barriers(kernel(body, threads=128)) != []
    assert barriers.reused_barriers(kernel(body).replace(".reqntid 128", "")) != []


def test_what_is_no_kernel_is_refused(barriers):
    with pytest.raises(ValueError, match=r"got no \.entry"):
        barriers.reused_barriers("ptxas fatal : no PTX")


def test_the_hopper_kernels_store_over_no_barrier_that_is_valid(barriers, compiled):
    calls = {name: ptx for name, ptx in compiled.items() if "head_dim" in name}
    assert len(calls) >= 4  # heads of 64 and of 128 channels, without and with extra tokens
    for name, ptx in calls.items():
        assert "mbarrier.init" in ptx, name
        assert barriers.reused_barriers(ptx) == [], name


def test_the_hopper_kernels_begin_no_barrier_that_nobody_waits_for(texts):
    idle_barriers = importlib.import_module("idle_barriers").idle_barriers
    assert sum("bits 16/16" in name for name in texts) >= 4
    for name, text in texts.items():
        assert "ttng.init_barrier" in text["ttgir"], name
        assert idle_barriers(text["ttgir"]) == [], name


def test_what_the_compiler_puts_onto_a_barrier_is_found_unless_it_is_invalidated(
    barriers, compiled
):
    assert "mbarrier.inval" in compiled["invalidated"]
    assert barriers.reused_barriers(compiled["invalidated"]) == []
    (text,) = barriers.reused_barriers(compiled["left valid"])
    assert text.startswith("0x0 by 1, first st")
