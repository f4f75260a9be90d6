"""Lens and JoyImage: the picture, reference pictures, then text."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, image_grid, padded_grid


def _lens_modules(model: Any) -> list[nn.Module]:
    return [block.attn for block in model.transformer_blocks]


def _lens_shape(model: Any) -> tuple[int, int]:
    attention = model.transformer_blocks[0].attn
    return int(attention.heads), int(attention.dim_head)


def _lens_layout(model: Any, forward: Forward) -> Layout:
    text = forward.values["context"].shape[1]
    return Layout(image_grid(forward.x, 1), side="first", extra=text)  # latents come as patches


LENS = Family(
    name="Lens",
    model_class="LensTransformer2DModel",
    modules=_lens_modules,
    shape=_lens_shape,
    layout=_lens_layout,
)


def _joy_modules(model: Any) -> list[nn.Module]:
    return [block.attn for block in model.double_blocks]


def _joy_shape(model: Any) -> tuple[int, int]:
    attention: Any = model.double_blocks[0].attn
    heads = int(attention.num_attention_heads)
    return heads, int(attention.img_attn_proj.weight.shape[1]) // heads


def _joy_layout(model: Any, forward: Forward) -> Layout:
    frames, height, width = padded_grid(forward.x.shape[2:], model.patch_size)
    others = forward.values["context"].shape[1]
    for reference in forward.values.get("ref_latents") or ():
        f, h, w = padded_grid(reference.shape[2:], model.patch_size)
        others += f * h * w
    return Layout((frames, height, width), side="first", extra=others)


JOYIMAGE = Family(
    name="JoyImage",
    model_class="JoyImageTransformer3DModel",
    modules=_joy_modules,
    shape=_joy_shape,
    layout=_joy_layout,
)
