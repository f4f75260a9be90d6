"""Lens and JoyImage."""

from __future__ import annotations

import torch

from .case import Case, noise, text, tiny

LENS = {
    "image_model": "lens", "patch_size": 2, "in_channels": 128, "out_channels": 32,
    "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 3, "enc_hidden_dim": 24,
    "axes_dims_rope": [8, 28, 28], "selected_layer_index": [0, 1],
}  # fmt: skip
JOYIMAGE = {
    "image_model": "joyimage", "patch_size": [1, 2, 2], "in_channels": 16, "hidden_size": 256,
    "num_attention_heads": 2, "text_dim": 48, "mlp_width_ratio": 2.0, "num_layers": 2,
}  # fmt: skip


def lens(length: int, seed: int, hidden: int):
    """A text whose last `hidden` tokens are padding."""
    mask = torch.ones(1, length, dtype=torch.int64)
    mask[:, length - hidden :] = 0
    return text(length, 48, seed, attention_mask=mask)


def edit(length: int, seed: int):
    pictures = [noise(1, 16, 1, 8, 10), noise(1, 16, 1, 5, 12, seed=6)]
    return text(length, 48, seed, reference_latents=pictures)


CASES = [
    Case(
        name="lens",
        family="Lens",
        model_class="Lens",
        build=lambda: tiny("Lens", LENS),
        latent=lambda: torch.zeros(1, 128, 7, 9),
        positive=lambda: lens(9, 1, hidden=3),
        negative=lambda: lens(5, 2, hidden=0),
        grid=(1, 7, 9),
        layers=2,
        calls=2,
    ),
    Case(
        name="lens-batched",
        family="Lens",
        model_class="Lens",
        build=lambda: tiny("Lens", LENS),
        latent=lambda: torch.zeros(1, 128, 7, 9),
        positive=lambda: lens(9, 1, hidden=3),
        negative=lambda: lens(9, 2, hidden=5),
        grid=(1, 7, 9),
        layers=2,
        calls=2,
    ),
    Case(
        name="joyimage",
        family="JoyImage",
        model_class="JoyImage",
        build=lambda: tiny("JoyImage", JOYIMAGE),
        latent=lambda: torch.zeros(1, 16, 1, 14, 18),
        positive=lambda: text(7, 48, 1),
        negative=lambda: text(7, 48, 2),
        grid=(1, 7, 9),
        layers=2,
        calls=2,
    ),
    Case(
        name="joyimage-edit",
        family="JoyImage",
        model_class="JoyImage",
        build=lambda: tiny("JoyImage", JOYIMAGE),
        latent=lambda: torch.zeros(1, 16, 1, 15, 18),
        positive=lambda: edit(7, 1),
        negative=lambda: edit(5, 2),
        grid=(1, 8, 9),
        layers=2,
        calls=2,
        note="reference pictures stay dense",
    ),
]
