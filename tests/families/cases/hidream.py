"""HiDream-I1, E1 and O1."""

from __future__ import annotations

import torch

from .case import Case, noise, text, tiny

CONFIG = {
    "image_model": "hidream", "patch_size": 2, "in_channels": 16, "num_layers": 2,
    "num_single_layers": 2, "attention_head_dim": 128, "num_attention_heads": 2,
    "caption_channels": [48, 32], "text_emb_dim": 64, "num_routed_experts": 2,
    "num_activated_experts": 1, "axes_dims_rope": [64, 32, 32], "max_resolution": [64, 64],
    "llama_layers": [0, 1, 2, 3],
}  # fmt: skip
O1 = {
    "image_model": "hidream_o1",
    "text_config_overrides": {
        "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 32,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64,
    },
    "vision_config_overrides": {
        "hidden_size": 64, "intermediate_size": 64, "depth": 1, "num_heads": 2,
    },
}  # fmt: skip


def prompt(length: int, seed: int, **extras):
    """Llama features are of another length than T5's, as they are in the real model."""
    llama = noise(1, 4, length + 2, 32, seed=seed)
    (features, values), *_ = text(length, 48, seed, conditioning_llama3=llama, **extras)
    return [[features, values | {"pooled_output": noise(1, 64, seed=seed)}]]


def edit(length: int, seed: int):
    return prompt(length, seed, concat_latent_image=noise(1, 16, 14, 18))


CASES = [
    Case(
        name="hidream-i1",
        family="HiDream",
        model_class="HiDream",
        build=lambda: tiny("HiDream", CONFIG),
        latent=lambda: torch.zeros(1, 16, 14, 18),
        positive=lambda: prompt(7, 1),
        negative=lambda: prompt(5, 2),
        grid=(1, 7, 9),
        layers=4,
        calls=4,
    ),
    Case(
        name="hidream-e1",
        family="HiDream",
        model_class="HiDream",
        build=lambda: tiny("HiDream", CONFIG),
        latent=lambda: torch.zeros(1, 16, 14, 18),
        positive=lambda: edit(7, 1),
        negative=lambda: edit(7, 2),
        grid=(1, 7, 18),
        layers=4,
        calls=4,
        columns=9,
        note="E1: the picture to edit is the right half of the grid",
    ),
    Case(
        name="hidream-o1",
        family="",
        model_class="HiDreamO1",
        build=lambda: tiny("HiDreamO1", O1),
        latent=lambda: torch.zeros(1, 3, 64, 96),
        positive=lambda: prompt(7, 1),
        negative=lambda: prompt(5, 2),
        grid=(1, 2, 3),
        layers=0,
        calls=0,
        reason="causally",
    ),
]
