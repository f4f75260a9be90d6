"""MiniMax-H3: text, references, sound and, at the end, the video in one sequence."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, padded_grid


def _modules(model: Any) -> list[nn.Module]:
    return [block.attn for block in model.blocks]


def _shape(model: Any) -> tuple[int, int]:
    attention = model.blocks[0].attn
    return int(attention.heads), int(attention.head_dim)


def _layout(model: Any, forward: Forward) -> Layout:
    video = forward.x[0]
    # Key frames and references come in any number and size; all of them stand before the video.
    return Layout(padded_grid(video.shape[2:], model.patch_size), side="last", extra=None)


MINIMAX_H3 = Family(
    name="MiniMax-H3",
    model_class="MiniMaxH3Model",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
