"""Calibrate PARO: make a plan for the user's model on the user's prompts."""

from __future__ import annotations

import logging
from typing import Any

import comfy.model_management
from comfy_api.latest import io, ui
from torch import Tensor

from ..calibration import save_plan
from . import host_ui, plan_folder
from .calibration_run import CalibrationResult, calibrate
from .calibration_sampling import CalibrationSettings
from .conditioning import Conditioning, with_text
from .families import find_family, unserved_class
from .load import PlanType
from .report_picture import draw_report, head_panel
from .shared_inputs import name_input, recording_inputs, resume_input, sampling_inputs
from .unfinished import partial_path

logger = logging.getLogger("paro_attention")

LAST_STEP = 10_000


def report_picture(result: CalibrationResult, density: float) -> Tensor:
    """IMAGE [1, H, W, 3]: block mass of a few heads before and after reordering."""
    block = tuple(result.plan.block)
    panels = [
        head_panel(
            sample,
            result.grid,
            result.plan.order_names(sample.layer)[sample.head],
            (block[0], block[1]),
            comfy.model_management.get_torch_device(),
        )
        for sample in result.samples
    ]
    sigma = result.samples[0].sigma if result.samples else 0.0
    return draw_report(
        panels,
        f"PARO calibration: {result.plan.identity.description}",
        f"attention of {result.grid} tokens in blocks of {block[0]} x {block[1]}, at noise level "
        f"{sigma:.2f}; bright = much attention",
        density,
    )


class ParoCalibrate(io.ComfyNode):
    """Runs the model on prompts, records its attention, writes the plan."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host_ui.schema(
            node_id="ParoCalibrate",
            display_name="Calibrate PARO",
            category="PARO",
            description="Samples the model on your prompts, looks at its attention, and writes a "
            "plan to models/paro that Load PARO uses. Needed once per model; sampler, steps, "
            "resolution and LoRAs may change afterwards.",
            search_aliases=["paro", "paroattention", "sparse attention", "calibrate", "calibration",
                            "plan", "make plan"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="As you sample it: with its shift and LoRAs, without Load PARO.",
                ),
                name_input(),
                io.Latent.Input("latent", tooltip="Empty latent of the size that you sample at."),
                *sampling_inputs(
                    seed="Noise of the first prompt's run; the others count on. Any.",
                    steps="As you sample: 20 (recommended); 4-8 with a few-step LoRA.",
                ),
                *recording_inputs(),
                host_ui.advanced(
                    io.Int, "start_at_step", default=0, min=0, max=LAST_STEP,
                    tooltip="First step to record. For Wan 2.2's low-noise expert: the step at "
                    "which it takes over, with the high-noise expert in earlier_model.",
                ),
                host_ui.advanced(
                    io.Int, "end_at_step", default=LAST_STEP, min=1, max=LAST_STEP,
                    tooltip="Step to stop at. For Wan 2.2's high-noise expert: the step at which "
                    "the other one takes over.",
                ),
                io.Conditioning.Input(
                    "positive", optional=True,
                    tooltip="A prompt to calibrate on. Its start image or clip vision is used with "
                    "the lines of prompts as well.",
                ),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="As you sample. Left out: zeros."),
                io.Clip.Input("clip", optional=True,
                    tooltip="The model's CLIP: encodes the lines of prompts."),
                io.String.Input(
                    "prompts", default="", multiline=True, optional=True,
                    tooltip="One prompt a line, each a sampling run. 2 to 4 different ones are "
                    "recommended, of the kind that you make.",
                ),
                io.Model.Input(
                    "earlier_model", optional=True,
                    tooltip="Samples the steps before start_at_step: Wan 2.2's high-noise expert.",
                ),
                resume_input(),
            ],
            outputs=[
                PlanType.Output("paro_plan", display_name="paro_plan",
                                tooltip="The plan, for Load PARO and PARO Report."),
                io.Latent.Output("last_latent", display_name="latent",
                                 tooltip="The last run's video, so that it is not lost."),
                io.Image.Output("report", display_name="report",
                                tooltip="Attention before and after reordering."),
                io.String.Output("file", display_name="file",
                                 tooltip="Name of the plan file in models/paro."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        name: str,
        latent: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        density: float,
        noise_bands: int,
        orders: str,
        choice: str,
        start_at_step: int,
        end_at_step: int,
        positive: Conditioning | None = None,
        negative: Conditioning | None = None,
        clip: Any | None = None,
        prompts: str = "",
        earlier_model: Any | None = None,
        resume: bool = True,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        diffusion_model = model.get_model_object("diffusion_model")
        if find_family(diffusion_model) is None:
            raise ValueError(f"Calibrate PARO cannot serve this: {unserved_class(diffusion_model)}")
        path = plan_folder.new_plan_path(name)
        partial = partial_path(path)
        settings = CalibrationSettings(
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler_name=sampler_name,
            scheduler=scheduler,
            start_step=start_at_step,
            end_step=end_at_step,
            density=density,
            noise_bands=noise_bands,
            orders=orders,
            choice=choice,
        )
        result = calibrate(
            model,
            cls._conditionings(positive, clip, prompts),
            negative,
            latent,
            settings,
            earlier_model=earlier_model,
            node_id=node_id,
            tell=lambda text: host_ui.tell(text, node_id),
            labels=cls._labels(positive, prompts),
            show_progress=lambda text: host_ui.show_text(text, node_id),
            partial=partial,
            resume=resume,
        )
        save_plan(result.plan, path)  # before anything else can go wrong
        partial.unlink(missing_ok=True)
        picture = report_picture(result, density)
        file = plan_folder.relative_name(path)
        before = f" ({result.resumed} of them made before a stop)" if result.resumed else ""
        summary = (
            f"wrote {file}: {result.runs} runs{before}, grid {result.grid}, "
            f"{path.stat().st_size / 1e6:.1f} MB, {result.seconds:.0f} s"
        )
        host_ui.tell(summary, node_id)
        shown = {**ui.PreviewImage(picture, cls=cls).as_dict(), **ui.PreviewText(summary).as_dict()}
        last = {key: value for key, value in latent.items() if key != "noise_mask"}
        last["samples"] = result.latent
        return io.NodeOutput(result.plan, last, picture, file, ui=shown)

    @staticmethod
    def _labels(positive: Conditioning | None, prompts: str) -> list[str]:
        """What to call the prompts of `_conditionings`, in their order."""
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        return ["the connected prompt"] * (positive is not None) + lines

    @staticmethod
    def _conditionings(
        positive: Conditioning | None, clip: Any | None, prompts: str
    ) -> list[Conditioning]:
        """The prompts to sample: the connected one, then one a line."""
        lines = [line.strip() for line in prompts.splitlines() if line.strip()]
        if lines and clip is None:
            raise ValueError("connect clip: it encodes the lines of prompts")
        found = [positive] if positive is not None else []
        for line in lines:
            text = clip.encode_from_tokens_scheduled(clip.tokenize(line))  # type: ignore[union-attr]
            found.append(with_text(positive, text))
        if not found:
            raise ValueError(
                "Calibrate PARO needs at least one prompt: connect positive, or connect clip and "
                "write prompts, one a line"
            )
        return found
