"""Kandinsky 5: video Lite and Pro, image."""

from __future__ import annotations

import torch

from .case import Case, noise, text, tiny

LITE = {
    "image_model": "kandinsky5", "in_text_dim": 48, "in_text_dim2": 32, "time_dim": 64,
    "model_dim": 128, "ff_dim": 128, "visual_embed_dim": 132, "num_text_blocks": 2,
    "num_visual_blocks": 3, "axes_dims": (16, 24, 24),
}  # fmt: skip
PRO = LITE | {"model_dim": 256, "axes_dims": (32, 48, 48)}
IMAGE = PRO | {"visual_embed_dim": 64, "rope_scale_factor": (1.0, 1.0, 1.0)}


def prompt(length: int, seed: int, **extras):
    (features, values), *_ = text(length, 48, seed, **extras)
    return [[features, values | {"pooled_output": noise(1, 32, seed=seed)}]]


def case(
    name: str, model_class: str, config: dict, shape: tuple[int, ...], frames=None, **extras
) -> Case:
    return Case(
        name=name,
        family="Kandinsky 5",
        model_class=model_class,
        build=lambda: tiny(model_class, config),
        latent=lambda: torch.zeros(1, 16, *shape),
        positive=lambda: prompt(7, 1, **extras),
        negative=lambda: prompt(5, 2, **extras),
        grid=(shape[0] if len(shape) == 3 else 1, 7, 9),
        layers=3,
        calls=8,
        frames=frames,
        note="text has attention of its own, which stays dense",
    )


CASES = [
    case("kandinsky5-lite", "Kandinsky5", LITE, (3, 14, 18)),
    case("kandinsky5-pro", "Kandinsky5", PRO, (3, 14, 18)),
    case(
        "kandinsky5-i2v", "Kandinsky5", LITE, (3, 14, 18), (1, 2),
        time_dim_replace=noise(1, 16, 1, 14, 18),
    ),
    case("kandinsky5-image", "Kandinsky5Image", IMAGE, (14, 18)),
]  # fmt: skip
