"""Report picture of all layers: orders, density, recall, error."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw

from .report_canvas import (
    ACCENT,
    BAR,
    INK,
    LINE,
    MARGIN,
    ROW,
    SOFT,
    Colour,
    as_batch,
    bar,
    font,
    head_lines,
    new_picture,
)
from .report_data import LayerRow, Report

ROWS_PER_COLUMN = 30
_WIDTH, _GAP = 800, 40
# Where each column starts, and its name; numbers are drawn as bars with the value on them.
_LAYER, _ORDERS, _DENSITY, _RECALL, _WORST, _ERROR = 0, 60, 300, 420, 540, 680
_NAMES = (
    (_LAYER, "layer"), (_ORDERS, "orders (heads)"), (_DENSITY, "density"), (_RECALL, "recall"),
    (_WORST, "least recall"), (_ERROR, "output error"),
)  # fmt: skip
_PALE: dict[str, Colour] = {
    "density": (226, 226, 222), "recall": (196, 218, 236), "error": (246, 205, 175)
}  # fmt: skip


def draw_table(report: Report) -> np.ndarray:
    """One row per layer, in columns of ROWS_PER_COLUMN.

    Returns:
        float32 [1, H, W, 3] in 0..1.
    """
    count = len(report.layers)
    columns = -(-count // ROWS_PER_COLUMN)
    rows = -(-count // columns)
    width = max(2 * MARGIN + columns * (_WIDTH + _GAP) - _GAP, 1040)
    top = 60 + 24 * 3 + 20
    picture, draw = new_picture(width, top + (rows + 1) * ROW + MARGIN + 16)
    head_lines(
        draw,
        f"All {count} layers at density {report.density:.2f}",
        [
            report.source,
            f"{report.band_text}; means over {report.head_count} heads. Output error: of attention "
            "with the pooled tail, relative, at 16 bits",
            "orange dot: the layers with most output error; the first to name in dense_layers",
        ],
    )
    weakest = sorted(report.layers, key=lambda row: -row.error)[: max(1, min(3, count // 4))]
    top_error = max(row.error for row in report.layers) or 1.0
    for column in range(columns):
        left = MARGIN + column * (_WIDTH + _GAP)
        for x, name in _NAMES:
            draw.text((left + x, top), name, SOFT, font(15))
        draw.line((left, top + ROW - 4, left + _WIDTH, top + ROW - 4), LINE)
        for place, row in enumerate(report.layers[column * rows : (column + 1) * rows]):
            y = top + (place + 1) * ROW
            _draw_row(draw, left, y, row, row in weakest, top_error)
    return as_batch(picture)


def _draw_row(
    draw: ImageDraw.ImageDraw, left: int, y: int, row: LayerRow, weak: bool, top_error: float
) -> None:
    if row.layer % 2:
        draw.rectangle((left, y, left + _WIDTH, y + ROW - 1), fill=(244, 244, 241))
    middle = y + ROW // 2
    draw.text((left + 34, middle), str(row.layer), INK, font(16), anchor="rm")
    if weak:
        draw.ellipse((left + 40, middle - 5, left + 50, middle + 5), fill=ACCENT)
    _orders(draw, left + _ORDERS, middle, row)
    bar(draw, left + _DENSITY, y, row.density, f"{row.density:.2f}", _PALE["density"])
    bar(draw, left + _RECALL, y, row.recall, f"{row.recall:.1%}", _PALE["recall"])
    head, least = row.worst
    bar(draw, left + _WORST, y, least, f"{least:.1%}  h{head}", _PALE["recall"], BAR + 14)
    bar(draw, left + _ERROR, y, row.error / top_error, f"{row.error:.3f}", _PALE["error"])


def _orders(draw: ImageDraw.ImageDraw, x: int, middle: int, row: LayerRow) -> None:
    """The most used orders by name and count, as far as there is room."""
    parts = [f"{name} ({heads})" if heads > 1 else name for name, heads in row.orders]
    room = _DENSITY - _ORDERS - 14
    shown = len(parts)
    text = ", ".join(parts)
    while draw.textlength(text, font(15)) > room and shown > 1:
        shown -= 1
        text = ", ".join(parts[:shown]) + f", +{len(parts) - shown}"
    draw.text((x, middle), text, INK, font(15), anchor="lm")
