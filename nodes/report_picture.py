"""The report picture of a calibration: attention before and after reordering, for a few heads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration import TokenGrid
from ..calibration.block_mass import block_mass
from ..calibration.token_order import grid_permutation
from .report_canvas import INK, SOFT, as_batch, colours, font, mass_levels, new_picture, paste_map

PANEL = 256
_MARGIN, _GAP, _CAPTION, _HEADER = 20, 16, 46, 96


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
    picture, draw = new_picture(width, height)
    draw.text((_MARGIN, 16), title, INK, font(22))
    draw.text((_MARGIN, 48), subtitle, SOFT, font(14))
    rows = ("before", "after")
    for row, name in enumerate(rows):
        top = _HEADER + row * (PANEL + _CAPTION)
        draw.text((_MARGIN, top), name, INK, font(18))
        note = ("model's own\ntoken order", "head's own\ntoken order")[row]
        draw.multiline_text((_MARGIN, top + 26), note, SOFT, font(13), spacing=3)
        for column, panel in enumerate(panels):
            left = _MARGIN + label + column * (PANEL + _GAP)
            mass = (panel.before, panel.after)[row]
            paste_map(picture, draw, (left, top), colours(mass_levels(mass.numpy())), PANEL)
            order = ("FHW", panel.order)[row]
            kept = kept_mass(mass, density)
            draw.text(
                (left, top + PANEL + 5),
                f"layer {panel.layer} head {panel.head}: {order}",
                INK,
                font(14),
            )
            draw.text(
                (left, top + PANEL + 23),
                f"best {density:.0%} of blocks hold {kept:.0%}",
                SOFT,
                font(13),
            )
    return torch.from_numpy(as_batch(picture))
