"""Qwen-Image and its edit models."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .case import Case, Conditioning, accepted, noise, text, tiny

CONFIG = {
    "image_model": "qwen_image", "patch_size": 2, "in_channels": 64, "out_channels": 16,
    "num_layers": 2, "attention_head_dim": 128, "num_attention_heads": 2,
    "joint_attention_dim": 48, "pooled_projection_dim": 48, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
SIZES = ((8, 10), (5, 7), (6, 13))


def build(**changes: Any) -> Any:
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    return tiny("QwenImage", accepted(QwenImageTransformer2DModel, CONFIG | changes))


def knows(*names: str) -> bool:
    """Whether this host's Qwen-Image has these parameters."""
    from comfy.ldm.qwen_image.model import QwenImageTransformer2DModel

    return set(names) <= set(accepted(QwenImageTransformer2DModel, dict.fromkeys(names)))


def padded(length: int, words: int, seed: int) -> Conditioning:
    """A text of `length` tokens, of which the first `words` are to be seen."""
    return text(length, 48, seed, attention_mask=(torch.arange(length) < words).long()[None])


def qwen(name: str, note: str = "", **changes: Any) -> Case:
    fields: dict[str, Any] = {
        "model_class": "QwenImage", "build": build,
        "latent": lambda: torch.zeros(1, 16, 1, 17, 29), "positive": lambda: text(7, 48, 1),
        "negative": lambda: text(5, 48, 2), "grid": (1, 9, 15), "layers": 2, "calls": 2,
    }  # fmt: skip
    return Case(name=name, family="Qwen-Image", note=note, **(fields | changes))


def edit(name: str, pictures: int, method: str | None = None, **changes: Any) -> Case:
    """A case with reference pictures of other sizes than the picture's."""
    latents = [noise(1, 16, 1, *size, seed=i) for i, size in enumerate(SIZES[:pictures])]
    extras: dict[str, Any] = {"reference_latents": latents}
    if method is not None:
        extras["reference_latents_method"] = method
    fields = {
        "latent": lambda: torch.zeros(1, 16, 1, 23, 21), "grid": (1, 12, 11),
        "positive": lambda: text(7, 48, 1, **extras), "negative": lambda: text(5, 48, 2, **extras),
    }  # fmt: skip
    return qwen(name, "reference pictures stay dense", **(fields | changes))


CASES = [
    qwen("qwen-image"),
    qwen(
        "qwen-image-padded-text",
        positive=lambda: padded(40, 33, 1),
        negative=lambda: padded(12, 4, 2),
        note="the mask of the text is kept",
    ),
    qwen(
        "qwen-image-padded-batch",
        latent=lambda: torch.zeros(1, 16, 1, 23, 21),
        positive=lambda: padded(20, 17, 1),
        negative=lambda: padded(20, 3, 2),
        grid=(1, 12, 11),
    ),
    edit("qwen-edit", 1),
    edit("qwen-edit-three", 3),
    edit("qwen-edit-offset", 2, "offset"),
    edit(
        "qwen-edit-timestep-zero",
        2,
        build=partial(build, default_ref_method="index_timestep_zero"),
        exists=lambda: knows("default_ref_method"),
    ),
    edit(
        "qwen-layered",
        1,
        build=partial(build, use_additional_t_cond=True, default_ref_method="negative_index"),
        latent=lambda: torch.zeros(1, 16, 3, 9, 15),
        grid=(3, 5, 8),
        exists=lambda: knows("use_additional_t_cond"),
    ),
]
