"""Calls in groups of heads on a GPU: the bits of the whole call, under real shortage too."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from attention_cases import JOINT, Case, make_inputs
from paro_attention.kernels import sparse_attention
from paro_attention.kernels.device import fp8_supported

if torch.cuda.is_available():
    from paro_attention.kernels.triton import call_plan, head_groups, int4

pytestmark = pytest.mark.gpu
# Uneven masks, both sides ragged, extra tokens with a bias per batch entry, an uneven fifth head.
SMALL = Case("small", batch=2, heads=5, tokens=500, head_dim=128, block=(64, 128), extra=(9, 50),
             hidden=(0, 7))  # fmt: skip
# 64 MiB of q; 100 MiB of workspace in 8 bits.
LARGE = Case("large", heads=8, tokens=32768, head_dim=128, block=(64, 128), density=0.1)
MIB = 1 << 20


def attention(inputs, **options):
    options = {"qk_bits": 8, "pv_bits": 8} | options
    return sparse_attention(
        inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation, tail_bias=inputs.tail_bias,
        key_bias=inputs.key_bias, implementation="triton", **options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _plans_anew(monkeypatch):
    monkeypatch.setattr(call_plan, "_plans", {})


@contextmanager
def room_for(size: int):
    """Inside, torch may allocate so many bytes more."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    # What earlier tests left alive shares segments with free blocks, which would be room as well.
    gaps = [
        torch.empty(block["size"], dtype=torch.uint8, device="cuda")
        for segment in torch.cuda.memory_snapshot()
        for block in segment["blocks"]
        if segment["segment_type"] == "large"
        and block["state"] == "inactive"
        and block["size"] > MIB
    ]
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + size) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        del gaps


def groups_of(case):
    """How many heads run together in calls of this case."""
    sizes = (case.batch, case.heads, case.sequence, case.head_dim)
    (plan,) = (plan for shape, plan in call_plan._plans.items() if shape.sizes == sizes)
    return plan.groups.together


def refusals():
    return torch.cuda.memory_stats()["num_ooms"]


CASES = {
    "64x128": SMALL,
    "64x64": replace(SMALL, block=(64, 64), layout="BHSD"),
    "128x128": replace(SMALL, batch=1, head_dim=64, block=(128, 128), hidden=(3,)),
    # Without a bias of keys, which Hopper's own kernels do not take.
    "joint": replace(SMALL, hidden=None),
    "head_dim 120": replace(SMALL, batch=1, head_dim=120, extra=(0, 0), hidden=None),
}
BITS = [(16, 16), (8, 16), (8, 8), (4, 4), (4, 8)]


@pytest.mark.parametrize(
    ("name", "bits", "tail"),
    [
        *((name, bits, True) for name in CASES for bits in BITS),
        ("64x128", (8, 8), False),
        ("64x64", (16, 16), False),
    ],
    ids=str,
)
def test_groups_have_the_bits_of_the_whole_call(monkeypatch, name, bits, tail):
    case = CASES[name]
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    options = {"qk_bits": bits[0], "pv_bits": bits[1], "tail": tail}
    whole = attention(inputs, **options)
    (plan,) = call_plan._plans.values()
    per_head = plan.workspace // (case.batch * case.heads)
    for heads in (3, 1):
        call_plan._plans.clear()
        monkeypatch.setattr(head_groups, "free_bytes", lambda _, n=heads: n * per_head + 999)
        for _ in range(2):  # recorded, then replayed
            assert torch.equal(attention(inputs, **options), whole)
            assert groups_of(case) == heads


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("case", [SMALL, replace(SMALL, block=(64, 64), head_dim=96)], ids=str)
def test_groups_of_the_int4_kernel_have_its_bits(monkeypatch, case, tail):
    if int4.int4_attention is None or torch.cuda.get_device_capability() > (9, 0):
        pytest.skip("the INT4 kernel needs Triton 3.6's Gluon and a card up to sm_90")
    # The package has a function of the module's name.
    module = importlib.import_module("paro_attention.kernels.triton.int4_attention")
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    mask, orders = inputs.mask, torch.arange(case.heads, dtype=torch.int32, device="cuda")
    given = (
        inputs.q, inputs.k, inputs.v, inputs.permutation, orders, mask.row_offsets,
        mask.kv_indices, mask.computed_bits, inputs.tail_bias, inputs.key_bias, True, mask.tokens,
        *mask.block, tail, case.head_dim**-0.5,
    )  # fmt: skip
    module._groups_of.cache_clear()
    whole = int4.int4_attention(*given)
    for free in (1 << 20, 1):
        module._groups_of.cache_clear()
        monkeypatch.setattr(head_groups, "free_bytes", lambda _, n=free: n)
        assert torch.equal(int4.int4_attention(*given), whole)
    kind = (inputs.q.device, inputs.q.dtype, inputs.q.shape, mask.tokens, mask.block)
    assert module._groups_of(*kind).together == 1
    module._groups_of.cache_clear()


def test_a_call_that_is_refused_memory_runs_in_groups_from_then_on():
    inputs = make_inputs(LARGE, torch.bfloat16, "cuda")
    want = attention(inputs)
    call_plan._plans.clear()
    before = refusals()
    with room_for(64 * MIB + 80 * MIB):
        assert torch.equal(attention(inputs), want)
        assert refusals() > before
        before = refusals()
        assert groups_of(LARGE) in (4, 2)
        for _ in range(3):
            assert torch.equal(attention(inputs), want)
        assert refusals() == before


def test_a_shape_that_was_replayed_goes_over_to_groups_and_back(monkeypatch):
    monkeypatch.setattr(head_groups, "PATIENCE", 4)
    inputs = make_inputs(LARGE, torch.bfloat16, "cuda")
    want = attention(inputs)
    assert torch.equal(attention(inputs), want)
    assert groups_of(LARGE) == 8
    with room_for(64 * MIB + 80 * MIB):
        assert torch.equal(attention(inputs), want)
        assert groups_of(LARGE) == 4
    for _ in range(4):
        assert torch.equal(attention(inputs), want)
    assert groups_of(LARGE) == 8


def test_one_head_that_does_not_fit_is_refused_with_figures():
    inputs = make_inputs(LARGE, torch.bfloat16, "cuda")
    refused = pytest.raises(
        torch.cuda.OutOfMemoryError, match=r"needs 1\d MiB of workspace .* MiB are free on cuda"
    )
    with room_for(64 * MIB + 6 * MIB), refused:
        attention(inputs)
    attention(inputs)


def test_groups_need_a_fraction_of_the_memory(monkeypatch):
    inputs = make_inputs(LARGE, torch.bfloat16, "cuda")

    def peak():
        attention(inputs)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        attention(inputs)
        return torch.cuda.max_memory_allocated() - before - 64 * MIB

    whole = peak()
    (plan,) = call_plan._plans.values()
    assert abs(whole - plan.workspace) < 4 * MIB
    call_plan._plans.clear()
    monkeypatch.setattr(head_groups, "free_bytes", lambda _: plan.workspace // 4)
    assert peak() < plan.workspace / 4 + 4 * MIB


def test_groups_compile_nothing_new_and_do_not_wait(monkeypatch):
    inputs = make_inputs(SMALL, torch.bfloat16, "cuda")

    whole = attention(inputs)
    (plan,) = call_plan._plans.values()
    kernels = list({kernel for kernel, _ in plan._launches})

    def compiled():
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    before = compiled()
    assert min(before) > 0
    call_plan._plans.clear()
    monkeypatch.setattr(head_groups, "free_bytes", lambda _: 1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, second = attention(inputs), attention(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first, whole)
    assert torch.equal(second, whole)
    assert compiled() == before


def test_a_compiled_graph_runs_in_groups(monkeypatch):
    inputs = make_inputs(JOINT[8], torch.bfloat16, "cuda")

    def block(q):
        return 1.0 + sparse_attention(
            q * 1.0, inputs.k, inputs.v, inputs.mask, inputs.permutation, qk_bits=8, pv_bits=8,
            key_bias=inputs.key_bias,
        )  # fmt: skip

    want = torch.compile(block, fullgraph=True)(inputs.q)
    call_plan._plans.clear()
    monkeypatch.setattr(head_groups, "free_bytes", lambda _: 1)
    assert torch.equal(torch.compile(block, fullgraph=True)(inputs.q), want)
    assert groups_of(JOINT[8]) == 1


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_groups_run_on_a_card_that_is_not_current(monkeypatch):
    want = attention(make_inputs(SMALL, torch.bfloat16, "cuda:1"))
    call_plan._plans.clear()
    monkeypatch.setattr(head_groups, "free_bytes", lambda _: 1)
    inputs = make_inputs(SMALL, torch.bfloat16, "cuda:1")
    assert torch.cuda.current_device() == 0
    assert torch.equal(attention(inputs), want)


def test_int8_values_run_in_groups(monkeypatch):
    if not fp8_supported(torch.device("cuda")):
        pytest.skip("INT8 P.V is the default on this card, tested above")
    inputs = make_inputs(SMALL, torch.float16, "cuda")
    whole = attention(inputs, pv8="int8")
    call_plan._plans.clear()
    monkeypatch.setattr(head_groups, "free_bytes", lambda _: 1)
    assert torch.equal(attention(inputs, pv8="int8"), whole)
