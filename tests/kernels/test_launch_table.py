import itertools

import pytest
from paro_attention.kernels.block_mask import BLOCK_SIZES
from paro_attention.kernels.launch_table import BLOCKS, ROWS, RULES, SEARCHED, launch_row

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
BITS = (16, 8, 4)
CALLS = list(
    itertools.product(itertools.product(BLOCK_SIZES, repeat=2), (64, 128, 256), BITS, BITS)
)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
def test_every_density_has_a_launch_whose_tile_divides_the_block(capability):
    for block, *rest in CALLS:
        for density in (1e-6, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0):
            row = launch_row(block, *rest, capability, density)
            launch = row.launch_of(block)
            assert block[0] % launch.query_tile == 0 and block[1] % launch.key_tile == 0
            if rest[2] < 16:
                assert launch.key_tile == block[1], "P and V are scaled per key block"


def test_no_rule_is_hidden_by_those_before_it():
    used = {launch_row(*call, capability) for call in CALLS for capability in CAPABILITIES}
    assert [row for row in RULES if row not in used] == []


def test_a_card_of_a_later_kind_is_served_by_the_general_rows():
    assert launch_row((64, 128), 128, 8, 8, (12, 1)) == launch_row((64, 128), 128, 8, 8, (12, 0))


def test_what_no_row_serves_is_named():
    with pytest.raises(LookupError, match=r"64x128, head_dim 512, 8/8 bits, sm_90, density 0.5"):
        launch_row((64, 128), 512, 8, 8, (9, 0), 0.5)


def test_measured_rows_say_where_and_how_fast():
    assert ROWS[: len(SEARCHED)] == SEARCHED and ROWS[len(SEARCHED) :] == RULES
    for row in SEARCHED:
        assert row.architectures and row.measured, "a searched row has its figures beside it"
        for density, tflops in row.measured:
            assert row.densities[0] < density <= row.densities[1] and tflops > 0
    for row in BLOCKS:
        assert 0 < row.density <= 1 and 0 < row.error < 1 and row.share > 0
