"""Report picture of recall against density: all heads together, and single ones."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from .report_canvas import (
    ACCENT,
    INK,
    SERIES,
    SOFT,
    Axes,
    Colour,
    as_batch,
    font,
    head_lines,
    new_picture,
)
from .report_data import DENSITIES, HeadView, Report

_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
_BAND: Colour = (214, 226, 236)


def draw_curves(report: Report) -> np.ndarray:
    """Recall over density, measured at calibration.

    Returns:
        float32 [1, H, W, 3] in 0..1.
    """
    picture, draw = new_picture(1460, 766)
    head_lines(
        draw,
        "How much attention the computed blocks hold",
        [report.source, "recall measured at calibration, over density (computed / all blocks)"],
    )
    _all_heads(draw, report)
    for place, head in enumerate(report.heads):
        row, column = divmod(place, 2)
        _one_head(draw, head, Axes(880 + column * 300, 166 + row * 286, 240, 190))
    y = 166 + 2 * 286 - 20
    _legend(draw, 880, y, SERIES[0], "masks of this plan")
    _legend(draw, 1110, y, INK, "best possible masks", dashed=True, width=1)
    return as_batch(picture)


def _all_heads(draw: ImageDraw.ImageDraw, report: Report) -> None:
    axes = Axes(96, 166, 680, 476)
    axes.frame(
        draw, f"mean of all {report.layer_count * report.head_count} heads, by noise band",
        "density", _TICKS, _TICKS, 17,
    )  # fmt: skip
    low, high = report.spread
    outline = [axes.at(x, y) for x, y in zip(DENSITIES, high, strict=True)]
    outline += [axes.at(x, y) for x, y in zip(DENSITIES, low, strict=True)][::-1]
    draw.polygon(outline, fill=_BAND)
    for band, curve in enumerate(report.band_recall):
        shown = band == report.band
        colour = SERIES[band % len(SERIES)]
        axes.curve(draw, DENSITIES, curve, colour, dashed=not shown, width=5 if shown else 2)
    axes.upright(draw, report.band_density)
    here = float(np.interp(report.band_density, DENSITIES, report.band_recall[report.band]))
    axes.mark(draw, report.band_density, here, ACCENT)
    x, y = axes.at(report.band_density, 0.5)
    right = report.band_density < 0.6
    text = f"density {report.band_density:.2f}\nin this band\nrecall {report.recall:.1%}"
    draw.multiline_text(
        (x + (12 if right else -12), y), text, INK, font(19), anchor="la" if right else "ra",
        spacing=5,
    )  # fmt: skip
    # Beside the steep start nothing is drawn, whatever the curves: the legend's place.
    x, y = 420, 470
    for band in range(report.bands):
        name = f"band {band}" + (" (noisiest)" if band == 0 else "")
        shown = band == report.band
        name += ", shown" if shown else ""
        colour = SERIES[band % len(SERIES)]
        _legend(draw, x, y, colour, name, dashed=not shown, width=5 if shown else 2)
        y += 26
    draw.rectangle((x, y + 3, x + 34, y + 17), fill=_BAND)
    draw.text((x + 44, y), "8 of 10 heads lie here (band shown)", SOFT, font(16))


def _one_head(draw: ImageDraw.ImageDraw, head: HeadView, axes: Axes) -> None:
    title = f"layer {head.layer} head {head.head}: {head.order}"
    axes.frame(draw, title, "", (0.0, 0.5, 1.0), (0.0, 0.5, 1.0), 14)
    axes.curve(draw, DENSITIES, head.recall, SERIES[0], width=4)
    axes.curve(draw, DENSITIES, head.best, INK, dashed=True, width=1)  # mostly right on top
    axes.upright(draw, head.density)
    axes.mark(draw, head.density, head.recall_here, ACCENT)
    x, y = axes.left + axes.width - 8, axes.top + axes.height - 12
    text = f"at {head.density:.2f}: {head.recall_here:.1%}"
    draw.text((x, y), text, INK, font(17), anchor="rs")


def _legend(
    draw: ImageDraw.ImageDraw, x: int, y: int, colour: Colour, text: str, *, dashed: bool = False,
    width: int = 3,
) -> None:  # fmt: skip
    middle = y + 10
    pieces = ((0, 34),) if not dashed else ((0, 8), (13, 21), (26, 34))
    for start, end in pieces:
        draw.line((x + start, middle, x + end, middle), colour, width)
    draw.text((x + 44, y), text, SOFT, font(16))
