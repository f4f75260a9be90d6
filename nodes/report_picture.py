"""The report picture of a calibration: attention before and after reordering, for a few heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..calibration import TokenGrid
from ..calibration.block_mass import block_mass
from ..calibration.token_order import grid_permutation

PANEL = 256
_MARGIN, _GAP, _CAPTION, _HEADER = 20, 16, 46, 96
_INK, _SOFT, _PAPER, _LINE = (28, 30, 36), (96, 100, 110), (250, 250, 248), (208, 208, 204)
# Dark to light; interpolated between these, so that stripes show against an empty background.
_COLOURS = np.array(
    [(18, 18, 40), (56, 32, 110), (140, 40, 120), (224, 84, 84), (250, 170, 80), (254, 250, 210)],
    dtype=np.float32,
)


@dataclass(frozen=True, slots=True)
class HeadSample:
    """q and k of one head at one step: [S, D], in the model's order."""

    layer: int
    head: int
    sigma: float
    q: Tensor
    k: Tensor


@dataclass(frozen=True, slots=True)
class HeadPanel:
    """Block mass of one head in the model's order and in the chosen one, [Qb, KVb] each."""

    layer: int
    head: int
    order: str
    before: Tensor
    after: Tensor


def head_panel(
    sample: HeadSample,
    grid: TokenGrid,
    order: str,
    block: tuple[int, int],
    device: torch.device | str = "cpu",
) -> HeadPanel:
    """Compute both block masses of a head, on `device`: whole maps take minutes on a CPU."""
    q, k = (x[None, None].to(device) for x in (sample.q, sample.k))
    permutations = torch.stack([grid_permutation("FHW", grid), grid_permutation(order, grid)])
    _, mass = next(iter(block_mass(q, k, permutations, block)))
    before, after = mass.cpu()
    return HeadPanel(sample.layer, sample.head, order, before, after)


def kept_mass(mass: Tensor, density: float) -> float:
    """Share of the attention that the best blocks hold at this density, 0..1."""
    blocks = max(1, round(mass.numel() * density))
    return (mass.flatten().topk(blocks).values.sum() / mass.sum()).item()


def draw_report(panels: list[HeadPanel], title: str, subtitle: str, density: float) -> Tensor:
    """Draw the report.

    Args:
        panels: one column per head.
        title: first line.
        subtitle: second line.
        density: for which the captions say how much attention is kept.

    Returns:
        IMAGE [1, H, W, 3] in 0..1.
    """
    columns = max(1, len(panels))
    label = 92
    width = 2 * _MARGIN + label + columns * PANEL + (columns - 1) * _GAP
    height = _HEADER + 2 * (PANEL + _CAPTION) + _MARGIN
    picture = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 16), title, _INK, _font(22))
    draw.text((_MARGIN, 48), subtitle, _SOFT, _font(14))
    rows = ("before", "after")
    for row, name in enumerate(rows):
        top = _HEADER + row * (PANEL + _CAPTION)
        draw.text((_MARGIN, top), name, _INK, _font(18))
        note = ("model's own\ntoken order", "head's own\ntoken order")[row]
        draw.multiline_text((_MARGIN, top + 26), note, _SOFT, _font(13), spacing=3)
        for column, panel in enumerate(panels):
            left = _MARGIN + label + column * (PANEL + _GAP)
            mass = (panel.before, panel.after)[row]
            picture.paste(_heat_map(mass), (left, top))
            draw.rectangle((left - 1, top - 1, left + PANEL, top + PANEL), outline=_LINE)
            order = ("FHW", panel.order)[row]
            kept = kept_mass(mass, density)
            draw.text(
                (left, top + PANEL + 5),
                f"layer {panel.layer} head {panel.head}: {order}",
                _INK,
                _font(14),
            )
            draw.text(
                (left, top + PANEL + 23),
                f"best {density:.0%} of blocks hold {kept:.0%}",
                _SOFT,
                _font(13),
            )
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def _heat_map(mass: Tensor) -> Image.Image:
    """Block mass as a square picture, on a logarithmic scale of three decades below its top."""
    values = mass.float().clamp(min=1e-12)
    top = values.flatten().quantile(0.999) if values.numel() < 1 << 24 else values.max()
    level = (1 + (values / top).log10() / 3).clamp(0, 1)
    level = torch.nn.functional.interpolate(level[None, None], (PANEL, PANEL), mode="area")
    position = level[0, 0].numpy() * (len(_COLOURS) - 1)
    below = np.minimum(position.astype(np.int64), len(_COLOURS) - 2)
    share = (position - below)[..., None]
    colours = _COLOURS[below] * (1 - share) + _COLOURS[below + 1] * share
    return Image.fromarray(colours.round().astype(np.uint8))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
