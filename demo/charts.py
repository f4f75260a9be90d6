"""Small line and bar charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 44


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: points are (x, y); colour is the number of a style-sheet colour."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


def line_chart(lines: Sequence[Line], x_label: str, y_label: str, *, from_zero: bool = True) -> str:
    """Return an SVG with one mark per point, ticks at the x values that occur, and a legend.

    Args:
        lines: at least one point among them.
        x_label, y_label: axis names.
        from_zero: whether the y axis begins at zero.

    Raises:
        ValueError: no point to draw.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        raise ValueError("lines must have at least one point, got none")
    xs = sorted({x for x, _ in points})
    # A margin beside the outermost x values keeps their marks off the frame.
    margin = 0.06 * (xs[-1] - xs[0]) or 0.5
    x_low, x_high = xs[0] - margin, xs[-1] + margin
    y_ticks = ticks(0 if from_zero else min(y for _, y in points), max(y for _, y in points))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(up, 1)

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
    parts.append(f"<title>{escape(y_label)} against {escape(x_label)}</title>")
    for y in y_ticks:
        _, up = at(x_low, y)
        parts.append(f'<path class="rule" d="M{LEFT} {up}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{up + 4}" text-anchor="end">{number(y)}</text>')
    for x in xs:
        across, _ = at(x, y_low)
        below = HEIGHT - BOTTOM + 17
        parts.append(f'<text x="{across}" y="{below}" text-anchor="middle">{number(x)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    for line in lines:
        placed = [at(x, y) for x, y in sorted(line.points)]
        if not placed:
            continue
        style = f"c{line.colour}" + (" dashed" if line.dashed else "")
        path = "M" + "L".join(f"{x} {y}" for x, y in placed)
        parts.append(f'<path class="line {style}" d="{path}"/>')
        for (x, y), (across, up) in zip(sorted(line.points), placed, strict=True):
            label = escape(f"{line.label}: {number(y)} at {number(x)}")
            parts.append(
                f'<circle class="mark {style}" cx="{across}" cy="{up}" r="4">'
                f"<title>{label}</title></circle>"
            )
    parts.append("</svg>")
    return "".join(parts)


def legend(lines: Sequence[Line]) -> str:
    """Return the key that charts with the same lines share."""
    items = []
    for line in lines:
        style = f"c{line.colour}" + (" dashed" if line.dashed else "")
        items.append(
            f'<li><svg viewBox="0 0 28 10"><path class="line {style}" d="M1 5H27"/>'
            f'<circle class="mark {style}" cx="14" cy="5" r="3.5"/></svg>{escape(line.label)}</li>'
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def bar_chart(bars: Sequence[tuple[str, float]], unit: str = "") -> str:
    """Return an HTML list of horizontal bars, each with its label and value."""
    top = max((value for _, value in bars), default=0) or 1
    rows = [
        f'<li><span>{escape(label)}</span><i style="width:{100 * value / top:.1f}%"></i>'
        f"<b>{number(value)}{escape(unit)}</b></li>"
        for label, value in bars
    ]
    return f'<ul class="bars">{"".join(rows)}</ul>'


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers that cover low..high with about `wanted` steps."""
    span = (high - low) or abs(high) or 1.0
    raw = span / wanted
    power = 10.0 ** floor(log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = floor(low / step + 1e-9)
    values = [first * step]
    while values[-1] < high - 1e-9 * span:
        first += 1
        values.append(first * step)
    if len(values) == 1:
        values.append(values[0] + step)
    return [round(value, 12) for value in values]


def number(value: float) -> str:
    """Return a short decimal: three significant digits, no trailing zeros."""
    if value == 0:
        return "0"
    digits = max(0, 2 - floor(log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
