"""The INT4 path without a GPU: its pre-pass, its launch table, and where it declines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_cases import CASES, HEAD_DIMS, JOINT, make_inputs, relative_error
from int4_model import attention_of_packed
from paro_attention.kernels import runs_on_int4_units
from paro_attention.kernels.int4_launch import (
    CAPABILITIES,
    KEY_BLOCKS,
    int4_serves,
    select_int4_launch,
)
from paro_attention.kernels.packed_layout import PackedLayout, padded_head_dim
from paro_attention.kernels.reference import reference_attention

ROOT = Path(__file__).resolve().parents[2]
SERVED = [
    case for case in (*CASES, *JOINT, *HEAD_DIMS) if int4_serves((8, 6), case.head_dim, case.block)
]
FEW = [SERVED[1], SERVED[4], *(case for case in SERVED if case.name.endswith(("bias", "ragged")))]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter")
@pytest.mark.parametrize("case", FEW, ids=lambda case: case.name)
def test_packed_operands_hold_what_the_reference_rounds_to(case):
    prepass = pytest.importorskip("paro_attention.kernels.triton.int4_prepass")
    inputs = make_inputs(case, torch.float16)
    layout = PackedLayout.of(case.sequence, case.tokens, case.block)
    orders = torch.arange(case.heads, dtype=torch.int32)
    scale = case.head_dim**-0.5
    width = padded_head_dim(case.head_dim)
    prepared = prepass.prepare_int4(
        inputs.q, inputs.k, inputs.v, inputs.permutation, orders,
        prepass.mean_of_keys(inputs.k, width), layout, case.block[1], width, 1,
    )  # fmt: skip
    got = attention_of_packed(
        prepared, inputs.q, inputs.permutation, orders, inputs.dense_mask, layout, case.block,
        inputs.tail_bias, inputs.key_bias, tail=True, scale=scale,
    )  # fmt: skip
    want = reference_attention(
        inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation, orders, inputs.tail_bias,
        qk_bits=4, pv_bits=4, fp8=False, tail=True, scale=scale, key_bias=inputs.key_bias,
    )  # fmt: skip
    # The rotation runs in float16: a few levels on a rounding boundary fall the other way.
    assert relative_error(got, want) < 2.5e-2


def test_no_call_on_a_cpu_runs_on_int4_units():
    assert not runs_on_int4_units(torch.device("cpu"), 128, (64, 64), 4, 4)


def test_cards_with_int4_units_are_served():
    assert int4_serves((8, 6), 128) and int4_serves((8, 9), 40, (128, 128))
    for capability in ((7, 5), (9, 0), (10, 0), (12, 0)):
        assert not int4_serves(capability, 128)
    assert not int4_serves((8, 6), 256)
    assert not int4_serves((8, 6), 128, (32, 32))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_served_block_has_a_launch(capability):
    for query_block in (32, 64, 128):
        for key_block in KEY_BLOCKS:
            for width in (64, 128):
                launch = select_int4_launch((query_block, key_block), width, capability)
                assert query_block % (16 * launch.warps) == 0
                assert launch.stages >= 2


NO_GLUON = "sys.modules['triton.experimental.gluon'] = None"
OTHER_GLUON = (
    "from triton.experimental.gluon.language.nvidia.ampere import async_copy; "
    "del async_copy.async_copy_global_to_shared"
)


@pytest.mark.parametrize(("before", "served"), [(NO_GLUON, False), (OTHER_GLUON, False)])
def test_a_triton_without_the_gluon_that_is_needed_has_no_int4_kernel(before, served):
    pytest.importorskip("triton", reason="Triton is not installed")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
        "from _package import load_package; load_package()\n"
        f"{before}\n"
        "from paro_attention.kernels.triton import int4\n"
        "print(int4.int4_available((8, 6), 128), int4.int4_attention is not None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(served)] * 2, done.stderr[-2000:]
