"""Inputs that several nodes have, said once."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from . import host_ui


def sampling_inputs(*, seed: str, steps: str) -> list[Any]:
    """seed, steps, cfg, sampler_name and scheduler as in ComfyUI's KSampler.

    Args:
        seed, steps: their tooltips.
    """
    return [
        io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF,
                     control_after_generate=False, tooltip=seed),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip=steps),
        io.Float.Input("cfg", default=5.0, min=0.0, max=100.0, step=0.1,
                       tooltip="As you sample; 1 with a distilled model."),
        io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS,
                       default="euler", tooltip="As you sample."),
        io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS,
                       default="simple", tooltip="As you sample."),
    ]  # fmt: skip


def name_input() -> Any:
    """The name of a plan that is to be written."""
    return io.String.Input(
        "name", default="my-model",
        tooltip="The plan is written to models/paro/<name>.safetensors; one of that "
        "name is replaced when the calibration is complete.",
    )  # fmt: skip


def recording_inputs() -> list[Any]:
    """density, noise_bands, orders and choice: how a plan is made from what was recorded."""
    return [
        io.Float.Input(
            "density", default=0.3, min=0.05, max=1.0, step=0.01, **host_ui.slider(),
            tooltip="The density at which token orders are chosen. The plan serves every "
            "density; 0.3 is recommended.",
        ),
        host_ui.advanced(
            io.Int, "noise_bands", default=4, min=1, max=8,
            tooltip="Noise levels that get a mask of their own. 4 recommended.",
        ),
        host_ui.advanced(
            io.Combo, "orders", options=["tiles", "axes", "fhw"], default="tiles",
            tooltip="Token orders to choose from: 3-D tiles and the six axis orders "
            "(recommended), the axis orders alone, or none.",
        ),
        host_ui.advanced(
            io.Combo, "choice", options=["output_error", "block_mass", "paper_metric"],
            default="output_error",
            tooltip="How a head's order is chosen: by the error of its output "
            "(recommended), by the attention kept, or by the two metrics of the "
            "PAROAttention paper.",
        ),
    ]  # fmt: skip


def resume_input() -> Any:
    """Whether the finished runs of an interrupted calibration are used."""
    return host_ui.advanced(
        io.Boolean, "resume", default=True, optional=True,
        tooltip="On (recommended): a calibration that was stopped goes on behind its last "
        "finished run if model, prompts and settings are the same. Off starts over.",
    )  # fmt: skip
