import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paro_attention.kernels import BlockMask, block_mask


@st.composite
def dense_masks(draw):
    heads, query_blocks = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    key_blocks = draw(st.integers(1, 70))
    seed, density = draw(st.integers(0, 2**31)), draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(heads, query_blocks, key_blocks, generator=generator) < density
    return mask, query_blocks, key_blocks


def pack(mask, query_blocks, key_blocks):
    # 64 x 64 blocks of a length that gives both counts at once needs them equal, so use the sides.
    tokens = 128 * max(query_blocks, key_blocks)
    full = torch.zeros(mask.shape[0], tokens // 64, tokens // 64, dtype=torch.bool)
    full[:, :query_blocks, :key_blocks] = mask
    return full, BlockMask.from_dense(full, (64, 64), tokens)


@given(dense_masks())
def test_unpacking_gives_the_packed_mask_back(case):
    full, packed = pack(*case)
    assert torch.equal(packed.to_dense(), full)


@given(dense_masks())
def test_lists_hold_the_computed_blocks_in_ascending_order(case):
    full, packed = pack(*case)
    offsets = packed.row_offsets.tolist()
    assert offsets[0] == 0 and offsets[-1] == full.sum()
    assert torch.equal(packed.kv_num_blocks, full.sum(-1, dtype=torch.int32))
    for row, columns in enumerate(full.flatten(0, 1)):
        listed = packed.kv_indices[offsets[row] : offsets[row + 1]].tolist()
        assert listed == columns.nonzero().flatten().tolist()
    assert packed.density() == pytest.approx(full.float().mean().item())


def test_the_last_bit_of_a_word_survives_the_sign():
    mask = torch.zeros(1, 33, 33, dtype=torch.bool)
    mask[0, 5, 31] = True
    assert torch.equal(BlockMask.from_dense(mask, (32, 32), 33 * 32).to_dense(), mask)


def test_a_length_from_the_caller_makes_room_and_nothing_else():
    mask = torch.rand(3, 9, 5) < 0.4
    mask[1] = False
    exact = BlockMask.from_dense(mask, (32, 64), 285)
    total = int(mask.sum())
    roomy = BlockMask.from_dense(mask, (32, 64), 285, entries=total + 11)
    assert exact.kv_indices.shape == (total,) and roomy.kv_indices.shape == (total + 11,)
    assert torch.equal(roomy.kv_indices[:total], exact.kv_indices)
    assert torch.equal(roomy.row_offsets, exact.row_offsets)
    assert torch.equal(roomy.computed_bits, exact.computed_bits)
    assert roomy.density() == pytest.approx(mask.float().mean().item())
    with pytest.raises(ValueError, match=f"at least the mask's {total} computed blocks, got 3"):
        BlockMask.from_dense(mask, (32, 64), 285, entries=3)


def test_rejects_a_mask_of_another_grid():
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"mask must be \[H, 5, 3\] for 300 tokens .* got \[2, 4, 4\]"
    ):
        BlockMask.from_dense(mask, (64, 128), 300)


def test_rejects_what_is_not_a_mask():
    with pytest.raises(TypeError, match=r"torch\.bool, got torch\.float32"):
        BlockMask.from_dense(torch.ones(1, 2, 2), (64, 64), 128)
    with pytest.raises(ValueError, match="block must be two of"):
        BlockMask.from_dense(torch.ones(1, 2, 2, dtype=torch.bool), (48, 64), 128)


def test_rejects_more_blocks_than_offsets_reach(monkeypatch):
    monkeypatch.setattr(block_mask, "MAX_COMPUTED_BLOCKS", 31)
    assert BlockMask.from_dense(torch.arange(32).view(2, 4, 4) > 0, (64, 64), 256).density() < 1
    with pytest.raises(ValueError, match="at most 31 computed blocks in all heads, got 32; use"):
        BlockMask.from_dense(torch.ones(2, 4, 4, dtype=torch.bool), (64, 64), 256)


def test_rejects_lists_that_do_not_fit_the_bits():
    mask = BlockMask.from_dense(torch.ones(2, 4, 4, dtype=torch.bool), (64, 64), 256)
    offsets, lists, bits = mask.row_offsets, mask.kv_indices, mask.computed_bits
    with pytest.raises(ValueError, match=r"row_offsets must be int32 \[9\], got torch.int32 \[8\]"):
        BlockMask(offsets[:-1], lists, bits, (64, 64), 256)
    with pytest.raises(
        ValueError, match=r"kv_indices must be int16 \[N\], got torch.int16 \[8, 4\]"
    ):
        BlockMask(offsets, lists.view(8, 4), bits, (64, 64), 256)
    with pytest.raises(ValueError, match=r"computed_bits must be \[H, 5, 1\] for 300 tokens"):
        BlockMask(offsets, lists, bits, (64, 64), 300)
