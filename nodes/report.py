"""PARO Report: pictures of what a plan knows about a model, and of what it leaves out."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..calibration import Plan, load_plan
from . import host_ui, plan_folder
from .load import PlanType
from .report_curves import draw_curves
from .report_data import Report, make_report
from .report_maps import draw_maps, draw_masks
from .report_table import draw_table

NEWEST = "newest"


def newest_plan() -> str:
    """Name of the plan file that was written last.

    Raises:
        FileNotFoundError: models/paro holds no plan.
    """
    names = plan_folder.plan_names()
    if not names:
        raise FileNotFoundError(
            f"models/{plan_folder.FOLDER} holds no plan yet; run Calibrate PARO, or connect its "
            "paro_plan"
        )
    return max(names, key=lambda name: plan_folder.plan_path(name).stat().st_mtime_ns)


def pictures(report: Report) -> dict[str, Tensor]:
    """The report's pictures by name, IMAGE [1, H, W, 3] each."""
    drawn = {
        "maps": draw_maps(report),
        "masks": draw_masks(report),
        "curves": draw_curves(report),
        "table": draw_table(report),
    }
    return {name: torch.from_numpy(picture) for name, picture in drawn.items()}


class ParoReport(io.ComfyNode):
    """A plan in four pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return host_ui.schema(
            node_id="ParoReport",
            display_name="PARO Report",
            category="PARO",
            description="Shows a plan in pictures: attention before and after reordering, the "
            "blocks that are computed at a density, how much attention they hold, and a table of "
            "all layers. Reads the plan alone, so it needs no model and takes seconds.",
            search_aliases=["paro", "attention map", "heat map", "sparse attention", "plan",
                            "recall", "inspect attention"],
            inputs=[
                io.Combo.Input(
                    "plan", options=[NEWEST, *plan_folder.plan_names()], default=NEWEST,
                    tooltip="A file of models/paro; newest is the one written last. Not used where "
                    "paro_plan is connected.",
                ),
                io.Float.Input(
                    "density", default=0.3, min=0.05, max=1.0, step=0.01, **host_ui.slider(),
                    tooltip="The density to look at: as on Load PARO. 0.3 recommended.",
                ),
                io.Int.Input(
                    "noise_band", default=1, min=0, max=7,
                    tooltip="0 is the noisiest band, at the start of sampling, where the picture "
                    "is laid out; the last one refines detail. A number that the plan does not "
                    "have shows its last.",
                ),
                io.Int.Input(
                    "layer", default=-1, min=-1, max=999,
                    tooltip="Layer of the maps. -1 (recommended) shows four spread over the model; "
                    "another number shows heads of that layer.",
                ),
                io.Int.Input(
                    "head", default=-1, min=-1, max=999,
                    tooltip="Head of the maps. -1 (recommended) chooses different ones.",
                ),
                PlanType.Input(
                    "paro_plan", optional=True,
                    tooltip="A plan straight from Calibrate PARO; used instead of the file.",
                ),
            ],
            outputs=[
                io.Image.Output("maps", display_name="maps",
                                tooltip="Attention before and after reordering."),
                io.Image.Output("masks", display_name="masks",
                                tooltip="The blocks that are computed at this density."),
                io.Image.Output("curves", display_name="curves",
                                tooltip="Recall over density: all heads, and single ones."),
                io.Image.Output("table", display_name="table",
                                tooltip="Orders, density, recall and error of every layer."),
                io.String.Output("summary", display_name="summary", tooltip="The figures as text."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, plan: str = NEWEST, **_values: Any) -> str:
        """Changes when the plan file is written again, or another one is the newest."""
        try:
            name = newest_plan() if plan == NEWEST else plan
            return plan_folder.stamp(plan_folder.plan_path(name))
        except FileNotFoundError:
            return "no plan"  # a connected plan may be all there is

    @classmethod
    def execute(
        cls,
        plan: str,
        density: float,
        noise_band: int,
        layer: int,
        head: int,
        paro_plan: Plan | None = None,
    ) -> io.NodeOutput:
        if paro_plan is None:
            name = newest_plan() if plan == NEWEST else plan
            shown = load_plan(plan_folder.plan_path(name))
        else:
            name, shown = "connected plan", paro_plan
        report = make_report(shown, name, density=density, band=noise_band, layer=layer, head=head)
        drawn = pictures(report)
        summary = report.summary()
        host_ui.tell(summary, cls.hidden.unique_id)
        images = [
            image for picture in drawn.values()
            for image in ui.PreviewImage(picture, cls=cls).as_dict()["images"]
        ]  # fmt: skip
        texts = ui.PreviewText(summary).as_dict()
        return io.NodeOutput(*drawn.values(), summary, ui={"images": images, **texts})
