"""Pictures of the demo page: animated videos, attention maps and block masks, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FRAME_MS = 140
# Dark blue over violet and orange to pale yellow; even steps in lightness, so that it also reads
# in grey.
RAMP = ("#0b0d2a", "#33206b", "#6d2a80", "#a83a76", "#dd5a5c", "#f58f4a", "#fbc567", "#fdf7c3")
MASK_COLOURS = ("#23263a", "#f3b24a")


def video_uri(video: Tensor, scale: int = 2) -> str:
    """Return a looping WebP of a video.

    Args:
        video: [F, H, W, 3] in 0..1, on any device.
        scale: whole number by which pixels are enlarged.
    """
    frames = []
    for frame in (video.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy():
        picture = Image.fromarray(frame)
        size = (picture.width * scale, picture.height * scale)
        frames.append(picture.resize(size, Image.Resampling.BICUBIC))
    file = io.BytesIO()
    _save_frames(frames, file)
    return _uri(file, "webp")


def attention_uri(mass: Tensor, size: int = 256) -> str:
    """Return a picture of an attention map, logarithmic in the probability.

    Args:
        mass: [n, n], probability of each cell, rows summing to about 1.
        size: side of the picture in pixels.
    """
    side = mass.shape[-1]
    # 0 = a hundredth of what an even spread would give a cell, 1 = all of the most even 3 cells.
    level = (mass.float().clamp_min(1e-12) * side).log10()
    top = max(float(level.flatten().kthvalue(max(1, int(0.998 * level.numel()))).values), 0.5)
    level = ((level + 1.5) / (top + 1.5)).clamp(0, 1)
    return _png(_colour(_fit(level, size)))


def mask_uri(mask: Tensor, size: int = 256) -> str:
    """Return a picture of a block mask: bool [query blocks, key blocks], True = computed."""
    colours = np.array([_rgb(colour) for colour in MASK_COLOURS], dtype=np.uint8)
    return _png(colours[_fit(mask.float(), size).round().to(torch.long).cpu().numpy()])


def _fit(values: Tensor, size: int) -> Tensor:
    """Scale a square map to size x size: means when it shrinks, repeated cells when it grows."""
    if values.shape[-1] > size:
        return F.adaptive_avg_pool2d(values[None, None], size)[0, 0]
    return F.interpolate(values[None, None], size=(size, size), mode="nearest")[0, 0]


def _colour(level: Tensor) -> np.ndarray:
    ramp = np.array([_rgb(colour) for colour in RAMP], dtype=np.float32)
    place = level.cpu().numpy() * (len(ramp) - 1)
    low = np.clip(place.astype(int), 0, len(ramp) - 2)
    share = (place - low)[..., None]
    return (ramp[low] * (1 - share) + ramp[low + 1] * share).round().astype(np.uint8)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return _uri(file, "png")


def _uri(file: io.BytesIO, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def comparison(rows: Sequence[Sequence[Tensor]], titles: Sequence[str], side: int = 192) -> bytes:
    """Return a looping WebP of videos in a grid, a title above each column.

    Args:
        rows: one sequence of videos [F, H, W, 3] in 0..1 per row, as many as there are titles.
        titles: of the columns.
        side: width of a video in the picture, in pixels.
    """
    gap, bar = 8, 26
    width = len(titles) * (side + gap) + gap
    height = bar + len(rows) * (side + gap)
    font = ImageFont.load_default(13)
    frames = []
    for index in range(len(rows[0][0])):
        canvas = Image.new("RGB", (width, height), "#1c1e27")
        pen = ImageDraw.Draw(canvas)
        for column, title in enumerate(titles):
            left = gap + column * (side + gap)
            pen.text((left + side / 2, bar / 2), title, "#e9e8e4", font, anchor="mm")
            for row, videos in enumerate(rows):
                pixels = (videos[column][index].clamp(0, 1) * 255).round().to(torch.uint8)
                picture = Image.fromarray(pixels.cpu().numpy())
                picture = picture.resize((side, side), Image.Resampling.BICUBIC)
                canvas.paste(picture, (left, bar + row * (side + gap)))
        frames.append(canvas)
    file = io.BytesIO()
    _save_frames(frames, file)
    return file.getvalue()


def _save_frames(frames: Sequence[Image.Image], file: io.BytesIO) -> None:
    frames[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=FRAME_MS,
        loop=0,
        quality=88,
        method=4,
    )
