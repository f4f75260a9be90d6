"""The number formats of the low-bit paths, in PyTorch: ``float = int * scale`` (+ offset), always.

| operand | 8 bits | 4 bits |
|---|---|---|
| Q | int8 [-127, 127], one scale per token | int4 [-7, 7] after a Hadamard rotation, per token |
| K, mean removed | int8, one scale per key block | as Q, after removing each key block's mean |
| P | uint8-range [0, 127] per row and tile, or FP8 e4m3 | [0, 15] per row and tile |
| V | int8 or FP8 e4m3 (sampled scale), per channel | [0, 15] about the block's mean, per channel |

The mean of K over the sequence shifts all logits of a row alike, so softmax does not see it
(SageAttention, arXiv 2410.02367). The rotation spreads outlier channels and leaves q.k unchanged.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

BITS = (16, 8, 4)
INT8_MAX = 127.0
INT4_MAX = 7.0
UINT4_MAX = 15.0
FP8_MAX = 448.0
# FP8 probabilities are stored times 2**8: below the format's maximum, far from its subnormals.
FP8_P_EXPONENT = 8.0
SCALE_FLOOR = 1e-12
# FP8's precision does not depend on the scale. Room above the largest value that was seen lets the
# scale come from a sample of the tokens: 1/16 of the range still leaves three decades below it.
FP8_V_MAX = FP8_MAX / 16.0
SAMPLED_FROM = 2048
SAMPLING_STEP = 17  # no factor of common widths in tokens, so that a sample meets every column


def statistics_step(tokens: int, pv_bits: int, fp8: bool) -> int:
    """Every how many tokens K's mean and V's range are looked at.

    Softmax does not see what is subtracted from all keys alike, so that K's mean may be sampled.
    V's range may where FP8 has room above it; integers need the exact one.
    """
    whole = tokens < SAMPLED_FROM or (pv_bits == 8 and not fp8)
    return 1 if whole else SAMPLING_STEP


def symmetric_scale(x: Tensor, limit: float, dim: int | tuple[int, ...]) -> Tensor:
    """Scale that maps the largest magnitude along ``dim`` (kept) to ``limit``.

    A product with the reciprocal, as in the kernels: ties must fall to the same side.
    """
    return x.abs().amax(dim, keepdim=True).clamp_min(SCALE_FLOOR) * (1.0 / limit)


def fake_quantize(x: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """Integers, as floats, nearest to ``x / scale`` within [low, high]."""
    return (x * (1.0 / scale)).round().clamp(low, high)


def hadamard(x: Tensor) -> Tensor:
    """Orthonormal Walsh-Hadamard transform (Sylvester order) of the last dimension.

    Raises:
        ValueError: if the last dimension is not a power of two.
    """
    size = x.shape[-1]
    if size & (size - 1):
        raise ValueError(f"x must have a power of two as its last dimension, got {size}")
    shape = x.shape
    width = 1
    while width < size:
        x = x.reshape(*shape[:-1], size // (2 * width), 2, width)
        x = torch.stack((x[..., 0, :] + x[..., 1, :], x[..., 0, :] - x[..., 1, :]), dim=-2)
        width *= 2
    return x.reshape(shape) * size**-0.5


@functools.cache
def hadamard_matrix(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[size, size] matrix of :func:`hadamard`, symmetric, without the ``size ** -0.5`` factor.

    Kept once built: every 4-bit call needs it. Not to be written to.
    """
    eye = torch.eye(size, device=device)
    return (hadamard(eye) * size**0.5).round().to(dtype)
