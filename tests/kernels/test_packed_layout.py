import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paro_attention.kernels.block_mask import BLOCK_SIZES
from paro_attention.kernels.hopper_launch import HEAD_DIMS, KEY_BLOCKS, STEP_KEYS
from paro_attention.kernels.key_packing import KeyPacking
from paro_attention.kernels.packed_layout import (
    PackedLayout,
    low_tail,
    padded_head_dim,
    pooled_tile,
)

BLOCKS = tuple(itertools.product(BLOCK_SIZES, repeat=2))


@given(st.integers(1, 1000), st.integers(0, 500), st.sampled_from(BLOCKS))
def test_no_block_holds_grid_and_extra_tokens(grid_tokens, extra_tokens, block):
    layout = PackedLayout.of(grid_tokens + extra_tokens, grid_tokens, block)
    assert layout.extra_start % block[0] == layout.extra_start % block[1] == 0
    assert grid_tokens <= layout.extra_start < grid_tokens + max(block)
    end = layout.extra_start + extra_tokens
    assert end <= layout.rows < end + max(block)
    assert layout.rows % block[0] == layout.rows % block[1] == 0
    assert (layout.key_blocks - 1) * block[1] < grid_tokens <= layout.key_blocks * block[1]
    assert layout.stored_blocks * block[1] <= layout.rows
    last_token = end - 1 if extra_tokens else grid_tokens - 1
    assert layout.stored_blocks == last_token // block[1] + 1


@given(st.integers(1, 300), st.integers(0, 200), st.sampled_from(BLOCK_SIZES))
def test_packed_keys_are_all_there_in_their_order(grid_tokens, extra_tokens, key_block):
    packing = KeyPacking(grid_tokens + extra_tokens, grid_tokens, key_block)
    keys = torch.arange(1.0, packing.tokens + 1)[:, None]
    packed, exists = packing(keys).squeeze(-1), packing.exists(keys.device)
    assert torch.equal(packed[exists], keys.squeeze(-1))
    assert not packed[~exists].any()
    sizes = packing.sizes(keys.device)
    assert len(sizes) == packing.blocks
    assert len(packed) == packing.blocks * key_block
    assert sizes.sum() == packing.tokens
    first_extra = packed.tolist().index(grid_tokens + 1) if extra_tokens else 0
    assert first_extra % key_block == 0


def test_the_tail_has_eight_bits_where_keys_have_and_values_have_no_fewer():
    pairs = itertools.product((16, 8, 4), repeat=2)
    assert [bits for bits in pairs if low_tail(*bits)] == [(8, 16), (8, 8)]


@pytest.mark.parametrize(
    ("key_block", "head_dim", "rows"),
    [(32, 64, 128), (64, 128, 128), (128, 96, 128), (32, 136, 32), (128, 256, 128)],
)
def test_pooled_rows_are_quantised_together_as_far_as_there_is_room(key_block, head_dim, rows):
    assert pooled_tile(key_block, head_dim) == rows


@pytest.mark.parametrize(
    ("head_dim", "padded"),
    [(8, 64), (64, 64), (72, 128), (80, 128), (96, 128), (120, 128), (128, 128), (136, 256),
     (256, 256)],
)  # fmt: skip
def test_heads_are_stored_at_the_next_power_of_two(head_dim, padded):
    assert padded_head_dim(head_dim) == padded


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("key_block", KEY_BLOCKS)
def test_a_tile_of_pooled_rows_is_a_step_of_the_hopper_kernel(key_block, head_dim):
    assert pooled_tile(key_block, head_dim) == STEP_KEYS
