"""PARO Demo Model: the bundled small video model, ready to sample, with all that goes with it."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_sampling
import comfy.sd
import torch
from comfy_api.latest import io
from torch import Tensor

from ..demo import MODEL_FILE, pixel_packing, vocabulary
from . import host_ui

DEMO_ATTACHMENT = "paro_demo_model"
"""Key of the ModelPatcher attachment by which other nodes know the demo model."""
PIXELS_PER_TOKEN = 4
SHIFT = 3.0


class DemoClip:
    """Stands in for a CLIP: turns words of the demo vocabulary into conditioning.

    Works with CLIP Text Encode and with anything else that tokenizes and encodes in two steps.
    """

    def tokenize(self, text: str, **_options: Any) -> str:
        """The text itself; the vocabulary needs no tokens."""
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **_options: Any) -> list[list[Any]]:
        """ComfyUI conditioning of a text; words that the model does not know are logged."""
        context, unknown = vocabulary.encode(tokens)
        if unknown:
            host_ui.tell(unknown_words(unknown), None, logging.WARNING)
        return [[context, {"pooled_output": None}]]


class DemoVae:
    """Stands in for a VAE: the demo model's pixel packing and Wan's latent scaling, inverted.

    Args:
        latent_format: the model's ComfyUI latent format.
    """

    def __init__(self, latent_format: Any):
        self._format = latent_format

    def decode(self, samples: Tensor, **_options: Any) -> Tensor:
        """[B, 16, F, H, W] as a sampler returns it -> [B, F, 2H, 2W, 3] in 0..1."""
        return pixel_packing.unpack(self._format.process_in(samples.float()))

    def decode_tiled(self, samples: Tensor, **_options: Any) -> Tensor:
        """The same as `decode`: nothing here needs tiles."""
        return self.decode(samples)

    def encode(self, pixels: Tensor) -> Tensor:
        """A clip [F, H, W, 3] or [B, F, H, W, 3] in 0..1 -> [B, 16, F, H/2, W/2]."""
        video = pixels[..., :3] if pixels.ndim == 5 else pixels[None, ..., :3]
        return self._format.process_out(pixel_packing.pack(video.float()))

    def encode_tiled(self, pixels: Tensor, **_options: Any) -> Tensor:
        """The same as `encode`."""
        return self.encode(pixels)


def unknown_words(words: list[str]) -> str:
    """The sentence that tells which words were left out."""
    return (
        f"the demo model does not know {', '.join(words)}; it knows: {', '.join(vocabulary.WORDS)}"
    )


def load_demo_model() -> Any:
    """The demo model as a ComfyUI ModelPatcher with shift 3.

    Raises:
        FileNotFoundError: the bundled file is missing.
    """
    if not MODEL_FILE.is_file():
        raise FileNotFoundError(
            f"{MODEL_FILE.name} is missing from the pack's demo folder; install the pack again "
            "(in a git checkout: git checkout demo)"
        )
    model = comfy.sd.load_diffusion_model(str(MODEL_FILE)).clone()

    class ModelSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    sampling = ModelSampling(model.model.model_config)
    sampling.set_parameters(shift=SHIFT, multiplier=1000)
    model.add_object_patch("model_sampling", sampling)
    model.set_attachments(DEMO_ATTACHMENT, True)
    return model


class ParoDemoModel(io.ComfyNode):
    """The bundled model with conditioning, latent and VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host_ui.schema(
            node_id="ParoDemoModel",
            display_name="PARO Demo Model",
            category="PARO",
            description="A small trained video model that comes with this pack (Wan 2.1 "
            "architecture). It draws a textured object that moves over a background, so that every "
            "PARO workflow can be tried without a download, on a CPU too.",
            search_aliases=["paro", "demo", "test model", "tiny wan", "sparse attention"],
            inputs=[
                io.String.Input(
                    "prompt",
                    default="red circle right, grass, static",
                    tooltip="Words the model knows. Object: " + ", ".join(vocabulary.SHAPES)
                    + ". Colour: " + ", ".join(vocabulary.COLOURS)
                    + ". Direction: " + ", ".join(vocabulary.DIRECTIONS)
                    + ". Background: " + ", ".join(vocabulary.BACKGROUNDS)
                    + ". Camera: " + ", ".join(vocabulary.CAMERAS) + ".",
                ),
                io.String.Input(
                    "negative",
                    default="",
                    tooltip="What to steer away from. Empty (recommended) means unconditional.",
                ),
                io.Int.Input("width", default=128, min=32, max=512, step=PIXELS_PER_TOKEN,
                             tooltip="Pixels. 128 is what the model was trained for; 64 is quick "
                             "on a CPU."),
                io.Int.Input("height", default=128, min=32, max=512, step=PIXELS_PER_TOKEN,
                             tooltip="Pixels. 128 is what the model was trained for; 64 is quick "
                             "on a CPU."),
                io.Int.Input("frames", default=8, min=1, max=64,
                             tooltip="Frames. 8 is what the model was trained for."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model, its shift of 3 set."),
                io.Clip.Output(display_name="clip", tooltip="For Calibrate PARO's prompts."),
                io.Vae.Output(display_name="vae", tooltip="The only VAE for its latents."),
                io.Conditioning.Output("positive_out", display_name="positive",
                                       tooltip="The prompt, encoded."),
                io.Conditioning.Output("negative_out", display_name="negative",
                                       tooltip="The negative prompt, encoded."),
                io.Latent.Output(display_name="latent", tooltip="Empty, of this size."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, prompt: str, negative: str, width: int, height: int, frames: int
    ) -> io.NodeOutput:
        conditioning = []
        unknown: list[str] = []
        for text in (prompt, negative):
            context, left_out = vocabulary.encode(text)
            conditioning.append([[context, {"pooled_output": None}]])
            unknown += left_out
        model = load_demo_model()
        if unknown:
            host_ui.tell(unknown_words(unknown), cls.hidden.unique_id, logging.WARNING)
        latent = torch.zeros(1, pixel_packing.CHANNELS, frames, height // 2, width // 2)
        vae = DemoVae(model.get_model_object("latent_format"))
        positive, negative_conditioning = conditioning
        return io.NodeOutput(
            model, DemoClip(), vae, positive, negative_conditioning, {"samples": latent}
        )
