"""What all report pictures share: colours, type, heat maps, plots. numpy and Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, SOFT, PAPER, LINE, FAINT = (
    (28, 30, 36), (92, 96, 106), (250, 250, 248), (205, 205, 200), (232, 232, 228)
)  # fmt: skip
MARGIN = 24
# Blue, orange, green, purple, brown of Okabe and Ito: told apart by every kind of colour vision.
SERIES = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (120, 94, 40))
ACCENT = SERIES[1]
# Dark blue to yellow over grey ("cividis"): the same for every kind of colour vision, and monotone
# in lightness, so that it survives a print in grey too.
_COLOURS = np.array(
    [
        (0, 32, 76), (0, 48, 111), (57, 72, 109), (87, 93, 109), (112, 113, 115),
        (138, 134, 120), (166, 156, 117), (195, 179, 105), (226, 205, 82), (255, 234, 70),
    ],
    dtype=np.float32,
)  # fmt: skip
DECADES = 3
"""A heat map shows this many powers of ten below its brightest block."""

ROW, BAR = 26, 106
"""Height of a table's row, width of a bar in it."""

Colour = tuple[int, int, int]
Points = Sequence[float] | np.ndarray


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """The type that comes with Pillow, so that every machine draws the same."""
    return ImageFont.load_default(size)


def new_picture(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """An empty page and its pen."""
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def head_lines(draw: ImageDraw.ImageDraw, title: str, lines: Sequence[str]) -> int:
    """Draw a page's title and the lines below it; returns the y below them."""
    draw.text((MARGIN, 18), title, INK, font(28))
    y = 60
    for line in lines:
        draw.text((MARGIN, y), line, SOFT, font(17))
        y += 24
    return y + 10


def as_batch(picture: Image.Image) -> np.ndarray:
    """float32 [1, H, W, 3] in 0..1."""
    return np.asarray(picture, dtype=np.float32)[None] / 255


def colours(levels: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] colours of levels in 0..1, dark to bright."""
    position = np.clip(levels, 0, 1) * (len(_COLOURS) - 1)
    below = np.minimum(position.astype(np.int64), len(_COLOURS) - 2)
    share = (position - below)[..., None]
    return (_COLOURS[below] * (1 - share) + _COLOURS[below + 1] * share).round().astype(np.uint8)


def mass_levels(mass: np.ndarray, top: float | None = None) -> np.ndarray:
    """Block mass [Qb, KVb] as levels in 0..1 on a logarithmic scale of DECADES.

    Args:
        mass: >= 0.
        top: the mass at level 1; None takes the 99.9th percentile.
    """
    values = np.maximum(mass.astype(np.float64), 1e-12)
    top = top or top_mass(mass)
    return np.clip(1 + np.log10(values / top) / DECADES, 0, 1)


def top_mass(mass: np.ndarray) -> float:
    """The mass that a heat map draws brightest."""
    return max(float(np.quantile(mass, 0.999)), 1e-12)


def fitted(pixels: np.ndarray, width: int, height: int) -> Image.Image:
    """uint8 [H, W, 3] as a picture of a given size: averaged where it shrinks, else as blocks."""
    picture = Image.fromarray(pixels)
    # Axis by axis: a map may have more query blocks than pixels and fewer key blocks.
    for size in ((width, picture.height), (width, height)):
        shrinks = size[0] < picture.width or size[1] < picture.height
        how = Image.Resampling.BOX if shrinks else Image.Resampling.NEAREST
        picture = picture.resize(size, how)
    return picture


def paste_map(
    picture: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], pixels: np.ndarray,
    side: int,
) -> None:  # fmt: skip
    """Put a square map with a thin frame at `place`."""
    x, y = place
    picture.paste(fitted(pixels, side, side), place)
    draw.rectangle((x - 1, y - 1, x + side, y + side), outline=LINE)


def colour_scale(picture: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """The legend of a heat map: a bar of 220 pixels with words at both ends."""
    ramp = colours(np.linspace(0, 1, 220))[None].repeat(14, 0)
    label = "little attention"
    draw.text((x, y - 2), label, SOFT, font(15))
    x += int(draw.textlength(label, font(15))) + 10
    picture.paste(Image.fromarray(ramp), (x, y))
    draw.text((x + 230, y - 2), f"much (each block; 1 : {10**DECADES:,})", SOFT, font(15))


def bar(
    draw: ImageDraw.ImageDraw, x: int, y: int, share: float, text: str, colour: Colour,
    width: int = BAR,
) -> None:  # fmt: skip
    """A table's cell: a bar of a share in 0..1 with its value written on it."""
    draw.rectangle((x, y + 4, x + width, y + ROW - 5), fill=FAINT if share > 1 else PAPER)
    filled = min(max(share, 0.0), 1.0) * width
    draw.rectangle((x, y + 4, x + filled, y + ROW - 5), fill=colour)
    draw.line((x, y + 4, x, y + ROW - 5), SERIES[0])
    draw.text((x + 7, y + ROW // 2), text, INK, font(15), anchor="lm")


@dataclass(frozen=True, slots=True)
class Axes:
    """A plot's frame: pixels of its box, and the range of both axes."""

    left: int
    top: int
    width: int
    height: int
    x_range: tuple[float, float] = (0.0, 1.0)
    y_range: tuple[float, float] = (0.0, 1.0)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel of a point; values beyond the range stay on the frame."""
        across = (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0])
        up = (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])
        across, up = min(max(across, 0.0), 1.0), min(max(up, 0.0), 1.0)
        return self.left + across * self.width, self.top + (1 - up) * self.height

    def frame(
        self, draw: ImageDraw.ImageDraw, title: str, x_label: str, x_ticks: Sequence[float],
        y_ticks: Sequence[float], size: int = 15,
    ) -> None:  # fmt: skip
        """Draw the box, its grid, ticks in percent, and the names."""
        small = font(size)
        for tick in y_ticks:
            x, y = self.at(self.x_range[0], tick)
            draw.line((x, y, x + self.width, y), FAINT)
            draw.text((x - 8, y), f"{tick:.0%}", SOFT, small, anchor="rm")
        for tick in x_ticks:
            x, y = self.at(tick, self.y_range[0])
            draw.line((x, self.top, x, y), FAINT)
            draw.text((x, y + 7), f"{tick:g}", SOFT, small, anchor="mt")
        draw.rectangle(
            (self.left, self.top, self.left + self.width, self.top + self.height), outline=LINE
        )
        draw.text((self.left, self.top - 10), title, INK, font(size + 3), anchor="ls")
        centre = self.left + self.width / 2
        draw.text((centre, self.top + self.height + 28), x_label, SOFT, small, anchor="mt")

    def curve(
        self, draw: ImageDraw.ImageDraw, xs: Points, ys: Points, colour: Colour,
        *, dashed: bool = False, width: int = 3,
    ) -> None:  # fmt: skip
        """Draw a line through points."""
        points = [self.at(x, y) for x, y in zip(xs, ys, strict=True)]
        if not dashed:
            draw.line(points, colour, width, joint="curve")
            return
        for start, end in _dashes(points):
            draw.line((*start, *end), colour, width)

    def mark(self, draw: ImageDraw.ImageDraw, x: float, y: float, colour: Colour) -> None:
        """A dot with a light rim."""
        px, py = self.at(x, y)
        draw.ellipse((px - 7, py - 7, px + 7, py + 7), fill=PAPER)
        draw.ellipse((px - 5, py - 5, px + 5, py + 5), fill=colour)

    def upright(self, draw: ImageDraw.ImageDraw, x: float, colour: Colour = INK) -> None:
        """A dashed vertical line."""
        px, _ = self.at(x, self.y_range[0])
        for y in range(self.top, self.top + self.height, 10):
            draw.line((px, y, px, min(y + 5, self.top + self.height)), colour, 2)


def _dashes(
    points: list[tuple[float, float]], dash: float = 9.0, gap: float = 7.0
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """A polyline cut into dashes of equal length."""
    corners = np.array(points)
    steps = np.hypot(*np.diff(corners, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    if along[-1] == 0:
        return []
    starts = np.arange(0, along[-1], dash + gap)
    cuts = np.unique(np.concatenate([along, starts, starts + dash]))
    cuts = cuts[cuts <= along[-1]]
    x, y = (np.interp(cuts, along, corners[:, i]) for i in (0, 1))
    drawn = (cuts[:-1] + 1e-9) % (dash + gap) < dash
    return [
        ((float(x[i]), float(y[i])), (float(x[i + 1]), float(y[i + 1])))
        for i in np.flatnonzero(drawn)
    ]
