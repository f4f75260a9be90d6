"""Synthetic attention whose structure is known by construction."""

from __future__ import annotations

import math

import pytest
import torch


def make_local_attention(
    grid, sharpness=(0.0, 1.0, 1.0), shift=(0, 0, 0), heads=1, features=32, noise=0.0
):
    """q, k, v [1, H, S, D] with logits that depend on the offset (df, dh, dw) of two tokens only.

    Every axis has its own cosine features, so that logits peak at offset `shift` and fall off with
    the axis' sharpness; sharpness 0 means that the axis does not matter.
    """
    coordinates = torch.stack(
        torch.meshgrid(*(torch.arange(side) for side in grid.shape), indexing="ij"), -1
    ).view(-1, 3)
    q_parts, k_parts = [], []
    for axis in range(3):
        side = grid.shape[axis]
        frequency = torch.arange(1, features // 2 + 1) * math.pi / max(side, 2)
        phase = coordinates[:, axis, None] * frequency
        moved = (coordinates[:, axis, None] + shift[axis]) * frequency
        size = (sharpness[axis] * 6 / features) ** 0.5
        q_parts.append(torch.cat([moved.cos(), moved.sin()], -1) * size)
        k_parts.append(torch.cat([phase.cos(), phase.sin()], -1) * size)
    q, k = torch.cat(q_parts, -1), torch.cat(k_parts, -1)
    scale = q.shape[-1] ** 0.5
    q, k = (x.expand(1, heads, -1, -1) for x in (q * scale, k))
    v = torch.randn(1, heads, grid.tokens, q.shape[-1])
    return q + noise * torch.randn(q.shape), k + noise * torch.randn(k.shape), v


@pytest.fixture
def local_attention():
    return make_local_attention
