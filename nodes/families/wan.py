"""Wan 2.1 and 2.2: video alone in the sequence, but for the reference frame of some variants."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .family import Family, Forward, Layout, padded_grid


def _modules(model: Any) -> list[nn.Module]:
    blocks = [*model.blocks, *getattr(model, "vace_blocks", ())]
    return [block.self_attn for block in blocks]


def _shape(model: Any) -> tuple[int, int]:
    attention = model.blocks[0].self_attn
    return int(attention.num_heads), int(attention.head_dim)


def _norms(attention: Any) -> Iterator[Tensor]:
    for name in ("norm_q", "norm_k"):
        weight = getattr(getattr(attention, name, None), "weight", None)
        if weight is not None:
            yield weight


def _layout(model: Any, forward: Forward) -> Layout | str:
    grid = padded_grid(forward.x.shape[2:], model.patch_size)
    reference = forward.values.get("reference_latent")
    if getattr(model, "ref_conv", None) is not None and reference is not None:
        return Layout(grid, side="last", extra=None)  # the reference frame is prepended
    return Layout(grid)


WAN = Family(
    name="Wan",
    model_class="WanModel",
    modules=_modules,
    shape=_shape,
    layout=_layout,
    norms=_norms,
)
