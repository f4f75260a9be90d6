"""Preview pictures during calibration, drawn from the denoised latent."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..demo import pixel_packing
from .demo_model import DEMO_ATTACHMENT
from .latents import video_of

MAX_SIDE = 512


def preview_picture(model: Any, x0: Tensor) -> Image.Image | None:
    """The middle frame of a denoised latent as a small picture.

    Args:
        model: ComfyUI ModelPatcher; the demo model's latents are unpacked, other ones are drawn
            in the latent format's approximate colours.
        x0: [B, C, (F,) H, W] in the model's space, as samplers hand it to their callback; of a
            nested one, video and sound, the video is drawn.

    Returns:
        The picture, None where the latent format has no colours.
    """
    x0 = video_of(x0)
    if x0.ndim == 4:
        x0 = x0[:, :, None]
    frame = x0[:1, :, x0.shape[2] // 2 : x0.shape[2] // 2 + 1].float().cpu()
    if model.get_attachment(DEMO_ATTACHMENT):
        rgb = pixel_packing.unpack(frame)[0, 0]
    else:
        latent_format = model.get_model_object("latent_format")
        factors = getattr(latent_format, "latent_rgb_factors", None)
        if factors is None or len(factors) != frame.shape[1]:
            return None
        bias = getattr(latent_format, "latent_rgb_factors_bias", None) or [0.0, 0.0, 0.0]
        rgb = frame[0, :, 0].movedim(0, -1) @ torch.tensor(factors) + torch.tensor(bias)
        rgb = ((rgb + 1) / 2).clamp(0, 1)
    picture = Image.fromarray((rgb * 255).round().to(torch.uint8).numpy())
    scale = max(1, 256 // max(picture.size))
    if scale > 1:
        picture = picture.resize(
            (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
        )
    return picture
