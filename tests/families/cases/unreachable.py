"""Image transformers whose attention does not go through ComfyUI's attention hook.

They are sampled, and the hook must see no call: where it does, they can be served.
"""

from __future__ import annotations

import torch

from .case import Case, noise, text, tiny

REASON = "does not go through ComfyUI's attention hook"
ERNIE = {
    "image_model": "ernie", "hidden_size": 256, "num_attention_heads": 2, "num_layers": 2,
    "ffn_hidden_size": 64, "text_in_dim": 48, "rope_axes_dim": [32, 48, 48],
}  # fmt: skip
PIXART = {
    "image_model": "pixart_sigma", "hidden_size": 96, "depth": 2, "num_heads": 2,
    "caption_channels": 48, "model_max_length": 7, "micro_condition": False,
}  # fmt: skip
HUNYUAN_DIT = {
    "image_model": "hydit1", "hidden_size": 128, "depth": 2, "num_heads": 2,
    "text_states_dim": 48, "text_states_dim_t5": 32, "text_len": 7, "text_len_t5": 9,
}  # fmt: skip


def two_texts(seed: int):
    return text(
        7, 48, seed,
        attention_mask=torch.ones(1, 7, dtype=torch.int64),
        conditioning_mt5xl=noise(1, 9, 32, seed=seed),
        attention_mask_mt5xl=torch.ones(1, 9, dtype=torch.int64),
    )  # fmt: skip


def unreachable(model_class, config, prompt, latent=(4, 14, 18)):
    return Case(
        name=f"{config['image_model'].replace('_', '-')}-unreachable",
        family="",
        model_class=model_class,
        build=lambda: tiny(model_class, config),
        latent=lambda: torch.zeros(1, *latent),
        positive=lambda: prompt(1),
        negative=lambda: prompt(2),
        grid=(1, 7, 9),
        layers=0,
        calls=0,
        reason=REASON,
        sampled=True,
    )


CASES = [
    unreachable("ErnieImage", ERNIE, lambda seed: text(7, 48, seed), latent=(128, 7, 9)),
    # Its positions are scaled to a picture of at least 33 latent pixels.
    unreachable("PixArtSigma", PIXART, lambda seed: text(7, 48, seed), latent=(4, 40, 36)),
    unreachable("HunyuanDiT1", HUNYUAN_DIT, two_texts),
]
