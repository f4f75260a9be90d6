"""How a sequence is cut into blocks: counts, sizes of ragged blocks, pooling, the diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.block_mask import BLOCK_SIZES


def checked_block(block: tuple[int, int]) -> tuple[int, int]:
    """The (query, key) block as a tuple of ints.

    Raises:
        ValueError: it is not a pair of BLOCK_SIZES.
    """
    pair = tuple(block)
    if len(pair) != 2 or any(side not in BLOCK_SIZES for side in pair):
        raise ValueError(f"block must be (query, key) tokens, each of {BLOCK_SIZES}, got {block!r}")
    return int(pair[0]), int(pair[1])


# From this many tokens on, blocks of 64 x 128 are wanted: 64 x 64 take 7 to 23 % longer on an H100
# (benchmarks/results), and there are enough to choose from.
WIDE_BLOCKS_FROM = 16384


def default_block(tokens: int) -> tuple[int, int]:
    """The (query, key) block that calibration takes for a grid of this many tokens."""
    return (64, 128) if tokens >= WIDE_BLOCKS_FROM else (64, 64)


def block_count(tokens: int, block: int) -> int:
    """Number of blocks of `block` tokens, the last one possibly ragged."""
    return -(-tokens // block)


def valid_tokens(tokens: int, block: int, device: torch.device | str = "cpu") -> Tensor:
    """float32 [blocks]: tokens in each block; only the last may hold fewer than `block`."""
    starts = torch.arange(block_count(tokens, block), device=device) * block
    return (tokens - starts).clamp(max=block).float()


def pad_tokens(x: Tensor, block: int) -> Tensor:
    """[S, D] -> [blocks * block, D], filled up with zero rows."""
    missing = -x.shape[0] % block
    return x if missing == 0 else torch.nn.functional.pad(x, (0, 0, 0, missing))


def pool_tokens(x: Tensor, block: int) -> Tensor:
    """[S, D] -> float32 [blocks, D]: the mean of each block's valid tokens."""
    sums = pad_tokens(x.float(), block).unflatten(0, (-1, block)).sum(1)
    return sums / valid_tokens(x.shape[0], block, x.device)[:, None]


def diagonal(query_blocks: int, key_blocks: int, block: tuple[int, int]) -> Tensor:
    """bool [Qb, KVb]: pairs of blocks that share a token."""
    query_start = torch.arange(query_blocks)[:, None] * block[0]
    key_start = torch.arange(key_blocks)[None, :] * block[1]
    return (query_start < key_start + block[1]) & (key_start < query_start + block[0])
