"""Lumina 2, Z-Image and other NextDiT models: text, reference pictures, then the picture."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, image_grid


def _modules(model: Any) -> list[nn.Module]:
    # Not the refiners before them, which see text or picture alone.
    return [layer.attention for layer in model.layers]


def _shape(model: Any) -> tuple[int, int]:
    return int(model.n_heads), int(model.dim) // int(model.n_heads)


def _layout(model: Any, forward: Forward) -> Layout:
    grid = image_grid(forward.x, model.patch_size)
    multiple = getattr(model, "pad_tokens_multiple", None) or 1
    padding = -grid[1] * grid[2] % multiple
    # Texts, references and their own padding come in front, however many they are.
    return Layout(grid, side="last", beside=padding, extra=None)


LUMINA = Family(
    name="Lumina 2 and Z-Image",
    model_class="NextDiT",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
