"""Report pictures of single heads: block mass before and after reordering, and the masks."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from .report_canvas import (
    INK,
    MARGIN,
    SOFT,
    as_batch,
    colour_scale,
    colours,
    font,
    head_lines,
    mass_levels,
    new_picture,
    paste_map,
    top_mass,
)
from .report_data import HeadView, Report

SIDE = 300
_LABEL, _GAP, _CAPTION = 150, 24, 56


def draw_maps(report: Report) -> np.ndarray:
    """Expected block mass of each head in the model's own order and in its own.

    Returns:
        float32 [1, H, W, 3] in 0..1.
    """
    picture, draw, top = _page(
        report,
        "Attention before and after reordering",
        [f"{report.band_text}; expected attention of each block, by the plan's offset profiles"],
        rows=2,
    )
    for row, (name, note) in enumerate(
        (("before", "tokens in the\nmodel's own\norder"), ("after", "tokens in the\nhead's order"))
    ):
        y = top + row * (SIDE + _CAPTION)
        _row_label(draw, y, name, note)
        for column, head in enumerate(report.heads):
            x = MARGIN + _LABEL + column * (SIDE + _GAP)
            mass, kept = ((head.before, head.kept_before), (head.after, head.kept_after))[row]
            # One scale for both rows: what gets brighter is attention that came together.
            pixels = colours(mass_levels(mass, top_mass(head.after)))
            paste_map(picture, draw, (x, y), pixels, SIDE)
            order = ("model's order (FHW)", f"order {head.order}")[row]
            first = f"layer {head.layer} head {head.head}, {order}"
            _caption(draw, x, y, first, f"best {head.density:.0%} of blocks hold {kept:.0%}")
    colour_scale(picture, draw, MARGIN + _LABEL, top + 2 * (SIDE + _CAPTION) + 2)
    return as_batch(picture)


def draw_masks(report: Report) -> np.ndarray:
    """Which blocks Load PARO computes at the report's density.

    Returns:
        float32 [1, H, W, 3] in 0..1.
    """
    picture, draw, top = _page(
        report,
        f"What is computed at density {report.density:.2f}",
        [
            f"{report.band_text}: {report.band_density:.0%} of all blocks on average; heads share "
            "one budget, so each has a density of its own",
            "in colour: computed in full; grey: left out, a pooled key and value stand for it",
        ],
        rows=1,
    )
    _row_label(draw, top, "mask", "tokens in the\nhead's order")
    for column, head in enumerate(report.heads):
        x = MARGIN + _LABEL + column * (SIDE + _GAP)
        paste_map(picture, draw, (x, top), mask_pixels(head), SIDE)
        first = f"layer {head.layer} head {head.head}, order {head.order}"
        second = f"{head.density:.0%} computed, recall {head.recall_here:.1%}"
        _caption(draw, x, top, first, second)
    colour_scale(picture, draw, MARGIN + _LABEL, top + SIDE + _CAPTION + 2)
    return as_batch(picture)


def mask_pixels(head: HeadView) -> np.ndarray:
    """uint8 [Qb, KVb, 3]: block mass in colour where the mask computes it, else in pale grey."""
    levels = mass_levels(head.after, top_mass(head.after))
    grey = (236 - 40 * levels).round().astype(np.uint8)[..., None].repeat(3, -1)
    return np.where(head.mask[..., None], colours(levels), grey)


def _page(report: Report, title: str, lines: list[str], rows: int):
    columns = max(1, len(report.heads))
    # A page with few heads is still wide enough for its words.
    width = max(2 * MARGIN + _LABEL + columns * (SIDE + _GAP) - _GAP, 1040)
    top = 60 + 24 * (len(lines) + 1) + 18
    picture, draw = new_picture(width, top + rows * (SIDE + _CAPTION) + 44)
    head_lines(draw, title, [report.source, *lines])
    return picture, draw, top


def _row_label(draw: ImageDraw.ImageDraw, y: int, name: str, note: str) -> None:
    draw.text((MARGIN, y - 4), name, INK, font(24))
    draw.multiline_text((MARGIN, y + 32), note, SOFT, font(16), spacing=5)
    # What the axes are, once per row: queries go down, keys go right.
    x, corner = MARGIN + 4, y + SIDE - 64
    for end in ((x + 56, corner), (x, corner + 56)):
        draw.line((x, corner, *end), SOFT, 2)
    draw.polygon([(x + 62, corner), (x + 53, corner - 5), (x + 53, corner + 5)], SOFT)
    draw.polygon([(x, corner + 62), (x - 5, corner + 53), (x + 5, corner + 53)], SOFT)
    draw.text((x + 4, corner - 8), "keys", SOFT, font(15), anchor="ls")
    draw.text((x + 12, corner + 40), "queries", SOFT, font(15), anchor="lm")


def _caption(draw: ImageDraw.ImageDraw, x: int, y: int, first: str, second: str) -> None:
    size = 16
    while draw.textlength(first, font(size)) > SIDE and size > 11:
        size -= 1
    draw.text((x, y + SIDE + 5), first, INK, font(size))
    draw.text((x, y + SIDE + 26), second, SOFT, font(16))
