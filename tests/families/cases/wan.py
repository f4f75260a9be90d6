"""Wan 2.1 and 2.2."""

from __future__ import annotations

import torch

from .case import Case, text, tiny

CONFIG = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 256, "ffn_dim": 256, "num_heads": 2,
    "num_layers": 2, "text_dim": 64, "freq_dim": 64, "in_dim": 16, "out_dim": 16,
}  # fmt: skip

CASES = [
    Case(
        name="wan-t2v",
        family="Wan",
        model_class="WAN21_T2V",
        build=lambda: tiny("WAN21_T2V", CONFIG),
        latent=lambda: torch.zeros(1, 16, 3, 14, 10),
        positive=lambda: text(7, 64, 1),
        negative=lambda: text(5, 64, 2),
        grid=(3, 7, 5),
        layers=2,
        calls=4,
    ),
]
