"""Draws a workflow as a small picture: its groups, nodes and wires."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageFont

SIZE = (1120, 630)
_SCALE = 2  # drawn larger and averaged down, for smooth wires
_BACK, _BODY, _HEAD, _TEXT, _SOFT = (
    (28, 29, 33), (53, 55, 61), (72, 75, 83), (240, 240, 236), (170, 172, 178)
)  # fmt: skip
_OURS = (24, 92, 138)
_WIRES = {
    "MODEL": (178, 157, 219), "CLIP": (255, 213, 0), "VAE": (255, 110, 110),
    "CONDITIONING": (255, 168, 65), "LATENT": (255, 156, 249), "IMAGE": (100, 181, 246),
    "PARO_PLAN": (86, 204, 180),
}  # fmt: skip
_TOP = 84


def draw_thumbnail(workflow: dict[str, Any], title: str) -> Image.Image:
    """The graph of a saved workflow under its title."""
    width, height = (side * _SCALE for side in SIZE)
    picture = Image.new("RGB", (width, height), _BACK)
    draw = ImageDraw.Draw(picture)
    frames = [group["bounding"] for group in workflow["groups"]]
    left, top = (min(frame[axis] for frame in frames) for axis in (0, 1))
    right, bottom = (max(frame[axis] + frame[axis + 2] for frame in frames) for axis in (0, 1))
    head = _TOP * _SCALE
    scale = min(
        (width - 40 * _SCALE) / (right - left), (height - head - 20 * _SCALE) / (bottom - top)
    )
    shift_x = (width - (right - left) * scale) / 2 - left * scale
    shift_y = head + (height - head - 20 * _SCALE - (bottom - top) * scale) / 2 - top * scale

    def at(x: float, y: float) -> tuple[float, float]:
        return x * scale + shift_x, y * scale + shift_y

    draw.text((24 * _SCALE, 20 * _SCALE), title, _TEXT, _font(34 * _SCALE))
    for group in workflow["groups"]:
        x, y, w, h = group["bounding"]
        colour = _mixed(_hex(group["color"]), _BACK, 0.28)
        draw.rounded_rectangle((*at(x, y), *at(x + w, y + h)), 10 * _SCALE, colour)
        _fitted(
            draw,
            at(x + 14, y + 6),
            group["title"],
            _TEXT,
            (w - 28) * scale,
            round(min(18 * _SCALE, 36 * scale)),
        )
    places = {node["id"]: node for node in workflow["nodes"]}
    for _, source, output, target, place, kind in workflow["links"]:
        start = _socket(places[source], output, True)
        end = _socket(places[target], place, False)
        _draw_wire(draw, at(*start), at(*end), _WIRES.get(kind, _SOFT))
    for node in workflow["nodes"]:
        _draw_node(draw, node, at, scale)
    return picture.resize(SIZE, Image.Resampling.LANCZOS)


def _draw_node(draw: ImageDraw.ImageDraw, node: dict[str, Any], at: Any, scale: float) -> None:
    (x, y), (w, h) = node["pos"], node["size"]
    note = "Note" in node["type"]
    ours = node["type"].startswith("Paro")
    body = (86, 76, 48) if note else _BODY
    head = (104, 92, 58) if note else (_OURS if ours else _HEAD)
    draw.rounded_rectangle((*at(x, y - 30), *at(x + w, y + h)), 6 * _SCALE, body)
    draw.rounded_rectangle((*at(x, y - 30), *at(x + w, y)), 6 * _SCALE, head)
    name = node.get("title") or _NAMES.get(node["type"], node["type"])
    _fitted(
        draw, at(x + 12, y - 27), name, _TEXT, (w - 24) * scale, round(min(15 * _SCALE, 26 * scale))
    )


_NAMES = {
    "ParoCalibrate": "Calibrate PARO", "ParoRecord": "Record PARO",
    "ParoLoad": "Load PARO", "ParoReport": "PARO Report",
    "ParoCompare": "PARO Compare", "ParoDemoModel": "PARO Demo Model",
    "UNETLoader": "Load Diffusion Model", "CLIPLoader": "Load CLIP", "VAELoader": "Load VAE",
    "DualCLIPLoader": "DualCLIPLoader", "CheckpointLoaderSimple": "Load Checkpoint",
    "EmptyHunyuanLatentVideo": "Empty video latent", "EmptyLTXVLatentVideo": "Empty video latent",
    "EmptySD3LatentImage": "Empty latent", "VAEDecode": "VAE Decode",
    "VAEDecodeTiled": "VAE Decode", "SaveAnimatedWEBP": "Save video", "SaveImage": "Save image",
    "PreviewImage": "Preview image",
    "LoadImage": "Load image", "ConditioningZeroOut": "Zero out", "KSamplerAdvanced": "KSampler",
}  # fmt: skip


def _socket(node: dict[str, Any], place: int, output: bool) -> tuple[float, float]:
    (x, y), (w, h) = node["pos"], node["size"]
    return x + (w if output else 0), y + min(16 + 22 * place, h - 8)


def _draw_wire(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float],
    colour: tuple[int, int, int],
) -> None:  # fmt: skip
    reach = max(30.0 * _SCALE, abs(end[0] - start[0]) / 2)
    bends = (start, (start[0] + reach, start[1]), (end[0] - reach, end[1]), end)
    points = []
    for step in range(25):
        t = step / 24
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        points.append(
            tuple(sum(w * p[i] for w, p in zip(weights, bends, strict=True)) for i in (0, 1))
        )
    draw.line(points, colour, 2 * _SCALE, joint="curve")


def _fitted(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str,
    colour: tuple[int, int, int], room: float, size: int,
) -> None:  # fmt: skip
    while size > 6 and draw.textlength(text, _font(size)) > room:
        size -= 1
    draw.text(place, text, colour, _font(size))


def _mixed(a: tuple[int, ...], b: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(x * share + y * (1 - share)) for x, y in zip(a, b, strict=True))


def _hex(text: str) -> tuple[int, ...]:
    digits = text.lstrip("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    return tuple(int(digits[i : i + 2], 16) for i in (0, 2, 4))


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
