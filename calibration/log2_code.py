"""Eight-bit logarithmic codes for positive numbers of a wide range.

Code 0 is zero; codes 1..255 are steps of 1/12 octave below the maximum, so that the rounding error
is at most 2.9 % over 21 octaves.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS_PER_OCTAVE = 12
# Signed ratios: code 128 is 1, one step is 1/12 octave, the range about 2 ** +-10.
RATIO_ONE = 128


def encode(values: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Codes of non-negative values relative to the maximum over their last `dims` dimensions.

    Returns:
        uint8 of the shape of `values`, and float32 log2 of the maxima (0 where all are zero).
    """
    values = values.float()
    top = values.flatten(-dims).amax(-1)
    log_top = torch.where(top > 0, top.clamp_min(1e-38).log2(), torch.zeros_like(top))
    below = values.clamp_min(1e-38).log2() - log_top[(..., *[None] * dims)]
    codes = (255 + below * STEPS_PER_OCTAVE).round()
    codes = torch.where((values > 0) & (codes >= 1), codes, torch.zeros_like(codes))
    return codes.clamp(0, 255).to(torch.uint8), log_top


def decode(codes: Tensor, log_top: Tensor) -> Tensor:
    """float32 values of `encode`'s codes; log_top broadcasts over the last dimensions."""
    log_top = log_top[(..., *[None] * (codes.ndim - log_top.ndim))]
    values = ((codes.float() - 255) / STEPS_PER_OCTAVE + log_top).exp2()
    return values.masked_fill(codes == 0, 0.0)


def encode_ratio(ratios: Tensor) -> Tensor:
    """uint8 codes of positive factors around 1; ratios outside 2 ** +-10.5 are clipped."""
    codes = ratios.float().clamp_min(1e-38).log2() * STEPS_PER_OCTAVE + RATIO_ONE
    return codes.round().clamp(0, 255).to(torch.uint8)


def decode_ratio(codes: Tensor) -> Tensor:
    """float32 factors of `encode_ratio`'s codes."""
    return ((codes.float() - RATIO_ONE) / STEPS_PER_OCTAVE).exp2()
