"""The picture that Load PARO gives with its result: the live one for those who cannot see that.

Front ends that run no scripts of packs, and clients of the API, show a node's pictures after a run;
where the live picture is there, web/js/paro_load.js keeps this one from being shown as well.
"""

from __future__ import annotations

import numpy as np

from ..calibration import Plan, PlanRuntime, RuntimeOptions
from .preview_blocks import MASS_STEPS_PER_OCTAVE, RANK_ONE, LayerPictures
from .report_canvas import (
    ACCENT,
    DECADES,
    INK,
    MARGIN,
    SERIES,
    SOFT,
    Axes,
    as_batch,
    colour_scale,
    colours,
    font,
    new_picture,
    paste_map,
)
from .report_data import DENSITIES, MODEL_ORDER

_SIDE, _GAP = 330, 24
_WIDTH = 2 * MARGIN + 2 * _SIDE + _GAP
_MAPS, _PLOT = 144, 124


def draw_load_picture(plan: Plan, options: RuntimeOptions) -> np.ndarray:
    """A head of the middle sparse layer in the middle noise band: its blocks, mask and curve.

    It is looked at on the grid that the plan was calibrated on, in at most 128 x 128 blocks.

    Args:
        plan: the plan.
        options: as the run follows it.

    Returns:
        float32 [1, H, W, 3] in 0..1.
    """
    sparse = [n for n in range(plan.layers) if n not in options.dense_layers]
    layer = sparse[len(sparse) // 2] if sparse else plan.layers // 2
    band, head = plan.bands.count // 2, 0
    density = float(PlanRuntime(plan, plan.grid, options, "cpu").head_densities(band)[layer, head])
    drawn = LayerPictures(plan)
    own, model = (drawn.draw(layer, band, model_order, [head]) for model_order in (False, True))
    order = plan.order_names(layer)[head]
    curve = np.concatenate([[0.0], plan.recall_profile[layer, band, head].numpy()])
    before = np.concatenate([[0.0], model.recall[0]])
    recall = float(np.interp(density, DENSITIES, curve))

    picture, draw = new_picture(_WIDTH, _WIDTH)  # some front ends cut others square
    draw.text((MARGIN, 16), f"PARO at density {options.density:.2f}", INK, font(30))
    place = (
        f"layer {layer} of 0-{plan.layers - 1}, head {head} of 0-{plan.heads - 1}, "
        f"noise band {band} of 0-{plan.bands.count - 1}"
    )
    draw.text((MARGIN, 56), place, SOFT, font(19))
    kept = f"keeps {recall:.0%} of its attention in {density:.0%} of its blocks"
    draw.text((MARGIN, 82), kept if sparse else "every layer stays dense", INK, font(22))
    whole = colours(_levels(model.mass[0]))
    computed = own.rank[0] < density * RANK_ONE if density < 1 else np.True_
    levels = _levels(own.mass[0])
    grey = (236 - 40 * levels).round().astype(np.uint8)[..., None].repeat(3, -1)
    masked = np.where(np.broadcast_to(computed, levels.shape)[..., None], colours(levels), grey)
    for column, (title, pixels) in enumerate(
        (("before: model's own order", whole), (f"reordered ({order}), grey: skipped", masked))
    ):
        x = MARGIN + column * (_SIDE + _GAP)
        draw.text((x, _MAPS - 8), title, INK, font(19), anchor="ls")
        paste_map(picture, draw, (x, _MAPS), pixels, _SIDE)
    colour_scale(picture, draw, MARGIN, _MAPS + _SIDE + 10)

    axes = Axes(MARGIN + 56, _MAPS + _SIDE + 76, _WIDTH - 2 * MARGIN - 66, _PLOT)
    ticks = (0.0, 0.25, 0.5, 0.75, 1.0)
    axes.frame(draw, "attention kept (recall)", "density", ticks, (0.0, 0.5, 1.0), 17)
    if order != MODEL_ORDER:
        axes.curve(draw, DENSITIES, before, SOFT, dashed=True, width=2)
    axes.curve(draw, DENSITIES, curve, SERIES[0], width=4)
    axes.upright(draw, density)
    axes.mark(draw, density, recall, ACCENT)
    corner = (axes.left + axes.width - 12, axes.top + axes.height - 12)
    draw.text(corner, "line: reordered, dashes: before", SOFT, font(17), anchor="rs")
    return as_batch(picture)


def _levels(mass: np.ndarray) -> np.ndarray:
    """Levels 0..1 of the report's colours, of the codes of `BlockPictures.mass`."""
    octaves = (255.0 - mass) / MASS_STEPS_PER_OCTAVE
    return np.clip(1 - octaves / (DECADES * np.log2(10)), 0, 1)
