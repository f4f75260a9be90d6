"""Flux 1 and its edit models."""

from __future__ import annotations

import torch

from .case import Case, accepted, noise, text, tiny

CONFIG = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32,
    "context_in_dim": 48, "hidden_size": 256, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip


def build():
    from comfy.ldm.flux.model import FluxParams

    return tiny("Flux", accepted(FluxParams, CONFIG))


def prompt(length: int, seed: int, **extras):
    (features, values), *_ = text(length, 48, seed, **extras)
    return [[features, values | {"pooled_output": noise(1, 32, seed=seed), "guidance": 3.5}]]


CASES = [
    Case(
        name="flux",
        family="Flux",
        model_class="Flux",
        build=build,
        latent=lambda: torch.zeros(1, 16, 14, 18),
        positive=lambda: prompt(7, 1),
        negative=lambda: prompt(5, 2),
        grid=(1, 7, 9),
        layers=4,
        calls=4,
    ),
    Case(
        name="flux-kontext",
        family="Flux",
        model_class="Flux",
        build=build,
        latent=lambda: torch.zeros(1, 16, 15, 17),
        positive=lambda: prompt(7, 1, reference_latents=[noise(1, 16, 8, 10)]),
        negative=lambda: prompt(5, 2, reference_latents=[noise(1, 16, 8, 10)]),
        grid=(1, 8, 9),
        layers=4,
        calls=4,
        note="reference pictures stay dense",
    ),
]
