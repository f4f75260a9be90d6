"""Synthetic attention whose structure is known by construction."""

from __future__ import annotations

import math

import pytest
import torch
from paro_attention.calibration import ModelIdentity, Recorder, TokenGrid


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


SIGMAS = tuple(1 - step / 20 for step in range(20))


class SyntheticModel:
    """A model of 2 layers x 3 heads with known attention; every seed is another prompt."""

    def __init__(self, grid):
        self.grid, self.layers, self.heads = grid, 2, 3
        self.identity = ModelIdentity("architecture", "weights", 2, 3, 96, "synthetic model")

    def attention(self, seed):
        """q, k, v [1, 3, S, 96] of each layer."""
        torch.manual_seed(seed)
        # All frames at one place; the frame itself and its neighbours; a column of the picture.
        kinds = [((0, 0.7, 0.7), 0), ((1.0, 0.3, 0.3), 1), ((0, 0, 1.0), 0)]
        layers = []
        for _ in range(self.layers):
            heads = [
                make_local_attention(self.grid, sharpness, (shift, 0, 0), noise=0.2)
                for sharpness, shift in kinds
            ]
            layers.append([torch.cat(parts, 1) for parts in zip(*heads, strict=True)])
        return layers

    def recorder(self, **options):
        options = {"block": (32, 32), "prompts": 2, "steps_per_band": 1} | options
        return Recorder(
            self.grid, layers=2, heads=3, head_dim=96, schedule=[*SIGMAS, 0.0], **options
        )

    def record(self, recorder):
        """Samples every prompt of a recorder."""
        for prompt in range(recorder.runs_needed):
            recorder.begin_prompt(prompt)
            layers = self.attention(prompt)
            for sigma in SIGMAS:
                for layer, inputs in enumerate(layers):
                    if recorder.wants(layer, sigma):
                        recorder.record(layer, sigma, *inputs)
        return recorder


@pytest.fixture(scope="session")
def synthetic_model():
    return SyntheticModel(TokenGrid(4, 10, 12))


@pytest.fixture(scope="session")
def recorded(synthetic_model):
    """A recorder that has seen everything, for all three kinds of orders."""
    return synthetic_model.record(synthetic_model.recorder(orders=("tiles", "axes", "fhw")))


@pytest.fixture(scope="session")
def plan(synthetic_model, recorded):
    return recorded.finish(synthetic_model.identity, "from a test")
