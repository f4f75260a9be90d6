"""Kandinsky 5, video and image: the picture has its sequence to itself."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, image_grid, padded_grid


def _modules(model: Any) -> list[nn.Module]:
    return [block.self_attention for block in model.visual_transformer_blocks]


def _shape(model: Any) -> tuple[int, int]:
    attention = model.visual_transformer_blocks[0].self_attention
    return int(attention.num_heads), int(attention.head_dim)


def _layout(model: Any, forward: Forward) -> Layout:
    if forward.x.ndim == 4:
        return Layout(image_grid(forward.x, model.patch_size[-1]))
    return Layout(padded_grid(forward.x.shape[2:], model.patch_size))


KANDINSKY5 = Family(
    name="Kandinsky 5",
    model_class="Kandinsky5",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
