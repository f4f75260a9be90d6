"""From block mass to the blocks that are computed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .block_layout import block_count, diagonal
from .device_copy import to_device
from .metrics import ranking_score


def forced_blocks(
    tokens: int, block: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Blocks that every mask keeps: the diagonal.

    Args:
        tokens: tokens of the grid.
        block: (query, key) tokens of a block.
        device: where the mask is wanted.

    Returns:
        bool [Qb, KVb].
    """
    query_blocks, key_blocks = (block_count(tokens, side) for side in block)
    return to_device(diagonal(query_blocks, key_blocks, block), torch.device(device))


def least_selected(tokens: int, block: tuple[int, int]) -> int:
    """Blocks that a head's mask may have whatever its count: the forced ones and one per row."""
    return int(forced_blocks(tokens, block).sum()) + block_count(tokens, block[0])


def most_selected(counts: Sequence[int], least: int, blocks: int) -> int:
    """Bound of the blocks that `select_blocks` keeps, known before it has run on the device.

    Args:
        counts: blocks to keep in each head.
        least: `least_selected` of the grid.
        blocks: all blocks of a head.
    """
    return sum(min(blocks, max(count, least)) for count in counts)


def select_blocks(mass: Tensor, counts: Sequence[int], forced: Tensor) -> Tensor:
    """The blocks of greatest mass of each head, jointly over its rows.

    Every row keeps its best block and every head the forced blocks, even where that is more than
    the head's count. The host does not wait for the device.

    Args:
        mass: [H, Qb, KVb] predicted or measured block mass, >= 0.
        counts: blocks to keep in each head, numbers of the host.
        forced: bool [Qb, KVb].

    Returns:
        bool [H, Qb, KVb].
    """
    if len(counts) != mass.shape[0]:
        raise ValueError(
            f"counts must have one entry per head ({mass.shape[0]}), got {len(counts)}"
        )
    selected = torch.zeros_like(mass, dtype=torch.bool)
    total = mass.shape[1] * mass.shape[2]
    # Head by head: the ranks of all heads at once would take 8 bytes a block.
    for head, wanted in enumerate(counts):
        ranked = ranking_score(mass[head], forced)
        keep = min(total, int(wanted))
        flat = selected[head].view(-1)
        if keep > 0:
            flat.scatter_(0, ranked.view(-1).topk(keep, sorted=False).indices, True)
        selected[head] |= torch.isinf(ranked)
    return selected
