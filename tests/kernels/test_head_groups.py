"""Calls in groups of heads: the bits of the whole call, and what decides the groups. No GPU."""

import os
from dataclasses import replace

import pytest
import torch
from attention_cases import CASES, HEAD_DIMS, JOINT, Case, make_inputs
from paro_attention.kernels import sparse_attention, unavailable_reason

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or unavailable_reason("cpu") is not None,
    reason="needs Triton under TRITON_INTERPRET=1 (set where there is no GPU)",
)
head_groups = pytest.importorskip(
    "paro_attention.kernels.triton.head_groups", reason="Triton is not installed"
)
call_plan = pytest.importorskip("paro_attention.kernels.triton.call_plan")
# Five heads make uneven groups; their rows of lists do not begin at multiples of 16 bytes.
UNEVEN = Case("five heads, ragged, bias", batch=2, heads=5, tokens=70, block=(32, 32),
              extra=(9, 20), hidden=(0, 7))  # fmt: skip
SMALL = Case("six heads", heads=6, tokens=64)


def attention(case, **options):
    inputs = make_inputs(case, torch.float16)
    options = {"qk_bits": 8, "pv_bits": 8} | options
    return sparse_attention(
        inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation, tail_bias=inputs.tail_bias,
        key_bias=inputs.key_bias, implementation="triton", pv8="int8", **options,
    )  # fmt: skip


@pytest.fixture
def sizes_run(monkeypatch):
    """The (batch, heads) of every launched call, in order; plans are made anew."""
    monkeypatch.setattr(call_plan, "_plans", {})
    sizes = []
    allocate = call_plan.CallPlan.allocate

    def watched(plan, device):
        sizes.append(plan.shape.sizes[:2])
        return allocate(plan, device)

    monkeypatch.setattr(call_plan.CallPlan, "allocate", watched)
    return sizes


@pytest.fixture(scope="module")
def uneven():
    """What ``UNEVEN`` gives as a whole, and the bytes of workspace of one head."""
    torch.manual_seed(0)
    out = attention(UNEVEN)
    plan = next(p for p in call_plan._plans.values() if p.shape.sizes[:2] == (2, 5))
    return out, plan.workspace // 10


@pytest.mark.parametrize(
    ("heads", "groups"),
    [
        (10, [(2, 5)]),
        (9, [(1, 5), (1, 5)]),
        (4, [(1, 3), (1, 2), (1, 3), (1, 2)]),
        (2, [(1, 2), (1, 2), (1, 1)] * 2),
        (1, [(1, 1)] * 10),
    ],
)
def test_memory_for_fewer_heads_makes_groups_of_them(monkeypatch, sizes_run, uneven, heads, groups):
    whole, per_head = uneven
    monkeypatch.setattr(head_groups, "free_bytes", lambda _: heads * per_head + 9)
    assert torch.equal(attention(UNEVEN), whole)
    assert sizes_run == groups


@pytest.mark.parametrize(
    ("case", "bits", "tail"),
    [
        (replace(CASES[3], heads=3), (8, 8), True),  # batch of two, strided
        (replace(CASES[3], heads=3), (16, 16), False),
        (replace(JOINT[4], heads=3), (8, 8), True),  # extra tokens on both sides, head_dim 128
        (replace(HEAD_DIMS[3], tokens=130), (8, 16), True),  # padded channels, one bias
        (CASES[7], (8, 8), False),  # rows without any block
        *((replace(JOINT[8], heads=3), bits, True) for bits in ((16, 16), (16, 8), (4, 4), (4, 8))),
    ],
    ids=lambda x: x.name if isinstance(x, Case) else str(x),
)
def test_heads_one_by_one_are_the_whole_call(monkeypatch, sizes_run, case, tail, bits):
    options = {"qk_bits": bits[0], "pv_bits": bits[1], "tail": tail}
    whole = attention(case, **options)
    monkeypatch.setattr(head_groups, "free_bytes", lambda _: 1)
    call_plan._plans.clear()
    sizes_run.clear()
    assert torch.equal(attention(case, **options), whole)
    assert sizes_run == [(1, 1)] * case.batch * case.heads


def test_what_did_not_fit_is_not_tried_again(monkeypatch, sizes_run, uneven):
    whole = uneven[0]
    allocate = call_plan.CallPlan.allocate

    def short(plan, device):
        tensors = allocate(plan, device)
        if plan.shape.sizes[:2] > (1, 2):
            raise torch.cuda.OutOfMemoryError("out of memory")
        return tensors

    monkeypatch.setattr(call_plan.CallPlan, "allocate", short)
    assert torch.equal(attention(UNEVEN), whole)
    assert sizes_run == [(2, 5), (1, 5), (1, 3)] + [(1, 2), (1, 2), (1, 1)] * 2
    sizes_run.clear()
    assert torch.equal(attention(UNEVEN), whole)
    assert sizes_run == [(1, 2), (1, 2), (1, 1)] * 2


def test_a_group_that_stops_fitting_goes_on_in_smaller_ones(monkeypatch, sizes_run):
    whole = attention(SMALL)
    allocate = call_plan.CallPlan.allocate

    def short(plan, device):
        tensors = allocate(plan, device)
        if plan.shape.sizes[1] > 3 or len(sizes_run) == 3:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return tensors

    monkeypatch.setattr(call_plan.CallPlan, "allocate", short)
    call_plan._plans.clear()
    sizes_run.clear()
    assert torch.equal(attention(SMALL), whole)
    assert sizes_run == [(1, 6), (1, 3), (1, 3), (1, 2), (1, 1)]


def test_the_whole_call_comes_back_when_there_is_room(monkeypatch, sizes_run):
    whole = attention(SMALL)
    monkeypatch.setattr(head_groups, "free_bytes", lambda _: 1)
    monkeypatch.setattr(head_groups, "PATIENCE", 3)
    call_plan._plans.clear()
    attention(SMALL)
    monkeypatch.setattr(head_groups, "free_bytes", lambda _: 1 << 40)
    sizes_run.clear()
    attention(SMALL)
    assert sizes_run == [(1, 1)] * 6
    sizes_run.clear()
    assert torch.equal(attention(SMALL), whole)
    assert sizes_run == [(1, 6)]


def test_one_head_that_does_not_fit_is_refused_with_figures(monkeypatch, sizes_run):
    def never(plan, device):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(call_plan.CallPlan, "allocate", never)
    monkeypatch.setattr(head_groups, "free_bytes", lambda _: 3 << 20)
    case = Case("long", heads=2, tokens=20000)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"needs 4 MiB .* 3 MiB are free on cpu"):
        attention(case)
