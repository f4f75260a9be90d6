"""Report picture of PARO Probe: the layers, greatest error first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .probing import LayerError
from .report_canvas import (
    ACCENT,
    INK,
    LINE,
    MARGIN,
    ROW,
    SOFT,
    as_batch,
    bar,
    font,
    head_lines,
    new_picture,
)

ROWS_PER_COLUMN = 30
_WIDTH, _GAP, _WIDE = 560, 40, 220
_LAYER, _ERROR, _COSINE, _HEAD = 0, 60, 300, 400
_NAMES = ((_LAYER, "layer"), (_ERROR, "output error"), (_COSINE, "cosine"), (_HEAD, "worst head"))


def draw_probe(rows: Sequence[LayerError], title: str, lines: Sequence[str]) -> np.ndarray:
    """Draw the rows in their order, in columns of ROWS_PER_COLUMN.

    Returns:
        float32 [1, H, W, 3] in 0..1.
    """
    columns = max(1, -(-len(rows) // ROWS_PER_COLUMN))
    length = -(-len(rows) // columns)
    width = max(2 * MARGIN + columns * (_WIDTH + _GAP) - _GAP, 1040)
    top = 60 + 24 * len(lines) + 20
    picture, draw = new_picture(width, top + (length + 1) * ROW + MARGIN + 16)
    head_lines(draw, title, lines)
    most = max((row.error for row in rows), default=0.0) or 1.0
    for place, row in enumerate(rows):
        column, line = divmod(place, length)
        left = MARGIN + column * (_WIDTH + _GAP)
        if line == 0:
            for x, name in _NAMES:
                draw.text((left + x, top), name, SOFT, font(15))
            draw.line((left, top + ROW - 4, left + _WIDTH, top + ROW - 4), LINE)
        y = top + (line + 1) * ROW
        middle = y + ROW // 2
        draw.text((left + 34, middle), str(row.layer), INK, font(16), anchor="rm")
        colour = (246, 205, 175)
        bar(draw, left + _ERROR, y, row.error / most, f"{row.error:.4f}", colour, _WIDE)
        draw.text((left + _COSINE, middle), f"{row.cosine:.5f}", INK, font(15), anchor="lm")
        text = f"{row.worst_head}: {row.worst_error:.3f}"
        strange = row.worst_error > 3 * row.error
        draw.text((left + _HEAD, middle), text, ACCENT if strange else INK, font(15), anchor="lm")
    return as_batch(picture)
