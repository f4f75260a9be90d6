"""How the density is shared out: over noise bands, then over heads.

Noisy steps decide the sample, so the noise bands take shares of the density; heads share one budget
so that the next block goes where it does the most good (water-filling on measured curves). With the
pooled tail on, good is less output error; without it, more mass. On the demo model (8x16x16, block
32, calibrated on three prompts, tested on another, tail on) the mean layer error at density
.1/.2/.3/.5 is .143/.091/.065/.036 with the same density for every head, .208/.095/.070/.028 by mass
and .139/.087/.059/.026 by error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .metrics import RECALL_DENSITIES
from .order_scores import ERROR_DENSITIES

FLOOR = 0.25
# Below this average density a budget by mass starves some heads: every head gets its own.
MASS_BUDGET_FROM = 0.2
# Errors of heads add up in squares, but the mean over heads matters as well: between the two powers
# both the mean and the root mean square are within 3 % of their best.
ERROR_POWER = 1.5
NOISY_SHARE = 2.0
NOISY_QUARTER = 0.25


def default_shares(bands: int) -> tuple[float, ...]:
    """Share of each noise band: 2 over the noisiest quarter of the steps, 1 over the others.

    On eight videos of the demo model at density 0.3, shares of 1, 2 and 3 gave a step error of
    0.072, 0.073 and 0.081 and 22.3, 23.2 and 21.4 dB.
    """
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


def mass_benefit(recall: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Densities and benefit curves for a budget by mass.

    Args:
        recall: [N, len(RECALL_DENSITIES)] recall of each head's masks.
    """
    none = np.zeros((len(recall), 1))
    return np.array((0.0, *RECALL_DENSITIES)), np.concatenate([none, recall], 1)


def error_benefit(error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Densities and benefit curves for a budget by output error.

    Args:
        error: [N, len(ERROR_DENSITIES)] relative output error of each head with the tail on.
    """
    ends = np.ones((len(error), 1)), np.zeros((len(error), 1))
    curves = np.concatenate([ends[0], error, ends[1]], 1)
    return np.array((0.0, *ERROR_DENSITIES, 1.0)), -(curves**ERROR_POWER)


def head_densities(
    density: float, grid: np.ndarray, benefit: np.ndarray, floor: float
) -> np.ndarray:
    """Density of each head, so that the sum of the benefits is greatest.

    Args:
        density: mean over the heads.
        grid: [n + 1] ascending densities from 0 to 1.
        benefit: [N, n + 1] benefit of each head at these densities; the least concave curve above
            the points is followed.
        floor: least density of a head.

    Returns:
        float64 [N] in (0, 1] with mean `density`.
    """
    heads = len(benefit)
    if density >= 1 or heads == 0:
        return np.full(heads, min(density, 1.0))
    floor = min(density, floor)
    slopes = concave_slopes(np.asarray(benefit, np.float64), grid)
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


def concave_slopes(points: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Slopes [N, n] of the least concave curve above the points [N, n + 1] at grid [n + 1].

    At segment i the slope is the minimum over start points j <= i of the maximum over end points
    k > i of the slope from j to k.
    """
    count = len(grid)
    run = grid[None, :] - grid[:, None]
    rise = points[:, None, :] - points[:, :, None]
    forward = np.triu(np.ones((count, count), bool), 1)
    slopes = np.where(forward, rise / np.where(forward, run, 1.0), -np.inf)
    steepest = np.maximum.accumulate(slopes[:, :, ::-1], axis=2)[:, :, ::-1]  # over ends >= k
    steepest = np.where(forward, steepest, np.inf)[:, :-1, 1:]  # [N, j, i], ends > i
    return np.minimum.accumulate(steepest, axis=1).diagonal(axis1=1, axis2=2)
