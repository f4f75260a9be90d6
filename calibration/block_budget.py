"""How many blocks every head computes at every noise band of a run, and what they keep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .density_budget import (
    FLOOR,
    MASS_BUDGET_FROM,
    band_densities,
    error_benefit,
    head_counts,
    head_densities,
    mass_benefit,
)
from .metrics import RECALL_DENSITIES
from .plan import Plan
from .runtime_options import RuntimeOptions


class BlockBudget:
    """The blocks of a plan at work: shared by the noise bands, and by the heads of each.

    Attributes:
        sparse_layers: indices of the layers that run sparse.
        densities: density of each noise band, over the steps that run sparse.
        counts: of each noise band, blocks to compute in each head, int64 [L, H].
    """

    def __init__(self, plan: Plan, options: RuntimeOptions, blocks: int, least: int) -> None:
        """Prepares a budget, which `share` fills.

        Args:
            plan: the plan.
            options: how it is followed.
            blocks: all blocks of a head.
            least: blocks that a head computes in any case.
        """
        self._plan, self._options = plan, options
        self._blocks, self._least = blocks, least
        self.sparse_layers = [n for n in range(plan.layers) if n not in set(options.dense_layers)]
        self.densities: tuple[float, ...] = ()
        self.counts: tuple[np.ndarray, ...] = ()
        self._mean_recall: float | None = None

    def share(self, steps_of_bands: Sequence[int]) -> bool:
        """Shares the density among bands of so many sparse steps; returns whether counts changed.

        Noise bands take shares of it, noisy steps most.
        """
        shares = self._plan.shares if self._options.shares else (1.0,) * self._plan.bands.count
        self.densities = band_densities(self._options.density, shares, steps_of_bands)
        counts = tuple(self._band_counts(band, value) for band, value in enumerate(self.densities))
        unchanged = len(counts) == len(self.counts) and all(
            np.array_equal(a, b) for a, b in zip(counts, self.counts, strict=True)
        )
        if not unchanged:
            self.counts = counts
            self._mean_recall = None
        return not unchanged

    def head_densities(self, band: int) -> np.ndarray:
        """float64 [L, H]: density that every head is given at a noise band; dense layers have 1."""
        return self.counts[band] / self._blocks

    def band_recall(self, layer: int, band: int) -> np.ndarray:
        """float32 [H]: recall that calibration measured at each head's density."""
        curves = self._plan.recall_profile[layer, band].numpy()
        densities = self.counts[band][layer] / self._blocks
        grid = (0.0, *RECALL_DENSITIES)
        recall = [
            np.interp(d, grid, (0.0, *curve)) for d, curve in zip(densities, curves, strict=True)
        ]
        return np.array(recall, dtype=np.float32)

    def mean_recall(self) -> float:
        """Mean predicted recall over heads, sparse layers and noise bands; 1 where all is dense."""
        if self._mean_recall is None:
            bands = range(self._plan.bands.count)
            recalls = [self.band_recall(layer, n) for layer in self.sparse_layers for n in bands]
            self._mean_recall = float(np.mean(recalls)) if recalls else 1.0
        return self._mean_recall

    def computes_all(self, layer: int, band: int) -> bool:
        """Whether every head of a layer computes every block."""
        return bool((self.counts[band][layer] >= self._blocks).all())

    def in_words(self) -> str:
        if self._goes_by != "head":
            return f"one budget for all heads by {self._goes_by}"
        if self._options.budget == "global":
            return f"the same for every head (no tail, density below {MASS_BUDGET_FROM:g})"
        return "the same for every head"

    @property
    def _goes_by(self) -> str:
        """What the budget goes by: "error", "mass" or "head" (every head the same)."""
        if self._options.budget == "head":
            return "head"
        if self._options.tail:
            return "error"
        return "mass" if self._options.density >= MASS_BUDGET_FROM - 1e-9 else "head"

    def _band_counts(self, band: int, density: float) -> np.ndarray:
        """Blocks to compute in each head at one noise band, int64 [L, H]."""
        counts = np.full((self._plan.layers, self._plan.heads), self._blocks, dtype=np.int64)
        if self.sparse_layers:
            densities = self._densities_of_heads(band, density)
            shared = head_counts(densities, self._blocks, density)
            counts[self.sparse_layers] = shared.reshape(-1, self._plan.heads)
        return counts

    def _densities_of_heads(self, band: int, density: float) -> np.ndarray:
        """Density of every head of the sparse layers."""
        if self._goes_by == "head":
            return np.full(len(self.sparse_layers) * self._plan.heads, min(density, 1.0))
        by_error = self._goes_by == "error"
        stored = self._plan.error if by_error else self._plan.recall_profile
        curves = stored[self.sparse_layers, band].flatten(0, 1).numpy()
        grid, benefit = error_benefit(curves) if by_error else mass_benefit(curves)
        # Forced blocks and one per row are computed in any case.
        least = self._least / self._blocks
        return head_densities(density, grid, benefit, max(FLOOR * density, least))
