"""Mochi: the video, then the text up to the end of the prompt."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, padded_grid


def _modules(model: Any) -> list[nn.Module]:
    return [block.attn for block in model.blocks]


def _shape(model: Any) -> tuple[int, int]:
    return int(model.num_heads), int(model.head_dim)


def _layout(model: Any, forward: Forward) -> Layout:
    grid = padded_grid(forward.x.shape[2:], (1, model.patch_size, model.patch_size))
    text = forward.values["c_crossattn"].shape[1]
    # 256 is the model's own default where a text encoder gives no mask.
    return Layout(grid, extra=min(text, int(forward.values.get("num_tokens", 256))))


MOCHI = Family(
    name="Mochi",
    model_class="AsymmDiTJoint",
    modules=_modules,
    shape=_shape,
    layout=_layout,
    apply=True,
)
