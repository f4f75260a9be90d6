"""Budgets: over bands, over heads, in blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paro_attention.calibration.density_budget import (
    band_densities,
    concave_slopes,
    default_shares,
    error_benefit,
    head_counts,
    head_densities,
    mass_benefit,
)
from paro_attention.calibration.metrics import RECALL_DENSITIES
from paro_attention.calibration.order_scores import ERROR_DENSITIES

densities = st.floats(0.01, 1.0)


def curve(power):
    return np.array(RECALL_DENSITIES) ** power


@given(densities, st.lists(st.integers(0, 12), min_size=4, max_size=4))
def test_bands_average_to_the_density(density, steps):
    got = band_densities(density, default_shares(4), steps)
    assert all(0 < value <= 1 + 1e-9 for value in got) or sum(steps) == 0
    if sum(steps):
        mean = sum(d * n for d, n in zip(got, steps, strict=True)) / sum(steps)
        assert mean == pytest.approx(density)


def test_shares_and_what_a_full_band_cannot_take():
    assert default_shares(4) == (2.0, 1.0, 1.0, 1.0)
    assert default_shares(2) == (1.5, 1.0)
    assert band_densities(0.3, (3, 1, 1, 1), (5, 5, 5, 5)) == pytest.approx((0.6, 0.2, 0.2, 0.2))
    # 3 x 0.4 would be 1.2: the band is full and the others take the rest.
    assert band_densities(0.6, (3, 1, 1, 1), (5, 5, 5, 5)) == pytest.approx(
        (1, 7 / 15, 7 / 15, 7 / 15)
    )


@settings(max_examples=40, deadline=None)
@given(densities, st.lists(st.floats(0.02, 1.5), min_size=1, max_size=12), st.booleans())
def test_heads_average_to_the_density_within_one_block(density, powers, by_mass):
    curves = np.stack([curve(power) for power in powers])
    errors = np.stack([(1 - np.array(ERROR_DENSITIES)) ** (1 / power) for power in powers])
    curves = mass_benefit(curves) if by_mass else error_benefit(errors)
    got = head_densities(density, *curves, 0.25 * density)
    assert got.mean() == pytest.approx(density, abs=1e-6)
    assert (got >= 0.25 * density - 1e-9).all() and (got <= 1 + 1e-9).all()
    counts = head_counts(got, 1024, density)
    assert abs(int(counts.sum()) - density * 1024 * len(powers)) <= 1
    assert counts.max() <= 1024


def test_diffuse_heads_take_from_peaked_ones():
    peaked, diffuse = curve(0.05), curve(0.9)
    got = head_densities(0.3, *mass_benefit(np.stack([peaked, diffuse])), 0.075)
    assert got[0] < 0.2 < 0.4 < got[1]


def test_by_error_goes_where_the_tail_fails():
    """Two heads of equal recall; the tail stands in well for one of them only."""
    remaining = 1 - np.array(ERROR_DENSITIES)
    got = head_densities(0.3, *error_benefit(np.stack([0.02 * remaining, 0.6 * remaining])), 0.075)
    assert got[0] < 0.2 < 0.4 < got[1]


def test_concave_curve_above_the_points():
    grid = np.array([0.0, 0.25, 0.5, 1.0])
    # The second point lies below the line from the first to the third.
    slopes = concave_slopes(np.array([[0.0, 0.1, 0.6, 0.8], [0.0, 0.5, 0.75, 1.0]]), grid)
    assert slopes == pytest.approx(np.array([[1.2, 1.2, 0.4], [2.0, 1.0, 0.5]]))
