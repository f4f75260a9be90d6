"""Stable Diffusion 3 and 3.5: registers and text, then the picture.

The first blocks of 3.5 Medium attend twice: all tokens jointly, then the picture on its own. The
model has no wrapper of its own, so that it is watched where `BaseModel` calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .family import Family, Forward, Layout, image_grid
from .flux import attention_shape


def _attends_twice(block: Any) -> bool:
    return hasattr(block.x_block, "attn2")


def _modules(model: Any) -> list[nn.Module]:
    return [block for block in model.joint_blocks for _ in range(1 + _attends_twice(block))]


def _norms(block: Any) -> Iterator[Tensor]:
    """Norms of q and k in 3.5; 3 has none there, and its biases are left alone as norms are."""
    weights = dict(block.named_parameters())
    names = [name for name in weights if name.endswith(("ln_q.weight", "ln_k.weight"))]
    for name in names or [name for name in weights if name.endswith("qkv.bias")]:
        yield weights[name]


def _layout(model: Any, forward: Forward) -> Layout:
    text = forward.values["c_crossattn"].shape[1] + int(model.register_length)
    twice = any(_attends_twice(block) for block in model.joint_blocks)
    grid = image_grid(forward.x, model.x_embedder.patch_size[0])
    return Layout(grid, side="last", extra=None if twice else text)


SD3 = Family(
    name="Stable Diffusion 3",
    model_class="OpenAISignatureMMDITWrapper",
    modules=_modules,
    shape=attention_shape,
    layout=_layout,
    norms=_norms,
    apply=True,
)
