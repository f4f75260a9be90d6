"""The Hopper kernel on a GPU, and beside it the Triton kernel that other cards run."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attention_cases import (
    CASES,
    HEAD_DIMS,
    JOINT,
    Case,
    make_inputs,
    relative_error,
    with_rows_of_all_lengths,
)
from paro_attention.kernels import sparse_attention
from paro_attention.kernels.device import runs_on_hopper_kernel

pytestmark = pytest.mark.gpu
if torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0):
    pytestmark = [pytest.mark.gpu, pytest.mark.skip(reason="needs a Hopper GPU (sm_90)")]

BLOCKS = [(64, 128), (128, 128), (64, 64), (128, 64)]
EIGHT_BITS = {"qk_bits": 8, "pv_bits": 8}
CALLS = [
    replace(case, block=block)
    for case in (*CASES, *JOINT, *HEAD_DIMS)
    if case.head_dim <= 128
    for block in BLOCKS
]
# Keys with a bias are the Triton kernel's.
SERVED = [case for case in CALLS if case.hidden is None]
LONG = Case("long", heads=4, tokens=4100, head_dim=128, block=(64, 128), density=1.0)


def call(inputs, implementation, **options):
    options = EIGHT_BITS | {"tail_bias": inputs.tail_bias, "key_bias": inputs.key_bias} | options
    arguments = (inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation)
    return sparse_attention(*arguments, implementation=implementation, **options)


@pytest.mark.parametrize("tail", [True, False], ids=["tail", "dropped"])
@pytest.mark.parametrize(
    "case", SERVED, ids=lambda case: f"{case.name}-{case.block[0]}x{case.block[1]}"
)
def test_equals_its_reference(case, tail):
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    served = runs_on_hopper_kernel(inputs.q.device, case.head_dim, case.block, 8, 8, True, tail)
    assert served == (tail or case.block[1] == 128)
    got, want = call(inputs, "triton", tail=tail), call(inputs, "reference", tail=tail)
    assert torch.isfinite(got).all()
    assert relative_error(got, want) < 8e-3


@pytest.mark.parametrize("tail", [True, False], ids=["tail", "dropped"])
@pytest.mark.parametrize("case", CALLS[::3], ids=lambda case: case.name)
def test_the_triton_kernel_serves_the_same_calls(case, tail, monkeypatch):
    from paro_attention.kernels.triton import call_plan, hopper_support

    monkeypatch.setattr(hopper_support, "hopper_serves", lambda *_: False)
    monkeypatch.setattr(call_plan, "_plans", {})
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    got, want = call(inputs, "triton", tail=tail), call(inputs, "reference", tail=tail)
    assert relative_error(got, want) < 8e-3


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block[0]}x{block[1]}")
@pytest.mark.parametrize("extra", [(0, 0), (70, 260)], ids=["video", "joint"])
def test_long_rows_of_many_lengths(block, head_dim, extra):
    """Lists of all lengths, neighbours that share few blocks or many, a ring that goes round."""
    case = Case("long", 1, 3, 12_345, head_dim, block, density=0.1, extra=extra)
    inputs = with_rows_of_all_lengths(make_inputs(case, torch.bfloat16, "cuda"))
    got, want = call(inputs, "triton"), call(inputs, "reference")
    assert torch.isfinite(got).all()
    assert relative_error(got, want) < 8e-3


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("key_block", [128, 64])
@pytest.mark.parametrize("grid", [17_776, 17_665, 17_792], ids=["ragged", "one key", "whole"])
@pytest.mark.parametrize("extra", [0, 300], ids=["video", "joint"])
def test_hundreds_of_calls_are_finite_and_alike(head_dim, key_block, grid, extra):
    """Programs of many rows, that begin and end beside each other, over and over."""
    case = Case("often", 1, 6, grid, head_dim, (64, key_block), density=0.05, extra=(0, extra))
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    first = call(inputs, "triton")
    assert torch.isfinite(first).all()
    alike = torch.stack([(call(inputs, "triton") == first).all() for _ in range(200)])
    assert alike.all()


@pytest.mark.parametrize("key_block", [128, 64])
def test_keys_that_are_not_there_do_not_count(key_block):
    """127 zero keys in the last step, with logits near theirs and far from them."""
    case = replace(LONG, tokens=129, block=(64, key_block))
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    for size in (0.5, 4.0, 40.0):
        at = replace(inputs, q=inputs.q * size, k=inputs.k.abs())
        got, want = call(at, "triton"), call(at, "reference")
        assert relative_error(got, want) < 8e-3


def test_dense_error_stays_within_its_budget():
    inputs = make_inputs(replace(LONG, tokens=8200), torch.bfloat16, "cuda")
    want = F.scaled_dot_product_attention(inputs.q.float(), inputs.k.float(), inputs.v.float())
    assert relative_error(call(inputs, "triton"), want) < 0.042


def test_a_constant_value_comes_out_as_it_is():
    """Numerator and denominator are of the same rounded probabilities."""
    inputs = make_inputs(LONG, torch.float16, "cuda")
    inputs = replace(inputs, v=torch.full_like(inputs.v, 3.0))
    assert relative_error(call(inputs, "triton", tail=False), inputs.v) < 1e-3


def test_logits_far_apart_leave_the_largest():
    """The linear codes of keys that are far below the maximum saturate at zero."""
    inputs = make_inputs(LONG, torch.bfloat16, "cuda")
    inputs = replace(inputs, q=inputs.q * 30.0)
    got, want = call(inputs, "triton"), call(inputs, "reference")
    assert torch.isfinite(got).all()
    assert relative_error(got, want) < 8e-3


def test_a_replayed_call_gives_the_same_bits():
    inputs = make_inputs(LONG, torch.bfloat16, "cuda")
    first = call(inputs, "triton")
    assert all(torch.equal(first, call(inputs, "triton")) for _ in range(3))
