"""Qwen-Image, Edit and Layered: text, then the picture or its layers, then reference pictures.

The layers of Qwen-Image-Layered are the frames of the grid. A padded text comes with a mask that
hides keys of the text alone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, latent_tokens, padded_grid


def _modules(model: Any) -> list[nn.Module]:
    return [block.attn for block in model.transformer_blocks]


def _shape(model: Any) -> tuple[int, int]:
    attention = model.transformer_blocks[0].attn
    return int(attention.heads), int(attention.dim_head)


def _layout(model: Any, forward: Forward) -> Layout:
    patch = int(model.patch_size)
    references = latent_tokens(forward.values.get("ref_latents"), patch)
    text = forward.values["context"].shape[1]
    patched = "post_input" in forward.options.get("patches", {})  # it may lengthen the text
    return Layout(
        padded_grid(forward.x.shape[2:], (1, patch, patch)),
        side="last",
        beside=references,
        extra=None if patched else text + references,
    )


QWEN_IMAGE = Family(
    name="Qwen-Image",
    model_class="QwenImageTransformer2DModel",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
