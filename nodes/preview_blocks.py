"""Block mass of a layer's heads for pictures: at most SIDE x SIDE blocks of each, ranked.

A plan predicts the mass of any pair of blocks on its own (calibration/profile_geometry.py), so that
a picture of a long sequence looks at evenly spaced blocks only. Up to SIDE blocks a side every
block is looked at and the ranks are those that the run-time selects by.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..calibration.block_layout import block_count, valid_tokens
from ..calibration.block_selection import forced_blocks
from ..calibration.log2_code import decode, decode_ratio
from ..calibration.metrics import RECALL_DENSITIES, ranking_score
from ..calibration.offset_profile import OffsetBins, RunCentres
from ..calibration.plan import Plan
from ..calibration.profile_correction import COARSE, NO_CORRECTION, POPULARITY
from ..calibration.token_order import grid_permutation

SIDE = 128
MODEL_ORDER = "FHW"
RANK_ONE = 65535
MASS_STEPS_PER_OCTAVE = 16
# Keys that are drawn for each looked-at row of a long sequence, to learn how its masses spread.
DRAWN = 64
OCTAVES = 31
_LEVELS = 8192
_LEVELS_PER_OCTAVE = _LEVELS / (OCTAVES + 1)
_KEPT_GEOMETRIES = 20


@dataclass(frozen=True, slots=True)
class BlockPictures:
    """The heads of one layer at one noise band.

    Attributes:
        mass: uint8 [H, n, m]: 255 is the head's greatest mass, a step is 1/16 octave, 0 is zero
            or less than 2 ** -15.9 of the greatest.
        rank: uint16 [H, n, m]: a block is computed where rank < density of the head * 65535;
            0 for blocks that every mask keeps.
        recall: float32 [H, 32]: recall that the plan predicts, at RECALL_DENSITIES.
        every: each block of the sequence is in the picture.
    """

    mass: np.ndarray
    rank: np.ndarray
    recall: np.ndarray
    every: bool


class _Geometry:
    """Where each looked-at pair of blocks touches the bins of a profile, for one order."""

    def __init__(self, plan: Plan, order: str):
        grid, (query_size, key_size) = plan.grid, plan.block
        queries = RunCentres.of(order, grid, query_size)
        keys = RunCentres.of(order, grid, key_size)
        self.rows = spread(len(queries.tokens))
        self.columns = spread(len(keys.tokens))
        self.every = len(self.rows) == len(queries.tokens) and len(self.columns) == len(keys.tokens)
        rows = queries.at(self.rows)
        key_index = self.columns.expand(len(self.rows), -1)
        if not self.every:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randint(
                len(keys.tokens),
                (len(self.rows), DRAWN),
                generator=generator,
            )
            key_index = torch.cat([key_index, drawn], 1)
        self.key_index = key_index
        share = rows.tokens / rows.tokens.sum(1, keepdim=True)
        # [n, query run, k, key run]: pairs of runs, each at its centre
        offset = keys.centre[key_index][:, None] - rows.centre[:, :, None, None]
        tokens = share[:, :, None, None] * keys.tokens[key_index][:, None]
        index, weight = _corners(offset, plan.bins)
        weight = weight * tokens[..., None]
        runs = offset.shape[1] * offset.shape[3]
        self.index = index.transpose(1, 2).reshape(-1, 8 * runs)
        self.weight = weight.transpose(1, 2).reshape(-1, 8 * runs)
        self._row_bins = None if self.every else _row_bins(rows, share, plan)

    def masses(self, profiles: Tensor) -> Tensor:
        """float32 [N, n, k] of profiles float32 [N, bins]; a row over all keys sums to 1."""
        table = profiles.t().contiguous()
        mass = torch.nn.functional.embedding_bag(
            self.index, table, per_sample_weights=self.weight, mode="sum"
        )
        mass = mass.t().reshape(len(profiles), *self.key_index.shape)
        total = mass.sum(-1) if self._row_bins is None else profiles @ self._row_bins.t()
        return mass / total[..., None].clamp_min(1e-30)


class LayerPictures:
    """Pictures of a plan's layers; the geometry of each order is kept."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._geometries: OrderedDict[str, _Geometry] = OrderedDict()
        self._forced = forced_blocks(plan.grid.tokens, plan.block)
        self._corrected: dict[tuple[int, int, int], Tensor] = {}
        for kind, rows in ((POPULARITY, plan.popularity), (COARSE, plan.coarse)):
            for row, place in enumerate((plan.correction == kind).nonzero().tolist()):
                self._corrected[place[0], place[1], place[2]] = rows[row]

    def prepare(self) -> None:
        """Computes what all layers share, about 0.1 s for each order of a long sequence."""
        for order in (MODEL_ORDER, *self._plan.orders[: _KEPT_GEOMETRIES - 1]):
            self._geometry(order)

    def draw(
        self, layer: int, band: int, model_order: bool, heads: Sequence[int] | None = None
    ) -> BlockPictures:
        """Some heads of a layer (None: all), in their own orders or all in the model's."""
        plan = self._plan
        own = plan.order_names(layer)
        wanted = range(len(own)) if heads is None else heads
        profiles = decode(plan.profile[layer, band], plan.profile_top[layer, band]).flatten(1)
        shown = {head: MODEL_ORDER if model_order else own[head] for head in wanted}
        drawn: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        every = True
        for name in dict.fromkeys(shown.values()):
            alike = [head for head in wanted if shown[head] == name]
            geometry = self._geometry(name)
            every = geometry.every
            mass = geometry.masses(profiles[alike])
            for place, head in enumerate(alike):
                if plan.correction[layer, band, head] != NO_CORRECTION:
                    codes = self._corrected[layer, band, head]
                    mass[place] = _corrected(mass[place], codes, geometry, plan, own[head], name)
            drawn.update(zip(alike, self._ranked(mass, geometry), strict=True))
        parts = zip(*(drawn[head] for head in wanted), strict=True)
        mass_codes, ranks, recall = (np.stack(part) for part in parts)
        return BlockPictures(mass_codes, ranks, recall, every)

    def _geometry(self, order: str) -> _Geometry:
        if order not in self._geometries:
            self._geometries[order] = _Geometry(self._plan, order)
            while len(self._geometries) > _KEPT_GEOMETRIES:
                self._geometries.popitem(last=False)
        self._geometries.move_to_end(order)
        return self._geometries[order]

    def _ranked(
        self, mass: Tensor, geometry: _Geometry
    ) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(mass codes, ranks, recall) of each head of [N, n, k]."""
        shown = mass[..., : len(geometry.columns)]
        top = shown.flatten(1).amax(1).clamp_min(1e-30)[:, None, None]
        octaves = (mass / top).clamp_min(2.0**-OCTAVES).log2_()
        codes = (octaves[..., : len(geometry.columns)] * MASS_STEPS_PER_OCTAVE).round_()
        codes = codes.add_(255).clamp_(0, 255).to(torch.uint8).numpy()
        rows = valid_tokens(self._plan.grid.tokens, self._plan.block[0])[geometry.rows]
        rows = rows / rows.sum()
        forced = self._forced[geometry.rows][:, geometry.columns]
        if geometry.every:
            ranks, recall = _exact_ranks(shown, forced, rows)
        else:
            ranks, recall = _sampled_ranks(mass, octaves, forced)
        return list(zip(codes, ranks, recall, strict=True))


def spread(count: int) -> Tensor:
    """int64: the indices of at most SIDE evenly spaced of `count` blocks."""
    side = min(SIDE, count)
    return (2 * torch.arange(side) + 1) * count // (2 * side)


def _corners(offset: Tensor, bins: OffsetBins) -> tuple[Tensor, Tensor]:
    """int32 flat index and float32 weight [..., 8] of the bins around offsets [..., 3]."""
    index: list[Tensor] = [torch.zeros((), dtype=torch.int32)]
    weight: list[Tensor] = [torch.ones(())]
    for axis, positions in enumerate(bins.axes):
        places = torch.tensor(positions, dtype=torch.float32)
        low, high, fraction = _bracket(offset[..., axis].contiguous(), places)
        index = [base * len(positions) + side for base in index for side in (low, high)]
        weight = [base * part for base in weight for part in (1 - fraction, fraction)]
    return torch.stack(index, -1), torch.stack(weight, -1)


def _bracket(offset: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper bin (int32) and the fraction between them; beyond the last, the last."""
    offset = offset.clamp(places[0], places[-1])
    high = torch.bucketize(offset, places, out_int32=True).clamp_(max=len(places) - 1)
    low = (high - 1).clamp_min_(0)
    width = (places[high] - places[low]).clamp_min_(1)
    return low, high, (offset - places[low]) / width


def _row_bins(rows: RunCentres, share: Tensor, plan: Plan) -> Tensor:
    """float32 [n, bins]: how often the keys of the whole grid touch each bin, seen from each row.

    The grid is a box and the interpolation a product over the axes, so that the sum over all keys
    is one as well, whatever their order.
    """
    whole = torch.ones(*rows.tokens.shape, 1)
    for axis, (side, positions) in enumerate(zip(plan.grid.shape, plan.bins.axes, strict=True)):
        places = torch.tensor(positions, dtype=torch.float32)
        offset = torch.arange(side, dtype=torch.float32) - rows.centre[..., axis, None]
        low, high, fraction = _bracket(offset, places)
        counts = offset.new_zeros(*offset.shape[:-1], len(positions))
        counts.scatter_add_(-1, low.long(), 1 - fraction)
        counts.scatter_add_(-1, high.long(), fraction)
        whole = (whole[..., None] * counts[:, :, None]).flatten(2)
    return (whole * share[..., None]).sum(1)


def _corrected(
    mass: Tensor, codes: Tensor, geometry: _Geometry, plan: Plan, own: str, shown: str
) -> Tensor:
    """A head's mass [n, k] times its correction, which is stored over its own order."""
    factors = decode_ratio(codes)
    factors = factors if factors.ndim == 2 else factors[None]
    places = [
        _cells(plan, block, size, own, shown)
        for block, size in zip(plan.block, factors.shape, strict=True)
    ]
    spread_out = places[0][geometry.rows] @ factors @ places[1].t()
    corrected = mass * spread_out.gather(1, geometry.key_index)
    if geometry.every:
        return corrected / corrected.sum(-1, keepdim=True).clamp_min(1e-30)
    # The drawn keys stand for all: what the correction does to a row's sum, it does to theirs.
    kept = slice(len(geometry.columns), None)
    change = corrected[:, kept].sum(-1) / mass[:, kept].sum(-1).clamp_min(1e-30)
    return corrected / change[:, None].clamp_min(1e-30)


def _cells(plan: Plan, block: int, size: int, own: str, shown: str) -> Tensor:
    """float32 [blocks of `shown`, size]: share of a block's tokens in each cell over `own`."""
    blocks = block_count(plan.grid.tokens, block)
    cell_of_block = torch.arange(blocks) * size // blocks
    if own == shown:
        return torch.nn.functional.one_hot(cell_of_block, size).float()
    token = torch.arange(plan.grid.tokens)
    cell = torch.empty_like(token)
    cell[grid_permutation(own, plan.grid)] = cell_of_block[token // block]
    cell = cell[grid_permutation(shown, plan.grid)]
    counts = torch.bincount(token // block * size + cell, minlength=blocks * size).float()
    counts = counts.view(blocks, size)
    return counts / counts.sum(1, keepdim=True)


def _exact_ranks(mass: Tensor, forced: Tensor, rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    score = ranking_score(mass, forced).flatten(1)
    order = score.argsort(dim=1, descending=True, stable=True)
    total = order.shape[1]
    scale = RANK_ONE / total
    place = ((torch.arange(total) + 0.5) * scale).round().to(torch.int32)
    ranks = torch.empty_like(order, dtype=torch.int32).scatter_(
        1, order, place.expand(len(order), -1)
    )
    ranks = ranks.masked_fill(torch.isinf(score), 0).numpy().astype(np.uint16)
    kept = (mass * rows[:, None]).flatten(1).gather(1, order).cumsum(1)
    always = torch.isinf(score).sum(1)
    counts = torch.tensor([round(d * total) for d in RECALL_DENSITIES])
    counts = torch.maximum(counts[None], always[:, None]).clamp(1, total)
    return ranks.reshape(mass.shape), kept.gather(1, counts - 1).clamp(0, 1).numpy()


def _sampled_ranks(mass: Tensor, octaves: Tensor, forced: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Ranks [N, n, m] and recall [N, 32] among all blocks, estimated from the drawn ones.

    Args:
        mass: float32 [N, n, m + DRAWN].
        octaves: log2 of the same, 0 at the greatest that is shown; drawn ones may lie above.
        forced: bool [n, m].
    """
    heads, columns = len(mass), forced.shape[1]
    levels = ((-octaves + 1) * _LEVELS_PER_OCTAVE).clamp_(0, _LEVELS - 1).to(torch.int64)
    levels += torch.arange(heads)[:, None, None] * _LEVELS  # level 0 holds the greatest masses
    drawn = levels[..., columns:].reshape(-1)
    weights = mass[..., columns:].reshape(-1)
    count = torch.bincount(drawn, minlength=heads * _LEVELS).view(heads, -1).cumsum(1)
    kept = torch.bincount(drawn, weights, minlength=heads * _LEVELS).view(heads, -1).cumsum(1)
    total = drawn.numel() // heads
    above = torch.nn.functional.pad(count, (1, -1))
    # Blocks of one level share its ranks evenly: a run takes any of those of equal mass.
    share = torch.rand(forced.shape, generator=torch.Generator().manual_seed(1))
    level = levels[..., :columns]
    first, last = (x.flatten().float().mul_(RANK_ONE / total) for x in (above, count))
    ranks = torch.lerp(first[level], last[level], share).clamp_(max=RANK_ONE)
    ranks = ranks.masked_fill_(forced, 0).numpy().astype(np.uint16)
    wanted = torch.tensor([max(1, round(d * total)) for d in RECALL_DENSITIES])
    wanted = wanted.expand(heads, -1).contiguous()
    place = torch.searchsorted(count, wanted).clamp_(max=_LEVELS - 1)
    recall = kept.gather(1, place) / kept[:, -1:].clamp_min(1e-30)
    return ranks, recall.float().clamp_(0, 1).numpy()
