"""OmniGen 2 and Boogu: text, reference pictures, then the picture."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, image_grid


def _layers(model: Any) -> list[nn.Module]:
    # Not the refiners before them, which see text, references or picture alone.
    return [layer.attn for layer in model.layers]


def _boogu_layers(model: Any) -> list[nn.Module]:
    double = [
        attention
        for layer in model.double_stream_layers
        for attention in (layer.img_instruct_attn, layer.img_self_attn)
    ]
    return [*double, *(layer.attn for layer in model.single_stream_layers)]


def _shape(model: Any) -> tuple[int, int]:
    attention: Any = model.noise_refiner[0].attn
    return int(attention.heads), int(attention.dim_head)


def _layout(model: Any, forward: Forward) -> Layout:
    # Half of Boogu's calls are without the text: what is in front of the picture varies.
    return Layout(image_grid(forward.x, model.patch_size), side="last", extra=None)


OMNIGEN2 = Family(
    name="OmniGen 2",
    model_class="OmniGen2Transformer2DModel",
    modules=_layers,
    shape=_shape,
    layout=_layout,
    apply=True,
)

BOOGU = Family(
    name="Boogu",
    model_class="BooguTransformer2DModel",
    modules=_boogu_layers,
    shape=_shape,
    layout=_layout,
    apply=True,
)
