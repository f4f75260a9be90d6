"""Extra tokens beside the grid: text, references, registers and their bias."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paro_attention.calibration import PlanRuntime, RuntimeOptions, TokenGrid, load_plan, save_plan
from paro_attention.calibration.block_mass import block_mass
from paro_attention.calibration.block_selection import forced_blocks, select_blocks
from paro_attention.calibration.extra_keys import ExtraKeys, RecordedCall, dense_output
from paro_attention.calibration.joint_sequence import (
    KEPT_LAYOUTS,
    JointLayout,
    SequencePermutations,
)
from paro_attention.calibration.metrics import relative_error
from paro_attention.calibration.offset_profile import OffsetBins
from paro_attention.calibration.order_scores import (
    ENERGY,
    ERROR_DENSITIES,
    ERRORS,
    INCOHERENCE,
    RETAINED,
    SPARSE,
    error_curves,
    order_scores,
    sampled_blocks,
)
from paro_attention.calibration.profile_geometry import ProfileGeometry
from paro_attention.calibration.tail_bias import TAIL_BIASES
from paro_attention.calibration.token_order import grid_permutation, sequence_permutation

SIGMA = 0.3
FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
biases = st.sampled_from([None, "some", "hidden", "all hidden", "per entry"])


def joined(inputs, first, last, batch=1):
    """Grid q, k, v with random extra tokens around them."""
    whole = []
    for x in inputs:
        extra = torch.randn(batch, x.shape[1], first + last, x.shape[-1])
        x = x.expand(batch, -1, -1, -1)
        whole.append(torch.cat([extra[:, :, :first], x, extra[:, :, first:]], 2))
    return whole


def bias_of(kind, batch, tokens):
    """A key bias; grid tokens carry values that must be ignored."""
    if kind is None:
        return None
    bias = torch.randn(batch if kind == "per entry" else 1, tokens)
    if kind in ("hidden", "per entry"):
        hidden = torch.rand(bias.shape) < 0.4
        bias = bias.masked_fill(hidden, -math.inf if kind == "hidden" else -1e4)
    return torch.full_like(bias, -2e4) if kind == "all hidden" else bias


def joint_attention(q, k, v, first, grid_tokens, bias, kept=None):
    """Dense softmax over the joint sequence; `kept` bool [H, V, V] in the model's order."""
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    grid = slice(first, first + grid_tokens)
    if bias is not None:
        bias = bias.clone()
        bias[:, grid] = 0
        logits = logits + bias[:, None, None, :]
    if kept is not None:
        logits[:, :, grid, grid] = logits[:, :, grid, grid].masked_fill(~kept, -math.inf)
    return logits.softmax(-1) @ v


def runtime(plan, **options):
    exact = dict(qk_bits=16, pv_bits=16, implementation="reference")
    return PlanRuntime(plan, plan.grid, RuntimeOptions(**(exact | options)), "cpu")


@FEW
@given(first=st.integers(0, 40), last=st.integers(0, 70), batch=st.integers(1, 2), kind=biases)
def test_density_one_is_dense_attention_over_the_joint_sequence(
    synthetic_model, plan, first, last, batch, kind
):
    inputs = joined(synthetic_model.attention(4)[0], first, last, batch)
    bias = bias_of(kind, batch, inputs[0].shape[2])
    out = runtime(plan, density=1.0).attention(0, SIGMA, *inputs, dense_first=first, key_bias=bias)
    expected = joint_attention(*inputs, first, plan.grid.tokens, bias)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@FEW
@given(first=st.integers(0, 40), last=st.integers(0, 70), kind=biases)
def test_grid_follows_its_mask_and_extra_tokens_are_dense(synthetic_model, plan, first, last, kind):
    inputs = joined(synthetic_model.attention(5)[1], first, last)
    bias = bias_of(kind, 1, inputs[0].shape[2])
    run = runtime(plan, density=0.3, tail=False)
    out = run.attention(1, SIGMA, *inputs, dense_first=first, key_bias=bias)
    blocks = run.mask(1, SIGMA).to_dense()
    kept = []
    for head, name in enumerate(run.orders(1)):
        block = grid_permutation(name, plan.grid).argsort() // 32
        kept.append(blocks[head][block][:, block])
    expected = joint_attention(*inputs, first, plan.grid.tokens, bias, torch.stack(kept))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_masks_do_not_depend_on_extra_tokens(synthetic_model, plan):
    run = runtime(plan, density=0.3)
    alone = synthetic_model.attention(5)[0]
    before = run.attention(0, SIGMA, *alone)
    mask = run.mask(0, SIGMA)
    assert mask.tokens == plan.grid.tokens
    # Prompts of different length in turn, as with CFG.
    for first, last in ((20, 30), (0, 7), (20, 30), (77, 0)):
        inputs = joined(alone, first, last)
        out = run.attention(0, SIGMA, *inputs, dense_first=first)
        expected = joint_attention(*inputs, first, plan.grid.tokens, None)
        assert float(relative_error(out, expected)) < 0.3
        extra = [n for n in range(out.shape[2]) if not first <= n < first + plan.grid.tokens]
        torch.testing.assert_close(out[:, :, extra], expected[:, :, extra], atol=1e-5, rtol=1e-5)
        assert run.mask(0, SIGMA) is mask
    assert torch.equal(run.attention(0, SIGMA, *alone), before)


def test_permutations_are_kept_for_the_last_few_layouts():
    grid, orders = TokenGrid(2, 3, 5), ("FHW", "WHF", "2x2x2")
    permutations = SequencePermutations(orders, grid, torch.device("cpu"))
    for first, last in ((0, 0), (3, 4), (0, 9), (5, 0)):
        expected = torch.stack([sequence_permutation(name, grid, first, last) for name in orders])
        got = permutations(first, last)
        assert got.dtype == torch.int32 and torch.equal(got, expected.int())
        assert permutations(first, last) is got
    oldest, newest = permutations(3, 4), [permutations(n, 1) for n in range(KEPT_LAYOUTS)]
    assert all(permutations(n, 1) is kept for n, kept in enumerate(newest))
    assert permutations(3, 4) is not oldest


def test_calls_that_do_not_fit_are_named(synthetic_model, plan):
    run, recorder = runtime(plan), synthetic_model.recorder()
    recorder.begin_prompt(0)
    inputs = joined(synthetic_model.attention(1)[0], 4, 6)
    for call in (run.attention, recorder.record):
        for first in (-1, 11, 2.0, True):
            with pytest.raises(ValueError, match=r"dense_first must be in 0..10 for 490 tokens"):
                call(0, SIGMA, *inputs, dense_first=first)
        with pytest.raises(ValueError, match="at least the 480 tokens of the grid"):
            call(0, SIGMA, *(x[:, :, :479] for x in inputs))
        with pytest.raises(ValueError, match=r"q must be \[B, 3, S, 96\], got \[1, 2, 490, 96\]"):
            call(0, SIGMA, *(x[:, :2] for x in inputs))
        for shape in ((1, 10), (2, 490), (490,), (1, 1, 490)):
            with pytest.raises(ValueError, match=r"key_bias must be \[1 or 1, 490\] as q is"):
                call(0, SIGMA, *inputs, dense_first=4, key_bias=torch.zeros(shape))
        with pytest.raises(TypeError, match=r"key_bias must be float32, got torch.bool"):
            call(0, SIGMA, *inputs, key_bias=torch.ones(1, 490, dtype=torch.bool))
        with pytest.raises(ValueError, match="key_bias must be on q's device cpu, got meta"):
            call(0, SIGMA, *inputs, key_bias=torch.zeros(1, 490, device="meta"))


# What calibration makes of extra keys.

GRID, BLOCK = TokenGrid(3, 7, 9), (32, 32)  # 189 tokens: six blocks, the last ragged


def naive_errors(q, k, v, extra, order, kept, tail_bias):
    """Squared error of every tail bias and the energy, block by block in float64."""
    q, k, v = (x.double()[order] for x in (q, k, v))
    scale, tokens = q.shape[-1] ** -0.5, len(q)
    keys, values, added = (x.double() for x in extra)
    beside = (q @ keys.T * scale + added).exp()
    exact = (q @ k.T * scale).exp()
    reference = (exact @ v + beside @ values) / (exact.sum(1) + beside.sum(1))[:, None]
    weighted, total = beside @ values, beside.sum(1)
    for block in range(kept.shape[1]):
        columns = slice(block * 32, min(tokens, block * 32 + 32))
        computed = kept[:, block].repeat_interleave(32)[:tokens].double()
        tail = (q @ k[columns].mean(0) * scale + tail_bias).exp() * len(k[columns])
        share = exact[:, columns]
        weighted += computed[:, None] * (share @ v[columns])
        weighted += ((1 - computed) * tail)[:, None] * v[columns].mean(0)
        total += computed * share.sum(1) + (1 - computed) * tail
    output = weighted / total[:, None]
    return float((output - reference).square().sum()), float(reference.square().sum())


@FEW
@given(
    extra=st.integers(1, 60),
    kind=st.sampled_from([None, "some"]),
    loud=st.sampled_from([1.0, 5.0]),
    seed=st.integers(0, 99),
)
def test_errors_with_extra_keys_are_those_of_a_naive_dense_computation(
    local_attention, extra, kind, loud, seed
):
    torch.manual_seed(seed)
    q, k, v = (x[0, 0] for x in local_attention(GRID, (0.5, 1, 1), noise=0.5))
    keys, values = torch.randn(extra, 96) * loud, torch.randn(extra, 96)
    bias = torch.randn(extra) if kind else None
    order = grid_permutation("3x4x3", GRID)
    sampled = sampled_blocks(6)
    geometry = ProfileGeometry(
        OffsetBins.for_grid(GRID), GRID, "3x4x3", BLOCK, query_blocks=sampled
    )
    curves = error_curves(
        q, k, v, [order], BLOCK, 96**-0.5, [geometry], extra=ExtraKeys(keys, values, bias)
    )[0]
    row = order_scores(
        q, k, v, [order], BLOCK, 0.3, 96**-0.5, profiles=[geometry],
        extra=ExtraKeys(keys, values, bias),
    )[0]  # fmt: skip
    assert torch.allclose(row[ERRORS], curves[ERROR_DENSITIES.index(0.3), :-1])
    assert float(row[ENERGY]) == pytest.approx(float(curves[0, -1]))
    ((_, mass),) = block_mass(q[None, None], k[None, None], order[None], BLOCK)
    ranking = geometry.evaluate(geometry.fit(mass, 1))
    all_of_them = (keys, values, torch.zeros(extra) if bias is None else bias)
    for index, density in enumerate(ERROR_DENSITIES):
        kept = select_blocks(ranking, [round(density * 36)], forced_blocks(189, BLOCK))[0]
        for column in (0, 3):
            error, energy = naive_errors(q, k, v, all_of_them, order, kept, TAIL_BIASES[column])
            assert float(curves[index, column]) == pytest.approx(error, rel=1e-3, abs=1e-7 * energy)
            assert float(curves[index, -1]) == pytest.approx(energy, rel=1e-4)


def test_small_tiles_and_towering_extra_keys_change_nothing(local_attention, monkeypatch):
    from paro_attention.calibration import attention_rows

    q, k, v = (x[0, 0] for x in local_attention(GRID, (0.5, 1, 1), noise=0.5))
    keys, values, bias = torch.randn(30, 96), torch.randn(30, 96), torch.randn(30)

    def scores(bias):
        extra = ExtraKeys(keys, values, bias)
        return order_scores(q, k, v, [torch.arange(189)], BLOCK, 0.3, 0.1, True, extra=extra)

    whole, alone = scores(bias), order_scores(q, k, v, [torch.arange(189)], BLOCK, 0.3, 0.1, True)
    of_the_grid = [RETAINED, SPARSE, INCOHERENCE]
    assert torch.equal(whole[:, of_the_grid], alone[:, of_the_grid])
    # Logits of 200 above the grid's: in float32 nothing of the grid is left.
    towering = scores(bias + 200)
    assert torch.equal(towering[:, of_the_grid], alone[:, of_the_grid])
    assert float(towering[:, ERRORS].max()) < 1e-6 * float(towering[0, ENERGY])
    monkeypatch.setattr(attention_rows, "CPU_TILE_BYTES", 1)
    torch.testing.assert_close(scores(bias), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [None, "some", "hidden", "all hidden", "per entry"])
def test_recorded_calls_are_cut_without_loss(kind):
    q, k, v = torch.randn(3, 2, 2, 40, 8)
    layout = JointLayout.of(40, TokenGrid(1, 3, 8), 5)
    assert (layout.first, layout.last) == (5, 11)
    bias = bias_of(kind, 2, 40)
    call = RecordedCall(q, k, v, layout, layout.extra_bias(bias, 2, q.device))
    expected = joint_attention(q, k, v, 5, 24, bias)[:, :, 5:29]
    for entry in range(2):
        for head in range(2):
            extra = call.extra(entry, head)
            assert (extra is None) == (kind == "all hidden")
            parts = (x[entry, head] for x in (call.q, call.k, call.v))
            out = dense_output(*parts, 8**-0.5, extra)
            torch.testing.assert_close(out, expected[entry, head], atol=1e-5, rtol=1e-5)


def record(model, recorder, text):
    """Like SyntheticModel.record, with text(prompt) -> (first, last, bias kind) beside the grid."""
    for prompt in range(recorder.runs_needed):
        recorder.begin_prompt(prompt)
        layers = model.attention(prompt)
        first, last, kind = text(prompt)
        for sigma in recorder.steps:
            for layer, inputs in enumerate(layers):
                whole = joined(inputs, first, last)
                bias = bias_of(kind, 1, whole[0].shape[2])
                recorder.record(layer, sigma, *whole, dense_first=first, key_bias=bias)
    return recorder.finish(model.identity)


def test_recording_beside_text_of_any_length(synthetic_model, tmp_path):
    make = lambda: synthetic_model.recorder(orders="axes")  # noqa: E731
    alone = record(synthetic_model, make(), lambda prompt: (0, 0, None)).tensors()
    hidden = record(synthetic_model, make(), lambda prompt: (9, 30 + prompt, "all hidden"))
    for name, tensor in hidden.tensors().items():
        assert torch.equal(tensor, alone[name]), name
    plan = record(synthetic_model, make(), lambda prompt: (9 * prompt, 40 - prompt, "some"))
    assert float((plan.error - alone["error"]).abs().mean()) > 0.01  # text takes its share
    same_order = plan.order_of_head == alone["order_of_head"]
    assert bool(same_order.any())
    # Mass is that of the grid alone, so that profiles do not know of the text.
    if plan.orders == hidden.orders:
        profiles = plan.profile.transpose(1, 2), alone["profile"].transpose(1, 2)
        assert torch.equal(profiles[0][same_order], profiles[1][same_order])

    path = tmp_path / "plan.safetensors"
    save_plan(plan, path)
    inputs = joined(synthetic_model.attention(9)[0], 3, 100)
    run = runtime(load_plan(path), density=0.4, warmup=0.0)
    out = run.attention(0, SIGMA, *inputs, dense_first=3)
    expected = joint_attention(*inputs, 3, plan.grid.tokens, None)
    assert float(relative_error(out, expected)) < 0.2
