"""Lumina 2 and Z-Image."""

from __future__ import annotations

import torch

from .case import Case, accepted, noise, text, tiny

LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 192, "cap_feat_dim": 48,
    "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 1, "qk_norm": True,
    "axes_dims": [32, 32, 32], "axes_lens": [300, 64, 64], "multiple_of": 32,
}  # fmt: skip
Z_IMAGE = LUMINA | {
    "dim": 256, "n_kv_heads": 2, "axes_dims": [32, 48, 48], "rope_theta": 256.0,
    "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
}  # fmt: skip
PIXELS = Z_IMAGE | {
    "image_model": "zimage_pixel", "patch_size": 4, "in_channels": 3, "decoder_hidden_size": 32,
    "decoder_num_res_blocks": 1, "decoder_max_freqs": 2,
}  # fmt: skip


def build_lumina():
    from comfy.ldm.lumina.model import NextDiT

    return tiny("Lumina2", accepted(NextDiT, LUMINA))


def prompt(length: int, seed: int, hidden: int = 0, **extras):
    """A text whose first `hidden` tokens are padding."""
    mask = torch.ones(1, length, dtype=torch.int64)
    mask[:, :hidden] = 0
    return text(length, 48, seed, attention_mask=mask, **extras)


def omni(length: int, seed: int):
    """A prompt with two reference pictures, one of which has a text of its own."""
    pictures = [noise(1, 16, 8, 10), noise(1, 16, 6, 12, seed=6)]
    texts = [noise(1, 9, 48, seed=seed)]
    return prompt(length, seed, reference_latents=pictures, reference_latents_text_embeds=texts)


CASES = [
    Case(
        name="lumina-2",
        family="Lumina 2 and Z-Image",
        model_class="Lumina2",
        build=build_lumina,
        latent=lambda: torch.zeros(1, 16, 14, 18),
        positive=lambda: prompt(7, 1),
        negative=lambda: prompt(7, 2),
        grid=(1, 7, 9),
        layers=2,
        calls=4,
    ),
    Case(
        name="lumina-2-padded-text",
        family="Lumina 2 and Z-Image",
        model_class="Lumina2",
        build=build_lumina,
        latent=lambda: torch.zeros(1, 16, 13, 18),
        positive=lambda: prompt(9, 1, hidden=2),
        negative=lambda: prompt(6, 2, hidden=3),
        grid=(1, 7, 9),
        layers=2,
        calls=4,
    ),
    Case(
        name="z-image",
        family="Lumina 2 and Z-Image",
        model_class="ZImage",
        build=lambda: tiny("ZImage", Z_IMAGE),
        latent=lambda: torch.zeros(1, 16, 14, 18),
        positive=lambda: prompt(40, 1),
        negative=lambda: prompt(5, 2),
        grid=(1, 7, 9),
        layers=2,
        calls=4,
        note="Z-Image pads text and picture to multiples of 32 tokens",
    ),
    Case(
        name="z-image-omni",
        family="Lumina 2 and Z-Image",
        model_class="ZImage",
        build=lambda: tiny("ZImage", Z_IMAGE | {"siglip_feat_dim": 24}),
        latent=lambda: torch.zeros(1, 16, 15, 18),
        positive=lambda: omni(40, 1),
        negative=lambda: omni(5, 2),
        grid=(1, 8, 9),
        layers=2,
        calls=5,
        note="reference pictures stay dense",
    ),
    Case(
        name="z-image-pixel-space",
        family="Lumina 2 and Z-Image",
        model_class="ZImagePixelSpace",
        build=lambda: tiny("ZImagePixelSpace", PIXELS, gain=0.5),
        latent=lambda: torch.zeros(1, 3, 28, 36),
        positive=lambda: prompt(40, 1),
        negative=lambda: prompt(5, 2),
        grid=(1, 7, 9),
        layers=2,
        calls=4,
    ),
]
