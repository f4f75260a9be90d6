"""Flux 1 and 2 and the models built like them (Ovis, LongCat): text, picture, reference pictures.

Fill and the control models have more input channels and the same tokens. Kontext and Flux 2 put
the tokens of their reference pictures behind the picture's, whatever the method that gives them
their positions. Redux adds to the text.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .family import Family, Forward, Grid, Layout, image_grid, latent_tokens


def joint_blocks(model: Any) -> list[nn.Module]:
    """The blocks with separate weights for text and picture, then those with common ones."""
    return [*model.double_blocks, *model.single_blocks]


def attention_shape(model: Any) -> tuple[int, int]:
    """(heads, head_dim) of a model that states its width and its heads."""
    return int(model.num_heads), int(model.hidden_size) // int(model.num_heads)


def behind_text(forward: Forward, grid: Grid, patch: int) -> Layout:
    """Text, the picture or the frames, then references: [text | grid | references]."""
    references = latent_tokens(forward.values.get("ref_latents"), patch)
    text = forward.values["context"].shape[1]
    # A patch of the model's inputs may lengthen the text (the style reference of USO).
    patched = "post_input" in forward.options.get("patches", {})
    return Layout(
        grid, side="last", beside=references, extra=None if patched else text + references
    )


def _layout(model: Any, forward: Forward) -> Layout:
    return behind_text(forward, image_grid(forward.x, model.patch_size), model.patch_size)


FLUX = Family(
    name="Flux",
    model_class="Flux",
    modules=joint_blocks,
    shape=attention_shape,
    layout=_layout,
)
