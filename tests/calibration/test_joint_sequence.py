"""Extra tokens beside the grid: text, references, registers and their bias."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joint_cases import BIASES, bias_of, joined, joint_attention
from paro_attention.calibration import PlanRuntime, RuntimeOptions, TokenGrid
from paro_attention.calibration.joint_sequence import KEPT_LAYOUTS, SequencePermutations
from paro_attention.calibration.metrics import relative_error
from paro_attention.calibration.token_order import grid_permutation, sequence_permutation

SIGMA = 0.3
FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
biases = st.sampled_from(BIASES)


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


@pytest.mark.gpu
def test_prompts_in_turn_do_not_make_the_host_wait(synthetic_model, plan):
    options = RuntimeOptions(density=0.3, implementation="triton")
    run = PlanRuntime(plan, plan.grid, options, "cuda")
    calls = []
    for first, last in ((20, 30), (0, 7), (64, 0)):
        inputs = [x.cuda().half() for x in joined(synthetic_model.attention(5)[0], first, last)]
        calls.append((first, inputs, bias_of("some", 1, inputs[0].shape[2]).cuda()))
    first, inputs, bias = calls[0]
    once = run.attention(0, SIGMA, *inputs, dense_first=first, key_bias=bias)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for first, inputs, bias in [*calls, *calls]:
            out = run.attention(0, SIGMA, *inputs, dense_first=first, key_bias=bias)
            if inputs is calls[0][1]:
                again = out
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, once)


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
