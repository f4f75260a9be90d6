"""Record PARO: make a plan from runs that the user makes anyway."""

from __future__ import annotations

from typing import Any

import comfy.model_management
from comfy_api.latest import io

from . import attention_hook, host_ui, plan_folder
from .families import find_family, unserved_class
from .model_identity import identify
from .recording_session import RecordingSession, RecordingSettings
from .shared_inputs import name_input, recording_inputs, resume_input
from .unfinished import model_inputs


class ParoRecord(io.ComfyNode):
    """Records a model's attention while a sampler uses it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host_ui.schema(
            node_id="ParoRecord",
            display_name="Record PARO",
            category="PARO",
            description="Put it before your sampler and go on sampling as usual: it looks at the "
            "attention of the next runs and then writes a plan to models/paro that Load PARO uses. "
            "The pictures are those that you would get without it.",
            search_aliases=["paro", "paroattention", "record", "calibrate", "calibration", "plan",
                            "make plan"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="As you sample it: behind its shift and LoRAs, without Load PARO.",
                ),
                name_input(),
                io.Int.Input(
                    "runs", default=4, min=2, max=64,
                    tooltip="Runs that make the plan, each with another prompt or seed: 4 "
                    "(recommended). The first half chooses token orders, the others measure.",
                ),
                *recording_inputs(),
                resume_input(),
            ],
            outputs=[
                io.Model.Output("recorded", display_name="model",
                                tooltip="The same model, for the sampler."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        name: str,
        runs: int,
        density: float,
        noise_bands: int,
        orders: str,
        choice: str,
        resume: bool = True,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        diffusion_model = model.get_model_object("diffusion_model")
        if find_family(diffusion_model) is None:
            raise ValueError(f"Record PARO cannot serve this: {unserved_class(diffusion_model)}")
        identity = identify(model)
        session = RecordingSession(
            plan_folder.new_plan_path(name),
            identity,
            model_inputs(attention_hook.uninstall(model), identity),
            RecordingSettings(runs, density, noise_bands, orders, choice),
            resume=resume,
            node_id=node_id,
            tell=lambda text, level: host_ui.tell(text, node_id, level),
            check_interrupt=comfy.model_management.throw_exception_if_processing_interrupted,
        )
        return io.NodeOutput(attention_hook.install(model, session))
