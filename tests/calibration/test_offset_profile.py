"""Offset profiles: bins, evaluation, fitting, transfer to another grid, codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paro_attention.calibration import log2_code
from paro_attention.calibration.block_layout import valid_tokens
from paro_attention.calibration.block_mass import block_mass
from paro_attention.calibration.block_selection import forced_blocks
from paro_attention.calibration.metrics import recall_curve
from paro_attention.calibration.offset_profile import MAX_BINS, OffsetBins
from paro_attention.calibration.profile_correction import (
    COARSE,
    NO_CORRECTION,
    POPULARITY,
    apply_correction,
    choose_correction,
)
from paro_attention.calibration.profile_geometry import ProfileGeometry
from paro_attention.calibration.token_grid import TokenGrid
from paro_attention.calibration.token_order import grid_permutation

DENSITIES = (0.1, 0.2, 0.3, 0.5)


def kept(mass, score, grid, block):
    forced = forced_blocks(grid.tokens, block)
    rows = valid_tokens(grid.tokens, block[0])
    best = recall_curve(mass, mass, forced, rows, DENSITIES)
    return float((recall_curve(mass, score, forced, rows, DENSITIES) / best).min())


def one_mass(q, k, order, grid, block):
    ((_, mass),) = block_mass(q, k, grid_permutation(order, grid)[None], block)
    return mass


def test_bins_are_symmetric_reach_the_grid_and_stay_few():
    bins = OffsetBins.for_grid(TokenGrid(21, 45, 80))
    assert bins.frames[0] == -20 and bins.height[-1] == 44 and bins.width[-1] == 79
    for axis in bins.axes:
        assert [-d for d in reversed(axis)] == list(axis)
    for shape in [(1, 1, 1), (1, 2, 300), (121, 200, 300)]:
        count = 1
        for size in OffsetBins.for_grid(TokenGrid(*shape)).shape:
            count *= size
        assert count <= MAX_BINS
    with pytest.raises(ValueError, match="contain 0"):
        OffsetBins((1, 2), (0,), (0,))


@settings(max_examples=15, deadline=None)
@given(
    grid=st.builds(TokenGrid, st.integers(1, 6), st.integers(2, 9), st.integers(2, 9)),
    order=st.sampled_from(["FHW", "WHF", "4x2x4", "2x4x4"]),
    block=st.sampled_from([(32, 32), (64, 32)]),
)
def test_a_flat_profile_is_uniform_attention(grid, order, block):
    geometry = ProfileGeometry(OffsetBins.for_grid(grid), grid, order, block)
    mass = geometry.evaluate(torch.full((1, *geometry.bins.shape), 0.25))[0]
    uniform = valid_tokens(grid.tokens, block[1]) / grid.tokens
    torch.testing.assert_close(mass, uniform.expand_as(mass), atol=1e-5, rtol=1e-4)
    # And back: uniform attention has a flat profile wherever a pair reaches.
    profile = geometry.fit(mass[None])[0]
    reached = profile[geometry.reached]
    torch.testing.assert_close(
        reached, torch.full_like(reached, 1 / grid.tokens), rtol=1e-3, atol=0
    )


def test_mirrored_profile_gives_the_transposed_pattern():
    grid, block = TokenGrid(4, 8, 8), (32, 32)
    geometry = ProfileGeometry(OffsetBins.for_grid(grid), grid, "4x2x4", block)
    profile = torch.rand(1, *geometry.bins.shape)
    symmetric = profile + profile.flip((1, 2, 3))
    mass = geometry.evaluate(symmetric)[0]
    # Row normalisation aside, offset (i, j) is minus offset (j, i).
    raw = mass / mass.diagonal()[:, None]
    torch.testing.assert_close(raw, raw.T, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "order", "block", "at_least"),
    [
        ((8, 12, 12), "8x2x2", (32, 32), 0.98),
        ((8, 12, 12), "FHW", (32, 32), 0.98),
        ((5, 9, 20), "FHW", (32, 32), 0.96),  # blocks bend around the edge of the picture
        ((5, 9, 20), "4x2x4", (32, 64), 0.97),  # cut tiles, ragged last block
    ],
)
def test_profile_keeps_the_recall_of_the_map_it_was_fitted_to(
    local_attention, shape, order, block, at_least
):
    grid = TokenGrid(*shape)
    q, k, _ = local_attention(grid, (0.5, 1.0, 1.0), (1, 0, 2), noise=0.3)
    mass = one_mass(q, k, order, grid, block)
    geometry = ProfileGeometry(OffsetBins.for_grid(grid), grid, order, block)
    profile = geometry.fill(geometry.fit(mass))
    assert kept(mass, geometry.evaluate(profile), grid, block) >= at_least
    decoded = log2_code.decode(*log2_code.encode(profile, 3))
    assert kept(mass, geometry.evaluate(decoded), grid, block) >= at_least - 0.01


@pytest.mark.parametrize(
    ("order", "shape"), [("2x4x4", (12, 20, 20)), ("FHW", (8, 24, 20)), ("8x2x2", (8, 24, 16))]
)
def test_profile_transfers_to_another_grid_with_offsets_in_tokens(local_attention, order, shape):
    small, large, block = TokenGrid(8, 16, 16), TokenGrid(*shape), (32, 32)
    bins = OffsetBins.for_grid(small)

    def attention(grid):
        # The same attention on both grids: features fixed in tokens, as rotary embeddings are.
        wide = TokenGrid(16, 26, 26)
        q, k, _ = local_attention(wide, (0.3, 0.5, 0.5), (1, 0, 0), noise=0.2)
        inside = torch.arange(wide.tokens).view(wide.shape)
        inside = inside[: grid.frames, : grid.height, : grid.width].reshape(-1)
        return q[:, :, inside], k[:, :, inside]

    fitted = ProfileGeometry(bins, small, order, block)
    profile = fitted.fill(fitted.fit(one_mass(*attention(small), order, small, block)))
    other = ProfileGeometry(bins, large, order, block)
    mass = one_mass(*attention(large), order, large, block)
    assert kept(mass, other.evaluate(profile), large, block) >= 0.97


def test_corrections_restore_favourite_keys_and_an_irregular_head(local_attention):
    grid, block = TokenGrid(4, 16, 16), (32, 32)
    q, k, _ = local_attention(grid, (0.5, 1.0, 1.0))
    forced, rows = forced_blocks(grid.tokens, block), valid_tokens(grid.tokens, block[0])
    geometry = ProfileGeometry(OffsetBins.for_grid(grid), grid, "4x4x2", block)
    local = one_mass(q, k, "4x4x2", grid, block)[0]

    def corrected(mass):
        mass = mass / mass.sum(-1, keepdim=True)
        predicted = geometry.evaluate(geometry.fill(geometry.fit(mass[None])))[0]
        true = recall_curve(mass[None], mass[None], forced, rows)[0]
        correction = choose_correction(mass, predicted, true, forced, rows)
        score = apply_correction(predicted, correction.codes)
        return correction.kind, kept(mass[None], score[None], grid, block)

    assert corrected(local)[0] == NO_CORRECTION
    favourites = torch.ones(local.shape[1])
    favourites[[3, 11, 20]] = 20
    assert corrected(local * favourites) == (POPULARITY, pytest.approx(1, abs=0.02))
    assert corrected(torch.rand_like(local) ** 8) == (COARSE, pytest.approx(1, abs=0.02))


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20))
def test_codes_round_by_less_than_three_percent(values):
    x = torch.tensor(values)
    x = x[x > x.max() * 2**-20]
    decoded = log2_code.decode(*log2_code.encode(x, 1))
    torch.testing.assert_close(decoded, x, rtol=0.03, atol=0)
    ratio = x.clamp(2**-10, 2**10)
    torch.testing.assert_close(
        log2_code.decode_ratio(log2_code.encode_ratio(ratio)), ratio, rtol=0.03, atol=0
    )
    assert log2_code.decode(*log2_code.encode(torch.zeros(2, 3), 1)).abs().max() == 0
