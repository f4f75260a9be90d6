"""What calibration makes of extra keys: exact in every output error, absent from block mass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joint_cases import BIASES, bias_of, joined, joint_attention
from paro_attention.calibration import PlanRuntime, RuntimeOptions, TokenGrid, load_plan, save_plan
from paro_attention.calibration.block_mass import block_mass
from paro_attention.calibration.block_selection import forced_blocks, select_blocks
from paro_attention.calibration.extra_keys import ExtraKeys, RecordedCall, dense_output
from paro_attention.calibration.joint_sequence import JointLayout
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
)
from paro_attention.calibration.profile_geometry import ProfileGeometry
from paro_attention.calibration.row_sample import sampled_blocks
from paro_attention.calibration.tail_bias import TAIL_BIASES
from paro_attention.calibration.token_order import grid_permutation

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


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
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
    from paro_attention.kernels import attention_rows

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


@pytest.mark.parametrize("kind", BIASES)
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
    # Mass is that of the grid alone, so that profiles do not know of the text.
    names = [(hidden.order_names(n), plan.order_names(n)) for n in range(plan.layers)]
    same = torch.tensor([[a == b for a, b in zip(*row, strict=True)] for row in names])
    assert bool(same.any())
    profiles = (x.transpose(1, 2)[same] for x in (plan.profile, hidden.profile))
    assert torch.equal(*profiles)

    path = tmp_path / "plan.safetensors"
    save_plan(plan, path)
    inputs = joined(synthetic_model.attention(9)[0], 3, 100)
    options = RuntimeOptions(density=0.4, qk_bits=16, pv_bits=16)
    run = PlanRuntime(load_plan(path), plan.grid, options, "cpu")
    out = run.attention(0, 0.3, *inputs, dense_first=3)
    expected = joint_attention(*inputs, 3, plan.grid.tokens, None)
    assert float(relative_error(out, expected)) < 0.2
