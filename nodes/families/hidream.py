"""HiDream-I1 and E1: the picture, then text that changes in length from block to block."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, padded_grid


def _modules(model: Any) -> list[nn.Module]:
    blocks = [*model.double_stream_blocks, *model.single_stream_blocks]
    return [block.block.attn1 for block in blocks]


def _shape(model: Any) -> tuple[int, int]:
    return int(model.num_attention_heads), int(model.attention_head_dim)


def _layout(model: Any, forward: Forward) -> Layout:
    *_, height, width = forward.x.shape
    beside = forward.values.get("image_cond")  # E1: the picture to edit, to the right of ours
    if beside is not None:
        width += beside.shape[-1]
    grid = padded_grid((1, height, width), (1, model.patch_size, model.patch_size))
    return Layout(grid, side="first", extra=None)


HIDREAM = Family(
    name="HiDream",
    model_class="HiDreamImageTransformer2DModel",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
