"""Latents of video and sound."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from paro_attention.nodes.latents import video_of


def test_a_plain_latent_is_the_video():
    latent = torch.zeros(1, 16, 3, 4, 6)
    assert video_of(latent) is latent


def test_the_first_of_nested_latents_is_the_video():
    video, sound = torch.zeros(1, 128, 3, 4, 6), torch.zeros(1, 8, 11, 16)
    nested: Any = SimpleNamespace(is_nested=True, unbind=lambda: [video, sound])
    assert video_of(nested) is video
