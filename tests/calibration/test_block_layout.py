import pytest
from paro_attention.calibration import TokenGrid
from paro_attention.calibration.block_layout import default_block
from paro_attention.calibration.token_order import candidate_orders
from paro_attention.kernels.block_mask import BLOCK_SIZES


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        (TokenGrid(8, 32, 32), (64, 64)),  # the demo: few blocks, so small ones
        (TokenGrid(21, 30, 52), (64, 128)),  # Wan 480p
        (TokenGrid(21, 45, 80), (64, 128)),  # Wan 720p
    ],
)
def test_large_grids_take_the_block_that_the_kernels_run_fastest(grid, expected):
    assert default_block(grid.tokens) == expected
    assert set(expected) <= set(BLOCK_SIZES)
    assert len(candidate_orders(grid, expected, "tiles")) > 6
