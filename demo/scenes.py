"""Procedural training clips: a camera over a texture, moving objects that occlude each other.

Everything is drawn with batched tensor operations on one device and no host synchronisation, so a
batch costs a few milliseconds on a GPU. Pictures are laid out in units where the frame spans -1..1
on both axes, whatever its size in pixels; y points down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from .textures import WORLD, background_texture, constant
from .vocabulary import (
    BACKGROUNDS,
    CAMERAS,
    COLOURS,
    DIRECTIONS,
    ROWS,
    SHAPES,
    word_id,
)

OBJECTS = 3  # far distractor, main object, near distractor, in drawing order
MAIN = 1
_RGB = ((0.88, 0.13, 0.12), (0.98, 0.82, 0.10), (0.12, 0.30, 0.92), (0.96, 0.96, 0.96),
        (0.58, 0.16, 0.74))  # fmt: skip
_STEP = ((-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))  # left, right, up, down
_STILL = (0.0, 0.0)
_PAN = (_STILL, *_STEP, _STILL, _STILL)
_ZOOM_SIGN = (0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -1.0)
ZOOM = 1.5


@dataclass(frozen=True, slots=True)
class SceneLabels:
    """What the prompt of each clip says: int64 ``[B]`` indices into the vocabulary's groups."""

    shape: Tensor
    colour: Tensor
    direction: Tensor
    background: Tensor
    camera: Tensor

    def __len__(self) -> int:
        return self.shape.shape[0]

    def prompts(self) -> list[str]:
        """One prompt per clip (moves the labels to the host)."""
        groups = (SHAPES, COLOURS, DIRECTIONS, BACKGROUNDS, CAMERAS)
        columns = [
            [group[i] for i in getattr(self, field.name).tolist()]
            for field, group in zip(fields(self), groups, strict=True)
        ]
        return [
            f"a {colour} {shape} moving {direction} over {background}, camera {camera}"
            for shape, colour, direction, background, camera in zip(*columns, strict=True)
        ]


def sample_labels(batch: int, generator: torch.Generator) -> SceneLabels:
    """Draw independent, uniform labels on the generator's device."""
    device = generator.device
    counts = (len(SHAPES), len(COLOURS), len(DIRECTIONS), len(BACKGROUNDS), len(CAMERAS))
    return SceneLabels(
        *(torch.randint(n, (batch,), generator=generator, device=device) for n in counts)
    )


def word_ids(
    labels: SceneLabels,
    generator: torch.Generator,
    word_dropout: float = 0.0,
    prompt_dropout: float = 0.0,
) -> Tensor:
    """The prompt of each clip as rows of ``vocabulary.context_table``: int64 ``[B, 16]``.

    Args:
        labels: what the clips show.
        generator: source of the dropouts, on the labels' device.
        word_dropout: chance that a word other than shape and direction is left out.
        prompt_dropout: chance that the whole prompt is left out, for guidance.
    """
    device = generator.device
    columns = []
    for group, index in (
        (SHAPES, labels.shape),
        (COLOURS, labels.colour),
        (DIRECTIONS, labels.direction),
        (BACKGROUNDS, labels.background),
        (CAMERAS, labels.camera),
    ):
        word = index + word_id(group[0])
        if group not in (SHAPES, DIRECTIONS):
            kept = torch.rand(len(labels), generator=generator, device=device) >= word_dropout
            word = word * kept
        columns.append(word)
    ids = F.pad(torch.stack(columns, dim=1), (0, ROWS - len(columns)))
    kept = torch.rand(len(labels), 1, generator=generator, device=device) >= prompt_dropout
    return ids * kept


def render(labels: SceneLabels, frames: int, size: int, generator: torch.Generator) -> Tensor:
    """Draw one clip per label.

    The main object crosses the screen in its named direction whatever the camera does; the
    background and the distractors, whose looks and paths are random, move with the camera.

    Args:
        labels: what the clips show, on the generator's device.
        frames: frames of a clip; the whole motion is spread over them.
        size: height and width in pixels.
        generator: source of everything the labels leave open.

    Returns:
        float32 ``[B, F, size, size, 3]``, 0..1.

    Raises:
        ValueError: ``frames`` is below 2 or ``size`` below 16.
    """
    if frames < 2 or size < 16:
        raise ValueError(f"frames and size must be at least 2 and 16, got {frames} and {size}")
    device, batch = generator.device, len(labels)
    time = torch.linspace(-0.5, 0.5, frames, device=device)
    axis = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    x, y = axis.expand(size, size), axis[:, None].expand(size, size)
    pan, zoom = _camera(labels.camera, time, generator)

    texture = background_texture(labels.background, size, generator)
    grid_x = (x[None, None] / zoom[..., None, None] + pan[..., 0, None, None]) / WORLD
    grid_y = (y[None, None] / zoom[..., None, None] + pan[..., 1, None, None]) / WORLD
    grid = torch.stack([grid_x, grid_y], dim=-1).reshape(batch, frames * size, size, 2)
    video = F.grid_sample(texture, grid, padding_mode="reflection", align_corners=False)
    video = video.view(batch, 3, frames, size, size)

    for layer in range(OBJECTS):
        colour, alpha = _draw_object(layer, labels, time, pan, zoom, x, y, generator)
        video = torch.lerp(video, colour, alpha)
    return video.permute(0, 2, 3, 4, 1).clamp(0, 1)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def _camera(index: Tensor, time: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """World position of the picture's centre ``[B, F, 2]`` and zoom factor ``[B, F]``."""
    device, batch = index.device, index.shape[0]
    direction = constant(_PAN, device)[index]
    speed = _uniform((batch, 1), 0.8, 1.2, generator)
    start = _uniform((batch, 1, 2), -0.3, 0.3, generator)
    pan = start + (direction * speed)[:, None] * time[None, :, None]
    sign = constant(_ZOOM_SIGN, device)[index]
    zoom = torch.exp(math.log(ZOOM) * sign[:, None] * time[None])
    return pan, zoom


def _draw_object(
    layer: int,
    labels: SceneLabels,
    time: Tensor,
    pan: Tensor,
    zoom: Tensor,
    x: Tensor,
    y: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Colour ``[B, 3, F, H, W]`` and coverage ``[B, 1, F, H, W]`` of one object."""
    device, batch = x.device, len(labels)
    if layer == MAIN:
        step = constant(_STEP, device)[labels.direction]
        radius = _uniform((batch, 1), 0.38, 0.48, generator) * zoom.sqrt()
        across = _uniform((batch, 1), -0.35, 0.35, generator)
        travel = _uniform((batch, 1), 1.0, 1.25, generator)
        centre = (step.flip(1) * across)[:, None] + (step * travel)[:, None] * time[None, :, None]
        shape, colour_index = labels.shape, labels.colour
        present = torch.ones(batch, device=device)
    else:
        angle = _uniform((batch,), 0, 2 * math.pi, generator)
        speed = _uniform((batch,), 0.0, 0.9, generator)
        step = torch.stack([angle.cos(), angle.sin()], dim=1) * speed[:, None]
        home = _uniform((batch, 1, 2), -0.8, 0.8, generator)
        drift = pan - pan.mean(dim=1, keepdim=True)
        centre = (home + step[:, None] * time[None, :, None] - drift) * zoom[..., None]
        radius = _uniform((batch, 1), 0.16, 0.24, generator) * zoom
        shape = torch.randint(len(SHAPES), (batch,), generator=generator, device=device)
        colour_index = torch.randint(len(COLOURS), (batch,), generator=generator, device=device)
        present = (_uniform((batch,), 0, 1, generator) < 0.75).float()

    tilt = _uniform((batch, 1, 1, 1), -0.2, 0.2, generator)
    dx = (x - centre[..., 0, None, None]) / radius[..., None, None]
    dy = (y - centre[..., 1, None, None]) / radius[..., None, None]
    u = dx * tilt.cos() + dy * tilt.sin()
    v = dy * tilt.cos() - dx * tilt.sin()
    distance = _shape_distance(shape, u, v)

    pixels = radius[..., None, None] * (x.shape[-1] / 2)
    alpha = (0.5 - distance * pixels).clamp(0, 1) * present[:, None, None, None]
    rim = (-distance / 0.1).clamp(0, 1) * 0.9 + 0.1
    light = _object_pattern(u, v, generator) * rim * (1 - 0.12 * (u + v))
    rgb = constant(_RGB, device)[colour_index]
    return rgb[:, :, None, None, None] * light[:, None], alpha[:, None]


def _object_pattern(u: Tensor, v: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness ``[B, F, H, W]`` of stripes or checks fixed to the object, 0.62..1."""
    batch = u.shape[0]
    angle = _uniform((batch, 1, 1, 1), 0, math.pi, generator)
    rate = _uniform((batch, 1, 1, 1), 4.5, 7.0, generator)
    phase = _uniform((batch, 1, 1, 1), 0, 2 * math.pi, generator)
    checks = (_uniform((batch, 1, 1, 1), 0, 1, generator) < 0.5).float()
    along = torch.sin(rate * (u * angle.cos() + v * angle.sin()) + phase)
    across = torch.sin(rate * (v * angle.cos() - u * angle.sin()) + phase)
    wave = along * (1 + checks * (across - 1))
    return 0.81 + 0.19 * torch.tanh(3 * wave)


def _shape_distance(shape: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Signed distance (in radii, negative inside) to the shape of each clip, all ``[B, F, H, W]``.

    Exact or a lower bound near the outline, which is all that antialiasing needs.
    """
    length = torch.sqrt(u * u + v * v + 1e-6)
    square = torch.maximum(u.abs(), v.abs()) - 0.8
    triangle = torch.maximum(0.866 * u.abs() - 0.5 * (v - 0.1), v - 0.1) - 0.58
    # A five-pointed star is symmetric: fold the angle from the upper tip into one half-sector.
    turn = torch.atan2(u, -v) * (5 / (2 * math.pi))
    angle = (turn - turn.round()).abs() * (2 * math.pi / 5)
    inner = 0.45
    end_x, end_y = inner * math.cos(math.pi / 5), inner * math.sin(math.pi / 5)
    norm = math.hypot(end_y, 1 - end_x)
    star = (length * (end_y * angle.cos() + (1 - end_x) * angle.sin()) - 1.12 * end_y) / norm
    ring = (length - 0.66).abs() - 0.26
    distances = (length - 0.9, square, triangle, star, ring)
    out = distances[0]
    for index in range(1, len(distances)):
        out = torch.where((shape == index)[:, None, None, None], distances[index], out)
    return out
