import itertools

import pytest
from paro_attention.kernels.block_mask import BLOCK_SIZES
from paro_attention.kernels.launch import select_launch

CAPABILITIES = ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
BITS = (16, 8, 4)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_tiles_divide_blocks_everywhere(capability, head_dim):
    for block in itertools.product(BLOCK_SIZES, repeat=2):
        for qk_bits, pv_bits in itertools.product(BITS, repeat=2):
            launch = select_launch(block, head_dim, qk_bits, pv_bits, capability)
            assert block[0] % launch.query_tile == 0
            assert block[1] % launch.key_tile == 0
            if pv_bits < 16:
                assert launch.key_tile == block[1], "P and V are scaled per key block"


def test_the_copy_engine_is_used_only_where_there_is_one():
    for capability in CAPABILITIES:
        launch = select_launch((64, 64), 128, 8, 8, capability)
        assert launch.tma == (capability == (9, 0))
