"""Draws the pack's icon, its banner, and the figure of how it works.

    python docs/tools/artwork.py

The attention on them is a formula's, that of a head which looks at one place in all frames; the
maps of real models are in the help pages.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent.parent
FRAMES, SIDE = 6, 6
BLOCK = 12
NIGHT, SKY, PALE = (15, 24, 44), (147, 163, 196), (240, 242, 246)


def _canvas() -> ModuleType:
    """The drawing module of the nodes, which needs no host; it has the colours."""
    spec = importlib.util.spec_from_file_location(
        "paro_report_canvas", ROOT / "nodes" / "report_canvas.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


canvas = _canvas()


def attention() -> np.ndarray:
    """float64 [S, S] attention of the head, tokens frame by frame; rows sum to 1."""
    place = np.stack(np.meshgrid(*(np.arange(n) for n in (FRAMES, SIDE, SIDE)), indexing="ij"), -1)
    place = place.reshape(-1, 3)
    distance = np.square(place[:, None, 1:] - place[None, :, 1:]).sum(-1)
    frames = np.abs(place[:, None, 0] - place[None, :, 0])
    weights = np.exp(-distance / 0.7 - 0.12 * frames)
    return weights / weights.sum(1, keepdims=True)


def reordered(matrix: np.ndarray) -> np.ndarray:
    """The same attention with all frames of a place side by side (order HWF)."""
    order = np.arange(FRAMES * SIDE * SIDE).reshape(FRAMES, SIDE, SIDE).transpose(1, 2, 0).ravel()
    return matrix[np.ix_(order, order)]


def best_blocks(matrix: np.ndarray, density: float) -> np.ndarray:
    """bool [S / BLOCK, S / BLOCK]: the blocks of most attention."""
    count = len(matrix) // BLOCK
    mass = matrix.reshape(count, BLOCK, count, BLOCK).sum((1, 3))
    return mass >= np.sort(mass.ravel())[-round(density * mass.size)]


def map_picture(matrix: np.ndarray, side: int) -> Image.Image:
    """An attention map of side x side pixels."""
    return canvas.fitted(canvas.colours(canvas.mass_levels(matrix)), side, side)


def mask_picture(matrix: np.ndarray, mask: np.ndarray, side: int) -> Image.Image:
    """The map where the mask computes it; left-out blocks pale, with a dot for their pooled key."""
    wide = np.kron(mask, np.ones((BLOCK, BLOCK), bool))
    coloured = canvas.colours(canvas.mass_levels(matrix))
    picture = canvas.fitted(np.where(wide[..., None], coloured, np.uint8(226)), side, side)
    draw = ImageDraw.Draw(picture)
    step = side / len(mask)
    for row, column in np.argwhere(~mask):
        x, y = (column + 0.5) * step, (row + 0.5) * step
        draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=(130, 134, 142))
    return picture


def icon() -> Image.Image:
    """400 x 400: a mask whose blocks are gathered on the diagonal."""
    size, scale = 400, 4
    picture = Image.new("RGBA", (size * scale, size * scale))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle((0, 0, size * scale - 1, size * scale - 1), 84 * scale, NIGHT)
    cells, gap, edge = 5, 10, 52
    step = (size - 2 * edge + gap) / cells
    for row in range(cells):
        for column in range(cells):
            level = {0: 1.0, 1: 0.62}.get(abs(row - column), 0.0)
            if (row, column) in ((0, 4), (4, 0)):
                level = 0.45
            x, y = edge + column * step, edge + row * step
            colour = tuple(canvas.colours(np.array(level))) if level else (38, 50, 78)
            box = [scale * v for v in (x, y, x + step - gap, y + step - gap)]
            draw.rounded_rectangle(box, 9 * scale, tuple(int(c) for c in colour))
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def banner() -> Image.Image:
    """1680 x 720 (21:9): the name, and stripes that become blocks."""
    picture = Image.new("RGB", (1680, 720), NIGHT)
    draw = ImageDraw.Draw(picture)
    matrix = attention()
    side, top = 380, 130
    for x, shown in ((820, matrix), (1260, reordered(matrix))):
        picture.paste(map_picture(shown, side), (x, top))
        draw.rectangle((x - 2, top - 2, x + side + 1, top + side + 1), outline=(60, 74, 106))
    _arrow(draw, 1212, top + side // 2, 36, PALE)
    for x, text in ((820, "the model's token order"), (1260, "the head's token order")):
        draw.text((x + side / 2, top + side + 22), text, SKY, canvas.font(24), anchor="mt")
    mark = icon().resize((104, 104), Image.Resampling.LANCZOS)
    picture.paste(mark, (84, 150), mark)
    draw.text((80, 286), "PARO Attention", PALE, canvas.font(82))
    lines = (
        "Faster video and image models in ComfyUI:\nreorder tokens, skip blocks, compute in 8 bits"
    )
    draw.multiline_text((84, 404), lines, SKY, canvas.font(30), spacing=14)
    return picture


def figure() -> Image.Image:
    """How it works, in four steps."""
    side, top, left, step = 330, 150, 40, 400
    picture, draw = canvas.new_picture(4 * step + 10, 640)
    draw.text((left, 26), "How PARO Attention works", canvas.INK, canvas.font(32))
    matrix = attention()
    after = reordered(matrix)
    mask = best_blocks(after, 0.22)
    share = after.reshape(len(mask), BLOCK, len(mask), BLOCK).sum((1, 3))[mask].sum() / len(after)
    _frames(draw, left, top, side)
    for place, drawn in enumerate(
        (map_picture(matrix, side), map_picture(after, side), mask_picture(after, mask, side)), 1
    ):
        x = left + place * step
        picture.paste(drawn, (x, top))
        draw.rectangle((x - 1, top - 1, x + side, top + side), outline=canvas.LINE)
        _arrow(draw, x - 52, top + side // 2, 34, canvas.SOFT)
    here = f"{mask.mean():.0%} of the blocks hold {share:.0%} here"
    words = (
        ("1  attention is local", "A head looks at few places: here, at one\n"
         "place and its neighbours in all frames."),
        ("2  memory hides it", "Tokens lie frame by frame, so that what\n"
         "the head looks at is spread in stripes."),
        ("3  reorder", "Each head gets the token order that\n"
         "gathers its stripes into dense blocks."),
        ("4  skip, and use few bits", f"{here}; 8 bits for\n"
         "them, one pooled key for each other."),
    )  # fmt: skip
    for place, (name, text) in enumerate(words):
        x = left + place * step
        draw.text((x, top - 44), name, canvas.INK, canvas.font(23))
        draw.multiline_text((x, top + side + 16), text, canvas.SOFT, canvas.font(18), spacing=7)
    draw.text(
        (left, 592),
        "Calibration decides 3 and 4 once per model; sampling only follows the plan, in one kernel "
        "that also restores the order.  (Drawn from a formula.)",
        canvas.INK, canvas.font(18),
    )  # fmt: skip
    return picture


def _frames(draw: ImageDraw.ImageDraw, left: int, top: int, side: int) -> None:
    """Three frames of a video with a query token and what it attends to."""
    cell, shift = 30, 66
    size = cell * SIDE
    for frame in range(3):
        x, y = left + frame * shift, top + frame * shift + 6
        draw.rectangle((x, y, x + size, y + size), fill=(255, 255, 255), outline=canvas.SOFT)
        for row in range(SIDE):
            for column in range(SIDE):
                near = (row - 1) ** 2 + (column - 1) ** 2
                level = float(np.exp(-near / 0.7))
                fill = (245, 245, 242)
                if near <= 2:
                    fill = tuple(int(c) for c in canvas.colours(np.array(0.4 + 0.6 * level)))
                a, b = x + column * cell, y + row * cell
                draw.rectangle((a, b, a + cell, b + cell), fill=fill, outline=canvas.LINE)
        if frame == 2:
            a, b = x + cell, y + cell
            draw.rectangle((a, b, a + cell, b + cell), outline=canvas.ACCENT, width=4)
            text = "a token and\nwhere it looks"
            draw.multiline_text((left, top + 262), text, canvas.ACCENT, canvas.font(17), spacing=4)
    draw.text((left + 200, top + 20), "frames", canvas.SOFT, canvas.font(17))


def _arrow(draw: ImageDraw.ImageDraw, x: int, y: int, length: int, colour: tuple) -> None:
    draw.line((x, y, x + length - 6, y), colour, 4)
    draw.polygon([(x + length, y), (x + length - 13, y - 9), (x + length - 13, y + 9)], colour)


if __name__ == "__main__":
    icon().save(ROOT / "docs" / "icon.png", optimize=True)
    banner().save(ROOT / "docs" / "banner.png", optimize=True)
    figure().save(ROOT / "docs" / "how-it-works.png", optimize=True)
