"""OmniGen 2 and Boogu."""

from __future__ import annotations

import torch

from .case import Case, noise, text, tiny

OMNIGEN2 = {
    "image_model": "omnigen2", "patch_size": 2, "in_channels": 16, "hidden_size": 240,
    "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1,
    "multiple_of": 32, "axes_dim_rope": [40, 40, 40], "axes_lens": [64, 64, 64],
    "text_feat_dim": 48, "timestep_scale": 1000.0,
}  # fmt: skip
BOOGU = {k: v for k, v in OMNIGEN2.items() if k != "text_feat_dim"} | {
    "image_model": "boogu", "num_double_stream_layers": 2, "instruction_feat_dim": 48,
}  # fmt: skip


def prompt(length: int, seed: int, **extras):
    mask = torch.ones(1, length, dtype=torch.int64)
    return text(length, 48, seed, attention_mask=mask, **extras)


def edit(length: int, seed: int):
    return prompt(
        length, seed, reference_latents=[noise(1, 16, 8, 10), noise(1, 16, 5, 12, seed=6)]
    )


CASES = [
    Case(
        name="omnigen-2",
        family="OmniGen 2",
        model_class="Omnigen2",
        build=lambda: tiny("Omnigen2", OMNIGEN2),
        latent=lambda: torch.zeros(1, 16, 14, 18),
        positive=lambda: prompt(7, 1),
        negative=lambda: prompt(7, 2),
        grid=(1, 7, 9),
        layers=2,
        calls=4,
    ),
    Case(
        name="omnigen-2-edit",
        family="OmniGen 2",
        model_class="Omnigen2",
        build=lambda: tiny("Omnigen2", OMNIGEN2),
        latent=lambda: torch.zeros(1, 16, 15, 18),
        positive=lambda: edit(7, 1),
        negative=lambda: edit(5, 2),
        grid=(1, 8, 9),
        layers=2,
        calls=5,
        note="reference pictures stay dense",
    ),
    Case(
        name="boogu",
        family="Boogu",
        model_class="Boogu",
        build=lambda: tiny("Boogu", BOOGU),
        latent=lambda: torch.zeros(1, 16, 14, 18),
        positive=lambda: prompt(7, 1),
        negative=lambda: prompt(7, 2),
        grid=(1, 7, 9),
        layers=6,
        calls=8,
    ),
    Case(
        name="boogu-edit",
        family="Boogu",
        model_class="Boogu",
        build=lambda: tiny("Boogu", BOOGU),
        latent=lambda: torch.zeros(1, 16, 15, 18),
        positive=lambda: edit(7, 1),
        negative=lambda: edit(5, 2),
        grid=(1, 8, 9),
        layers=6,
        calls=9,
        note="reference pictures stay dense",
    ),
]
