"""Cosmos 1, Cosmos-Predict2 and Anima: the picture has its sequence to itself.

Conditioning frames of the video2world models are part of the latent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .family import Family, Forward, Layout, padded_grid


def _cosmos_modules(model: Any) -> list[nn.Module]:
    parts = [part for block in model.blocks.values() for part in block.blocks]
    return [part.block.attn for part in parts if part.block_type in ("full_attn", "fa")]


def _cosmos_shape(model: Any) -> tuple[int, int]:
    attention: Any = _cosmos_modules(model)[0]
    return int(attention.heads), int(attention.dim_head)


def _cosmos_norms(attention: Any) -> Iterator[Tensor]:
    yield attention.to_q[1].weight
    yield attention.to_k[1].weight


def _predict2_modules(model: Any) -> list[nn.Module]:
    return [block.self_attn for block in model.blocks]


def _predict2_shape(model: Any) -> tuple[int, int]:
    attention = model.blocks[0].self_attn
    return int(attention.n_heads), int(attention.head_dim)


def _layout(model: Any, forward: Forward) -> Layout:
    patch = (model.patch_temporal, model.patch_spatial, model.patch_spatial)
    return Layout(padded_grid(forward.x.shape[2:], patch))


COSMOS = Family(
    name="Cosmos",
    model_class="GeneralDIT",
    modules=_cosmos_modules,
    shape=_cosmos_shape,
    layout=_layout,
    norms=_cosmos_norms,
)

COSMOS_PREDICT2 = Family(
    name="Cosmos-Predict2",
    model_class="MiniTrainDIT",
    modules=_predict2_modules,
    shape=_predict2_shape,
    layout=_layout,
)
