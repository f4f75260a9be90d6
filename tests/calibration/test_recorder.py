"""The recorder: what it asks for, what it refuses, what comes out."""

from __future__ import annotations

import pytest
import torch
from paro_attention.calibration import ModelIdentity, NoiseBands, Recorder, TokenGrid
from paro_attention.calibration.mass_store import BlockPooling, MassStore, pool_factor


def make(**options):
    defaults = dict(layers=1, heads=1, head_dim=8, schedule=[1.0, 0.75, 0.5, 0.25, 0.0])
    return Recorder(TokenGrid(2, 8, 8), **(defaults | options))


def test_records_the_asked_steps_of_every_band():
    recorder = make(schedule=[1 - n / 20 for n in range(20)], steps_per_band=2)
    assert len(recorder.steps) == 8
    assert [recorder.bands.band_of(s) for s in recorder.steps] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not recorder.wants(0, recorder.steps[0])  # no prompt yet
    recorder.begin_prompt(0)
    assert recorder.wants(0, recorder.steps[0] * 1.0001)
    assert not recorder.wants(1, recorder.steps[0])
    assert not recorder.wants(0, 0.97)


def test_runs_needed():
    assert [make(prompts=n).choosing_runs for n in (1, 2, 3, 4, 5)] == [1, 1, 1, 2, 2]
    assert make(prompts=1).runs_needed == 2
    assert make(prompts=3).runs_needed == 3
    assert make(prompts=1, orders="fhw").runs_needed == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(density=0.0), r"density must lie in \(0, 1\], got 0.0"),
        (dict(density=1.5), r"density must lie in \(0, 1\]"),
        (dict(alpha=2), "alpha must lie in 0..1"),
        (dict(choice="mass"), "choice must be one of"),
        (dict(orders="all"), "orders must be one of"),
        (dict(orders=()), "at least one kind"),
        (dict(prompts=0), "prompts must be an integer of at least 1"),
        (dict(block=(16, 32)), "block must be"),
        (dict(heads=0), "heads must be an integer of at least 1"),
        (dict(schedule=[]), "schedule must hold at least one"),
        (dict(bands=NoiseBands((9.0,))), "every noise band must hold a step"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_bad_calls_are_named():
    recorder = make()
    x = torch.zeros(1, 1, 128, 8)
    with pytest.raises(RuntimeError, match="begin_prompt must be called"):
        recorder.record(0, 1.0, x, x, x)
    with pytest.raises(ValueError, match="prompt index must be 0 of 2 runs, got 1"):
        recorder.begin_prompt(1)
    recorder.begin_prompt(0)
    with pytest.raises(ValueError, match=r"layer must be in 0..0, got 3"):
        recorder.record(3, 1.0, x, x, x)
    short = x[:, :, :127]
    with pytest.raises(ValueError, match="at least the 128 tokens of the grid 2x8x8, got 127"):
        recorder.record(0, 1.0, short, short, short)
    with pytest.raises(TypeError, match="q must be floating point"):
        recorder.record(0, 1.0, x.int(), x.int(), x.int())
    with pytest.raises(RuntimeError, match="2 runs must be recorded, got 1"):
        recorder.finish(ModelIdentity("a", "w", 1, 1, 8))
    with pytest.raises(ValueError, match="no maps of"):
        recorder.begin_prompt(1)


def test_plans_of_several_kinds_share_one_recording(synthetic_model, recorded, plan):
    assert recorded.all_candidates == plan.candidates
    axes = recorded.finish(synthetic_model.identity, orders="axes")
    fhw = recorded.finish(synthetic_model.identity, orders="fhw")
    assert set(fhw.orders) == {"FHW"}
    assert all("x" not in name for name in axes.orders)
    alone = synthetic_model.record(synthetic_model.recorder(orders="axes"))
    same = alone.finish(synthetic_model.identity)
    for name, tensor in same.tensors().items():
        torch.testing.assert_close(tensor, axes.tensors()[name], msg=name)
    with pytest.raises(ValueError, match="orders must be one of tiles, axes, fhw"):
        recorded.finish(synthetic_model.identity, orders="none")
    with pytest.raises(ValueError, match="identity must have layers, heads, head_dim"):
        recorded.finish(ModelIdentity("a", "w", 2, 3, 64))


def test_plan_describes_what_it_was_made_from(synthetic_model, plan):
    assert plan.grid == synthetic_model.grid and plan.block == (32, 32)
    assert plan.origin.note == "from a test" and plan.origin.prompts == 2
    assert len(plan.origin.steps) == 4 and plan.bands.count == 4
    assert plan.shares == (2, 1, 1, 1)
    judged = slice(9, 20)  # densities 0.17 to 0.49: more blocks than any mask must keep
    kept = (plan.recall_profile / plan.recall_true)[..., judged]
    assert float(kept.min()) >= 0.98


def test_pooled_store_keeps_rows_and_mean():
    grid = TokenGrid(1, 10, 20)  # 200 tokens: 7 blocks of 32, the last with 8
    pooling = BlockPooling(grid, (32, 32), 2)
    assert pooling.blocks == (4, 4)
    store = MassStore(pooling)
    profile = torch.ones(1, 1, 1)
    for value in (1.0, 3.0):
        mass = torch.full((7, 7), 1.0) + value * torch.eye(7)
        store.add((0, 0, 0, "FHW"), mass / mass.sum(-1, keepdim=True), profile * value)
    mean = store.mass((0, 0, 0, "FHW"))
    torch.testing.assert_close(mean.sum(-1), torch.ones(4))
    assert float(store.profile((0, 0, 0, "FHW"))) == 2.0
    # 40 heads of 40 layers in four bands at 75,600 tokens stay below 4 GiB.
    factor = pool_factor(TokenGrid(21, 45, 80), (64, 64), 6400)
    blocks = BlockPooling(TokenGrid(21, 45, 80), (64, 64), factor).blocks
    assert blocks[0] * blocks[1] * 2 * 6400 <= 4 << 30 and factor == 4
