"""CogVideoX 1.0 and 1.5: text, then the video; start images join the latent as channels."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, padded_grid


def _modules(model: Any) -> list[nn.Module]:
    return list(model.blocks)


def _shape(model: Any) -> tuple[int, int]:
    return int(model.num_attention_heads), int(model.attention_head_dim)


def _layout(model: Any, forward: Forward) -> Layout:
    patch = (model.patch_size_t or 1, model.patch_size, model.patch_size)
    grid = padded_grid(forward.x.shape[2:], patch)
    return Layout(grid, side="last", extra=forward.values["context"].shape[1])


COGVIDEOX = Family(
    name="CogVideoX",
    model_class="CogVideoXTransformer3DModel",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
