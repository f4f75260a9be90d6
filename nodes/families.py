"""Which diffusion transformers are served, and how to read one: a table.

A family says where the layers are, which submodule of a layer does the visual self-attention, and
how the token grid follows from the tensor that the model is called with. Everything that is not in
the table runs dense.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Grid = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Family:
    """How to read one family of diffusion transformers.

    Attributes:
        name: shown to the user.
        model_class: class name that a served `diffusion_model` has among its bases.
        layers: attribute of the model that holds the layers, in order of execution.
        attention: attribute of a layer whose forward makes the visual self-attention call and no
            other one.
        norms: attributes of the attention module whose weights identify the checkpoint.
        grid: (model, x as the model is called with) -> token grid (frames, height, width).
    """

    name: str
    model_class: str
    layers: str
    attention: str
    norms: tuple[str, ...]
    grid: Callable[[nn.Module, Tensor], Grid]

    def attention_modules(self, model: nn.Module) -> list[nn.Module]:
        """The self-attention module of every layer, in order of execution."""
        return [getattr(layer, self.attention) for layer in getattr(model, self.layers)]

    def attention_shape(self, model: nn.Module) -> tuple[int, int, int]:
        """(layers, heads, head_dim) of the visual self-attention."""
        modules = self.attention_modules(model)
        first: Any = modules[0]
        return len(modules), int(first.num_heads), int(first.head_dim)


def _patch_grid(model: Any, x: Tensor) -> Grid:
    """Grid of a model that cuts [B, C, F, H, W] into patches and pads the rest of the last one."""
    frames, height, width = (
        -(-int(size) // int(patch))
        for size, patch in zip(x.shape[2:], model.patch_size, strict=True)
    )
    return frames, height, width


WAN = Family(
    name="Wan",
    model_class="WanModel",
    layers="blocks",
    attention="self_attn",
    norms=("norm_q", "norm_k"),
    grid=_patch_grid,
)

FAMILIES: tuple[Family, ...] = (WAN,)


def find_family(diffusion_model: nn.Module) -> Family | None:
    """The family that serves this model, or None; a compiled model is looked through."""
    model = getattr(diffusion_model, "_orig_mod", diffusion_model)
    names = {base.__name__ for base in type(model).__mro__}
    for family in FAMILIES:
        if family.model_class not in names:
            continue
        layers = getattr(model, family.layers, None)
        if layers is not None and len(layers) and hasattr(layers[0], family.attention):
            return family
    return None
