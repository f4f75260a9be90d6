"""The demo's background textures: filtered noise and simple structures, one recipe per word."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

WORLD = 2.0  # a texture spans -WORLD..WORLD; the picture at zoom 1 shows -1..1
# Recipe of each background word: slope and cut-off (cycles per unit) of the noise spectrum, its
# stretch along x, then the weights of noise, ridges, stripes and bricks, the stripes' frequency,
# and how far the noise bends them.
_RECIPES = (
    # slope cut stretch noise ridge stripe brick freq bend
    (2.2, 4.0, 0.8, 1.5, 0.0, 0.0, 0.0, 1.0, 0.0),  # clouds
    (1.8, 3.5, 0.2, 0.2, 0.0, 1.3, 0.0, 2.0, 1.6),  # wood
    (1.3, 3.5, 1.0, 0.3, 1.7, 0.0, 0.0, 1.0, 0.0),  # stone
    (0.8, 5.0, 2.6, 1.3, 0.0, 0.0, 0.0, 1.0, 0.0),  # grass
    (2.0, 2.5, 0.6, 0.4, 0.0, 1.2, 0.0, 1.4, 1.0),  # sand
    (1.0, 4.0, 1.0, 0.35, 0.0, 0.0, 1.6, 1.0, 0.0),  # brick
)
_PALETTES = (
    ((0.30, 0.50, 0.82), (0.58, 0.73, 0.92), (0.97, 0.98, 1.00)),
    ((0.27, 0.14, 0.07), (0.52, 0.32, 0.16), (0.76, 0.53, 0.31)),
    ((0.16, 0.17, 0.19), (0.44, 0.45, 0.47), (0.74, 0.73, 0.71)),
    ((0.04, 0.17, 0.05), (0.16, 0.40, 0.12), (0.52, 0.68, 0.26)),
    ((0.60, 0.44, 0.24), (0.80, 0.65, 0.41), (0.95, 0.86, 0.63)),
    ((0.80, 0.74, 0.66), (0.58, 0.23, 0.16), (0.40, 0.11, 0.08)),
)


@lru_cache(maxsize=64)
def constant(values: tuple, device: torch.device) -> Tensor:
    """A constant on a device, copied there once: each copy would wait for the GPU."""
    return torch.tensor(values, device=device)


def background_texture(index: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Draw one texture per clip.

    Args:
        index: int64 ``[B]`` into ``vocabulary.BACKGROUNDS``, on the generator's device.
        size: pixels of a picture that shows half the texture's width.
        generator: source of the randomness.

    Returns:
        float32 ``[B, 3, 2 * size, 2 * size]``, about 0..1.
    """
    device, batch = index.device, index.shape[0]
    recipe = constant(_RECIPES, device)[index][:, :, None, None].unbind(1)
    slope, cut, stretch, w_noise, w_ridge, w_stripe, w_brick, rate, bend = recipe
    noise = _noise(batch, 2 * size, slope, cut, stretch, generator)
    axis = (torch.arange(2 * size, device=device) + 0.5) * (WORLD / size) - WORLD
    x, y = axis[None, None, :], axis[None, :, None]

    def uniform(low: float, high: float) -> Tensor:
        draw = torch.rand(batch, 1, 1, generator=generator, device=device)
        return draw * (high - low) + low

    tilt = uniform(-0.35, 0.35)
    along = y * tilt.cos() + x * tilt.sin()
    phase = uniform(0, 2 * math.pi)
    stripes = torch.sin(2 * math.pi * rate * uniform(0.85, 1.15) * along + bend * noise[1] + phase)
    ridges = 1.2 - 2.2 * noise[0].abs()
    value = w_noise * noise[0] + w_ridge * ridges + w_stripe * stripes
    value = value + w_brick * _bricks(x + uniform(-0.4, 0.4), y + uniform(-0.2, 0.2), size)
    return _colour(torch.sigmoid(value), index, uniform(0.92, 1.08))


def _noise(
    batch: int, n: int, slope: Tensor, cut: Tensor, stretch: Tensor, generator: torch.Generator
) -> Tensor:
    """Two independent fields ``[2, B, n, n]`` of unit variance with a power-law spectrum."""
    device = generator.device
    white = torch.randn(2, batch, n, n, generator=generator, device=device)
    # Cycles per unit of length, so that a clip looks the same at every size.
    fy = torch.fft.fftfreq(n, d=2 * WORLD / n, device=device)[None, :, None]
    fx = torch.fft.rfftfreq(n, d=2 * WORLD / n, device=device)[None, None, :]
    squared = fx * fx / (stretch * stretch) + fy * fy * (stretch * stretch)
    gain = (squared + 0.16) ** (-slope / 2) * torch.exp(-squared / (cut * cut))
    field = torch.fft.irfft2(torch.fft.rfft2(white) * gain, s=(n, n))
    return field / field.std(dim=(-2, -1), keepdim=True)


def _bricks(x: Tensor, y: Tensor, size: int) -> Tensor:
    """About +1 on a brick and -2 in the mortar, ``[B, n, n]``; bricks are 0.8 x 0.4 units."""
    row = torch.floor(y / 0.4)
    from_y = (y / 0.4 - row - 0.5).abs() * 0.4
    column = x / 0.8 + 0.5 * torch.remainder(row, 2)
    from_x = (column - torch.floor(column) - 0.5).abs() * 0.8
    inside = torch.minimum(0.2 - from_y, 0.4 - from_x) - 0.03
    return 3 * (inside * (size / 2)).clamp(-0.5, 0.5) - 0.5


def _colour(value: Tensor, index: Tensor, brightness: Tensor) -> Tensor:
    palette = constant(_PALETTES, index.device)[index][:, :, :, None, None]
    value = value[:, None]
    low, high = (1 - 2 * value).clamp_min(0), (2 * value - 1).clamp_min(0)
    mixed = palette[:, 0] * low + palette[:, 1] * (1 - low - high) + palette[:, 2] * high
    return mixed * brightness[:, None]
