"""The demo model's latent space: pixels folded into the 16 channels of Wan's latents.

Channel ``c*4 + dy*2 + dx`` (c = R, G, B) of a latent pixel is the colour of pixel (dy, dx) of the
2x2 square it stands for, scaled from 0..1 to -1..1. Channels 12..15 are zero. This is the model's
space, after the host's ``process_in``; nothing here applies Wan's latent mean and scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHANNELS = 16
PIXEL_CHANNELS = 12


def pack(video: Tensor) -> Tensor:
    """Fold a video into the demo model's latent.

    Args:
        video: ``[B, F, H, W, 3]``, floating point, colours in 0..1, H and W even.

    Returns:
        Latent ``[B, 16, F, H/2, W/2]`` in the video's dtype, -1..1, channels 12..15 zero.

    Raises:
        ValueError: The shape is not ``[B, F, H, W, 3]`` with even H and W.
        TypeError: The video is not floating point.
    """
    if video.ndim != 5 or video.shape[-1] != 3:
        raise ValueError(
            f"video must have shape [B, F, H, W, 3], got {list(video.shape)}; put colours last"
        )
    if not video.is_floating_point():
        raise TypeError(f"video must be floating point, got {video.dtype}; scale it to 0..1 first")
    b, f, h, w, _ = video.shape
    if h % 2 or w % 2:
        raise ValueError(f"video must have even height and width, got {h}x{w}; crop it")
    folded = video.reshape(b, f, h // 2, 2, w // 2, 2, 3).permute(0, 6, 3, 5, 1, 2, 4)
    folded = folded.reshape(b, PIXEL_CHANNELS, f, h // 2, w // 2)
    rest = CHANNELS - PIXEL_CHANNELS
    return torch.cat([folded * 2 - 1, folded.new_zeros(b, rest, f, h // 2, w // 2)], dim=1)


def unpack(latent: Tensor) -> Tensor:
    """Unfold a latent of the demo model into a video.

    Args:
        latent: ``[B, 16, F, H, W]``, floating point, in the model's space.

    Returns:
        Video ``[B, F, 2H, 2W, 3]`` in the latent's dtype, clamped to 0..1.

    Raises:
        ValueError: The shape is not ``[B, 16, F, H, W]``.
        TypeError: The latent is not floating point.
    """
    if latent.ndim != 5 or latent.shape[1] != CHANNELS:
        raise ValueError(
            f"latent must have shape [B, {CHANNELS}, F, H, W], got {list(latent.shape)}; "
            "give the demo model's own latent"
        )
    if not latent.is_floating_point():
        raise TypeError(f"latent must be floating point, got {latent.dtype}; convert it first")
    b, _, f, h, w = latent.shape
    folded = latent[:, :PIXEL_CHANNELS].reshape(b, 3, 2, 2, f, h, w).permute(0, 4, 5, 2, 6, 3, 1)
    return ((folded.reshape(b, f, 2 * h, 2 * w, 3) + 1) / 2).clamp(0, 1)
