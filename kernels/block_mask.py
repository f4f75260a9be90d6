"""Which blocks of an attention map are computed, packed for the kernels.

The lists of all query blocks lie one behind the other, as the rows of a sparse matrix do (CSR);
beside them there is one bit per block, because the pooled tail needs the complement of each list.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .block_lists import pack_bits, unpack_bits, write_lists

BLOCK_SIZES = (32, 64, 128)
MAX_KEY_BLOCKS = torch.iinfo(torch.int16).max
# The kernels add 32-bit offsets to the start of the lists.
MAX_COMPUTED_BLOCKS = torch.iinfo(torch.int32).max


@dataclass(frozen=True, slots=True)
class BlockMask:
    """Computed blocks of every head; the batch shares them.

    The key blocks that query block ``i`` of head ``h`` computes, ascending, are
    ``kv_indices[row_offsets[r] : row_offsets[r + 1]]`` with ``r = h * Qb + i``.

    Attributes:
        row_offsets: int32 [H * Qb + 1], where the list of each query block starts, head by head;
            the last entry is the number of computed blocks.
        kv_indices: int16 [N], the lists, N >= row_offsets[-1]; what lies behind the last list means
            nothing.
        computed_bits: int32 [H, Qb, ceil(KVb / 32)], bit ``j % 32`` of word ``j // 32`` set where
            key block ``j`` is computed.
        block: (query, key) tokens of a block, each 32, 64 or 128.
        tokens: grid tokens V, the whole sequence where there are no extra tokens; the last block of
            a side may be ragged.

    Raises:
        ValueError: for tensors that do not fit each other, or more than 2**31 - 1 list entries.
    """

    row_offsets: Tensor
    kv_indices: Tensor
    computed_bits: Tensor
    block: tuple[int, int]
    tokens: int

    def __post_init__(self) -> None:
        bits, offsets, lists = self.computed_bits, self.row_offsets, self.kv_indices
        words = -(-self.num_key_blocks // 32)
        if bits.ndim != 3 or bits.shape[1:] != (self.num_query_blocks, words):
            raise ValueError(
                f"computed_bits must be [H, {self.num_query_blocks}, {words}] for {self.tokens} "
                f"tokens in blocks of {self.block[0]}x{self.block[1]}, got {list(bits.shape)}"
            )
        rows = bits.shape[0] * bits.shape[1]
        if offsets.dtype != torch.int32 or offsets.shape != (rows + 1,):
            raise ValueError(
                f"row_offsets must be int32 [{rows + 1}], got {offsets.dtype} {list(offsets.shape)}"
            )
        if lists.dtype != torch.int16 or lists.ndim != 1:
            raise ValueError(
                f"kv_indices must be int16 [N], got {lists.dtype} {list(lists.shape)}; "
                "the lists lie one behind the other"
            )
        check_list_entries(lists.shape[0])

    @property
    def heads(self) -> int:
        return self.computed_bits.shape[0]

    @property
    def num_query_blocks(self) -> int:
        return -(-self.tokens // self.block[0])

    @property
    def num_key_blocks(self) -> int:
        return -(-self.tokens // self.block[1])

    @property
    def kv_num_blocks(self) -> Tensor:
        """int32 [H, Qb], number of computed key blocks of each query block."""
        return self.row_offsets.diff().view(self.heads, -1)

    @classmethod
    def from_dense(
        cls, mask: Tensor, block: tuple[int, int], tokens: int, entries: int | None = None
    ) -> BlockMask:
        """Packs a boolean mask.

        Args:
            mask: bool [H, Qb, KVb], True where the block is computed.
            block: (query, key) tokens of a block.
            tokens: grid tokens that the mask covers.
            entries: length of the lists, at least the number of computed blocks. With it the host
                does not wait for the device, so that it is checked on the CPU only: lists that
                are too short are cut off at their end. None reads the number from the mask.

        Raises:
            ValueError: if the mask does not have the blocks that ``tokens`` and ``block`` give, or
                has more computed blocks than ``entries`` or 32 bits allow.
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
        counts = mask.sum(-1, dtype=torch.int32).view(-1)
        if entries is None or mask.device.type == "cpu":
            total = int(counts.sum(dtype=torch.int64))
            if entries is not None and total > entries:
                raise ValueError(
                    f"entries must be at least the mask's {total} computed blocks, got {entries}"
                )
            entries = total if entries is None else entries
        check_list_entries(entries)
        offsets = counts.new_zeros(counts.shape[0] + 1)
        torch.cumsum(counts, 0, dtype=torch.int32, out=offsets[1:])
        # No kernel reads behind the lists, whatever the caller counted.
        offsets.clamp_(max=entries)
        bits = pack_bits(mask)
        lists = torch.zeros(entries, dtype=torch.int16, device=mask.device)
        write_lists(bits, offsets, lists)
        return cls(offsets, lists, bits, block, tokens)

    def to_dense(self) -> Tensor:
        """bool [H, Qb, KVb], True where the block is computed."""
        return unpack_bits(self.computed_bits, self.num_key_blocks)

    def density(self) -> float:
        """Computed / all blocks. Reads the count back to the host: not for the sampling loop."""
        return float(self.row_offsets[-1]) / (
            self.heads * self.num_query_blocks * self.num_key_blocks
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> BlockMask:
        return BlockMask(
            self.row_offsets.to(device, non_blocking=non_blocking),
            self.kv_indices.to(device, non_blocking=non_blocking),
            self.computed_bits.to(device, non_blocking=non_blocking),
            self.block,
            self.tokens,
        )


def check_block(block: tuple[int, int]) -> None:
    """Raises ValueError unless both sides of ``block`` are sizes that the kernels serve."""
    if len(block) != 2 or any(side not in BLOCK_SIZES for side in block):
        raise ValueError(f"block must be two of {BLOCK_SIZES} (query, key tokens), got {block}")


def check_list_entries(total: int) -> None:
    """Raises ValueError where a mask computes more blocks than 32-bit offsets reach."""
    if total > MAX_COMPUTED_BLOCKS:
        raise ValueError(
            f"mask must have at most {MAX_COMPUTED_BLOCKS} computed blocks in all heads, got "
            f"{total}; use larger blocks"
        )
