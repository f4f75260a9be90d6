"""Qwen-Image, Edit and Layered: text, then the picture or its layers, then reference pictures.

The layers of Qwen-Image-Layered are the frames of the grid. A padded text comes with a mask that
hides keys of the text alone.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, padded_grid
from .flux import behind_text


def _modules(model: Any) -> list[nn.Module]:
    return [block.attn for block in model.transformer_blocks]


def _shape(model: Any) -> tuple[int, int]:
    attention = model.transformer_blocks[0].attn
    return int(attention.heads), int(attention.dim_head)


def _layout(model: Any, forward: Forward) -> Layout:
    patch = int(model.patch_size)
    return behind_text(forward, padded_grid(forward.x.shape[2:], (1, patch, patch)), patch)


QWEN_IMAGE = Family(
    name="Qwen-Image",
    model_class="QwenImageTransformer2DModel",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
