"""PARO Compare: how far two pictures, videos or latents are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..calibration.picture_metrics import cosine_similarity, psnr_db, ssim
from . import host_ui
from .latents import video_of

_SHOWN_WIDTH = 960


@dataclass(frozen=True, slots=True)
class Comparison:
    """PSNR in dB (None if identical), SSIM, cosine similarity and the size of what was compared."""

    what: str
    psnr: float | None
    ssim: float
    cosine: float
    shape: tuple[int, ...]

    def line(self) -> str:
        """One line for the node."""
        psnr = "identical" if self.psnr is None else f"PSNR {self.psnr:.2f} dB"
        size = " x ".join(map(str, self.shape))
        return f"{self.what} ({size}): {psnr}, SSIM {self.ssim:.4f}, cosine {self.cosine:.6f}"


def compare_images(a: Tensor, b: Tensor) -> Comparison:
    """Compare two IMAGE batches [F, H, W, C] in 0..1."""
    a, b = a[..., :3].float(), b[..., :3].float()
    _require_same_shape("images", a, b)
    return Comparison("images", psnr_db(a, b), ssim(a, b), cosine_similarity(a, b), tuple(a.shape))


def compare_latents(a: Tensor, b: Tensor) -> Comparison:
    """Compare two latents [B, C, (F,) H, W]; the range of `a` is the peak of PSNR and SSIM."""
    a, b = a.float(), b.float()
    _require_same_shape("latents", a, b)
    peak = (a.max() - a.min()).item() or 1.0
    planes_a, planes_b = a.movedim(1, -1), b.movedim(1, -1)
    low = a.min()
    return Comparison(
        "latents",
        psnr_db(a, b, peak),
        ssim(planes_a - low, planes_b - low, peak),
        cosine_similarity(a, b),
        tuple(a.shape),
    )


def difference_picture(a: Tensor, b: Tensor, gain: float) -> Tensor:
    """a, b and their absolute difference times `gain`, side by side: [F, H, 3W, 3]."""
    a, b = a[..., :3].float(), b[..., :3].float()
    return torch.cat([a, b, ((a - b).abs() * gain).clamp(0, 1)], dim=2)


def latent_picture(latent: Tensor) -> Tensor:
    """A latent as grey frames [F, H, W, 3]: the mean over channels, scaled to 0..1."""
    grey = latent.float().mean(1)
    grey = grey.reshape(-1, *grey.shape[-2:])
    grey = (grey - grey.min()) / (grey.max() - grey.min()).clamp(min=1e-6)
    return grey[..., None].expand(-1, -1, -1, 3)


def labelled_picture(frame: Tensor, gain: float, summary: str) -> Tensor:
    """One frame of a comparison as the node shows it: enlarged, with names and numbers.

    Args:
        frame: [H, 3W, 3] in 0..1, from `difference_picture`.
        gain: of the difference.
        summary: lines of text below the pictures.

    Returns:
        IMAGE [1, H', W', 3].
    """
    pixels = Image.fromarray((frame.clamp(0, 1) * 255).round().to(torch.uint8).numpy())
    scale = max(1, math.ceil(_SHOWN_WIDTH / pixels.width))
    pixels = pixels.resize((pixels.width * scale, pixels.height * scale), Image.Resampling.NEAREST)
    lines = summary.splitlines()
    top, line_height = 34, 26
    size = (pixels.width, top + pixels.height + 12 + line_height * len(lines))
    picture = Image.new("RGB", size, (24, 25, 28))
    picture.paste(pixels, (0, top))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(18)
    for column, name in enumerate(("a", "b", f"difference x {gain:g}")):
        draw.text((8 + column * pixels.width // 3, 6), name, (235, 235, 230), font)
    for row, line in enumerate(lines):
        y = top + pixels.height + 6 + row * line_height
        draw.text((8, y), line, (235, 235, 230), font)
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


class ParoCompare(io.ComfyNode):
    """PSNR, SSIM, cosine similarity and a difference picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host_ui.schema(
            node_id="ParoCompare",
            display_name="PARO Compare",
            category="PARO",
            description="Compares two images, videos (as image batches) or latents: PSNR, SSIM, "
            "cosine similarity, and a picture of the difference. Connect the dense result to a and "
            "the PARO result to b, made from the same seed.",
            search_aliases=["paro", "psnr", "ssim", "difference", "compare videos",
                            "compare images", "quality"],
            inputs=[
                io.Image.Input("images_a", optional=True,
                    tooltip="Reference images or video: the dense run."),
                io.Image.Input("images_b", optional=True,
                    tooltip="The other images or video: the PARO run, from the same seed."),
                io.Latent.Input("latent_a", optional=True,
                    tooltip="Reference latent: the dense run."),
                io.Latent.Input("latent_b", optional=True,
                    tooltip="The other latent: the PARO run, from the same seed."),
                io.Float.Input(
                    "gain", default=4.0, min=1.0, max=64.0, step=0.5,
                    tooltip="The difference is multiplied by this before it is drawn. 4 "
                    "(recommended) shows what the eye would miss.",
                ),
            ],
            outputs=[
                io.Image.Output("comparison", display_name="comparison",
                                tooltip="a, b and their difference, side by side."),
                io.Float.Output("psnr", display_name="psnr_db",
                                tooltip="Decibels; infinite if identical."),
                io.Float.Output("ssim", display_name="ssim",
                                tooltip="Structural similarity, 1 if identical."),
                io.Float.Output("cosine", display_name="cosine",
                                tooltip="Cosine similarity, 1 if identical."),
                io.String.Output("summary", display_name="summary", tooltip="The numbers as text."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        gain: float,
        images_a: Tensor | None = None,
        images_b: Tensor | None = None,
        latent_a: dict[str, Any] | None = None,
        latent_b: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        results: list[Comparison] = []
        picture: Tensor | None = None
        if images_a is not None and images_b is not None:
            images_a, images_b = images_a.cpu(), images_b.cpu()  # --gpu-only leaves them there
            results.append(compare_images(images_a, images_b))
            picture = difference_picture(images_a, images_b, gain)
        if latent_a is not None and latent_b is not None:
            a, b = (video_of(latent["samples"]).cpu() for latent in (latent_a, latent_b))
            results.append(compare_latents(a, b))
            if picture is None:
                left, right = latent_picture(torch.cat([a, b])).chunk(2)
                picture = difference_picture(left, right, gain)
        if not results or picture is None:
            raise ValueError(
                "PARO Compare needs a pair: connect images_a and images_b, or latent_a and latent_b"
            )
        summary = "\n".join(result.line() for result in results)
        host_ui.tell(summary, cls.hidden.unique_id)
        first = results[0]
        middle = labelled_picture(picture[picture.shape[0] // 2], gain, summary)
        shown = {**ui.PreviewImage(middle, cls=cls).as_dict(), **ui.PreviewText(summary).as_dict()}
        return io.NodeOutput(
            picture,
            math.inf if first.psnr is None else first.psnr,
            first.ssim,
            first.cosine,
            summary,
            ui=shown,
        )


def _require_same_shape(what: str, a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{what} must have the same shape to be compared, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}; use one size and one number of frames"
        )
