"""How far two pictures, videos or tensors are apart: PSNR, SSIM and cosine similarity.

One definition for the Compare node, the demo and the benchmarks, so that their numbers can be
put side by side. Pictures are channels-last, as ComfyUI's IMAGE is: [..., H, W, C] in 0..1. All
leading dimensions (frames, batch) are averaged over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_K1, _SSIM_K2 = 0.01, 0.03
_PART = 1 << 22


def psnr_db(a: Tensor, b: Tensor, peak: float = 1.0) -> float | None:
    """Peak signal-to-noise ratio in decibels, or None when the two are identical.

    The squared error is averaged over every element before the logarithm, so that one still
    frame in a video does not make the result infinite.

    Args:
        a: any shape, any real dtype.
        b: same shape.
        peak: peak-to-peak range of the signal; 1 for pictures in 0..1. For a latent, give its
            max - min.

    Raises:
        TypeError, ValueError: not two real tensors of one shape, or a peak that is not positive.
    """
    _require_pair(a, b)
    if not peak > 0:
        raise ValueError(f"peak must be a positive range, got {peak}; give max - min of the signal")
    error = sum((x - y).square().sum().item() for x, y in _in_parts(a, b)) / a.numel()
    if error == 0:
        return None
    return 10 * math.log10(peak * peak / error)


def ssim(a: Tensor, b: Tensor, peak: float = 1.0) -> float:
    """Structural similarity, 1 for identical pictures; mean over pixels, channels and frames.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (IEEE
    TIP 2004), with its 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, on windows that
    lie inside the picture. A picture smaller than the window gets the largest odd window that fits.

    Args:
        a: [..., H, W, C], range 0..peak.
        b: same shape.
        peak: peak-to-peak range of the signal.

    Raises:
        TypeError, ValueError: not two real tensors of one shape with at least 3 dimensions.
    """
    _require_pair(a, b)
    if a.ndim < 3:
        raise ValueError(f"pictures must be [..., H, W, C], got shape {tuple(a.shape)}")
    height, width, channels = a.shape[-3:]
    size = min(_SSIM_WINDOW, height, width)
    size -= 1 - size % 2
    offsets = torch.arange(size, dtype=torch.float32, device=a.device) - size // 2
    line = torch.exp(-offsets.square() / (2 * _SSIM_SIGMA**2))
    line = line / line.sum()

    def local_mean(x: Tensor) -> Tensor:
        x = F.conv2d(x, line.view(1, 1, size, 1))
        return F.conv2d(x, line.view(1, 1, 1, size))

    def planes(x: Tensor) -> Tensor:
        x = x.reshape(-1, height, width, channels).movedim(-1, 1)
        return x.reshape(-1, 1, height, width).float()

    x, y = planes(a), planes(b)
    c1, c2 = (_SSIM_K1 * peak) ** 2, (_SSIM_K2 * peak) ** 2
    total, count = 0.0, 0
    for xs, ys in zip(x.split(64), y.split(64), strict=True):  # bounds the memory on long videos
        mx, my = local_mean(xs), local_mean(ys)
        var_x = local_mean(xs * xs) - mx * mx
        var_y = local_mean(ys * ys) - my * my
        covariance = local_mean(xs * ys) - mx * my
        score = ((2 * mx * my + c1) * (2 * covariance + c2)) / (
            (mx * mx + my * my + c1) * (var_x + var_y + c2)
        )
        total += score.double().sum().item()
        count += score.numel()
    return total / count


def cosine_similarity(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between the two tensors seen as vectors; two zero tensors give 1.

    Args:
        a: any shape, any real dtype.
        b: same shape.
    """
    _require_pair(a, b)
    dot = energy_a = energy_b = 0.0
    for x, y in _in_parts(a, b):
        dot += torch.dot(x, y).item()
        energy_a += torch.dot(x, x).item()
        energy_b += torch.dot(y, y).item()
    if energy_a == 0 or energy_b == 0:
        return 1.0 if energy_a == energy_b else 0.0
    return dot / (math.sqrt(energy_a) * math.sqrt(energy_b))


def _in_parts(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both tensors flat in float64, a part at a time: whole 720p videos would take gigabytes."""
    for x, y in zip(a.flatten().split(_PART), b.flatten().split(_PART), strict=True):
        yield x.double(), y.double()


def _require_pair(a: Tensor, b: Tensor) -> None:
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor) or x.is_complex():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"{name} must be a real tensor, got {kind}")
    if a.shape != b.shape:
        raise ValueError(
            f"a and b must have the same shape, got {tuple(a.shape)} and {tuple(b.shape)}; "
            "compare pictures of one size and one number of frames"
        )
    if a.numel() == 0:
        raise ValueError(f"a and b must not be empty, got shape {tuple(a.shape)}")
