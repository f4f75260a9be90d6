"""Mochi."""

from __future__ import annotations

import torch

from .case import Case, text, tiny

CONFIG = {
    "image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 2,
    "hidden_size_x": 256, "hidden_size_y": 128, "mlp_ratio_x": 48.0, "mlp_ratio_y": 2.0,
    "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False, "out_bias": True,
    "attn_drop": 0.0, "patch_embed_bias": True, "posenc_preserve_area": True,
    "timestep_mlp_bias": True, "attend_to_padding": False, "timestep_scale": 1000.0,
    "use_t5": True, "t5_feat_dim": 48, "t5_token_length": 8, "rope_theta": 10000.0,
}  # fmt: skip


def prompt(words: int, length: int, seed: int):
    mask = (torch.arange(length) < words).long()[None]
    return text(length, 48, seed, attention_mask=mask)


def case(name: str, positive, negative) -> Case:
    return Case(
        name=name,
        family="Mochi",
        model_class="GenmoMochi",
        build=lambda: tiny("GenmoMochi", CONFIG),
        latent=lambda: torch.zeros(1, 12, 3, 14, 18),
        positive=positive,
        negative=negative,
        grid=(3, 7, 9),
        layers=2,
        calls=2,
    )


CASES = [
    case("mochi", lambda: prompt(7, 7, 1), lambda: prompt(5, 5, 2)),
    case("mochi-padded-text", lambda: prompt(5, 8, 1), lambda: prompt(3, 8, 2)),
]
