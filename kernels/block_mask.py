"""Which blocks of an attention map are computed, packed for the kernels.

The names follow torch's FlexAttention ``BlockMask`` (``kv_num_blocks``, ``kv_indices``); beside the
lists there is one bit per block, because the pooled tail needs the complement of each list.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_SIZES = (32, 64, 128)
MAX_KEY_BLOCKS = torch.iinfo(torch.int16).max
PACKED_AT_ONCE = 1 << 23


@dataclass(frozen=True, slots=True)
class BlockMask:
    """Computed blocks of every head; the batch shares them.

    Attributes:
        kv_num_blocks: int32 [H, Qb], number of computed key blocks of each query block.
        kv_indices: int16 [H, Qb, N], their indices, ascending; entries past the count are 0.
        computed_bits: int32 [H, Qb, ceil(KVb / 32)], bit ``j % 32`` of word ``j // 32`` set where
            key block ``j`` is computed.
        block: (query, key) tokens of a block, each 32, 64 or 128.
        tokens: grid tokens V, the whole sequence where there are no extra tokens; the last block of
            a side may be ragged.
    """

    kv_num_blocks: Tensor
    kv_indices: Tensor
    computed_bits: Tensor
    block: tuple[int, int]
    tokens: int

    @property
    def heads(self) -> int:
        return self.kv_num_blocks.shape[0]

    @property
    def num_query_blocks(self) -> int:
        return -(-self.tokens // self.block[0])

    @property
    def num_key_blocks(self) -> int:
        return -(-self.tokens // self.block[1])

    @classmethod
    def from_dense(cls, mask: Tensor, block: tuple[int, int], tokens: int) -> BlockMask:
        """Packs a boolean mask.

        Args:
            mask: bool [H, Qb, KVb], True where the block is computed.
            block: (query, key) tokens of a block.
            tokens: grid tokens that the mask covers.

        Raises:
            ValueError: if the mask does not have the blocks that ``tokens`` and ``block`` give.
            TypeError: if the mask is not boolean.
        """
        check_block(block)
        expected = (-(-tokens // block[0]), -(-tokens // block[1]))
        if mask.dtype != torch.bool:
            raise TypeError(
                f"mask must be torch.bool, got {mask.dtype}; compare it with a threshold"
            )
        if mask.ndim != 3 or tuple(mask.shape[1:]) != expected:
            raise ValueError(
                f"mask must be [H, {expected[0]}, {expected[1]}] for {tokens} tokens in blocks of "
                f"{block[0]}x{block[1]}, got {list(mask.shape)}"
            )
        if expected[1] > MAX_KEY_BLOCKS:
            raise ValueError(
                f"mask must have at most {MAX_KEY_BLOCKS} key blocks, got {expected[1]}; "
                "use larger blocks"
            )
        counts = mask.sum(-1, dtype=torch.int32)
        width = max(1, int(counts.max()))
        heads, query_blocks, key_blocks = mask.shape
        indices = mask.new_zeros(heads, query_blocks, width, dtype=torch.int16)
        bits = mask.new_zeros(heads, query_blocks, -(-key_blocks // 32), dtype=torch.int32)
        # A few heads at a time: sorting takes over 20 bytes a block.
        together = max(1, PACKED_AT_ONCE // (query_blocks * key_blocks))
        for start in range(0, heads, together):
            part = slice(start, start + together)
            indices[part] = _listed(mask[part], counts[part], width)
            bits[part] = _pack_bits(mask[part])
        return cls(counts, indices, bits, block, tokens)

    def to_dense(self) -> Tensor:
        """bool [H, Qb, KVb], True where the block is computed."""
        column = torch.arange(self.num_key_blocks, device=self.computed_bits.device)
        words = self.computed_bits[..., column // 32]
        return (words >> (column % 32).to(torch.int32)) & 1 == 1

    def density(self) -> float:
        """Computed / all blocks. Reads the counts back to the host: not for the sampling loop."""
        return float(self.kv_num_blocks.sum()) / (
            self.heads * self.num_query_blocks * self.num_key_blocks
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BlockMask:
        return BlockMask(
            self.kv_num_blocks.to(device, non_blocking=non_blocking),
            self.kv_indices.to(device, non_blocking=non_blocking),
            self.computed_bits.to(device, non_blocking=non_blocking),
            self.block,
            self.tokens,
        )


def check_block(block: tuple[int, int]) -> None:
    """Raises ValueError unless both sides of ``block`` are sizes that the kernels serve."""
    if len(block) != 2 or any(side not in BLOCK_SIZES for side in block):
        raise ValueError(f"block must be two of {BLOCK_SIZES} (query, key tokens), got {block}")


def _listed(mask: Tensor, counts: Tensor, width: int) -> Tensor:
    """int64 [H, Qb, width], the computed columns of each row, ascending, then zeros."""
    # A stable descending sort of the flags lists the computed columns first, in their order.
    listed = torch.argsort(mask.to(torch.uint8), dim=-1, descending=True, stable=True)
    behind = torch.arange(width, device=mask.device) >= counts[..., None]
    return listed[..., :width].masked_fill(behind, 0)


def _pack_bits(mask: Tensor) -> Tensor:
    heads, query_blocks, key_blocks = mask.shape
    words = -(-key_blocks // 32)
    padded = torch.zeros(heads, query_blocks, words * 32, dtype=torch.bool, device=mask.device)
    padded[..., :key_blocks] = mask
    weights = torch.ones(32, dtype=torch.int64, device=mask.device) << torch.arange(
        32, device=mask.device
    )
    packed = (padded.view(heads, query_blocks, words, 32) * weights).sum(-1)
    # Bit 31 is the sign of the int32 word.
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
