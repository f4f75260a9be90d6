"""LTX-Video 2B and 13B with their guide frames, LTX-2 and 2.3 with sound."""

from __future__ import annotations

import functools

import torch

from .case import Case, text, tiny

VIDEO = {
    "image_model": "ltxv", "in_channels": 128, "num_attention_heads": 2, "num_layers": 2,
    "attention_head_dim": 64, "cross_attention_dim": 128, "caption_channels": 48,
    "vae_scale_factors": (8, 32, 32), "causal_temporal_positioning": True,
}  # fmt: skip
SOUND = VIDEO | {
    "image_model": "ltxav", "audio_in_channels": 128, "audio_num_attention_heads": 2,
    "attention_head_dim": 128, "cross_attention_dim": 256, "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 128, "connector_attention_head_dim": 24,
    "connector_num_attention_heads": 2, "connector_num_layers": 1, "rope_type": "split",
    "use_middle_indices_grid": True, "av_ca_timestep_scale_multiplier": 1000.0,
}  # fmt: skip
VERSION_2_3 = SOUND | {
    "apply_gated_attention": True, "cross_attention_adaln": True,
    "caption_proj_before_connector": True, "caption_projection_first_linear": False,
    "connector_attention_head_dim": 128, "audio_connector_attention_head_dim": 64,
    "connector_apply_gated_attention": True,
}  # fmt: skip
FRAMES, HEIGHT, WIDTH = 3, 5, 7
PLACES = HEIGHT * WIDTH
VIDEO_CALLS = 4
SOUND_CALLS = 12


def prompt(length: int, width: int, seed: int, words: int | None = None, **extras):
    mask = (torch.arange(length) < (length if words is None else words)).long()[None]
    return text(length, width, seed, attention_mask=mask, **extras)


def guide_mask() -> torch.Tensor:
    """The mask of a latent whose last frame is a guide."""
    mask = torch.ones(1, 1, FRAMES + 1, HEIGHT, WIDTH)
    mask[:, :, -1] = 0.0
    return mask


def guides(dropped: bool = False, strength: float = 1.0) -> dict:
    """What LTXVAddGuide leaves in the conditioning for one guide frame behind the video.

    Args:
        dropped: the guide has half the resolution, so that only every fourth token is kept.
        strength: of the attention between video and guide; other than 1 needs a mask.
    """
    import comfy.ldm.lightricks.model as host

    places = torch.arange(PLACES)
    start = torch.stack((torch.full_like(places, 8), places // WIDTH * 32, places % WIDTH * 32))
    ends_too = hasattr(host, "GuideAttentionMask")
    coordinates = torch.stack((start, start + 8), dim=-1) if ends_too else start
    mask = guide_mask()
    if dropped:
        mask[:, :, -1] = -1.0
        mask[:, :, -1, ::2, ::2] = 0.0
    entry = {"pre_filter_count": PLACES, "strength": strength, "pixel_mask": None}
    return {
        "keyframe_idxs": coordinates[None].float(),
        "concat_mask": mask,
        "guide_attention_entries": [entry | {"latent_shape": [1, HEIGHT, WIDTH]}],
    }


def drops_tokens() -> bool:
    import comfy.ldm.lightricks.model as host

    return hasattr(host, "GuideAttentionMask")


def video(name: str, head_dim: int = 64, **changes) -> Case:
    config = VIDEO | {"attention_head_dim": head_dim, "cross_attention_dim": 2 * head_dim}
    settings = {
        "name": name,
        "family": "LTX",
        "model_class": "LTXV",
        "build": functools.partial(tiny, "LTXV", config),
        "latent": lambda: torch.zeros(1, 128, FRAMES, HEIGHT, WIDTH),
        "positive": lambda: prompt(7, 48, 1),
        "negative": lambda: prompt(5, 48, 2),
        "grid": (FRAMES, HEIGHT, WIDTH),
        "layers": 2,
        "calls": VIDEO_CALLS,
    }
    return Case(**settings | changes)


def guided(name: str, positive: dict, negative: dict, **changes) -> Case:
    return video(
        name,
        latent=lambda: torch.zeros(1, 128, FRAMES + 1, HEIGHT, WIDTH),
        positive=lambda: prompt(7, 48, 1, **guides(**positive)),
        negative=lambda: prompt(5, 48, 2, **guides(**negative)),
        noise_mask=guide_mask,
        frames=(0, FRAMES - 1),
        **changes,
    )


def sound_latent(frames: int = FRAMES):
    from comfy.nested_tensor import NestedTensor

    return NestedTensor((torch.zeros(1, 128, frames, HEIGHT, WIDTH), torch.zeros(1, 8, 11, 16)))


def sound(name: str, config: dict, width: int, **changes) -> Case:
    settings = {
        "model_class": "LTXAV",
        "build": functools.partial(tiny, "LTXAV", config),
        "latent": sound_latent,
        "positive": lambda: prompt(7, width, 1),
        "negative": lambda: prompt(5, width, 2),
        "calls": SOUND_CALLS,
        "note": "sound stays dense",
    }
    return video(name, **settings | changes)


DROPPED = {"dropped": True}
WEAK = {"strength": 0.5}

CASES = [
    video("ltxv-2b", positive=lambda: prompt(9, 48, 1, words=6)),
    video("ltxv-13b", head_dim=128),
    guided("ltxv-guide", {}, {}, note="guide frames stay dense"),
    guided("ltxv-guide-at-half-resolution", DROPPED, DROPPED, exists=drops_tokens),
    guided(
        "ltxv-guide-of-other-strength", WEAK, {}, exists=drops_tokens,
        reason="query, key and value differ in shape",
        note="weighted or masked guides split attention in parts, which run dense",
    ),
    sound("ltx2", SOUND, 96),
    sound(
        "ltx2-unprocessed-text", SOUND, 48,
        positive=lambda: text(7, 48, 1), negative=lambda: text(5, 48, 2),
    ),
    sound("ltx2.3", VERSION_2_3, 256 + 128),
    sound(
        "ltx2-video-alone", SOUND, 96, calls=4,
        latent=lambda: torch.zeros(1, 128, FRAMES, HEIGHT, WIDTH),
    ),
    sound(
        "ltx2-guide", SOUND, 96, frames=(0, FRAMES - 1), noise_mask=guide_mask,
        latent=lambda: sound_latent(FRAMES + 1),
        positive=lambda: prompt(7, 96, 1, **sound_guides()),
        negative=lambda: prompt(5, 96, 2, **sound_guides()),
    ),
]  # fmt: skip


def sound_guides() -> dict:
    """The same for video and sound, whose mask is flat as their latent is."""
    values = guides()
    video_mask = values["concat_mask"].expand(1, 128, -1, -1, -1).reshape(1, 1, -1)
    return values | {"concat_mask": torch.cat((video_mask, torch.ones(1, 1, 8 * 11 * 16)), dim=-1)}
