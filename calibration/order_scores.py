"""Scores of candidate token orders for one head, from a sample of its query rows.

For each order the exact attention of some rows of many query blocks is computed, some blocks are
kept at the target density, every other block is replaced by its pooled key and value, and the
output is compared with dense attention. Orders must be judged with the pooled tail on: without it
other orders win, and cost up to 20 % in error once the tail is there.

They must also be judged with the mask that a plan would give. The blocks of greatest mass of the
very map that is judged flatter orders whose mass lies elsewhere in every prompt; the blocks are
therefore ranked by an offset profile fitted to the sampled rows, which knows no places.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.attention_rows import exponentials_, matmul_operand, rows_per_tile, scaled_logits
from .block_layout import block_count, diagonal, pad_tokens, pool_tokens, valid_tokens
from .block_selection import select_blocks
from .extra_keys import ExtraKeys, ExtraPart, dense_output
from .paper_metric import paper_criteria
from .profile_geometry import ProfileGeometry
from .row_sample import RowSample
from .tail_bias import TAIL_BIASES, tail_errors

# Where a plan stores each head's output error with the tail on.
ERROR_DENSITIES: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75)
_REFINEMENTS = 1

# Columns of a score row.
ERRORS = slice(0, len(TAIL_BIASES))
ENERGY = len(TAIL_BIASES)
RETAINED = ENERGY + 1
SPARSE = ENERGY + 2
INCOHERENCE = ENERGY + 3
MAPS = ENERGY + 4
SCORE_COLUMNS = ENERGY + 5


def order_scores(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    permutations: list[Tensor],
    block: tuple[int, int],
    density: float,
    scale: float,
    with_paper_metric: bool = False,
    profiles: list[ProfileGeometry] | None = None,
    extra: ExtraKeys | None = None,
    sample: RowSample | None = None,
) -> Tensor:
    """Scores of every candidate order on one attention map.

    Args:
        q, k, v: [V, D] of one head's grid tokens in the model's order.
        permutations: int64 [V] each, on the device of q.
        block: (query, key) tokens of a block.
        density: computed / all blocks among the sampled rows.
        scale: softmax scale.
        with_paper_metric: also measure the paper's two criteria (else 0).
        profiles: geometry of each order for its sampled query blocks; None ranks blocks by the
            map's own mass.
        extra: keys beside the grid, computed exactly in the reference and in every estimate.
        sample: the rows to look at, those of `RowSample.of` when None.

    Returns:
        float32 [O, SCORE_COLUMNS] on the device of q: squared error for every tail bias, energy of
        the reference, retained mass, M_sparse, M_quant and 1 (the number of maps), so that rows of
        several maps can be added. Mass and the paper's criteria are those of the grid alone.
    """
    reference = dense_output(q, k, v, scale, extra)
    rows = []
    for index, order in enumerate(permutations):
        looked_at = _Sample(q, k, v, reference, order, block, scale, extra, sample)
        row = looked_at.scores(density, None if profiles is None else profiles[index])
        if with_paper_metric:
            row[SPARSE : INCOHERENCE + 1] = paper_criteria(q, k, order, block, scale)
        rows.append(row)
    return torch.stack(rows)


def error_curves(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    permutations: list[Tensor],
    block: tuple[int, int],
    scale: float,
    profiles: list[ProfileGeometry],
    densities: tuple[float, ...] = ERROR_DENSITIES,
    extra: ExtraKeys | None = None,
) -> Tensor:
    """Output error of one head in some orders at several densities.

    Args:
        q, k, v: [V, D] of one head's grid tokens in the model's order.
        permutations: int64 [V] each, on the device of q.
        block: (query, key) tokens of a block.
        scale: softmax scale.
        profiles: geometry of each order for its sampled query blocks.
        densities: computed / all blocks among the sampled rows.
        extra: as `order_scores`.

    Returns:
        float32 [O, len(densities), len(TAIL_BIASES) + 1]: squared error for every bias, and the
        energy of the reference.
    """
    reference = dense_output(q, k, v, scale, extra)
    return torch.stack(
        [
            _Sample(q, k, v, reference, order, block, scale, extra).curve(densities, profile)
            for order, profile in zip(permutations, profiles, strict=True)
        ]
    )


class _Rows(NamedTuple):
    block_sums: Tensor  # [n * r, KVb] sum of p over each block, relative to the grid's maximum
    tail: Tensor  # [n * r, KVb] weight of each block's pooled key
    mass: Tensor  # [n, KVb] block mass
    tile: Tensor | None  # [n * r, columns] of p, where one tile holds all rows
    extra: ExtraPart | None  # of all n * r rows


class _Sample:
    """The sampled query rows of one head in one order."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        reference: Tensor,
        order: Tensor,
        block: tuple[int, int],
        scale: float,
        extra: ExtraKeys | None,
        sample: RowSample | None = None,
    ) -> None:
        self.tokens, self.block, self.scale, self.extra = q.shape[0], block, scale, extra
        query_blocks, self.key_blocks = (block_count(self.tokens, side) for side in block)
        sample = sample or RowSample.of(self.tokens, block[0], q.device)
        self.valid, self.of_block = sample.valid, sample.rows_of_block
        tokens = order[sample.positions.view(-1)]
        self.rows = matmul_operand(q[tokens])  # [n * r, D]
        self.reference = reference[tokens]
        self.keys = pad_tokens(matmul_operand(k[order]), block[1])
        self.values = pad_tokens(v[order].float(), block[1])
        self.pooled_keys = pool_tokens(k[order], block[1])
        self.pooled_values = pool_tokens(v[order], block[1])
        columns = self.keys.shape[0] + (0 if extra is None else extra.keys.shape[0])
        self.step = rows_per_tile(columns, self.of_block, q.device)
        self.forced = diagonal(query_blocks, self.key_blocks, block).to(q.device)[sample.blocks]

    def scores(self, density: float, profile: ProfileGeometry | None) -> Tensor:
        rows = self._rows()
        kept = self._kept(rows.mass, (density,), profile)
        errors = self._errors(rows, kept)[0]
        valid_rows = self.valid.sum(1)
        retained = ((rows.mass * kept[0]).sum(1) * valid_rows).sum() / valid_rows.sum()
        paper, one = torch.zeros(2, device=self.rows.device), torch.ones(1, device=self.rows.device)
        return torch.cat([errors, self._energy()[None], retained[None], paper, one])

    def curve(self, densities: tuple[float, ...], profile: ProfileGeometry) -> Tensor:
        rows = self._rows()
        errors = self._errors(rows, self._kept(rows.mass, densities, profile))
        return torch.cat([errors, self._energy().expand(len(densities), 1)], 1)

    def _energy(self) -> Tensor:
        return (self.reference.square() * self.valid.view(-1, 1)).sum()

    def _rows(self) -> _Rows:
        """One pass over the sampled rows: what blocks, pooled keys and extra keys weigh."""
        starts = range(0, len(self.rows), self.step)
        sums, tails, extras, tile = [], [], [], None
        for start in starts:
            tile, top = self._tile(start)
            sums.append(tile.view(len(tile), self.key_blocks, self.block[1]).sum(2))
            tails.append(self._tail(start, top))
            if self.extra is not None:
                queries = self.rows[start : start + self.step]
                extras.append(self.extra.part(queries, top, self.scale))
        block_sums, tail = torch.cat(sums), torch.cat(tails)  # [n * r, KVb]
        weight = self.valid.view(-1, 1) / block_sums.sum(1, keepdim=True)
        mass = (block_sums * weight).unflatten(0, (-1, self.of_block)).sum(1)
        return _Rows(
            block_sums,
            tail,
            mass / self.valid.sum(1)[:, None],
            tile if len(starts) == 1 else None,
            ExtraPart(*map(torch.cat, zip(*extras, strict=True))) if extras else None,
        )

    def _kept(
        self, mass: Tensor, densities: tuple[float, ...], profile: ProfileGeometry | None
    ) -> Tensor:
        """bool [densities, n, KVb]: the blocks that are computed."""
        ranking = mass[None]
        if profile is not None:
            ranking = profile.evaluate(profile.fit(ranking, _REFINEMENTS))
        counts = [round(density * mass.numel()) for density in densities]
        return select_blocks(ranking.expand(len(counts), -1, -1), counts, self.forced)

    def _errors(self, rows: _Rows, kept: Tensor) -> Tensor:
        """float32 [densities, len(TAIL_BIASES)] squared errors."""
        errors = torch.zeros(len(kept), len(TAIL_BIASES), device=self.rows.device)
        for start in range(0, len(self.rows), self.step):
            tile = self._tile(start)[0] if rows.tile is None else rows.tile
            for index, blocks in enumerate(kept):
                errors[index] += self._tile_errors(start, tile, blocks, rows)
        return errors

    def _tile(self, start: int) -> tuple[Tensor, Tensor]:
        logits = scaled_logits(self.rows[start : start + self.step], self.keys, self.scale)
        return exponentials_(logits, self.tokens)

    def _tail(self, start: int, top: Tensor) -> Tensor:
        """[R, KVb] weight of every block's pooled key, relative to the row maximum."""
        sizes = valid_tokens(self.tokens, self.block[1], self.rows.device)
        logits = self.rows[start : start + self.step].float() @ self.pooled_keys.t()
        return (logits * self.scale - top).exp() * sizes

    def _tile_errors(self, start: int, tile: Tensor, kept: Tensor, rows: _Rows) -> Tensor:
        part = slice(start, start + len(tile))
        blocks = slice(part.start // self.of_block, part.stop // self.of_block)
        computed = kept[blocks].repeat_interleave(self.of_block, 0).float()  # [R, KVb]
        masked = tile.view(len(tile), self.key_blocks, self.block[1]) * computed[:, :, None]
        skipped = rows.tail[part] * (1 - computed)
        valid = self.valid.view(-1, 1)[part]
        exact = masked.view(tile.shape) @ self.values
        exact_total = (rows.block_sums[part] * computed).sum(1, keepdim=True)
        tail, tail_total = skipped @ self.pooled_values, skipped.sum(1, keepdim=True)
        if rows.extra is not None:
            shrink = rows.extra.shrink[part]
            exact = exact * shrink + rows.extra.weighted[part]
            exact_total = exact_total * shrink + rows.extra.total[part]
            tail, tail_total = tail * shrink, tail_total * shrink
        return tail_errors(
            exact * valid, exact_total, tail * valid, tail_total, self.reference[part] * valid
        )
