"""AuraFlow: registers, text, then the picture."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, image_grid


def _modules(model: Any) -> list[nn.Module]:
    return [layer.attn for layer in (*model.double_layers, *model.single_layers)]


def _shape(model: Any) -> tuple[int, int]:
    attention: Any = _modules(model)[0]
    return int(attention.n_heads), int(attention.head_dim)


def _layout(model: Any, forward: Forward) -> Layout:
    others = model.register_tokens.shape[1] + forward.values["context"].shape[1]
    return Layout(image_grid(forward.x, model.patch_size), side="last", extra=others)


# Its norms have no weights, so that one checkpoint cannot be told from another.
AURAFLOW = Family(
    name="AuraFlow",
    model_class="MMDiT",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
