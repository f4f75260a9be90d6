"""The FP4 path without a GPU: its numbers, its kernels interpreted, and where it declines."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from attention_cases import CASES, HEAD_DIMS, JOINT, Case, make_inputs, relative_error
from fp4_model import E2M1, arguments, decoded, of_reference
from paro_attention.kernels import runs_on_fp4_units
from paro_attention.kernels.fp4_launch import fp4_serves, select_fp4_launch
from paro_attention.kernels.fp4_numerics import (
    E4M3_MAX,
    E4M3_MIN_NORMAL,
    in_groups,
    round_in_groups,
    round_probabilities,
    round_scale,
    round_to_e2m1,
    step_of,
)
from paro_attention.kernels.packed_layout import PackedLayout, padded_head_dim
from paro_attention.kernels.reference import reference_attention

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs Triton's interpreter"
)
EVERY = (*CASES, *JOINT, *HEAD_DIMS)
SERVED = [case for case in EVERY if fp4_serves((12, 0), case.head_dim, case.block)]
# The tail shows in rows that skip blocks; without it a row may be left with nothing at all.
FEW = [
    (case, not case.empty_row)
    for case in SERVED
    if "ragged" in case.name or "row" in case.name or "bias" in case.name or "both" in case.name
]


def test_rounding_to_e2m1_takes_the_nearest_value_and_of_two_the_even_code():
    x = torch.linspace(0, 6.9, 20001)
    distance = (x[:, None] - E2M1).abs()
    rounded = round_to_e2m1(x)
    assert torch.equal((x - rounded).abs(), distance.amin(1))
    middles = (E2M1[1:] + E2M1[:-1]) / 2
    assert torch.equal(round_to_e2m1(middles), E2M1[torch.tensor([0, 2, 2, 4, 4, 6, 6])])
    assert torch.equal(round_to_e2m1(-x), -rounded)


def test_scales_are_e4m3():
    x = torch.rand(20000).mul(20).sub(11).exp2().clamp_max(E4M3_MAX)
    want = x.clamp_min(E4M3_MIN_NORMAL).to(torch.float8_e4m3fn).float()
    assert torch.equal(round_scale(x), want)


def test_a_group_takes_the_better_of_two_scales():
    x = torch.randn(400, 16)
    step = step_of(x, -1)
    rounded = round_in_groups(x, step)
    scale = round_scale(x.abs().amax(-1, keepdim=True) / step / 6)
    with_6 = round_to_e2m1(x / step / scale) * scale * step
    error, error_6 = ((y - x).square().sum(-1) for y in (rounded, with_6))
    assert (error <= error_6).all()
    assert 0.2 < (error < error_6).float().mean() < 0.8
    assert error.mean() < 0.9 * error_6.mean()


def test_probabilities_keep_their_largest_value_and_lose_none_to_the_range():
    p = torch.rand(50, 64).mul(-12).exp2()
    p /= p.amax(-1, keepdim=True)
    rounded = round_probabilities(p)
    assert torch.equal(rounded.amax(-1), torch.ones(50))
    # A quarter of its group's scale, and 1/16 of saturation where that was rounded down.
    top = p.unflatten(-1, (-1, 16)).amax(-1).repeat_interleave(16, -1)
    assert ((rounded - p).abs() <= top * (0.17 + 0.06)).all()
    assert torch.equal(round_probabilities(torch.zeros(1, 16)), torch.zeros(1, 16))


def test_groups_of_channels_are_a_permutation():
    x = torch.arange(128.0)
    assert torch.equal(in_groups(x).sort().values, x)
    assert in_groups(x)[:6].tolist() == [0, 1, 8, 9, 16, 17]


@interpreted
def test_codes_of_the_kernels_are_the_numbers_of_the_reference():
    products = pytest.importorskip("fp4_products")
    x = torch.cat((torch.linspace(0, 6.999, 3072), torch.rand(1024).mul(20).sub(18).exp2()))
    values, scales = products.codes_of(x)
    assert torch.equal(E2M1[values.long()], round_to_e2m1(x))
    assert torch.equal(scales.to(torch.uint8).view(torch.float8_e4m3fn).float(), round_scale(x))


@interpreted
def test_rounded_groups_of_the_kernels_are_those_of_the_reference():
    products = pytest.importorskip("fp4_products")
    x = torch.randn(32, 128) * torch.rand(32, 1).mul(8).exp2()
    step = step_of(x, -1)
    packed, scales = products.quantized(x / step)
    assert relative_error(decoded(packed, scales) * step, round_in_groups(x, step)) < 1e-6


@interpreted
def test_both_products_are_those_of_the_values():
    products = pytest.importorskip("fp4_products")
    a, b = torch.randn(16, 128), torch.randn(64, 128)
    positive = torch.rand(16, 128) * 6.3
    given = [*products.quantized(a / step_of(a, -1)), *products.quantized(b / step_of(b, -1))]
    sums, packed = products.product(*given, positive, native=False)
    want = decoded(*given[:2]).double() @ decoded(*given[2:]).double().T
    assert relative_error(sums, want) < 1e-6
    ones = torch.full((16, 8), 0x38, dtype=torch.uint8)
    assert torch.equal(decoded(packed, ones), round_to_e2m1(positive))


@interpreted
@pytest.mark.parametrize(("case", "tail"), FEW, ids=lambda x: getattr(x, "name", ""))
def test_the_interpreted_kernel_equals_the_reference(case, tail):
    kernel = pytest.importorskip("paro_attention.kernels.triton.fp4_attention")
    inputs = make_inputs(case, torch.float16)
    got = kernel.fp4_attention(*arguments(inputs, case, tail), native=False)
    given, named = of_reference(inputs, case, tail)
    want = reference_attention(*given, qk_bits=4, pv_bits=4, fp4=True, **named)
    assert torch.isfinite(got).all()
    # 1e-5 but for the 16-bit tail, and a value on a rounding boundary here and there.
    assert relative_error(got, want) < 2e-3


@interpreted
def test_a_call_in_groups_of_heads_gives_the_bits_of_the_whole():
    kernel = pytest.importorskip("paro_attention.kernels.triton.fp4_attention")
    case = Case("", batch=2, heads=3, tokens=130, extra=(0, 20), hidden=(0, 4))
    inputs = make_inputs(case, torch.float16)
    given = arguments(inputs, case, True)
    whole = kernel.fp4_attention(*given, native=False)
    q, block = inputs.q, inputs.mask.block
    groups = kernel._groups_of(q.device, q.dtype, q.shape, case.tokens, block)
    groups.together = 2
    try:
        assert torch.equal(kernel.fp4_attention(*given, native=False), whole)
    finally:
        groups.together = case.batch * case.heads


@interpreted
@pytest.mark.parametrize("case", [SERVED[1], SERVED[4]], ids=lambda case: case.name)
def test_the_pre_pass_stores_what_the_reference_rounds_to(case):
    from paro_attention.kernels.fp4_numerics import Fp4Logits
    from paro_attention.kernels.triton.fp4_prepass import prepare_fp4
    from paro_attention.kernels.triton.int4_prepass import key_of_k, mean_of_keys

    inputs = make_inputs(case, torch.float16)
    width, key_block = padded_head_dim(case.head_dim), case.block[1]
    layout = PackedLayout.of(case.tokens, case.tokens, case.block)
    tokens = slice(0, case.tokens)
    q, k, v = (x[:, :, tokens] for x in (inputs.q, inputs.k, inputs.v))
    order = torch.arange(case.tokens, dtype=torch.int32)[None]
    k_mean = mean_of_keys(k, width)
    heads = torch.zeros(case.heads, dtype=torch.int32)
    prepared = prepare_fp4(q, k, v, order, heads, k_mean, layout, key_block, width, 1)
    got_q = decoded(prepared.q4, prepared.q_scale) * prepared.q_step[..., None]
    got_k = decoded(prepared.k4, prepared.k_scale) * prepared.steps[:, :, :1, None]
    # Stored rows to tokens: the order is its own inverse.
    key = key_of_k.fn(torch.arange(key_block))
    got_k = got_k[:, :, key].flatten(1, 2)

    room = layout.stored_blocks * key_block
    keys = torch.zeros(case.batch, case.heads, room, case.head_dim)
    keys[:, :, tokens] = k.float() - k_mean[:, :, None, : case.head_dim]
    exists = torch.arange(room) < case.tokens
    want = Fp4Logits(q.float(), keys, keys, exists, key_block, torch.float16)
    assert relative_error(got_q[:, tokens], want.q4.flatten(0, 1)) < 1e-3
    assert relative_error(got_k, want.k.flatten(0, 1)) < 1e-3


def outliers(inputs):
    """K with constant channels, V with a loud one, as models have them."""
    inputs.q[..., [3, 40]] += 6
    inputs.k[..., [3, 41, 90]] += 8
    inputs.v[..., 5] *= 6
    return inputs


@pytest.mark.parametrize(
    ("change", "bound", "eight"),
    [(lambda x: x, 0.18, 0.045), (outliers, 0.19, 0.06)],
    ids=["normal", "outliers"],
)
def test_the_error_is_below_that_of_integers_of_four_bits(change, bound, eight):
    case = Case("", tokens=1024, head_dim=128, density=1.0)
    inputs = change(make_inputs(case, torch.float16))
    given, named = of_reference(inputs, case, False)
    full = reference_attention(*given, qk_bits=16, pv_bits=16, **named)

    def error(bits: int, **kind: bool) -> float:
        got = reference_attention(*given, qk_bits=bits, pv_bits=bits, **named | kind)
        return relative_error(got, full)

    assert error(4, fp4=True) < min(bound, 0.9 * error(4))
    assert error(8, fp8=True) < eight


def test_only_cards_that_multiply_fp4_natively_are_served():
    assert fp4_serves((12, 0), 128) and fp4_serves((12, 0), 40, (32, 128))
    for capability in ((8, 6), (8, 9), (9, 0), (10, 0), (12, 1)):
        assert not fp4_serves(capability, 128)
    assert not fp4_serves((12, 0), 256)
    assert not fp4_serves((12, 0), 128, (64, 32))
    assert not runs_on_fp4_units(torch.device("cpu"), 128, (64, 64), 4, 4)


@pytest.mark.parametrize("query_block", [32, 64, 128])
def test_every_served_block_has_a_launch(query_block):
    launch = select_fp4_launch((query_block, 64))
    assert query_block % launch.query_tile == 0
    assert launch.query_tile == 16 * launch.num_warps


def test_a_call_in_4_bits_takes_the_kernel_of_its_card(monkeypatch):
    kernels = pytest.importorskip("paro_attention.kernels.triton", reason="no Triton")
    q = SimpleNamespace(device=torch.device("cuda"), shape=(1, 2, 256, 128))
    for capability, want in (((12, 0), kernels.fp4_attention), ((10, 0), None), ((9, 0), None)):
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _, got=capability: got)
        assert kernels._kernel_of_4_bits(q, (64, 64)) is want
        assert runs_on_fp4_units(q.device, 128, (64, 64), 4, 4) == (want is not None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (12, 0))
    assert not runs_on_fp4_units(q.device, 128, (64, 64), 4, 8)
    assert kernels._kernel_of_4_bits(q, (32, 32)) is None


@pytest.mark.parametrize(
    ("version", "served"),
    [("3.6.0", True), ("3.10.1", True), ("4.0.0", True), ("3.5.1", False), ("3.6.0+git1", True)],
)
def test_older_tritons_are_not_asked(version, served):
    fp4 = pytest.importorskip("paro_attention.kernels.triton.fp4", reason="no Triton")
    assert fp4.triton_serves(version) is served
