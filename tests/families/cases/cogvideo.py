"""CogVideoX 1.0, 1.5, its I2V and inpainting models."""

from __future__ import annotations

import torch

from .case import Case, noise, text, tiny

CONFIG = {
    "image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 64,
    "time_embed_dim": 64, "num_layers": 2, "text_embed_dim": 48,
}  # fmt: skip
ROTARY = {"use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": False}
VERSION_1_5 = ROTARY | {"patch_size_t": 2}
LEARNED = {
    "num_attention_heads": 3,
    "use_rotary_positional_embeddings": False, "use_learned_positional_embeddings": True,
    "sample_width": 18, "sample_height": 14, "sample_frames": 9, "max_text_seq_length": 8,
}  # fmt: skip


def case(name: str, model_class: str, config: dict, frames: int, **extras) -> Case:
    patch = config.get("patch_size_t") or 1
    return Case(
        name=name,
        family="CogVideoX",
        model_class=model_class,
        build=lambda: tiny(model_class, CONFIG | config),
        latent=lambda: torch.zeros(1, 16, frames, 13, 18),
        positive=lambda: text(7, 48, 1, **extras),
        negative=lambda: text(5, 48, 2, **extras),
        grid=(-(-frames // patch), 7, 9),
        layers=2,
        calls=2,
    )


START = noise(1, 16, 1, 13, 18)

CASES = [
    case("cogvideox-1.0", "CogVideoX_T2V", ROTARY | {"in_channels": 16}, 3),
    case("cogvideox-2b", "CogVideoX_T2V", LEARNED | {"in_channels": 16}, 3),
    case("cogvideox-1.5", "CogVideoX_T2V", VERSION_1_5 | {"in_channels": 16}, 5),
    case(
        "cogvideox-1.0-i2v", "CogVideoX_I2V", ROTARY | {"in_channels": 32}, 3,
        concat_latent_image=START,
    ),
    case(
        "cogvideox-1.5-i2v", "CogVideoX_I2V",
        VERSION_1_5 | {"in_channels": 32, "ofs_embed_dim": 64}, 5,
        concat_latent_image=START,
    ),
    case("cogvideox-inpaint", "CogVideoX_Inpaint", VERSION_1_5 | {"in_channels": 48}, 4),
]  # fmt: skip
