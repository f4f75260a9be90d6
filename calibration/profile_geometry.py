"""Offset profile to block mass and back, for one order, grid and block.

A block is cut into runs of consecutive tokens and each run stands at its centre: blocks of an axis
order bend around the edge of the grid, where the centre of the whole block would be nowhere near
its tokens (measured on a 5x9x20 grid in order FHW: 96.5 % of the recall with whole blocks, 99 %
with two runs). The mass of a block pair is the profile, interpolated trilinearly at the offsets
between run centres, times the tokens. Offsets stay in tokens and are never stretched, because
rotary positions are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..kernels import unavailable_reason
from ..kernels.profile_api import ProfilePlaces
from .device_copy import to_device
from .offset_profile import OffsetBins, RunCentres
from .token_grid import TokenGrid

REFINEMENTS = 3
# 8 corners of 12 bytes each: at most 100 MB at once, and 25 MB kept per order of a small grid.
_PAIRS_AT_ONCE = 1 << 20
_CACHED_CORNERS = 1 << 21


class ProfileGeometry:
    """The fixed linear map between a profile's bins and the block mass of one order."""

    def __init__(
        self,
        bins: OffsetBins,
        grid: TokenGrid,
        order: str,
        block: tuple[int, int],
        device: torch.device | str = "cpu",
        query_blocks: Tensor | None = None,
    ) -> None:
        """Prepares the map.

        Args:
            bins: bin positions of the profiles.
            grid: the token grid.
            order: name of the order.
            block: (query, key) tokens of a block.
            device: where the work is to be done.
            query_blocks: int64 indices, to look at some query blocks only; all when None.
        """
        self.bins, self._tokens = bins, grid.tokens
        self.queries = RunCentres.of(order, grid, block[0], device=device).at(query_blocks)
        self.keys = RunCentres.of(order, grid, block[1], device=device)
        self.key_tokens = self.keys.tokens.sum(1)
        self.query_blocks, self.runs = self.queries.tokens.shape
        self.key_blocks = len(self.key_tokens)
        self._axes = [
            to_device(torch.tensor(positions, dtype=torch.float32), torch.device(device))
            for positions in bins.axes
        ]
        # The kernels find the corners on the fly; only tests may want them interpreted.
        self._by_kernel = (
            self._axes[0].device.type == "cuda" and unavailable_reason(self._axes[0].device) is None
        )
        self._rows = max(1, _PAIRS_AT_ONCE // self.key_blocks)
        corners = self.query_blocks * self.key_blocks * 8 * self.runs**2
        keep = corners <= _CACHED_CORNERS and not self._by_kernel
        self._cache = list(self._tiles()) if keep else None
        self._reached: Tensor | None = None
        self._own_places: ProfilePlaces | None = None

    def evaluate(self, profiles: Tensor) -> Tensor:
        """Predicted block mass.

        Args:
            profiles: float32 [N, bf, bh, bw] on the geometry's device.

        Returns:
            float32 [N, Qb, KVb], rows sum to 1.
        """
        if self._by_kernel:
            flat = profiles.reshape(len(profiles), -1).contiguous()
            return self._places.mass(flat, self._first(len(flat)))
        flat = profiles.reshape(len(profiles), -1)
        mass = flat.new_zeros(len(flat), self.query_blocks, self.key_blocks)
        for rows, index, weight in self._walk():
            for head, profile in enumerate(flat):
                mass[head, rows] += (profile[index] * weight).sum(0)
        return _normalised(mass)

    def fit(self, mass: Tensor, refinements: int = REFINEMENTS) -> Tensor:
        """The profiles whose predicted block mass is closest to a measured one.

        The first estimate is the weighted mean of the mass per key over the pairs that touch a bin.
        It is blurred by the size of the blocks; every refinement multiplies it by the mean ratio of
        measured and predicted mass around each bin.

        Args:
            mass: float32 [N, Qb, KVb], rows sum to 1.
            refinements: number of such corrections.

        Returns:
            float32 [N, bf, bh, bw]; bins that no pair touches are 0 (see `fill`).
        """
        if self._by_kernel:
            orders, touch = self._first(len(mass)), self._touch
            flat = _fitted(self._places, mass, orders, touch, self.key_tokens, refinements)
            return flat.view(len(mass), *self.bins.shape)
        profiles = self._spread(mass / self.key_tokens)
        for _ in range(refinements):
            predicted = self.evaluate(profiles)
            profiles = profiles * self._spread(mass / predicted.clamp_min(1e-12))
        return profiles

    def fill(self, profiles: Tensor) -> Tensor:
        """Profiles with the bins that calibration could not reach taken from their neighbours.

        Such bins matter on other grids: a tile order over all frames never measures df != 0.
        """
        filled = self.reached.clone()
        values = profiles * filled
        while not bool(filled.all()):
            total = _sum_of_neighbours(values)
            count = _sum_of_neighbours(filled[None].float())[0]
            new = (count > 0) & ~filled
            values = torch.where(new, total / count.clamp_min(1), values)
            filled |= new
        return values

    @property
    def reached(self) -> Tensor:
        """bool [bf, bh, bw]: bins that some pair of blocks touches."""
        return (self._touch > 0).view(self.bins.shape)

    @property
    def _touch(self) -> Tensor:
        """float32 [bins]: total weight with which pairs touch each bin."""
        if self._reached is None:
            ones = torch.ones(1, self.query_blocks, self.key_blocks, device=self._axes[0].device)
            self._reached = self._scatter(ones)[0]
        return self._reached

    def _spread(self, values: Tensor) -> Tensor:
        """Weighted mean over the pairs that touch each bin: [N, Qb, KVb] -> [N, bf, bh, bw]."""
        means = self._scatter(values) / self._touch.clamp_min(1e-20)
        return means.view(len(values), *self.bins.shape)

    @property
    def _places(self) -> ProfilePlaces:
        """Where runs and bins lie, for the kernels."""
        if self._own_places is None:
            self._own_places = _places_of([self])
        return self._own_places

    def _first(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int32, device=self._axes[0].device)

    def _scatter(self, values: Tensor) -> Tensor:
        if self._by_kernel:
            ones = values.contiguous()
            return self._places.spread(ones, self._first(len(ones)), float(self._tokens))
        size = self.bins.shape[0] * self.bins.shape[1] * self.bins.shape[2]
        sums = values.new_zeros(len(values), size)
        for rows, index, weight in self._walk():
            flat_index = index.view(-1)
            for head in range(len(values)):
                sums[head].index_add_(0, flat_index, (weight * values[head, rows]).view(-1))
        return sums

    def _walk(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        return iter(self._cache) if self._cache is not None else self._tiles()

    def _tiles(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(query blocks, bin index [C, R, KVb], weight [C, R, KVb]) of every pair of runs."""
        for start in range(0, self.query_blocks, self._rows):
            rows = slice(start, min(start + self._rows, self.query_blocks))
            tokens = self.queries.tokens[rows]
            for query_run in range(self.runs):
                share = (tokens[:, query_run] / tokens.sum(1))[:, None]
                for key_run in range(self.runs):
                    index, weight = self._corners(rows, query_run, key_run)
                    yield rows, index, weight * (share * self.keys.tokens[:, key_run])

    def _corners(self, rows: slice, query_run: int, key_run: int) -> tuple[Tensor, Tensor]:
        """Flat index and trilinear weight of the 8 bins around each pair's offset: [8, R, KVb]."""
        offset = self.keys.centre[None, :, key_run] - self.queries.centre[rows, None, query_run]
        index: list[Tensor] = []
        weight: list[Tensor] = []
        for axis, positions in enumerate(self._axes):
            low, high, fraction = _bracket(offset[..., axis].contiguous(), positions)
            if axis == 0:
                index, weight = [low, high], [1 - fraction, fraction]
                continue
            sides = ((low, 1 - fraction), (high, fraction))
            index = [base * len(positions) + side for base in index for side, _ in sides]
            weight = [base * part for base in weight for _, part in sides]
        return torch.stack(index), torch.stack(weight)


class GeometryStack:
    """The geometries of several orders of one grid, for the kernels."""

    def __init__(self, geometries: Sequence[ProfileGeometry]) -> None:
        self._places = _places_of(geometries)
        self._touch = torch.stack([geometry._touch for geometry in geometries])
        self._key_tokens = geometries[0].key_tokens  # every order cuts its blocks alike

    @property
    def bins(self) -> int:
        """Bins of a profile."""
        return self._touch.shape[1]

    def scores(self, mass: Tensor, orders: Tensor, forced: Tensor, refinements: int) -> Tensor:
        """What the profiles fitted to a measured mass predict, as a ranking of the blocks.

        Args:
            mass: float32 [N, Qb, KVb], rows sum to 1, contiguous.
            orders: int32 [N], index of each map's geometry.
            forced: int8 [Qb, KVb], blocks that every mask keeps.
            refinements: as `ProfileGeometry.fit`.

        Returns:
            float32 [N, Qb, KVb], infinite where blocks are forced and at the best of each row.
        """
        touch = self._touch[orders.long()]
        profiles = _fitted(self._places, mass, orders, touch, self._key_tokens, refinements)
        return self._places.scores(profiles, orders, forced)


def _places_of(geometries: Sequence[ProfileGeometry]) -> ProfilePlaces:
    frames, height, width = geometries[0]._axes
    queries, keys = (
        (
            torch.stack([getattr(geometry, side).centre for geometry in geometries]),
            torch.stack([getattr(geometry, side).tokens for geometry in geometries]),
        )
        for side in ("queries", "keys")
    )
    return ProfilePlaces(queries, keys, (frames, height, width), geometries[0]._tokens)


def _fitted(
    places: ProfilePlaces,
    mass: Tensor,
    orders: Tensor,
    touch: Tensor,
    key_tokens: Tensor,
    refinements: int,
) -> Tensor:
    """`ProfileGeometry.fit` by the kernels: float32 [N, bins]."""
    touch = touch.clamp_min(1e-20)
    # Rows of mass sum to 1; twice that is room for rounding.
    profiles = places.spread(mass / key_tokens, orders, 2.0).div_(touch)
    for _ in range(refinements):
        ratios = places.spread_ratios(mass.contiguous(), profiles, orders)
        profiles.mul_(ratios.div_(touch))
    return profiles


def _bracket(offset: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lower and upper bin and the fraction between them; beyond the last bin, the last bin."""
    offset = offset.clamp(positions[0], positions[-1])
    high = torch.bucketize(offset, positions).clamp_(max=len(positions) - 1)
    low = (high - 1).clamp_min_(0)
    width = (positions[high] - positions[low]).clamp_min_(1)
    return low, high, (offset - positions[low]) / width


def _normalised(mass: Tensor) -> Tensor:
    return mass / mass.sum(-1, keepdim=True).clamp_min(1e-30)


def _sum_of_neighbours(x: Tensor) -> Tensor:
    """Sum over the 6 neighbours of each bin of [N, bf, bh, bw]; outside counts as 0."""
    total = torch.zeros_like(x)
    for axis in (1, 2, 3):
        if x.shape[axis] > 1:
            length = x.shape[axis] - 1
            total.narrow(axis, 1, length).add_(x.narrow(axis, 0, length))
            total.narrow(axis, 0, length).add_(x.narrow(axis, 1, length))
    return total
