"""PARO Report: what its pictures say is what the plan says, and they are drawn for every plan."""

from __future__ import annotations

import time

import numpy as np
import pytest
from made_plan import make_plan
from paro_attention.calibration import PlanRuntime, RuntimeOptions
from paro_attention.nodes import report_canvas
from paro_attention.nodes.report_curves import draw_curves
from paro_attention.nodes.report_data import chosen_heads, make_report
from paro_attention.nodes.report_maps import draw_maps, draw_masks, mask_pixels
from paro_attention.nodes.report_table import draw_table

DRAWINGS = (draw_maps, draw_masks, draw_curves, draw_table)


@pytest.fixture(scope="module")
def plan():
    return make_plan((4, 9, 10), layers=5, heads=3, block=(32, 64))


def test_masks_are_the_ones_that_sampling_follows(plan):
    report = make_report(plan, "p", density=0.3, band=1)
    runtime = PlanRuntime(plan, plan.grid, RuntimeOptions(density=0.3), "cpu")
    sigma = plan.bands.steps_in(plan.schedule)[1][0]
    for head in report.heads:
        mask = runtime.mask(head.layer, sigma).to_dense()[head.head]
        assert np.array_equal(head.mask, mask.numpy())
        recall = runtime.predicted_recall(head.layer, sigma)[head.head].item()
        assert head.recall_here == pytest.approx(recall, abs=0.02)


def test_before_is_the_same_head_in_the_models_own_order(plan):
    heads = make_report(plan, "p", density=0.3, band=0, layer=2).heads
    assert [head.head for head in heads] == [0, 1, 2]
    for head in heads:
        assert np.allclose(head.before.sum(-1), 1, atol=1e-5)
        assert np.allclose(head.after.sum(-1), 1, atol=1e-5)
        if head.order == "FHW":
            assert np.array_equal(head.before, head.after)
    assert any(not np.allclose(head.before, head.after) for head in heads)


def test_chosen_heads_follow_the_widgets(plan):
    assert chosen_heads(plan, 3, 1) == [(3, 1)]
    assert [layer for layer, _ in chosen_heads(plan, -1, 2)] == [0, 1, 3, 4]
    assert len({head for _, head in chosen_heads(plan, -1, -1)}) > 1
    for layer, head in ((5, -1), (-1, 3), (-2, 0)):
        with pytest.raises(ValueError, match="must be -1 or 0 to"):
            chosen_heads(plan, layer, head)


def test_a_band_that_the_plan_does_not_have_shows_its_last(plan):
    last = make_report(plan, "p", density=0.3, band=7)
    assert last.band == plan.bands.count - 1
    assert f"noise band {last.band} of 0-{last.band}" in last.summary()


def test_rows_agree_with_the_plan(plan):
    report = make_report(plan, "p", density=0.4, band=1)
    assert len(report.layers) == plan.layers
    densities = [row.density for row in report.layers]
    assert np.mean(densities) == pytest.approx(report.band_density)
    for row in report.layers:
        assert sum(heads for _, heads in row.orders) == plan.heads
        assert row.worst[1] <= row.recall <= 1


@pytest.mark.parametrize("draw", DRAWINGS)
@pytest.mark.parametrize("layer", [-1, 0])
def test_pictures_are_images_with_something_on_them(plan, draw, layer):
    head = -1 if layer < 0 else 0
    report = make_report(plan, "p", density=0.3, band=0, layer=layer, head=head)
    picture = draw(report)
    assert picture.dtype == np.float32 and picture.shape[0] == 1 and picture.shape[3] == 3
    assert picture.shape[2] >= 1000, "wide enough for the words"
    assert 0 <= picture.min() < 0.3 and 0.9 < picture.max() <= 1


def test_table_of_many_layers_goes_on_in_a_second_column():
    short, long = (
        draw_table(
            make_report(
                make_plan((2, 4, 8), layers=n, heads=2, block=(32, 32)), "p", density=0.3, band=0
            )
        )
        for n in (4, 44)
    )
    assert long.shape[2] > 1.5 * short.shape[2]


def test_computed_blocks_are_coloured_and_left_out_ones_grey(plan):
    (head,) = make_report(plan, "p", density=0.3, band=0, layer=1, head=0).heads
    pixels = mask_pixels(head).astype(int)
    spread = pixels.max(-1) - pixels.min(-1)
    assert (spread[~head.mask] == 0).all()
    assert pixels[~head.mask].min() > 190, "paler than any computed block"
    brightest = head.mask & (head.after >= np.quantile(head.after, 0.999))
    assert (spread[brightest] > 100).all()


def test_heat_map_gets_lighter_with_mass_for_every_eye():
    ramp = report_canvas.colours(np.linspace(0, 1, 64)).astype(float)
    lightness = ramp @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) > 0).all()
    # What a red-blind and a green-blind eye sees (Machado, Oliveira and Fernandes 2009).
    for matrix in (
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
    ):
        seen = ramp @ np.array(matrix).T
        assert (np.diff(seen @ np.array([0.2126, 0.7152, 0.0722])) > 0).all()


def test_a_large_plan_is_reported_in_seconds():
    plan = make_plan((9, 30, 52), layers=8, heads=12, block=(64, 128), bands=2)
    started = time.process_time()
    report = make_report(plan, "p", density=0.3, band=1)
    for draw in DRAWINGS:
        draw(report)
    assert time.process_time() - started < 20
    assert len(report.summary().splitlines()) == 3
