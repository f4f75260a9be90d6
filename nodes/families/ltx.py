"""LTX-Video and LTX-2: the video has its sequence to itself, but for guide frames behind it.

LTX-2 denoises sound beside the video. Sound has attention of its own, which stays the host's, as
does the attention between the two.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout


def _modules(model: Any) -> list[nn.Module]:
    return [block.attn1 for block in model.transformer_blocks]


def _shape(model: Any) -> tuple[int, int]:
    attention = model.transformer_blocks[0].attn1
    return int(attention.heads), int(attention.dim_head)


def _layout(model: Any, forward: Forward) -> Layout | str:
    video = forward.x[0] if isinstance(forward.x, list) else forward.x
    frames, height, width = video.shape[2:]
    guides = forward.values.get("keyframe_idxs")
    if guides is None or guides.shape[2] == 0:
        return Layout((frames, height, width))
    # Guide frames stand behind the video in the latent. Those of a reference at lower resolution
    # lose most of their tokens, which the mask marks with negative numbers.
    frames -= guides.shape[2] // (height * width)
    mask = forward.values.get("denoise_mask")
    if mask is not None and bool((mask[:, :, :frames] < 0).any()):
        return "tokens of the video are left out"
    return Layout((frames, height, width), extra=None)


LTX = Family(
    name="LTX",
    model_class="LTXVModel",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
