"""Krea 2, Mage-Flow, Ideogram 4 and PixelDiT: text, the picture, then reference pictures."""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Layout, image_grid, latent_tokens


def _krea_modules(model: Any) -> list[nn.Module]:
    return [block.attn for block in model.blocks]


def _krea_shape(model: Any) -> tuple[int, int]:
    attention = model.blocks[0].attn
    return int(attention.heads), int(attention.headdim)


def _krea_layout(model: Any, forward: Forward) -> Layout:
    references = 0
    if forward.values.get("ref_latents_method", model.default_ref_method) is not None:
        for latent in forward.values.get("ref_latents") or ():  # frames become batch entries
            _, height, width = image_grid(latent, model.patch)
            references += height * width
    text = forward.values["context"].shape[1]
    grid = image_grid(forward.x, model.patch)
    return Layout(grid, side="last", beside=references, extra=text + references)


KREA2 = Family(
    name="Krea 2",
    model_class="SingleStreamDiT",
    modules=_krea_modules,
    shape=_krea_shape,
    layout=_krea_layout,
)


def _mage_modules(model: Any) -> list[nn.Module]:
    return [block.attn for block in model.transformer_blocks]


def _mage_shape(model: Any) -> tuple[int, int]:
    attention = model.transformer_blocks[0].attn
    return int(attention.heads), int(model.inner_dim) // int(attention.heads)


def _mage_layout(model: Any, forward: Forward) -> Layout:
    references = latent_tokens(forward.values.get("ref_latents"), model.patch_size)
    text = forward.values["context"].shape[1]
    grid = image_grid(forward.x, model.patch_size)
    return Layout(grid, side="last", beside=references, extra=text + references)


MAGE_FLOW = Family(
    name="Mage-Flow",
    model_class="MageFlowTransformer2DModel",
    modules=_mage_modules,
    shape=_mage_shape,
    layout=_mage_layout,
)


def _ideogram_modules(model: Any) -> list[nn.Module]:
    return [layer.attention for layer in model.layers]


def _ideogram_shape(model: Any) -> tuple[int, int]:
    return int(model.layers[0].attention.num_heads), int(model.head_dim)


def _ideogram_layout(model: Any, forward: Forward) -> Layout:
    context = forward.values.get("context")  # none in the unconditional pass
    text = 0 if context is None else context.shape[1]
    return Layout(image_grid(forward.x, 1), side="last", extra=text)  # latents come as patches


IDEOGRAM4 = Family(
    name="Ideogram 4",
    model_class="Ideogram4Transformer2DModel",
    modules=_ideogram_modules,
    shape=_ideogram_shape,
    layout=_ideogram_layout,
)


def _pixeldit_modules(model: Any) -> list[nn.Module]:
    # Not the few pixel blocks, whose heads are of another number and size.
    return [block.attn for block in model.patch_blocks]


def _pixeldit_shape(model: Any) -> tuple[int, int]:
    return int(model.num_groups), int(model.hidden_size) // int(model.num_groups)


def _pixeldit_layout(model: Any, forward: Forward) -> Layout:
    text = min(forward.values["context"].shape[1], model.txt_max_length)
    return Layout(image_grid(forward.x, model.patch_size), side="last", extra=text)


PIXELDIT = Family(
    name="PixelDiT",
    model_class="PixDiT_T2I",
    modules=_pixeldit_modules,
    shape=_pixeldit_shape,
    layout=_pixeldit_layout,
)
