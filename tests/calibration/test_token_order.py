"""Token orders: bijections on every grid, names, candidates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paro_attention.calibration.token_grid import TokenGrid
from paro_attention.calibration.token_order import (
    AXIS_ORDERS,
    IMAGE_STRIPES,
    MAX_CANDIDATES,
    candidate_orders,
    grid_permutation,
    inverse_permutation,
    sequence_permutation,
    tile_shape,
)

grids = st.builds(TokenGrid, st.integers(1, 9), st.integers(1, 12), st.integers(1, 13))
tiles = st.tuples(*[st.integers(1, 16)] * 3).map(lambda tile: "x".join(map(str, tile)))
orders = st.one_of(st.sampled_from(AXIS_ORDERS), tiles)


@settings(max_examples=60, deadline=None)
@given(order=orders, grid=grids, first=st.integers(0, 5), last=st.integers(0, 5))
def test_permutation_and_inverse_cancel_on_any_grid(order, grid, first, last):
    permutation = sequence_permutation(order, grid, first, last)
    tokens = first + grid.tokens + last
    assert sorted(permutation.tolist()) == list(range(tokens))
    x = torch.randn(tokens, 3)
    assert torch.equal(x[permutation][inverse_permutation(permutation)], x)
    # Tokens off the grid stand behind it, in their own order.
    outside = [n for n in range(tokens) if not first <= n < first + grid.tokens]
    assert permutation[grid.tokens :].tolist() == outside


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("FHW", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        ("WHF", [0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11]),
        ("2x1x2", [0, 1, 6, 7, 2, 8, 3, 4, 9, 10, 5, 11]),  # edge tiles of width 1
        ("2x2x3", list(range(12))),  # one tile is the whole grid
    ],
)
def test_known_layouts_of_a_2x2x3_grid(order, expected):
    assert grid_permutation(order, TokenGrid(2, 2, 3)).tolist() == expected


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((21, 45, 80), (64, 128)),
        ((8, 16, 16), (32, 32)),
        ((1, 64, 64), (64, 64)),
        ((1, 33, 47), (64, 128)),
        ((1, 1, 5), (32, 32)),
    ],
)
def test_candidates_are_distinct_and_match_the_block(shape, block):
    grid = TokenGrid(*shape)
    names = candidate_orders(grid, block, "tiles")
    assert len(names) <= MAX_CANDIDATES
    layouts = {grid_permutation(name, grid).numpy().tobytes() for name in names}
    assert len(layouts) == len(names)
    for name in names:
        tile = tile_shape(name)
        if tile is not None and name not in IMAGE_STRIPES:
            size = tile[0] * tile[1] * tile[2]
            assert any(0.6 * side <= size <= 1.5 * side for side in block)


def test_candidates_of_a_video_hold_all_frames_and_cubes():
    assert {"8x2x2", "4x2x4", "2x4x4"} <= set(
        candidate_orders(TokenGrid(8, 16, 16), (32, 32), "tiles")
    )
    assert candidate_orders(TokenGrid(8, 16, 16), (32, 32), "axes") == AXIS_ORDERS
    assert candidate_orders(TokenGrid(8, 16, 16), (32, 32), "fhw") == ("FHW",)
    assert candidate_orders(TokenGrid(1, 8, 8), (32, 32), "axes") == ("FHW", "FWH")


@pytest.mark.parametrize("name", ["fhw", "FFW", "8x2", "0x1x1", "8x2x4x1", "", "-1x2x2"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="order must be one of FHW"):
        grid_permutation(name, TokenGrid(2, 2, 2))


def test_bad_grids_and_kinds_are_named():
    with pytest.raises(ValueError, match="height must be at least 1, got 0"):
        TokenGrid(1, 0, 1)
    with pytest.raises(TypeError, match="frames must be an int, got float"):
        TokenGrid(1.0, 1, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="orders must be one of fhw, axes, tiles, got 'all'"):
        candidate_orders(TokenGrid(1, 2, 2), (32, 32), "all")
