"""Cosmos 1, Cosmos-Predict2 and Anima."""

from __future__ import annotations

import functools

import torch

from .case import Case, text, tiny

COMMON = {
    "max_img_h": 240, "max_img_w": 240, "max_frames": 128, "out_channels": 16, "patch_spatial": 2,
    "patch_temporal": 1, "model_channels": 256, "num_blocks": 2, "num_heads": 2, "mlp_ratio": 1.0,
    "concat_padding_mask": True, "crossattn_emb_channels": 64, "pos_emb_cls": "rope3d",
    "pos_emb_interpolation": "crop", "use_adaln_lora": True, "adaln_lora_dim": 16,
    "rope_h_extrapolation_ratio": 1.0, "rope_w_extrapolation_ratio": 1.0,
    "rope_t_extrapolation_ratio": 2.0,
}  # fmt: skip
COSMOS = COMMON | {
    "image_model": "cosmos", "block_config": "FA-CA-MLP", "block_x_format": "THWBD",
    "affline_emb_norm": True, "pos_emb_learnable": False, "extra_per_block_abs_pos_emb": True,
    "extra_per_block_abs_pos_emb_type": "learnable",
}  # fmt: skip
PREDICT2 = COMMON | {
    "image_model": "cosmos_predict2", "min_fps": 1, "max_fps": 30, "pos_emb_learnable": True,
    "extra_per_block_abs_pos_emb": False, "rope_enable_fps_modulation": False,
}  # fmt: skip


def case(name: str, family: str, model_class: str, config: dict, frames: int, **extras) -> Case:
    build = build_anima if model_class == "Anima" else functools.partial(tiny, model_class, config)
    return Case(
        name=name,
        family=family,
        model_class=model_class,
        build=build,
        latent=lambda: torch.zeros(1, 16, frames, 14, 18),
        positive=lambda: text(7, 64, 1, **extras),
        negative=lambda: text(5, 64, 2, **extras),
        grid=(frames, 7, 9),
        layers=2,
        calls=4,
    )


def build_anima():
    from comfy.ldm.anima import model

    # The adapter has no sizes in the configuration; that of the real model is far too large here.
    whole = model.LLMAdapter
    model.LLMAdapter = functools.partial(
        whole, source_dim=64, target_dim=64, model_dim=64, num_layers=1, num_heads=2
    )
    try:
        return tiny("Anima", PREDICT2 | {"image_model": "anima", "in_channels": 16})
    finally:
        model.LLMAdapter = whole


def first_frame_given() -> torch.Tensor:
    mask = torch.ones(1, 1, 3, 14, 18)
    mask[:, :, :1] = 0.0
    return mask


TOKENS = {"t5xxl_ids": torch.arange(3, 9), "t5xxl_weights": torch.ones(6)}

CASES = [
    case("cosmos", "Cosmos", "CosmosT2V", COSMOS | {"in_channels": 16}, 3),
    case(
        "cosmos-video2world", "Cosmos", "CosmosI2V", COSMOS | {"in_channels": 17}, 3,
        concat_mask=first_frame_given(),
    ),
    case(
        "cosmos-predict2-t2i", "Cosmos-Predict2", "CosmosT2IPredict2",
        PREDICT2 | {"in_channels": 16}, 1,
    ),
    case(
        "cosmos-predict2-video2world", "Cosmos-Predict2", "CosmosI2VPredict2",
        PREDICT2 | {"in_channels": 17}, 3, concat_mask=first_frame_given(),
    ),
    case("anima", "Cosmos-Predict2", "Anima", {}, 1, **TOKENS),
]  # fmt: skip
