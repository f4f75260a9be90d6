"""The curve of time against error: what is read off it, and errors on a small model run."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from paro_attention.demo.wan import load_demo_model


@pytest.fixture(scope="module")
def curve():
    return importlib.import_module("error_curve")


def test_time_between_settings_is_linear_in_the_errors_logarithm(curve):
    points = [curve.Point("a", 0.5, 0.01, 4.0), curve.Point("a", 0.1, 0.04, 2.0)]
    assert curve.time_at_error(points, 0.02) == pytest.approx(3.0)
    assert curve.time_at_error(points, 0.01) == 4.0
    assert curve.time_at_error(points, 0.04) == 2.0
    assert curve.time_at_error(points, 0.5) == 2.0
    assert curve.time_at_error(points, 0.005) is None


def test_a_slower_setting_with_more_error_does_not_count(curve):
    points = [
        curve.Point("a", 0.5, 0.05, 5.0),
        curve.Point("a", 0.3, 0.02, 3.0),
        curve.Point("a", 0.1, 0.08, 1.0),
    ]
    assert curve.time_at_error(points, 0.05) < 3.0
    assert curve.time_at_error(points, 0.02) == 3.0


def test_the_fastest_family_is_named_at_every_error(curve):
    points = [
        curve.Point("a", 0.5, 0.01, 4.0), curve.Point("a", 0.1, 0.04, 2.0),
        curve.Point("b", 0.5, 0.02, 2.5), curve.Point("b", 0.1, 0.08, 1.0),
    ]  # fmt: skip
    rows = curve.equal_error(points, (0.001, 0.01, 0.02, 0.08))
    assert [row["best"] for row in rows] == [None, "a", "b", "b"]
    assert rows[1]["ms"] == {"a": 4.0, "b": None}


def test_our_fastest_block_is_told_with_its_density(curve):
    points = [
        curve.Point("PARO 64x64", 0.5, 0.01, 4.0, (64, 64)),
        curve.Point("PARO 64x64", 0.1, 0.04, 2.0, (64, 64)),
        curve.Point("sol", 0.1, 0.01, 1.0),
    ]
    (row,) = curve.block_rows(points, curve.equal_error(points, (0.001, 0.02)), 12.0, 90)
    assert row.block == (64, 64) and row.error == 0.02 and row.architecture == 90
    assert row.density == pytest.approx(0.3) and row.share == 0.25


def test_our_points_take_the_times_of_another_run_as_shares_of_dense(curve):
    points = [
        curve.Point("PARO 64x64", 0.5, 0.01, 4.0, (64, 64)),
        curve.Point("PARO 64x64", 0.4, 0.02, 3.0, (64, 64)),
        curve.Point("sol", 0.5, 0.01, 5.0),
    ]
    ours = {"tokens": 99, "ours": True, "whole_call": True, "tail": True, "masks": "random"}
    ours |= {"qk_bits": 8, "pv_bits": 8, "block": [64, 64], "density": 0.4996, "ms": 3.0}
    attention = {
        "gpu": "a card",
        "commit": "abc",
        "rows": [
            {"tokens": 7, "baseline": True, "ms": 1.0},
            {"tokens": 99, "ours": False, "baseline": True, "ms": 10.0},
            ours, ours | {"whole_call": False, "ms": 1.0}, ours | {"qk_bits": 16, "ms": 9.0},
        ],
    }  # fmt: skip
    report = {"gpu": "a card", "tokens": 99, "sdpa_ms": 20.0}
    report["points"] = [curve.asdict(p) for p in points]
    found = curve.retimed(report, attention)
    assert [(p["family"], p["ms"]) for p in found["points"]] == [("PARO 64x64", 6.0), ("sol", 5.0)]
    assert found["retimed"] == "abc"
    assert found["equal_error"][0]["best"] == "sol"
    with pytest.raises(ValueError, match="dense attention at 7000 tokens"):
        curve.retimed(report | {"tokens": 7000}, attention)
    with pytest.raises(ValueError, match="another card"):
        curve.retimed(report, attention | {"gpu": "another card"})


def test_errors_fall_with_density_and_a_perfect_peer_has_none(curve):
    scale = replace(
        curve.SCALE, grid=(2, 8, 8), block=(32, 32), steps=4, videos=1, probe_steps=1,
        velocity_videos=1, attention_videos=1,
    )  # fmt: skip
    model = load_demo_model(torch.device("cpu"), torch.float32)
    probes, calibrated = curve.recorded(model, scale, torch.float32)
    experiment, heads = calibrated((32, 32))
    sparse, denser = (curve.our_point(experiment, heads, probes, d) for d in (0.4, 0.8))
    assert sparse.family == "PARO 32x32" and sparse.kept == pytest.approx(0.4, abs=0.02)
    assert 0 < denser.error < sparse.error < 0.5
    order = torch.randperm(128)
    exact = torch.nn.functional.scaled_dot_product_attention
    assert curve.peer_error(probes, exact, order) < 1e-5
    assert curve.peer_error(probes, lambda q, k, v: exact(q, k, v) * 1.1, None) > 0.09
