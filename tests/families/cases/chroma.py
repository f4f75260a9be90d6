"""Chroma and Chroma Radiance."""

from __future__ import annotations

from typing import Any

import torch

from .case import Case, accepted, noise, text, tiny

CONFIG = {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "context_in_dim": 48,
    "hidden_size": 256, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2, "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2, "qkv_bias": True, "in_dim": 64,
    "out_dim": 256, "hidden_dim": 64, "n_layers": 1, "txt_ids_dims": [], "vec_in_dim": None,
}  # fmt: skip
RADIANCE = {
    "image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "patch_size": 16,
    "nerf_hidden_size": 16, "nerf_mlp_ratio": 1, "nerf_depth": 1, "nerf_max_freqs": 4,
    "nerf_tile_size": 512, "nerf_final_head_type": "conv", "nerf_embedder_dtype": torch.float32,
    "use_x0": False, "use_sequential_txt_ids": True,
}  # fmt: skip


def build() -> Any:
    from comfy.ldm.chroma.model import ChromaParams

    return tiny("Chroma", accepted(ChromaParams, CONFIG))


def build_radiance() -> Any:
    from comfy.ldm.chroma_radiance.model import ChromaRadianceParams

    return tiny("ChromaRadiance", accepted(ChromaRadianceParams, CONFIG | RADIANCE))


def chroma(name: str, note: str = "", **changes: Any) -> Case:
    fields: dict[str, Any] = {
        "model_class": "Chroma", "build": build, "latent": lambda: torch.zeros(1, 16, 17, 29),
        "positive": lambda: text(7, 48, 1), "negative": lambda: text(5, 48, 2),
        "grid": (1, 9, 15), "layers": 4, "calls": 4,
    }  # fmt: skip
    return Case(name=name, family="Chroma", note=note, **(fields | changes))


CASES = [
    chroma("chroma"),
    chroma(
        "chroma-batched",
        latent=lambda: torch.zeros(1, 16, 23, 21),
        positive=lambda: text(40, 48, 1),
        negative=lambda: text(40, 48, 2),
        grid=(1, 12, 11),
    ),
    chroma(
        "chroma-ignores-references",
        positive=lambda: text(7, 48, 1, reference_latents=[noise(1, 16, 8, 10)]),
        negative=lambda: text(5, 48, 2, reference_latents=[noise(1, 16, 8, 10)]),
    ),
    chroma(
        "chroma-radiance",
        model_class="ChromaRadiance",
        build=build_radiance,
        latent=lambda: torch.zeros(1, 3, 75, 230),
        grid=(1, 5, 15),
        note="Radiance: patches of pixels",
    ),
]
