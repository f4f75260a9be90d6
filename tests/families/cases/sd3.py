"""Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .case import Case, Conditioning, noise, text, tiny

SIDE = 16
CONFIG = {
    "in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 2, "num_blocks": 3,
    "input_size": None, "adm_in_channels": 32, "num_patches": SIDE * SIDE,
    "pos_embed_max_size": SIDE, "pos_embed_scaling_factor": None, "x_block_self_attn_layers": [],
    "context_embedder_config": {
        "target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128},
    },
}  # fmt: skip


def build(**changes: Any) -> Any:
    model = tiny("SD3", CONFIG | changes)
    inner = model.get_model_object("diffusion_model")
    inner.pos_embed.copy_(noise(*inner.pos_embed.shape, seed=3))  # a buffer, not a parameter
    return model


def prompt(length: int, seed: int) -> Conditioning:
    (features, values), *_ = text(length, 48, seed)
    return [[features, values | {"pooled_output": noise(1, 32, seed=seed)}]]


def sd3(name: str, note: str = "", **changes: Any) -> Case:
    fields: dict[str, Any] = {
        "model_class": "SD3", "build": partial(build, qk_norm="rms"),
        "latent": lambda: torch.zeros(1, 16, 17, 29), "positive": lambda: prompt(7, 1),
        "negative": lambda: prompt(5, 2), "grid": (1, 9, 15), "layers": 3, "calls": 3,
    }  # fmt: skip
    return Case(name=name, family="Stable Diffusion 3", note=note, **(fields | changes))


CASES = [
    sd3("sd3-medium", build=build),
    sd3("sd3.5-large"),
    sd3(
        "sd3.5-medium",
        build=partial(build, qk_norm="rms", x_block_self_attn_layers=[0, 1]),
        layers=5,
        calls=5,
        note="3.5 medium: both attentions of its first blocks",
    ),
    sd3(
        "sd3.5-medium-batched",
        build=partial(build, qk_norm="rms", x_block_self_attn_layers=[0, 1]),
        latent=lambda: torch.zeros(1, 16, 23, 21),
        positive=lambda: prompt(77, 1),
        negative=lambda: prompt(77, 2),
        grid=(1, 12, 11),
        layers=5,
        calls=5,
    ),
    sd3("sd3-registers", build=partial(build, qk_norm="rms", register_length=3)),
]
