"""Attention of a sample of query rows, of many maps at once. A map is one head in one order.

This has no twin of its own: calibration's `order_scores` gives the same numbers head by head, and
is what the tests hold it against.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .triton.sampled_rows import DenseRows, Maps


class ExtraRows(NamedTuple):
    """What extra keys add to R rows of N maps, relative to each row's sum over the grid.

    Attributes:
        weighted: float32 [N, R, padded D] sum of p * v.
        total: float32 [N, R] sum of p.
        shrink: float32 [N, R] what the grid's sum becomes.
    """

    weighted: Tensor
    total: Tensor
    shrink: Tensor


class SampledMaps:
    """Sampled rows of N maps; only where the kernels run. R: rows of a map, in whole tiles."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        permutation: Tensor,
        head_of_map: Tensor,
        order_of_map: Tensor,
        positions: Tensor,
        valid: Tensor,
        block: tuple[int, int],
        scale: float,
    ) -> None:
        """Makes the pass over all keys.

        Args:
            q, k, v: [H, S, D] of one batch entry, float16 or bfloat16, any strides.
            permutation: int32 [O, S] on the device of q.
            head_of_map, order_of_map: int32 [N] head and row of ``permutation`` of each map.
            positions: int32 [n * r], places in the order of r rows of each of n query blocks.
            valid: float32 [n, r], 0 for rows that do not count.
            block: (query, key) tokens of a block.
            scale: softmax scale.
        """
        from .triton.primitives import stride_alignment
        from .triton.sampled_errors import mass_of_rows
        from .triton.sampled_rows import ROW_TILE, Maps, attend_all

        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        self._rows_of_block = valid.shape[1]
        missing = -len(positions) % ROW_TILE
        pad = torch.nn.functional.pad
        self._valid = pad(valid.reshape(-1), (0, missing))
        self._maps: Maps = Maps(
            q, k, v, permutation, head_of_map, order_of_map, pad(positions, (0, missing)), block,
            self._rows_of_block, scale,
            stride_alignment(q.shape[-1], (q.stride(0), k.stride(0), v.stride(0))),
        )  # fmt: skip
        self.dense: DenseRows = attend_all(self._maps)
        shape = (len(head_of_map), len(valid), self.dense.block_logits.shape[1])
        self.mass = torch.empty(shape, dtype=torch.float32, device=q.device)  # [N, n, KVb]
        mass_of_rows(self.dense, self._valid, len(valid), self._rows_of_block, self.mass)
        self._pooled: Tensor | None = None

    @property
    def queries(self) -> Tensor:
        """[N, R, D], the rows of q."""
        chosen = self._maps.permutation[:, self._maps.positions.long()].long()
        heads, orders = self._maps.head_of_map.long(), self._maps.order_of_map.long()
        return self._maps.q[heads[:, None], chosen[orders]]

    def errors(
        self, kept: Tensor, tail_weights: Tensor, extra: ExtraRows | None
    ) -> tuple[Tensor, Tensor]:
        """Squared output errors with a mask.

        Args:
            kept: int8 [N, n, KVb], the blocks that are computed.
            tail_weights: float32, exp of each tail bias.
            extra: what the extra keys add.

        Returns:
            float32 [N, len(tail_weights)], and [N] the energy of the dense output.
        """
        from .triton.sampled_errors import pool_values, row_errors
        from .triton.sampled_rows import attend_kept

        if self._pooled is None:
            self._pooled = pool_values(self._maps)
        part = attend_kept(self._maps, kept, self.dense.top)
        sums = row_errors(
            self.dense, part, kept, self._pooled, self._valid, tail_weights,
            self._maps.k.shape[1], self._maps.block[1], self._rows_of_block, extra,
        ).sum(1)  # fmt: skip
        return sums[:, : len(tail_weights)], sums[:, len(tail_weights)]


def keep_greatest(
    score: Tensor, mass: Tensor, row_weight: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """As ``triton.sampled_errors.keep_greatest``; only where the kernels run."""
    from .triton import sampled_errors

    return sampled_errors.keep_greatest(score, mass, row_weight, counts)
