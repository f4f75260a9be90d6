"""The Triton kernels on CPU tensors, through Triton's interpreter, against the reference.

float16 only: the interpreter multiplies bfloat16 wrongly, and loses a carry when it rounds to FP8;
both are covered by the GPU tests.
"""

import dataclasses
import os

import pytest
import torch
from attention_cases import (
    CASES,
    HEAD_DIMS,
    JOINT,
    Case,
    make_inputs,
    relative_error,
    with_distinct_blocks,
)
from paro_attention.kernels import sparse_attention, unavailable_reason

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or unavailable_reason("cpu") is not None,
    reason="needs Triton under TRITON_INTERPRET=1 (set where there is no GPU)",
)
# 16 bits: float16 rounding of P. Low bits: a value on a rounding boundary may fall either way,
# which moves it by one level, so the tolerance grows with the level.
call_plan = pytest.importorskip(
    "paro_attention.kernels.triton.call_plan", reason="Triton is not installed"
)
TOLERANCE = {16: 1e-3, 8: 2e-3, 4: 2.5e-2}
# More pooled rows than one step of the tail takes, and a tile of them that is not full.
TAILS = (
    Case("tail in parts of a tile", tokens=1250, block=(128, 32), density=0.2),
    Case("tail in two tiles", heads=1, tokens=1100, head_dim=136, block=(128, 32), density=0.2),
)


def both(inputs, **options):
    arguments = (inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation)
    fixed = {"tail_bias": inputs.tail_bias, "key_bias": inputs.key_bias, "pv8": "int8"}
    options = fixed | options
    return (
        sparse_attention(*arguments, implementation="triton", **options),
        sparse_attention(*arguments, implementation="reference", **options),
    )


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_eight_bits_equal_the_reference(case, tail):
    got, want = both(make_inputs(case, torch.float16), qk_bits=8, pv_bits=8, tail=tail)
    assert relative_error(got, want) < TOLERANCE[8]


@pytest.mark.parametrize("case", JOINT, ids=lambda case: case.name)
def test_a_joint_sequence_equals_the_reference(case):
    # The tail shows in rows that skip blocks; without it a row may be left with nothing at all.
    tail = not case.empty_row
    got, want = both(make_inputs(case, torch.float16), qk_bits=8, pv_bits=8, tail=tail)
    assert relative_error(got, want) < TOLERANCE[8]
    assert torch.isfinite(got).all()


@pytest.mark.parametrize(("qk_bits", "pv_bits"), [(16, 16), (8, 16), (16, 8), (4, 4)])
@pytest.mark.parametrize("case", [JOINT[1], JOINT[4], JOINT[8]], ids=lambda case: case.name)
def test_a_joint_sequence_equals_the_reference_in_other_bits(case, qk_bits, pv_bits):
    got, want = both(make_inputs(case, torch.float16), qk_bits=qk_bits, pv_bits=pv_bits)
    assert relative_error(got, want) < TOLERANCE[min(qk_bits, pv_bits)]


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("case", HEAD_DIMS, ids=lambda case: case.name)
def test_every_head_dim_equals_the_reference(case, bits):
    got, want = both(make_inputs(case, torch.float16), qk_bits=bits, pv_bits=bits)
    assert relative_error(got, want) < TOLERANCE[bits]


@pytest.fixture
def narrow_steps(monkeypatch):
    """Launches whose tail takes at most 16 pooled rows a step; plans are made anew."""
    choose = call_plan.select_launch
    monkeypatch.setattr(call_plan, "_plans", {})
    monkeypatch.setattr(
        call_plan, "select_launch", lambda *a: dataclasses.replace(choose(*a), tail_rows=16)
    )


@pytest.mark.parametrize("bits", [(8, 16), (8, 8), (16, 16)], ids=str)
@pytest.mark.parametrize("case", TAILS, ids=lambda case: case.name)
def test_a_long_tail_equals_the_reference(case, bits, narrow_steps):
    inputs = with_distinct_blocks(make_inputs(case, torch.float16))
    got, want = both(inputs, qk_bits=bits[0], pv_bits=bits[1])
    assert relative_error(got, want) < TOLERANCE[min(bits)]


@pytest.mark.parametrize("pv_bits", [16, 8])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("case", [CASES[1], CASES[4], JOINT[3]], ids=lambda case: case.name)
def test_loading_through_pointers_equals_loading_by_tensor_descriptors(
    case, tail, pv_bits, monkeypatch
):
    inputs = make_inputs(case, torch.float16)
    described, _ = both(inputs, qk_bits=8, pv_bits=pv_bits, tail=tail)
    choose = call_plan.select_launch
    monkeypatch.setattr(call_plan, "_plans", {})
    monkeypatch.setattr(
        call_plan, "select_launch", lambda *a: dataclasses.replace(choose(*a), tma=False)
    )
    pointed, _ = both(inputs, qk_bits=8, pv_bits=pv_bits, tail=tail)
    assert torch.equal(described, pointed)


@pytest.mark.parametrize("pv_bits", [16, 8, 4])
@pytest.mark.parametrize("qk_bits", [16, 8, 4])
@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[7]], ids=lambda case: case.name)
def test_every_pair_of_bits_equals_the_reference(case, qk_bits, pv_bits):
    got, want = both(make_inputs(case, torch.float16), qk_bits=qk_bits, pv_bits=pv_bits)
    assert relative_error(got, want) < TOLERANCE[min(qk_bits, pv_bits)]


def test_heads_may_share_an_order():
    inputs = make_inputs(CASES[1], torch.float16)
    orders = inputs.permutation[:1]
    shared = torch.zeros(2, dtype=torch.int32)
    arguments = (inputs.q, inputs.k, inputs.v, inputs.mask)
    got = sparse_attention(*arguments, orders, shared, implementation="triton")
    want = sparse_attention(*arguments, orders.expand(2, -1), implementation="triton")
    assert torch.equal(got, want)


def test_every_row_is_written_once():
    inputs = make_inputs(CASES[1], torch.float16)
    ones = torch.ones_like(inputs.v)
    got = sparse_attention(
        inputs.q, inputs.k, ones, inputs.mask, inputs.permutation, implementation="triton"
    )
    assert torch.allclose(got.float(), torch.ones(()), atol=2e-3)


def test_the_custom_op_has_a_fake_of_the_same_layout():
    from torch._subclasses.fake_tensor import FakeTensorMode

    inputs = make_inputs(CASES[0], torch.float16)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        q = mode.from_tensor(inputs.q)
        fake = torch.ops.paro_attention.block_sparse_attention(
            q, q, q, inputs.permutation, inputs.permutation[0, :1], inputs.mask.row_offsets,
            inputs.mask.kv_indices, inputs.mask.computed_bits, inputs.tail_bias,
            inputs.tail_bias, False, inputs.mask.tokens, 64, 64, 8, 8, False, True, 0.125,
        )  # fmt: skip
    real, _ = both(inputs, qk_bits=8, pv_bits=8)
    assert fake.shape == real.shape
    assert fake.stride() == real.stride()
    assert fake.dtype == real.dtype
