"""Wan 2.1 and 2.2: the video, with reference frames before or behind it in some variants.

Frames that a variant adds to the ones it samples are not part of the grid: they stay dense, and a
plan does not depend on how many there are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import CodeType
from typing import Any

from torch import Tensor, nn

from .family import Family, Forward, Layout, padded_grid


def _modules(model: Any) -> list[nn.Module]:
    modules: list[nn.Module] = []
    vace_blocks: Any = getattr(model, "vace_blocks", ())
    vace_of: dict[int, int] = getattr(model, "vace_layers_mapping", {})
    for index, block in enumerate(model.blocks):
        modules.append(block.self_attn)
        if len(vace_blocks) and index in vace_of:
            modules.append(vace_blocks[vace_of[index]].self_attn)
    return modules


def _shape(model: Any) -> tuple[int, int]:
    attention = model.blocks[0].self_attn
    return int(attention.num_heads), int(attention.head_dim)


def _norms(attention: Any) -> Iterator[Tensor]:
    for name in ("norm_q", "norm_k"):
        weight = getattr(getattr(attention, name, None), "weight", None)
        if weight is not None:
            yield weight


def _tokens(latent: Tensor | None, patch: Iterable[int]) -> int:
    """Tokens of a latent that the model pads to whole patches."""
    if latent is None:
        return 0
    frames, height, width = padded_grid(latent.shape[-3:], patch)
    return frames * height * width


def _whole(size: Iterable[int], kernel: Iterable[int], stride: Iterable[int] | None = None) -> int:
    """Tokens of a latent that goes through a convolution as it is; what is left over is cut off."""
    tokens = 1
    for length, window, step in zip(size, kernel, stride or kernel, strict=True):
        tokens *= max(0, (int(length) - int(window)) // int(step) + 1)
    return tokens


def _around(model: Any, forward: Forward, before: int, after: int) -> Layout:
    """The grid with `before` tokens ahead of it and `after` behind the added frames."""
    grid = padded_grid(forward.x.shape[2:], model.patch_size)
    after += _tokens(forward.values.get("time_dim_concat"), model.patch_size)
    return Layout(grid, beside=before, extra=before + after)


def _layout(model: Any, forward: Forward) -> Layout:
    reference = forward.values.get("reference_latent")
    before = 0
    if getattr(model, "ref_conv", None) is not None and reference is not None:
        before = _whole(reference.shape[-2:], model.patch_size[1:])
    context = forward.values.get("context_latents") or ()
    after = sum(_tokens(latent, model.patch_size) for latent in context)
    return _around(model, forward, before, after)


def _appended_reference(model: Any, forward: Forward) -> int:
    reference = forward.values.get("reference_latent")
    return 0 if reference is None else _whole(reference.shape[-3:], model.patch_size)


def _humo_layout(model: Any, forward: Forward) -> Layout:
    return _around(model, forward, 0, _appended_reference(model, forward))


def _s2v_layout(model: Any, forward: Forward) -> Layout:
    after = _appended_reference(model, forward)
    motion = forward.values.get("reference_motion")
    if motion is not None:
        # The further a frame lies back, the coarser it is cut: three convolutions.
        packer = model.frame_packer
        for frames, name in zip(
            packer.zip_frame_buckets, ("proj", "proj_2x", "proj_4x"), strict=True
        ):
            conv = getattr(packer, name)
            after += _whole((frames, *motion.shape[-2:]), conv.kernel_size, conv.stride)
    return _around(model, forward, 0, after)


def _scail_layout(model: Any, forward: Forward) -> Layout:
    before = _tokens(forward.values.get("reference_latent"), model.patch_size)
    after = _tokens(forward.values.get("pose_latents"), model.patch_size)
    return _around(model, forward, before, after)


def _keyword_names(code: CodeType) -> Iterator[tuple[str, ...]]:
    """The names of the keyword arguments of every call in a function and those inside it."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _keyword_names(constant)
        elif isinstance(constant, tuple) and all(isinstance(name, str) for name in constant):
            yield constant


def _s2v_unreachable(model: Any) -> str:
    # Its loop over the blocks has not always handed them `transformer_options`, without which
    # ComfyUI's hook is not called. No forward shows that: nothing arrives.
    code = getattr(inspect.unwrap(type(model).forward_orig), "__code__", None)
    if code is None or any({"freqs", "transformer_options"} <= {*n} for n in _keyword_names(code)):
        return ""
    return "its blocks do not use ComfyUI's attention hook in this version; a newer ComfyUI's do"


WAN = Family(
    name="Wan",
    model_class="WanModel",
    modules=_modules,
    shape=_shape,
    layout=_layout,
    norms=_norms,
)

WAN_FAMILIES = (
    WAN,
    replace(WAN, model_class="HumoWanModel", layout=_humo_layout),
    replace(WAN, model_class="SCAILWanModel", layout=_scail_layout),
    replace(WAN, model_class="WanModel_S2V", layout=_s2v_layout, unreachable=_s2v_unreachable),
)

WAN_UNSERVED = {
    "CausalWanModel": "it makes the video block by block, its keys a cache of all earlier blocks",
    "WanAnimate2Model": "each frame attends on its own, to all frames and one of the pose video",
}
