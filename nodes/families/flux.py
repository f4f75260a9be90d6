"""Flux 1: text, then the picture, then reference pictures (Kontext)."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, image_grid, latent_tokens


def _modules(model: Any) -> list[nn.Module]:
    return [*model.double_blocks, *model.single_blocks]


def _shape(model: Any) -> tuple[int, int]:
    return int(model.num_heads), int(model.hidden_size) // int(model.num_heads)


def _layout(model: Any, forward: Forward) -> Layout:
    references = latent_tokens(forward.values.get("ref_latents"), model.patch_size)
    text = forward.values["context"].shape[1]
    grid = image_grid(forward.x, model.patch_size)
    return Layout(grid, side="last", beside=references, extra=text + references)


FLUX = Family(
    name="Flux",
    model_class="Flux",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
