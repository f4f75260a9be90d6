"""HunyuanVideo 1 and 1.5, HunyuanImage 2.1 and its refiner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from .case import Case, Conditioning, accepted, noise, text, tiny

CONFIG = {
    "image_model": "hunyuan_video", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32,
    "context_in_dim": 48, "hidden_size": 256, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 256, "patch_size": [1, 2, 2],
    "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
V15 = {
    "in_channels": 65, "out_channels": 32, "vec_in_dim": None, "patch_size": [1, 1, 1],
    "guidance_embed": False, "byt5": True, "use_cond_type_embedding": True, "vision_in_dim": 1152,
    "meanflow_sum": True,
}  # fmt: skip
IMAGE = {
    "in_channels": 64, "out_channels": 64, "vec_in_dim": None, "patch_size": [1, 1],
    "axes_dim": [64, 64], "guidance_embed": False, "byt5": True,
}  # fmt: skip
REFINER = {
    "in_channels": 128, "out_channels": 64, "vec_in_dim": None, "patch_size": [1, 1, 1],
    "byt5": False, "meanflow": True,
}  # fmt: skip


def build(model_class: str, config: dict[str, Any]) -> Any:
    from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

    return tiny(model_class, accepted(HunyuanVideoParams, CONFIG | config))


def prompt(length: int, seed: int, padding: int = 0, **extras: Any) -> Conditioning:
    """`length` text tokens, and `padding` more that the model is told to hide."""
    (features, values), *_ = text(length + padding, 48, seed, **extras)
    values = values | {"pooled_output": noise(1, 32, seed=seed), "guidance": 3.5}
    if padding:
        mask = torch.ones(1, length + padding, dtype=torch.long)
        mask[:, length:] = 0
        values["attention_mask"] = mask
    return [[features, values]]


def frames(count: int, seed: int = 11) -> torch.Tensor:
    return noise(1, 16, count, 14, 10, seed=seed)


def glyphs(length: int, seed: int) -> dict[str, Any]:
    return {"conditioning_byt5small": noise(1, length, 1472, seed=seed)}


def to_refine() -> torch.Tensor:
    """A latent of 64 channels after ComfyUI's own preparation, which may double them."""
    from comfy.latent_formats import HunyuanImage21Refiner

    latent = noise(1, 64, 1, 11, 9, seed=6)
    prepared = HunyuanImage21Refiner().process_in(latent)
    return latent if prepared.shape == latent.shape else latent[:, :32]


def seen(seed: int = 3) -> SimpleNamespace:
    return SimpleNamespace(last_hidden_state=noise(1, 19, 1152, seed=seed))


def hunyuan(
    name: str, model_class: str = "HunyuanVideo", config: dict | None = None, **settings: Any
) -> Case:
    """A case with four layers, after two calls of the text's refiner."""
    values = {
        "name": name,
        "family": "Hunyuan",
        "model_class": model_class,
        "build": lambda: build(model_class, config or {}),
        "latent": lambda: torch.zeros(1, 16, 3, 14, 10),
        "positive": lambda: prompt(7, 1),
        "negative": lambda: prompt(5, 2),
        "grid": (3, 7, 5),
        "layers": 4,
        "calls": 6,
    }
    return Case(**(values | settings))


def beside(**extras: Any) -> dict[str, Any]:
    """Settings of a case with the same values beside both texts."""
    return {"positive": lambda: prompt(7, 1, **extras), "negative": lambda: prompt(5, 2, **extras)}


CASES = [
    hunyuan("hunyuan-video"),
    hunyuan("hunyuan-video-batched", negative=lambda: prompt(7, 2)),
    hunyuan(
        "hunyuan-video-padded-text",
        positive=lambda: prompt(7, 1, padding=9),
        negative=lambda: prompt(5, 2, padding=3),
        note="the mask of the text is kept",
    ),
    hunyuan(
        "hunyuan-i2v-concat",
        "HunyuanVideoI2V",
        {"in_channels": 33},
        **beside(concat_latent_image=frames(3), concat_mask=torch.ones(1, 1, 3, 14, 10)),
    ),
    hunyuan("hunyuan-i2v-replace", **beside(guiding_frame_index=0)),
    hunyuan(
        "hunyuan-custom",
        positive=lambda: prompt(7, 1, padding=4, ref_latent=frames(1)),
        negative=lambda: prompt(5, 2, padding=8, ref_latent=frames(1)),
        note="the reference frame stays dense",
    ),
    hunyuan(
        "hunyuan-skyreels",
        "HunyuanVideoSkyreelsI2V",
        {"in_channels": 32},
        **beside(concat_latent_image=frames(3)),
    ),
    hunyuan(
        "hunyuan-video-15",
        "HunyuanVideo15",
        V15,
        latent=lambda: torch.zeros(1, 32, 3, 7, 5),
        positive=lambda: prompt(7, 1, **glyphs(4, 6)),
    ),
    hunyuan(
        "hunyuan-video-15-padded-text",
        "HunyuanVideo15",
        V15,
        latent=lambda: torch.zeros(1, 32, 3, 7, 5),
        positive=lambda: prompt(7, 1, padding=9),
        note="the mask of the text is kept",
    ),
    hunyuan(
        "hunyuan-video-15-i2v",
        "HunyuanVideo15",
        V15,
        latent=lambda: torch.zeros(1, 32, 3, 7, 5),
        **beside(
            clip_vision_output=seen(),
            concat_latent_image=noise(1, 32, 3, 7, 5, seed=6),
            concat_mask=torch.ones(1, 1, 3, 7, 5),
            **glyphs(3, 7),
        ),
        note="what is seen of the picture counts as text",
    ),
    hunyuan(
        "hunyuan-video-15-sr",
        "HunyuanVideo15_SR_Distilled",
        V15 | {"in_channels": 98, "meanflow": True},
        latent=lambda: torch.zeros(1, 32, 3, 7, 5),
        **beside(
            clip_vision_output=seen(),
            concat_latent_image=noise(1, 66, 3, 7, 5, seed=6),
            noise_augmentation=0.7,
        ),
    ),
    hunyuan(
        "hunyuan-image",
        "HunyuanImage21",
        IMAGE,
        latent=lambda: torch.zeros(1, 64, 11, 9),
        positive=lambda: prompt(7, 1, **glyphs(4, 6)),
        grid=(1, 11, 9),
    ),
    hunyuan(
        "hunyuan-image-distilled-padded-text",
        "HunyuanImage21",
        IMAGE | {"guidance_embed": True, "meanflow": True},
        latent=lambda: torch.zeros(1, 64, 11, 9),
        positive=lambda: prompt(7, 1, padding=6),
        grid=(1, 11, 9),
        note="the mask of the text is kept",
    ),
    hunyuan(
        "hunyuan-image-refiner",
        "HunyuanImage21Refiner",
        REFINER,
        latent=lambda: torch.zeros(1, 64, 1, 11, 9),
        grid=(1, 11, 9),
        positive=lambda: prompt(7, 1, concat_latent_image=to_refine(), noise_augmentation=0.1),
        negative=lambda: prompt(5, 2, concat_latent_image=to_refine(), noise_augmentation=0.1),
    ),
]
