"""A plan at work, from recording to attention."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from paro_attention.calibration import (
    PlanRuntime,
    RuntimeOptions,
    TokenGrid,
    load_plan,
    save_plan,
)
from paro_attention.calibration.metrics import relative_error

EXACT = dict(qk_bits=16, pv_bits=16)
SIGMA = 0.3  # band 2


def runtime(plan, **options):
    return PlanRuntime(plan, plan.grid, RuntimeOptions(**(EXACT | options)), "cpu")


def dense(inputs):
    return torch.nn.functional.scaled_dot_product_attention(*inputs)


def error(plan, inputs, **options):
    return float(
        relative_error(runtime(plan, **options).attention(0, SIGMA, *inputs), dense(inputs))
    )


def test_recording_to_attention(synthetic_model, recorded, plan, tmp_path):
    path = tmp_path / "plan.safetensors"
    save_plan(plan, path)
    loaded = load_plan(path)
    unordered = recorded.finish(synthetic_model.identity, orders="fhw")
    inputs = synthetic_model.attention(77)[0]
    out = runtime(loaded, density=1.0).attention(0, SIGMA, *inputs)
    torch.testing.assert_close(out, dense(inputs), atol=1e-5, rtol=1e-4)
    options = dict(density=0.3, shares=False, budget="head", warmup=0.0)
    assert error(loaded, inputs, **options) < 0.7 * error(unordered, inputs, **options)
    assert error(loaded, inputs, **options) < error(loaded, inputs, **options | dict(tail=False))
    coarser = error(loaded, inputs, **options | dict(density=0.15))
    assert error(loaded, inputs, **options) < coarser


@pytest.mark.parametrize("budget", ["global", "head"])
@pytest.mark.parametrize("density", [0.2, 0.3, 0.61, 1.0])
@pytest.mark.parametrize("warmup", [0.0, 0.15])
def test_density_is_the_mean_over_sparse_steps(plan, budget, density, warmup):
    run = runtime(plan, density=density, budget=budget, warmup=warmup)
    sigmas = [1 - n / 30 for n in range(30)]
    run.begin_run([*sigmas, 0.0])
    steps = [sigma for sigma in sigmas if run.is_dense(0, sigma) is None]
    assert len(steps) == 30 - round(warmup * 30 + 1e-6)
    executed = [run.mask(layer, sigma).density() for sigma in steps for layer in range(2)]
    heads, blocks = 2 * 3, run.blocks[0] * run.blocks[1]
    mean = sum(executed) / len(executed)
    assert mean == pytest.approx(density, abs=1 / (heads * blocks))
    noisy, clean = run.mask(0, steps[0]).density(), run.mask(0, steps[-1]).density()
    assert noisy > clean or density == 1.0


def test_warm_up_and_dense_layers(plan):
    run = runtime(plan, warmup=0.25, dense_layers=(1,))
    run.begin_run([1.0, 0.8, 0.6, 0.4])
    assert run.is_dense(0, 1.0) == "warm-up"
    assert run.is_dense(0, 0.80001) is None
    assert run.is_dense(1, 0.8) == "dense layer"
    assert runtime(plan, warmup=1.0).is_dense(0, 0.05) == "warm-up"
    few = runtime(plan, warmup=0.0)
    few.begin_run([1.0])
    assert few.is_dense(0, 1.0) is None


def test_masks_outlive_a_run_and_more_can_be_built_after_it(plan):
    run, whole = runtime(plan, density=0.3), runtime(plan, density=0.3)
    first = run.mask(0, SIGMA)
    run.end_run()
    assert run.mask(0, SIGMA) is first
    assert torch.equal(run.mask(1, SIGMA).to_dense(), whole.mask(1, SIGMA).to_dense())


@pytest.mark.parametrize("block", [None, (64, 64), (32, 128)])
def test_other_grids_and_blocks(plan, synthetic_model, block):
    grid = TokenGrid(6, 10, 16)
    run = PlanRuntime(plan, grid, RuntimeOptions(density=0.4, block=block, **EXACT), "cpu")
    other = type(synthetic_model)(grid)
    inputs = other.attention(3)[0]
    assert float(relative_error(run.attention(0, SIGMA, *inputs), dense(inputs))) < 0.6
    assert "offsets kept in tokens" in run.describe() and "calibrated on 4x10x12" in run.describe()


def test_recall_orders_and_description(plan):
    run = runtime(plan, density=0.3)
    recall = run.predicted_recall(0, SIGMA)
    assert recall.shape == (3,) and bool((recall > 0.2).all() and (recall <= 1).all())
    assert runtime(plan, density=0.1).mean_recall() < run.mean_recall() < 1
    assert runtime(plan, density=1.0).mean_recall() == pytest.approx(1, abs=1e-3)
    assert f"keeps {run.mean_recall():.0%} of the attention" in run.describe()
    assert run.orders(1) == plan.order_names(1)
    assert run.permutations().shape == (len(plan.orders), plan.grid.tokens)
    assert "one budget for all heads by error" in run.describe()
    assert "all heads by mass" in runtime(plan, density=0.3, tail=False).describe()
    assert "3 of 20 steps dense first" in run.describe()
    assert "below 0.2" in runtime(plan, density=0.1, tail=False).describe()


def test_same_densities_keep_the_masks(plan):
    run = runtime(plan, density=0.3)
    mask = run.mask(0, SIGMA)
    run.begin_run(plan.schedule)
    assert run.mask(0, SIGMA) is mask
    run.begin_run([0.3, 0.2])  # all steps in the two clean bands
    assert run.mask(0, SIGMA) is not mask


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(density=0.0), r"density must lie in \(0, 1\], got 0.0"),
        (dict(density=float("nan")), r"density must lie in \(0, 1\], got nan"),
        (dict(qk_bits=6), r"qk_bits must be one of \(16, 8, 4\), got 6"),
        (dict(pv_bits=32), r"pv_bits must be one of \(16, 8, 4\), got 32"),
        (dict(budget="row"), "budget must be one of"),
        (dict(warmup=-0.1), r"warmup must lie in 0..1"),
        (dict(dense_layers=(-1,)), "dense_layers must be layer indices"),
        (dict(block=(64, 48)), "block must be"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RuntimeOptions(**options)


def test_tensors_that_do_not_fit_are_named(plan, synthetic_model):
    run = runtime(plan)
    q, k, v = synthetic_model.attention(1)[0]
    with pytest.raises(ValueError, match="at least the 480 tokens of the grid 4x10x12, got 479"):
        run.attention(0, SIGMA, q[:, :, :-1], k[:, :, :-1], v[:, :, :-1])
    with pytest.raises(ValueError, match=r"layer must be in 0..1, got 2"):
        run.attention(2, SIGMA, q, k, v)
    with pytest.raises(ValueError, match="dense_layers must be below the model's 2 layers"):
        runtime(plan, dense_layers=(2,))


def test_a_runtime_is_freed_without_a_garbage_collection(plan):
    run = runtime(plan)
    run.mask(0, SIGMA)
    gone = weakref.ref(run)
    gc.disable()
    try:
        del run
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.gpu
def test_sixteen_bits_at_density_one_are_torchs_own_attention(plan, synthetic_model):
    inputs = [x.to("cuda", torch.float16) for x in synthetic_model.attention(77)[0]]
    options = RuntimeOptions(**EXACT, density=1.0)
    assert torch.equal(
        PlanRuntime(plan, plan.grid, options, "cuda").attention(0, SIGMA, *inputs), dense(inputs)
    )
    insisting = RuntimeOptions(**EXACT, density=1.0, implementation="triton")
    ours = PlanRuntime(plan, plan.grid, insisting, "cuda").attention(0, SIGMA, *inputs)
    assert relative_error(ours, dense(inputs)) < 5e-3
