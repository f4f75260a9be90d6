"""Attention of a sample of query rows, of many maps at once. A map is one head in one order.

This has no twin of its own: calibration's `order_scores` gives the same numbers head by head, and
is what the tests hold it against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

if TYPE_CHECKING:
    from .triton.sampled_rows import RowAttention


@dataclass(frozen=True, slots=True)
class MapRows:
    """Sampled rows of N maps with the keys and values of each in its own order.

    Attributes:
        queries: [N, R, D], the rows.
        pooled_keys, pooled_values: float32 [N, KVb, D], mean of each key block.
        keys, values: [N, rows, padded D], zeros behind the end.
        tokens: keys of each map.
        block: (query, key) tokens of a block.
        rows_of_block: rows of each query block of the sample.
        scale: softmax scale.
    """

    queries: Tensor
    pooled_keys: Tensor
    pooled_values: Tensor
    keys: Tensor
    values: Tensor
    tokens: int
    block: tuple[int, int]
    rows_of_block: int
    scale: float

    def attend(self, computed: Tensor | None = None) -> RowAttention:
        """Attention of the rows, base-2 logarithms.

        Args:
            computed: bool [N, n, KVb], the blocks to look at; all when None.

        Returns:
            float32 output [N, R, D] and logsumexp [N, R], and the whole pass' notes.
        """
        from .triton.sampled_rows import ROW_TILE, attend_sampled_rows

        rows, head_dim = self.queries.shape[1:]
        missing = (0, self.keys.shape[2] - head_dim, 0, -rows % ROW_TILE)
        padded = pad(self.queries, missing) if any(missing) else self.queries
        found = attend_sampled_rows(
            padded, self.keys, self.values, self.tokens, self.block[1], self.scale,
            None if computed is None else computed.contiguous(), self.rows_of_block,
        )  # fmt: skip
        return found._replace(
            output=found.output[:, :rows, :head_dim], logsumexp=found.logsumexp[:, :rows]
        )

    def block_probabilities(self, whole: RowAttention) -> Tensor:
        """float32 [N, KVb, R]: probability of each key block, from a pass over all blocks."""
        from .triton.sampled_rows import keys_of_step

        rows = self.queries.shape[1]
        p = (whole.notes[:, :, :rows] - whole.logsumexp[:, None]).exp2()
        steps = self.block[1] // keys_of_step(self.block[1])
        if steps == 1:
            return p
        return pad(p, (0, 0, 0, -p.shape[1] % steps)).unflatten(1, (-1, steps)).sum(2)


def map_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    permutation: Tensor,
    head_of_map: Tensor,
    order_of_map: Tensor,
    positions: Tensor,
    block: tuple[int, int],
    scale: float,
) -> MapRows:
    """Gathers what the passes over the keys read; only where the kernels run.

    Args:
        q, k, v: [H, S, D] of one batch entry, float16 or bfloat16, any strides.
        permutation: int32 [O, S] on the device of q.
        head_of_map, order_of_map: int32 [N] head and row of ``permutation`` of each map.
        positions: int64 [n, r], places in the order of r rows of each of n query blocks.
        block: (query, key) tokens of a block.
        scale: softmax scale.
    """
    from .triton.block_mass import gather
    from .triton.primitives import stride_alignment

    tokens, head_dim = q.shape[1:]
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    rows = -(-tokens // block[1]) * block[1]
    alignment = stride_alignment(head_dim, (k.stride(0), v.stride(0)))
    chosen = permutation[:, positions.view(-1)][order_of_map.long()].long()  # [N, R]
    with torch.cuda.device_of(q):
        (keys, pooled_keys), (values, pooled_values) = (
            gather(x, permutation, head_of_map, order_of_map, rows, block[1], alignment, pool=True)
            for x in (k, v)
        )
    return MapRows(
        queries=q[head_of_map.long()[:, None], chosen],
        pooled_keys=pooled_keys[..., :head_dim],
        pooled_values=pooled_values[..., :head_dim],
        keys=keys,
        values=values,
        tokens=tokens,
        block=block,
        rows_of_block=positions.shape[1],
        scale=scale,
    )
