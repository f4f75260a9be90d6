"""Noise bands from schedules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paro_attention.calibration.noise_bands import NoiseBands, checked_schedule


@given(st.integers(1, 60), st.integers(1, 8))
def test_bands_share_the_steps_equally(steps, count):
    sigmas = [(steps - n) / steps for n in range(steps)]
    bands = NoiseBands.from_schedule([*sigmas, 0.0], count)
    sizes = [len(band) for band in bands.steps_in(sigmas)]
    assert bands.count == min(count, steps) == len(sizes)
    assert sum(sizes) == steps and max(sizes) - min(sizes) <= 1
    assert [bands.band_of(sigma) for sigma in sigmas] == sorted(map(bands.band_of, sigmas))


def test_sigmas_beyond_the_schedule_fall_into_the_outer_bands():
    bands = NoiseBands.from_schedule([14.6, 5.0, 1.0, 0.2])
    assert bands.band_of(80.0) == 0
    assert bands.band_of(1e-4) == 3


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([], "at least one positive"),
        ([0.0], "at least one positive"),
        ([1.0, float("nan")], "finite and positive"),
        ([0.5, 0.7], "descending"),
        ([1.0, -0.5], "finite and positive"),
    ],
)
def test_bad_schedules_are_named(sigmas, message):
    with pytest.raises(ValueError, match=message):
        checked_schedule(sigmas)


def test_bad_bands_are_named():
    with pytest.raises(ValueError, match="count must be an integer of at least 1, got 0"):
        NoiseBands.from_schedule([1.0], 0)
    with pytest.raises(ValueError, match="strictly descending"):
        NoiseBands((0.5, 0.5))
