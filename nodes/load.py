"""Load PARO: put a plan on a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui

from ..calibration import Plan, PlanError, RuntimeOptions, load_plan, read_description
from ..kernels import unavailable_reason
from . import attention_hook, host_ui, plan_folder
from .families import find_family, unserved_class
from .layer_list import parse_layers
from .load_picture import draw_load_picture
from .model_identity import check_plan, identify, weight_distance
from .sparse_session import SparseSession

logger = logging.getLogger("paro_attention")

PlanType = io.Custom("PARO_PLAN")
AUTO = "auto"
NO_FILE = "none"
BITS = ["16", "8", "4"]
ON_UNSUPPORTED = ["dense", "error"]


def matching_plan(model: Any) -> Path:
    """The newest plan in models/paro that was made from this model's weights.

    Where there is none, the newest one that was made from its architecture: Wan 2.2's two experts
    share that, so that the newest plan alone may well be the other one's.

    Raises:
        FileNotFoundError: there is none of either.
    """
    identity = identify(model)
    paths = [plan_folder.plan_path(name) for name in plan_folder.plan_names()]
    similar: Path | None = None
    for path in sorted(paths, key=lambda p: p.stat().st_mtime_ns, reverse=True):
        try:
            planned = read_description(path)["identity"]
            architecture, weights = planned["architecture"], str(planned["weights"])
        except PlanError as error:
            logger.warning("PARO: passed over: %s", error)
            continue
        except (KeyError, TypeError):
            logger.warning("PARO: passed over: plan file %s names no model", path.name)
            continue
        if architecture == identity.architecture:
            if weight_distance(identity.weights, weights) == 0:
                return path
            similar = similar or path
    if similar is None:
        raise FileNotFoundError(
            f"none of the {len(paths)} plans in models/{plan_folder.FOLDER} was made from this "
            f"model ({identity.description}); run Calibrate PARO on it first"
        )
    return similar


def unserved_reason(model: Any) -> str | None:
    """Why this model or this machine runs dense whatever the plan says, or None."""
    diffusion_model = model.get_model_object("diffusion_model")
    family = find_family(diffusion_model)
    if family is None:
        return unserved_class(diffusion_model)
    device = comfy.model_management.get_torch_device()
    if device.type == "cpu":
        return None
    head_dim = family.shape(getattr(diffusion_model, "_orig_mod", diffusion_model))[1]
    dtype = compute_dtype(model)
    return unavailable_reason(device, dtype if dtype != torch.float32 else None, head_dim)


def compute_dtype(model: Any) -> torch.dtype | None:
    """The dtype that attention will see."""
    inner = model.model
    dtype = getattr(inner, "manual_cast_dtype", None)
    return dtype if dtype is not None else getattr(inner.diffusion_model, "dtype", None)


class ParoLoad(io.ComfyNode):
    """MODEL + plan -> MODEL with sparse low-bit attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host_ui.schema(
            node_id="ParoLoad",
            display_name="Load PARO",
            category="PARO",
            description="Makes the model's visual attention sparse and low-bit, as a plan from "
            "Calibrate PARO says. Lower density is faster and further from the dense picture.",
            search_aliases=["paro", "paroattention", "sparse attention", "block sparse", "speed up",
                            "faster video", "int8 attention", "fp8 attention"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that the plan was made from, behind its shift and LoRAs.",
                ),
                io.Combo.Input(
                    "plan",
                    options=[AUTO, NO_FILE, *plan_folder.plan_names()],
                    default=AUTO,
                    tooltip="A file of models/paro. auto takes the newest one that was made from "
                    "this model, else the newest of its architecture. Not used where paro_plan is "
                    "connected; set it to none then.",
                ),
                io.Float.Input(
                    "density", default=0.3, min=0.05, max=1.0, step=0.01, **host_ui.slider(),
                    tooltip="Share of the attention blocks that are computed, as an average over "
                    "the steps after the warm-up. 0.5 stays close to the dense picture, 0.3 "
                    "(recommended) is a good middle, 0.2 is fast. 1 computes everything.",
                ),
                io.Combo.Input(
                    "qk_bits", options=BITS, default="8",
                    tooltip="Precision of query x key. 8 (recommended); 16 is exact. 4 runs on "
                    "8-bit units and is not faster than 8 there; only with pv_bits 4 it runs "
                    "on INT4 units (RTX 30 and 40) or FP4 units (RTX 50), where it was not timed.",
                ),
                io.Combo.Input(
                    "pv_bits", options=BITS, default="8",
                    tooltip="Precision of probability x value. 8 (recommended); 16 is exact.",
                ),
                io.Float.Input(
                    "warmup", default=0.15, min=0.0, max=1.0, step=0.01,
                    tooltip="Share of the steps at the start that run dense. The first steps lay "
                    "out the picture: 0.15 (recommended) keeps the composition, 0 is fastest. "
                    "Ignored when a run continues an earlier one (second expert, partial denoise).",
                ),
                host_ui.advanced(
                    io.String, "dense_layers", default="",
                    tooltip="Layers that stay dense, for example 0,1,-1 or 0-3. Empty "
                    "(recommended) for none; PARO Report marks the ones to try first.",
                ),
                host_ui.advanced(
                    io.Int, "min_tokens", default=4096, min=0, max=1_000_000,
                    tooltip="Runs with fewer visual tokens stay dense: below about 4096 attention "
                    "is not what takes the time. 0 for the demo model.",
                ),
                host_ui.advanced(
                    io.Combo, "on_unsupported", options=ON_UNSUPPORTED, default="dense",
                    tooltip="What to do where the model or the card is not served: run ComfyUI's "
                    "own attention and say so (dense, recommended), or stop (error).",
                ),
                PlanType.Input(
                    "paro_plan", optional=True,
                    tooltip="A plan straight from Calibrate PARO; used instead of the file while "
                    "that node is active.",
                ),
            ],
            outputs=[
                io.Model.Output("patched", display_name="model",
                                tooltip="The same model with PARO's attention, for the sampler."),
            ],
            hidden=[io.Hidden.unique_id],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, plan: str = AUTO, **_values: Any) -> str:
        """Changes when the plan file is written again under the same name."""
        if plan == NO_FILE:
            return plan
        names = plan_folder.plan_names() if plan == AUTO else [plan]
        return ";".join(plan_folder.stamp(plan_folder.plan_path(name)) for name in names)

    @classmethod
    def execute(
        cls,
        model: Any,
        plan: str,
        density: float,
        qk_bits: str,
        pv_bits: str,
        warmup: float,
        dense_layers: str,
        min_tokens: int,
        on_unsupported: str,
        paro_plan: Plan | None = None,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        for name, value, allowed in (
            ("qk_bits", qk_bits, BITS),
            ("pv_bits", pv_bits, BITS),
            ("on_unsupported", on_unsupported, ON_UNSUPPORTED),
        ):  # ComfyUI 0.3.64 does not check the combos of V3 nodes
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        reason = unserved_reason(model)
        if reason is not None:
            if on_unsupported == "error":
                raise RuntimeError(f"PARO cannot run here: {reason}")
            host_ui.tell(f"runs dense: {reason}", node_id, logging.WARNING)
            return io.NodeOutput(attention_hook.uninstall(model))
        if paro_plan is not None:
            chosen, name, file = paro_plan, "the connected plan", ""
        elif plan == NO_FILE:
            raise ValueError("plan is none: connect paro_plan, or pick a plan file, or auto")
        else:
            path = matching_plan(model) if plan == AUTO else plan_folder.plan_path(plan)
            chosen, name, file = load_plan(path), path.name, plan_folder.relative_name(path)
        identity = identify(model)
        for warning in check_plan(chosen, identity):
            host_ui.tell(warning, node_id, logging.WARNING)
        options = RuntimeOptions(
            density=density,
            qk_bits=int(qk_bits),
            pv_bits=int(pv_bits),
            warmup=warmup,
            dense_layers=parse_layers(dense_layers, identity.layers),
        )
        session = SparseSession(
            chosen,
            options,
            min_tokens=min_tokens,
            on_unsupported=on_unsupported,
            node_id=node_id,
            plan_name=file,
            tell=lambda text, level: host_ui.tell(text, node_id, level),
        )
        logger.info("PARO: %s on %s, density %.2f", name, identity.description, density)
        shown = cls._picture(chosen, options)
        return io.NodeOutput(attention_hook.install(model, session), ui=shown)

    @classmethod
    def _picture(cls, plan: Plan, options: RuntimeOptions) -> ui.PreviewImage | None:
        """A picture must never keep a model from being loaded, nor a full disk it is saved on."""
        try:
            return ui.PreviewImage(torch.from_numpy(draw_load_picture(plan, options)), cls=cls)
        except Exception as error:
            logger.warning("PARO: no picture of the plan: %s: %s", type(error).__name__, error)
            return None
