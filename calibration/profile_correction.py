"""Corrections for heads that an offset profile alone does not describe.

First-frame sinks and favourite keys depend on where a key is, not on how far away it is. Where the
masks from a head's profile keep less than ENOUGH of the recall that its true block mass would give,
the head gets either a popularity factor per key position or a coarse map of factors, whichever
reaches it; both multiply the predicted mass and are stretched over the sequence on another grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .device_copy import to_device
from .log2_code import decode_ratio, encode_ratio
from .metrics import RECALL_DENSITIES, recall_curve

NO_CORRECTION, POPULARITY, COARSE = 0, 1, 2
MAX_POPULARITY = 256
MAX_COARSE = 64
ENOUGH = 0.98
_JUDGED = [i for i, density in enumerate(RECALL_DENSITIES) if 0.1 <= density <= 0.5]


@dataclass(frozen=True, slots=True)
class Correction:
    """A head's correction.

    Attributes:
        kind: NO_CORRECTION, POPULARITY or COARSE.
        codes: uint8 ratio codes, [P], [Cq, Ck] or empty.
        recall: float32 [32], recall of the masks by the corrected prediction.
    """

    kind: int
    codes: Tensor
    recall: Tensor


def apply_correction(mass: Tensor, codes: Tensor) -> Tensor:
    """Predicted block mass with a correction.

    Args:
        mass: float32 [Qb, KVb], rows sum to 1.
        codes: uint8 [P] (popularity), [Cq, Ck] (coarse) or empty (none).

    Returns:
        float32 [Qb, KVb], rows sum to 1.
    """
    if codes.numel() == 0:
        return mass
    factors = decode_ratio(to_device(codes, mass.device))
    factors = factors[..., _places(mass.shape[1], factors.shape[-1], mass.device)]
    if factors.ndim == 2:
        factors = factors[_places(mass.shape[0], factors.shape[0], mass.device)]
    corrected = mass * factors
    return corrected / corrected.sum(-1, keepdim=True).clamp_min(1e-30)


def choose_correction(
    mass: Tensor, predicted: Tensor, true_recall: Tensor, forced: Tensor, rows: Tensor
) -> Correction:
    """The least correction whose masks keep ENOUGH of the true recall, or else the best one.

    Args:
        mass: float32 [Qb, KVb] measured block mass.
        predicted: float32 [Qb, KVb] the profile's prediction.
        true_recall: float32 [32] recall of masks by the measured mass.
        forced: bool [Qb, KVb] blocks that every mask keeps.
        rows: [Qb] valid rows of each query block.
    """
    options: list[tuple[float, Correction]] = []
    makers = ((NO_CORRECTION, _none), (POPULARITY, _popularity), (COARSE, _coarse))
    for kind, make in makers:
        codes = make(mass, predicted, rows)
        score = apply_correction(predicted, codes)
        recall = recall_curve(mass[None], score[None], forced, rows)[0]
        kept = float((recall[_JUDGED] / true_recall[_JUDGED].clamp_min(1e-9)).min())
        options.append((kept, Correction(kind, codes, recall)))
        if kept >= ENOUGH:
            break
    return max(options, key=lambda option: min(option[0], ENOUGH))[1]


def _none(mass: Tensor, predicted: Tensor, rows: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8)


def _popularity(mass: Tensor, predicted: Tensor, rows: Tensor) -> Tensor:
    measured, expected = ((x * rows[:, None]).sum(0) for x in (mass, predicted))
    size = min(MAX_POPULARITY, mass.shape[1])
    return _ratio_codes(_binned(measured, size), _binned(expected, size))


def _coarse(mass: Tensor, predicted: Tensor, rows: Tensor) -> Tensor:
    sizes = [min(MAX_COARSE, side) for side in mass.shape]
    measured, expected = (
        _binned(_binned((x * rows[:, None]).t(), sizes[0]).t(), sizes[1]) for x in (mass, predicted)
    )
    return _ratio_codes(measured, expected)


def _ratio_codes(measured: Tensor, expected: Tensor) -> Tensor:
    return encode_ratio(measured.clamp_min(1e-12) / expected.clamp_min(1e-12)).cpu()


def _places(length: int, size: int, device: torch.device) -> Tensor:
    """The cell of each of `length` positions among `size` cells of equal width."""
    return torch.arange(length, device=device) * size // length


def _binned(x: Tensor, size: int) -> Tensor:
    """Sums the last dimension into `size` cells."""
    sums = x.new_zeros(*x.shape[:-1], size)
    return sums.index_add_(-1, _places(x.shape[-1], size, x.device), x)
