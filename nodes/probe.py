"""PARO Probe: which layers lose most, measured on the user's own run."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from . import attention_hook, host_ui
from .conditioning import Conditioning, zero_negative
from .probing import LayerError, ProbeHandler
from .report_probe import draw_probe
from .shared_inputs import sampling_inputs
from .sparse_session import SparseSession

SHOWN = 5


def session_of(model: Any) -> SparseSession:
    """What Load PARO put on a model.

    Raises:
        ValueError: the model does not come from Load PARO, or PARO does not serve it.
    """
    options = model.model_options.get("transformer_options", {})
    override = options.get(attention_hook.OVERRIDE_KEY)
    session = getattr(override, "paro_handler", None)
    if not isinstance(session, SparseSession):
        raise ValueError(
            "PARO Probe compares what Load PARO does: connect a model that comes from Load PARO, "
            "with nothing behind it that replaces attention"
        )
    return session


def summary_of(rows: list[LayerError], dense: dict[str, int]) -> str:
    """Lines of text, worst layer first.

    Raises:
        ValueError: no call was compared.
    """
    if not rows:
        reasons = ", ".join(f"{n} {reason}" for reason, n in dense.items()) or "no call arrived"
        raise ValueError(f"no attention call ran sparse, so that nothing was compared: {reasons}")
    lines = [
        f"layer {row.layer}: output error {row.error:.4f}, cosine {row.cosine:.5f}, worst head "
        f"{row.worst_head} ({row.worst_error:.3f})"
        for row in rows[:SHOWN]
    ]
    mean = sum(row.error for row in rows) / len(rows)
    worst = ",".join(str(row.layer) for row in rows[:2])
    head = f"{len(rows)} layers compared, mean output error {mean:.4f}; worst first"
    return "\n".join([head, *lines, f"to try first: dense_layers = {worst}"])


class ParoProbe(io.ComfyNode):
    """Samples with full attention and computes PARO's beside it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host_ui.schema(
            node_id="ParoProbe",
            display_name="PARO Probe",
            category="PARO",
            description="Samples the model with full attention, computes what Load PARO would have "
            "given at some of the steps, and lists the layers by their error, worst first. Says "
            "which dense_layers to try when the picture changes too much.",
            search_aliases=["paro", "probe", "layer error", "attention error", "dense layers",
                            "debug attention"],
            inputs=[
                io.Model.Input("model", tooltip="Behind Load PARO, with the settings to judge."),
                io.Conditioning.Input("positive", tooltip="As you sample."),
                io.Latent.Input("latent_image", tooltip="As you sample."),
                *sampling_inputs(seed="As you sample. Any.", steps="As you sample."),
                io.Int.Input(
                    "probed_steps", default=4, min=1, max=100,
                    tooltip="Steps at which both are computed, evenly spaced. 4 recommended; the "
                    "others cost what full attention costs.",
                ),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="As you sample. Left out: zeros."),
            ],
            outputs=[
                io.Image.Output("table", display_name="table",
                                tooltip="Layers, greatest error first."),
                io.Latent.Output("latent", display_name="latent",
                                 tooltip="The result with full attention."),
                io.String.Output("summary", display_name="summary",
                                 tooltip="The worst layers as text."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        probed_steps: int,
        negative: Conditioning | None = None,
    ) -> io.NodeOutput:
        check = comfy.model_management.throw_exception_if_processing_interrupted
        handler = ProbeHandler(session_of(model).copy(), probed_steps, check)
        watched = attention_hook.install(model, handler)
        image = comfy.sample.fix_empty_latent_channels(watched, latent_image["samples"])
        noise = comfy.sample.prepare_noise(image, seed, latent_image.get("batch_index"))
        progress = comfy.utils.ProgressBar(steps)

        def show(step: int, _x0: Tensor, _x: Tensor, total: int) -> None:
            progress.update_absolute(step + 1, total)

        samples = comfy.sample.sample(
            watched, noise, steps, cfg, sampler_name, scheduler, positive,
            negative or zero_negative(positive), image, denoise=1.0,
            noise_mask=latent_image.get("noise_mask"), callback=show,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
        )  # fmt: skip
        rows = handler.results()
        summary = summary_of(rows, handler.dense)
        host_ui.tell(summary, cls.hidden.unique_id)
        picture = torch.from_numpy(
            draw_probe(
                rows,
                "PARO Probe: error of each layer, worst first",
                [
                    "attention output against full attention, relative, at "
                    f"{min(probed_steps, steps)} of {steps} steps of a run with full attention",
                    "worst head in orange: one head is far worse than its layer",
                ],
            )
        )
        shown = {**ui.PreviewImage(picture, cls=cls).as_dict(), **ui.PreviewText(summary).as_dict()}
        out = {key: value for key, value in latent_image.items() if key != "noise_mask"}
        return io.NodeOutput(picture, {**out, "samples": samples}, summary, ui=shown)
