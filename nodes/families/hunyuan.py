"""HunyuanVideo 1 and 1.5, HunyuanImage 2.1 and its refiner: text, a reference and the video.

The order of text and video has changed once in ComfyUI; the blocks themselves say which it is.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from .family import Family, Forward, Grid, Layout, padded_grid


def _modules(model: Any) -> list[nn.Module]:
    return [*model.double_blocks, *model.single_blocks]


def _shape(model: Any) -> tuple[int, int]:
    return int(model.num_heads), int(model.hidden_size) // int(model.num_heads)


def _length(states: Tensor | None, taken: Any) -> int:
    """Text tokens that come of further states, where the model has the part that takes them."""
    return 0 if states is None or taken is None else states.shape[1]


def _grid(model: Any, latent: Tensor) -> Grid:
    ones = [1] * (3 - len(model.patch_size))  # a model of single images has no axis of frames
    return padded_grid([*ones, *latent.shape[2:]], [*ones, *model.patch_size])


def _layout(model: Any, forward: Forward) -> Layout:
    values = forward.values
    grid = _grid(model, forward.x)
    text = values["context"].shape[1]
    text += _length(values.get("txt_byt5"), getattr(model, "byt5_in", None))
    text += _length(values.get("clip_fea"), getattr(model, "vision_in", None))
    reference = values.get("ref_latent")
    frames = 0 if reference is None else math.prod(_grid(model, reference))
    if getattr(model.double_blocks[0], "flipped_img_txt", False):
        return Layout(grid, side="first", beside=frames, extra=frames + text)
    return Layout(grid, side="last", extra=text + frames)


HUNYUAN = Family(
    name="Hunyuan",
    model_class="HunyuanVideo",
    modules=_modules,
    shape=_shape,
    layout=_layout,
)
