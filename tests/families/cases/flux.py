"""Flux 1 and 2, their edit models, and the models built like them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .case import Case, Conditioning, accepted, noise, text, tiny

CONFIG = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 32,
    "context_in_dim": 48, "hidden_size": 256, "mlp_ratio": 2.0, "num_heads": 2, "depth": 2,
    "depth_single_blocks": 2, "axes_dim": [16, 56, 56], "theta": 10000, "patch_size": 2,
    "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = {
    "image_model": "flux2", "depth": 1, "depth_single_blocks": 1, "in_channels": 128,
    "out_channels": 128, "vec_in_dim": None, "mlp_ratio": 3.0, "axes_dim": [32, 32, 32, 32],
    "theta": 2000, "patch_size": 1, "qkv_bias": False, "txt_ids_dims": [3],
    "global_modulation": True, "mlp_silu_act": True, "ops_bias": False,
    "default_ref_method": "index", "ref_index_scale": 10.0,
}  # fmt: skip
LIKE_FLUX = {"guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]}


def build(model_class: str = "Flux", **changes: Any) -> Any:
    from comfy.ldm.flux.model import FluxParams

    return tiny(model_class, accepted(FluxParams, CONFIG | changes))


def build_with_style_reference() -> Any:
    """What the style reference of USO does: more tokens in front of the text."""
    model = build().clone()

    def more_text(values: dict[str, Any]) -> dict[str, Any]:
        txt, ids = values["txt"], values["txt_ids"]
        style = noise(1, 3, txt.shape[2], seed=9).to(txt).expand(txt.shape[0], -1, -1)
        no_ids = ids.new_zeros(ids.shape[0], 3, ids.shape[2])
        return values | {
            "txt": torch.cat([style, txt], dim=1),
            "txt_ids": torch.cat([no_ids, ids], dim=1),
        }

    model.set_model_post_input_patch(more_text)
    return model


def knows(*names: str) -> bool:
    """Whether this host's Flux has these parameters."""
    from comfy.ldm.flux.model import FluxParams

    return set(names) <= set(FluxParams.__dataclass_fields__)


def prompt(length: int, seed: int, **extras: Any) -> Conditioning:
    (features, values), *_ = text(length, 48, seed, **extras)
    return [[features, values | {"pooled_output": noise(1, 32, seed=seed), "guidance": 3.5}]]


def styled(length: int, tokens: int, grid: int) -> Conditioning:
    """A prompt with a weaker style picture behind it: an attention mask of all tokens."""
    (features, values), *_ = prompt(length + tokens, 1)
    side = length + tokens + grid
    mask = torch.zeros(1, side, side)
    mask[:, :length, length : length + tokens] = -0.7
    mask[:, length + tokens :, length : length + tokens] = -0.7
    return [[features, values | {"attention_mask": mask, "attention_mask_img_shape": (9, 15)}]]


def picture(name: str, note: str = "", **changes: Any) -> Case:
    """A case with a picture of 9 x 15 tokens."""
    fields: dict[str, Any] = {
        "model_class": "Flux", "build": build, "latent": lambda: torch.zeros(1, 16, 17, 29),
        "positive": lambda: prompt(7, 1), "negative": lambda: prompt(5, 2), "grid": (1, 9, 15),
        "layers": 4, "calls": 4,
    }  # fmt: skip
    return Case(name=name, family="Flux", note=note, **(fields | changes))


def edit(name: str, method: str | None = None, pictures: int = 1, **changes: Any) -> Case:
    """A case with reference pictures of other sizes than the picture's."""
    sizes = ((8, 10), (5, 7))[:pictures]
    channels = changes.pop("channels", 16)
    extras: dict[str, Any] = {
        "reference_latents": [noise(1, channels, *size, seed=i) for i, size in enumerate(sizes)]
    }
    if method is not None:
        extras["reference_latents_method"] = method
    fields = {
        "latent": lambda: torch.zeros(1, channels, 23, 21),
        "positive": lambda: prompt(7, 1, **extras), "negative": lambda: prompt(5, 2, **extras),
        "grid": (1, 12, 11),
    }  # fmt: skip
    return picture(name, "reference pictures stay dense", **(fields | changes))


CASES = [
    picture("flux"),
    picture(
        "flux-long-padded-text",
        latent=lambda: torch.zeros(1, 16, 17, 23),
        positive=lambda: prompt(77, 1),
        negative=lambda: prompt(256, 2),
        grid=(1, 9, 12),
    ),
    picture(
        "flux-schnell",
        model_class="FluxSchnell",
        build=partial(build, "FluxSchnell", guidance_embed=False),
    ),
    picture(
        "flux-fill",
        model_class="FluxInpaint",
        build=partial(build, "FluxInpaint", in_channels=96),
        positive=lambda: prompt(7, 1, concat_latent_image=noise(1, 16, 17, 29)),
    ),
    picture(
        "flux-canny",
        build=partial(build, in_channels=32),
        positive=lambda: prompt(7, 1, concat_latent_image=noise(1, 16, 17, 29)),
        note="also Canny and Depth",
    ),
    edit("flux-kontext"),
    edit("flux-kontext-two", pictures=2),
    edit("flux-kontext-index", "index", 2),
    edit("flux-kontext-uxo", "uxo", 2),
    edit(
        "flux-kontext-one-sided",
        negative=lambda: prompt(5, 2),
    ),
    picture("flux-redux", positive=lambda: prompt(7 + 11, 1), note="Redux counts as text"),
    picture(
        "flux-redux-weakened",
        "weakened Redux (attn_bias) runs dense",
        positive=lambda: styled(7, 11, 135),
        reason="attention mask",
    ),
    picture("flux-uso", build=build_with_style_reference),
    picture(
        "flux-longcat",
        model_class="LongCatImage",
        build=partial(build, "LongCatImage", **LIKE_FLUX),
    ),
    edit(
        "flux-longcat-edit",
        "index",
        model_class="LongCatImage",
        build=partial(build, "LongCatImage", **LIKE_FLUX),
    ),
    picture(
        "flux-ovis",
        model_class="FluxSchnell",
        build=partial(build, "FluxSchnell", yak_mlp=True, txt_norm=True, **LIKE_FLUX),
        exists=lambda: knows("yak_mlp", "txt_norm"),
    ),
    picture(
        "flux2",
        model_class="Flux2",
        build=partial(build, "Flux2", **FLUX2),
        latent=lambda: torch.zeros(1, 128, 7, 13),
        grid=(1, 7, 13),
        layers=2,
        calls=2,
        note="also Flux 2 klein",
    ),
    edit(
        "flux2-edit",
        pictures=2,
        channels=128,
        model_class="Flux2",
        build=partial(build, "Flux2", **FLUX2),
        latent=lambda: torch.zeros(1, 128, 7, 13),
        grid=(1, 7, 13),
        layers=2,
        calls=2,
    ),
    edit(
        "flux2-klein-edit",
        "index_timestep_zero",
        channels=128,
        model_class="Flux2",
        build=partial(build, "Flux2", **FLUX2, guidance_embed=False),
        latent=lambda: torch.zeros(1, 128, 5, 17),
        negative=lambda: prompt(530, 2),
        grid=(1, 5, 17),
        layers=2,
        calls=2,
    ),
]
