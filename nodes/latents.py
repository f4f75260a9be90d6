"""Latents of models that denoise video and sound together."""

from __future__ import annotations

from torch import Tensor


def video_of(latent: Tensor) -> Tensor:
    """The video of a latent: the first tensor of ComfyUI's nested ones, others as they are."""
    return latent.unbind()[0] if latent.is_nested else latent
