"""How the density is shared out: over noise bands, then over heads.

Noisy steps decide the sample, so the noise bands take shares of the density; heads share one budget
so that the next block goes where it saves the most mass (water-filling on the recall curves).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .metrics import RECALL_DENSITIES

FLOOR = 0.25
# Below this average density, one budget over all heads starves some of them: every head its own.
GLOBAL_FROM = 0.2
NOISY_SHARE = 3.0
NOISY_QUARTER = 0.25


def default_shares(bands: int) -> tuple[float, ...]:
    """Share of each noise band: 3 over the noisiest quarter of the steps, 1 over the others."""
    shares = []
    for band in range(bands):
        start, end = band / bands, (band + 1) / bands
        noisy = max(0.0, min(end, NOISY_QUARTER) - start) / (end - start)
        shares.append(1 + (NOISY_SHARE - 1) * noisy)
    return tuple(shares) if bands > 1 else (1.0,)


def band_densities(
    density: float, shares: Sequence[float], steps: Sequence[int]
) -> tuple[float, ...]:
    """Density of each band in proportion to its share, with the mean `density` over the steps.

    A band never exceeds 1; what it cannot take goes to the others.

    Args:
        density: the average to reach.
        shares: positive share of each band.
        steps: sparse steps of the run in each band; bands without steps follow the same rule but
            do not count.
    """
    if sum(steps) == 0:
        return (density,) * len(shares)
    full: set[int] = set()
    while True:
        rest = [b for b in range(len(shares)) if b not in full]
        budget = density * sum(steps) - sum(steps[b] for b in full)
        weight = sum(steps[b] * shares[b] for b in rest)
        unit = budget / weight if weight > 0 else math.inf
        over = [b for b in rest if unit * shares[b] > 1 + 1e-12]
        if not over:
            return tuple(1.0 if b in full else unit * shares[b] for b in range(len(shares)))
        full.update(over)


def head_densities(density: float, curves: np.ndarray, floor: float, pooled: bool) -> np.ndarray:
    """Density of each head.

    Args:
        density: mean over the heads.
        curves: [N, len(RECALL_DENSITIES)] recall of each head's masks.
        floor: least density of a head.
        pooled: one budget over all heads; else every head gets the mean.

    Returns:
        float64 [N] in (0, 1] with mean `density`.
    """
    heads = len(curves)
    if not pooled or density >= 1 or heads == 0:
        return np.full(heads, min(density, 1.0))
    floor = min(density, floor)
    grid = np.array((0.0, *RECALL_DENSITIES))
    recall = np.concatenate([np.zeros((heads, 1)), np.asarray(curves, np.float64)], 1)
    slopes = _concave_slopes(recall, grid)
    start = np.broadcast_to(np.maximum(grid[:-1], floor), slopes.shape)
    width = np.clip(grid[1:] - start, 0, None)
    head = np.broadcast_to(np.arange(heads)[:, None], slopes.shape)
    # Steepest first; equal slopes in the order of density, so that flat curves fill side by side.
    rank = np.lexsort((start.ravel(), -slopes.ravel()))
    ranked = width.ravel()[rank]
    before = np.cumsum(ranked) - ranked
    given = np.clip((density - floor) * heads - before, 0, ranked)
    return floor + np.bincount(head.ravel()[rank], given, heads)


def head_counts(densities: np.ndarray, blocks: int, density: float) -> np.ndarray:
    """Blocks to keep in each head, int64, whose sum is `density` of all blocks to within one."""
    exact = densities * blocks
    counts = np.floor(exact + 1e-9).astype(np.int64)
    missing = round(density * blocks * len(densities)) - int(counts.sum())
    if missing > 0:
        fullest = np.argsort(-(exact - counts), kind="stable")
        counts[fullest[:missing]] += 1
    return np.minimum(counts, blocks)


def _concave_slopes(recall: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Slopes [N, n] of the least concave curve above the points recall [N, n + 1] at grid [n + 1].

    At segment i the slope is the minimum over start points j <= i of the maximum over end points
    k > i of the slope from j to k.
    """
    points = len(grid)
    run = grid[None, :] - grid[:, None]
    rise = recall[:, None, :] - recall[:, :, None]
    forward = np.triu(np.ones((points, points), bool), 1)
    slopes = np.where(forward, rise / np.where(forward, run, 1.0), -np.inf)
    steepest = np.maximum.accumulate(slopes[:, :, ::-1], axis=2)[:, :, ::-1]  # over ends >= k
    steepest = np.where(forward, steepest, np.inf)[:, :-1, 1:]  # [N, j, i], ends > i
    return np.minimum.accumulate(steepest, axis=1).diagonal(axis1=1, axis2=2)
