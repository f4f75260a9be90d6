"""The one definition of each number that calibration reports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Where a plan stores recall: densities close together near 0, where the curves bend, up to 1.
RECALL_DENSITIES: tuple[float, ...] = tuple(((i + 1) / 32) ** 1.5 for i in range(32))


def relative_error(output: Tensor, reference: Tensor, dims: Sequence[int] | None = None) -> Tensor:
    """||output - reference|| / ||reference||, Frobenius norms over `dims` (all when None)."""
    difference = (output.float() - reference.float()).square()
    energy = reference.float().square()
    if dims is None:
        return (difference.sum() / energy.sum().clamp_min(1e-30)).sqrt()
    return (difference.sum(tuple(dims)) / energy.sum(tuple(dims)).clamp_min(1e-30)).sqrt()


def density(mask: Tensor) -> float:
    """Computed / all blocks of a boolean mask."""
    return float(mask.float().mean())


def recall(mass: Tensor, mask: Tensor, rows: Tensor | None = None) -> Tensor:
    """Block mass kept by a mask.

    Args:
        mass: [..., Qb, KVb], rows sum to 1.
        mask: bool, the same shape.
        rows: [Qb] weight of each query block (its valid rows); equal when None.

    Returns:
        [...] in 0..1.
    """
    kept = (mass * mask).sum(-1)
    if rows is None:
        return kept.mean(-1)
    return (kept * rows).sum(-1) / rows.sum()


def recall_curve(
    mass: Tensor,
    score: Tensor,
    forced: Tensor,
    rows: Tensor,
    densities: Sequence[float] = RECALL_DENSITIES,
) -> Tensor:
    """Recall of the masks that a score selects, at many densities with one sort.

    Args:
        mass: [N, Qb, KVb] true block mass.
        score: [N, Qb, KVb] what the selection ranks by, >= 0.
        forced: bool [Qb, KVb] blocks that every mask keeps.
        rows: [Qb] valid rows of each query block.

    Returns:
        float32 [N, len(densities)], monotone in density.
    """
    ranked = ranking_score(score, forced).flatten(1)
    weighted = (mass * (rows / rows.sum())[:, None]).flatten(1)
    order = ranked.argsort(1, descending=True)
    kept = weighted.gather(1, order).cumsum(1, dtype=torch.float32)
    at_least = torch.isinf(ranked).sum(1)
    total = ranked.shape[1]
    counts = torch.tensor([round(d * total) for d in densities], device=mass.device)
    counts = torch.maximum(counts[None, :], at_least[:, None]).clamp(1, total)
    return kept.gather(1, counts - 1).clamp(0, 1)


def ranking_score(score: Tensor, forced: Tensor) -> Tensor:
    """Score with infinity where a mask keeps the block whatever the density.

    Those are the forced blocks and the best block of every row.
    """
    best = score.argmax(-1, keepdim=True)
    ranked = score.masked_fill(forced, float("inf"))
    return ranked.scatter(-1, best, float("inf"))
