"""ComfyUI conditioning for calibration runs: pure, needs no ComfyUI."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Conditioning = list[list[Any]]
"""ComfyUI's form: [[text embedding [B, L, C], {what else the model is told}], ...]."""


def zero_negative(positive: Conditioning) -> Conditioning:
    """An empty negative for a positive: the same shapes, all zeros."""
    result = []
    for cond, extras in positive:
        extras = dict(extras)
        if isinstance(extras.get("pooled_output"), Tensor):
            extras["pooled_output"] = torch.zeros_like(extras["pooled_output"])
        result.append([torch.zeros_like(cond), extras])
    return result


def with_text(base: Conditioning | None, text: Conditioning) -> Conditioning:
    """A prompt's conditioning with what else the base carries (start image, clip vision)."""
    if not base:
        return text
    extras = {k: v for k, v in base[0][1].items() if k != "pooled_output"}
    return [[cond, {**extras, **own}] for cond, own in text]
