"""Offset profiles to block mass and back on a GPU. The twin is calibration's `ProfileGeometry`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Room for the mean ratio of measured and predicted mass in one bin; it is about 1.
_MEAN_RATIO = 256.0


@dataclass(frozen=True, slots=True)
class ProfilePlaces:
    """Where runs and bins lie in O orders; only where the kernels run.

    Attributes:
        queries, keys: float32 centres [O, blocks, runs, 3] and tokens [O, blocks, runs] of runs.
        axes: float32 bin positions along frames, height and width.
        tokens: keys of each map.
    """

    queries: tuple[Tensor, Tensor]
    keys: tuple[Tensor, Tensor]
    axes: tuple[Tensor, Tensor, Tensor]
    tokens: int

    @property
    def bins(self) -> int:
        return math.prod(len(axis) for axis in self.axes)

    def mass(self, profiles: Tensor, orders: Tensor) -> Tensor:
        """Predicted block mass, float32 [N, Qb, KVb], rows sum to 1.

        Args:
            profiles: float32 [N, bins], contiguous.
            orders: int32 [N], the order of each profile.
        """
        values = self._rows(len(profiles), profiles)
        self._run(profiles, values, values, values, values, orders, 1.0, evaluate=True)
        return values

    def scores(self, profiles: Tensor, orders: Tensor, forced: Tensor) -> Tensor:
        """`mass`, infinite at each row's greatest and where ``forced``, int8 [Qb, KVb], is 1."""
        values = self._rows(len(profiles), profiles)
        self._run(profiles, values, values, values, forced, orders, 1.0, evaluate=True, rank=True)
        return values

    def spread(self, values: Tensor, orders: Tensor, row_sum: float) -> Tensor:
        """Values of pairs of blocks times their tokens, summed into the bins that each touches.

        Args:
            values: float32 [N, Qb, KVb], >= 0, contiguous.
            orders: int32 [N].
            row_sum: what the values of a row, times the tokens of their keys, add up to at most.

        Returns:
            float32 [N, bins], the same bits for the same input.
        """
        unit = _unit(row_sum * values.shape[1])
        sums = self._sums(values)
        self._run(values, values, values, sums, values, orders, unit, spread=True)
        return sums.float().mul_(1 / unit)

    def spread_ratios(self, mass: Tensor, profiles: Tensor, orders: Tensor) -> Tensor:
        """`spread` of measured mass [N, Qb, KVb] by what the profiles predict."""
        unit = _unit(_MEAN_RATIO * mass.shape[1] * self.tokens)
        sums, values = self._sums(mass), torch.empty_like(mass)
        self._run(profiles, mass, values, sums, values, orders, unit, evaluate=True, spread=True)
        return sums.float().mul_(1 / unit)

    def _rows(self, count: int, like: Tensor) -> Tensor:
        return like.new_empty(count, self.queries[1].shape[1], self.keys[1].shape[1])

    def _sums(self, like: Tensor) -> Tensor:
        return torch.zeros(len(like), self.bins, dtype=torch.int64, device=like.device)

    def _run(
        self, profiles: Tensor, measured: Tensor, values: Tensor, sums: Tensor, forced: Tensor,
        orders: Tensor, unit: float, *, evaluate: bool = False, spread: bool = False,
        rank: bool = False,
    ) -> None:  # fmt: skip
        from .triton.profile import run_profile_kernel

        run_profile_kernel(
            profiles, measured, values, sums, forced, orders, self.queries, self.keys, self.axes,
            unit, evaluate=evaluate, spread=spread, rank=rank,
        )  # fmt: skip


def _unit(bound: float) -> float:
    """Steps per 1 for sums that stay below ``bound``: a power of two that 62 bits hold."""
    return 2.0 ** math.floor(62 - math.log2(bound))
