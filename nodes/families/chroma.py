"""Chroma and Chroma Radiance: text, then the picture.

Radiance cuts pixels into patches of 16 where Chroma cuts latents into patches of 2. Neither looks
at reference pictures, even where the conditioning holds some.
"""

from __future__ import annotations

from typing import Any

from .family import Family, Forward, Layout, image_grid
from .flux import attention_shape, joint_blocks


def _layout(model: Any, forward: Forward) -> Layout:
    grid = image_grid(forward.x, model.patch_size)
    return Layout(grid, side="last", extra=forward.values["context"].shape[1])


CHROMA = Family(
    name="Chroma",
    model_class="Chroma",
    modules=joint_blocks,
    shape=attention_shape,
    layout=_layout,
)
