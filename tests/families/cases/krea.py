"""Krea 2, Mage-Flow, Ideogram 4 and PixelDiT."""

from __future__ import annotations

import torch

from .case import Case, noise, text, tiny

KREA2 = {
    "image_model": "krea2", "features": 256, "tdim": 64, "txtdim": 32, "heads": 2, "kvheads": 1,
    "multiplier": 2, "layers": 2, "patch": 2, "channels": 16, "txtlayers": 3, "txtheads": 2,
    "txtkvheads": 2,
}  # fmt: skip
MAGE_FLOW = {
    "image_model": "mage_flow", "in_channels": 128, "out_channels": 128, "num_layers": 2,
    "attention_head_dim": 128, "num_attention_heads": 2, "joint_attention_dim": 48,
    "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
IDEOGRAM4 = {
    "image_model": "ideogram4", "in_channels": 128, "num_layers": 2, "num_attention_heads": 2,
    "attention_head_dim": 256, "intermediate_size": 64, "adaln_dim": 32, "llm_features_dim": 48,
}  # fmt: skip
PIXELDIT = {
    "image_model": "pixeldit_t2i", "in_channels": 3, "num_groups": 2, "hidden_size": 128,
    "pixel_hidden_size": 8, "pixel_attn_hidden_size": 144, "pixel_num_groups": 2,
    "patch_depth": 2, "pixel_depth": 1, "patch_size": 4, "txt_embed_dim": 48, "txt_max_length": 16,
}  # fmt: skip
PID = PIXELDIT | {
    "image_model": "pid", "lq_latent_channels": 4, "lq_hidden_dim": 16, "lq_num_res_blocks": 1,
    "latent_spatial_down_factor": 2, "sr_scale": 2, "rope_ref_h": 32, "rope_ref_w": 32,
}  # fmt: skip


def krea2():
    """Krea 2's norms are stored as their distance from 1."""
    model = tiny("Krea2", KREA2)
    with torch.no_grad():
        for name, parameter in model.model.diffusion_model.named_parameters():
            if name.endswith("norm.scale"):
                parameter -= 1.0
    return model


def krea(length: int, seed: int, **extras):
    return text(length, 96, seed, **extras)


def mage(length: int, seed: int, hidden: int = 0, **extras):
    """A text whose last `hidden` tokens are padding."""
    mask = torch.ones(1, length, dtype=torch.int64)
    mask[:, length - hidden :] = 0
    return text(length, 48, seed, attention_mask=mask, **extras)


def references(channels: int, ndim: int = 4):
    frames = (1,) * (ndim - 4)
    return [noise(1, channels, *frames, 8, 10), noise(1, channels, *frames, 5, 12, seed=6)]


def upscaled(length: int, seed: int):
    return text(length, 48, seed, lq_latent=noise(1, 4, 7, 9), degrade_sigma=torch.full((1,), 0.2))


CASES = [
    Case(
        name="krea-2",
        family="Krea 2",
        model_class="Krea2",
        build=krea2,
        latent=lambda: torch.zeros(1, 16, 14, 18),
        positive=lambda: krea(7, 1),
        negative=lambda: krea(7, 2),
        grid=(1, 7, 9),
        layers=2,
        calls=6,
    ),
    Case(
        name="krea-2-edit",
        family="Krea 2",
        model_class="Krea2",
        build=krea2,
        latent=lambda: torch.zeros(1, 16, 15, 18),
        positive=lambda: krea(
            7,
            1,
            reference_latents=references(16, 5),
            reference_latents_method="index_timestep_zero",
        ),
        negative=lambda: krea(
            5,
            2,
            reference_latents=references(16, 5),
            reference_latents_method="index_timestep_zero",
        ),
        grid=(1, 8, 9),
        layers=2,
        calls=6,
        note="reference pictures stay dense",
    ),
    Case(
        name="mage-flow",
        family="Mage-Flow",
        model_class="MageFlow",
        build=lambda: tiny("MageFlow", MAGE_FLOW),
        latent=lambda: torch.zeros(1, 128, 7, 9),
        positive=lambda: mage(9, 1, hidden=2),
        negative=lambda: mage(9, 2, hidden=5),
        grid=(1, 7, 9),
        layers=2,
        calls=2,
    ),
    Case(
        name="mage-flow-edit",
        family="Mage-Flow",
        model_class="MageFlow",
        build=lambda: tiny("MageFlow", MAGE_FLOW),
        latent=lambda: torch.zeros(1, 128, 7, 9),
        positive=lambda: mage(7, 1, reference_latents=references(128)),
        negative=lambda: mage(5, 2, reference_latents=references(128)),
        grid=(1, 7, 9),
        layers=2,
        calls=2,
        note="reference pictures stay dense",
    ),
    Case(
        name="ideogram-4",
        family="Ideogram 4",
        model_class="Ideogram4",
        build=lambda: tiny("Ideogram4", IDEOGRAM4),
        latent=lambda: torch.zeros(1, 128, 7, 9),
        positive=lambda: text(7, 48, 1),
        negative=lambda: text(5, 48, 2),
        grid=(1, 7, 9),
        layers=2,
        calls=2,
    ),
    Case(
        name="ideogram-4-padded-text",
        family="Ideogram 4",
        model_class="Ideogram4",
        build=lambda: tiny("Ideogram4", IDEOGRAM4),
        latent=lambda: torch.zeros(1, 128, 7, 9),
        positive=lambda: mage(9, 1, hidden=2),
        negative=lambda: text(6, 48, 2),
        grid=(1, 7, 9),
        layers=2,
        calls=2,
        reason="attention mask",
        note="a padded text runs dense",
    ),
    Case(
        name="pixeldit",
        family="PixelDiT",
        model_class="PixelDiTT2I",
        build=lambda: tiny("PixelDiTT2I", PIXELDIT),
        latent=lambda: torch.zeros(1, 3, 27, 36),
        positive=lambda: text(20, 48, 1),
        negative=lambda: text(5, 48, 2),
        grid=(1, 7, 9),
        layers=2,
        calls=3,
        note="its pixel blocks stay dense",
    ),
    Case(
        name="pid",
        family="PixelDiT",
        model_class="PiD",
        build=lambda: tiny("PiD", PID),
        latent=lambda: torch.zeros(1, 3, 28, 36),
        positive=lambda: upscaled(7, 1),
        negative=lambda: upscaled(5, 2),
        grid=(1, 7, 9),
        layers=2,
        calls=3,
    ),
]
