"""Which query rows of a map are looked at to judge its token order.

Neighbouring rows of a block attend alike, distant blocks do not: a few rows of many blocks say more
than all rows of a few blocks. On the demo model (8,192 tokens, 12 heads, 12 orders, one map) 4 rows
of each of the 128 blocks cost no head more than 0.001 of the recall of the order that all rows
choose; 16 whole blocks, twice the rows, cost 0.003 in the mean and up to 0.034
(benchmarks/block_mass.py measures it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .block_layout import block_count

SAMPLED_QUERY_BLOCKS = 128
SAMPLED_ROWS = 512
LEAST_ROWS_OF_BLOCK = 4
# Blocks that are looked at whole where the criterion is one of whole blocks.
WHOLE_QUERY_BLOCKS = 16
_GOLDEN = 0.6180339887498949


def sampled_blocks(query_blocks: int, samples: int = SAMPLED_QUERY_BLOCKS) -> Tensor:
    """int64 indices of evenly spaced query blocks; all of them when they are few."""
    count = min(samples, query_blocks)
    return ((torch.arange(count) + 0.5) * query_blocks / count).long()


@dataclass(frozen=True, slots=True)
class RowSample:
    """Some rows of some query blocks, the same in every order.

    Attributes:
        blocks: int64 [n] query blocks.
        positions: int64 [n, r] positions of the rows in the order; rows behind the end of the
            sequence are its last.
        valid: float32 [n, r], 0 for rows behind the end.
    """

    blocks: Tensor
    positions: Tensor
    valid: Tensor

    @classmethod
    def of(
        cls, tokens: int, query_block: int, device: torch.device, whole: bool = False
    ) -> RowSample:
        """The sample of a sequence; all of its rows up to WHOLE_QUERY_BLOCKS query blocks.

        Args:
            tokens: length of the sequence.
            query_block: query tokens of a block.
            device: where it is wanted.
            whole: all rows of fewer blocks.
        """
        count = block_count(tokens, query_block)
        blocks = sampled_blocks(count, WHOLE_QUERY_BLOCKS if whole else SAMPLED_QUERY_BLOCKS)
        of_block = max(LEAST_ROWS_OF_BLOCK, SAMPLED_ROWS // len(blocks))
        if whole or count <= WHOLE_QUERY_BLOCKS or of_block >= query_block:
            offsets = torch.arange(query_block).expand(len(blocks), -1)
        else:
            # One row in each of r equal parts of the block, at another place in every part and
            # block: regular steps would fall in with the rows of a tile.
            size = (tokens - blocks * query_block).clamp(max=query_block)
            row = torch.arange(of_block)
            inside = ((row + len(row) * torch.arange(len(blocks))[:, None]) * _GOLDEN) % 1.0
            offsets = ((row + inside) * size[:, None] / of_block).long()
            offsets = offsets.minimum(size[:, None] - 1)
        positions = blocks[:, None] * query_block + offsets
        valid = (positions < tokens).float()
        return cls(blocks.to(device), positions.clamp(max=tokens - 1).to(device), valid.to(device))

    @classmethod
    def everything(cls, tokens: int, query_block: int, device: torch.device) -> RowSample:
        """All rows: what a sample is judged against."""
        blocks = torch.arange(block_count(tokens, query_block))
        positions = blocks[:, None] * query_block + torch.arange(query_block)
        valid = (positions < tokens).float()
        return cls(blocks.to(device), positions.clamp(max=tokens - 1).to(device), valid.to(device))

    @property
    def rows_of_block(self) -> int:
        """Rows that are looked at in each block."""
        return self.positions.shape[1]
