"""Uneven masks as they come in use: from the heads of the demo model, on the grid of any shape.

Two prompts of the demo model are recorded at its own grid; the plan's profiles, orders and error
curves are then evaluated on the grid of the shape, as for a user who calibrated at another size.
Heads of all layers and noise bands fill the shape's heads, and share one budget by output error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from bench_cases import Shape
from paro_attention.calibration import Plan, TokenGrid
from paro_attention.calibration.block_selection import forced_blocks, select_blocks
from paro_attention.calibration.density_budget import (
    FLOOR,
    error_benefit,
    head_counts,
    head_densities,
)
from paro_attention.calibration.predicted_mass import MassPredictor
from paro_attention.calibration.token_order import grid_permutation
from paro_attention.demo.experiment import Experiment
from paro_attention.demo.settings import FULL_SCALE, Scale
from paro_attention.demo.wan import load_demo_model
from paro_attention.kernels import BlockMask
from torch import Tensor

Block = tuple[int, int]
Place = tuple[int, int, int]  # layer, noise band, head


TWO_PROMPTS = replace(FULL_SCALE, calibration_prompts=2, recorded_per_band=1)


def record(device: torch.device, block: Block, scale: Scale = TWO_PROMPTS) -> Plan:
    """A plan of the demo model from two prompts, one recorded step per noise band."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = load_demo_model(device, torch.float32)
    experiment = Experiment(model, replace(scale, block=block), dtype)
    silent: Callable[[str], None] = lambda _: None  # noqa: E731
    plans, _ = experiment.calibrate(["tiles"], silent)
    return plans["tiles"]


@dataclass(frozen=True, slots=True)
class DemoHeads:
    """Heads of a plan of the demo model that stand for the heads of a shape."""

    plan: Plan

    def places(self, heads: int) -> list[Place]:
        """As many heads as asked for, spread evenly over layers, noise bands and heads."""
        layers, bands, per_layer = self.plan.layers, self.plan.bands.count, self.plan.heads
        every = [(n, b, h) for b in range(bands) for n in range(layers) for h in range(per_layer)]
        return [every[(index * len(every)) // heads] for index in range(heads)]

    def permutation(self, shape: Shape, device: torch.device | str) -> Tensor:
        """int32 [H, S]: each head's own order, the extra tokens behind the grid."""
        grid = _grid(shape)
        behind = torch.arange(shape.grid_tokens, shape.tokens)
        rows = [
            torch.cat((grid_permutation(self.plan.order_names(layer)[head], grid), behind))
            for layer, _, head in self.places(shape.heads)
        ]
        return torch.stack(rows).int().to(device)

    def mask(
        self, shape: Shape, block: Block, density: float, device: torch.device | str
    ) -> BlockMask:
        """The blocks that these heads keep at a mean density."""
        grid, places = _grid(shape), self.places(shape.heads)
        total = math.prod(-(-grid.tokens // side) for side in block)
        curves = np.stack([self.plan.error[place].numpy() for place in places])
        forced = forced_blocks(grid.tokens, block, device)
        least = (int(forced.sum()) + forced.shape[0]) / total
        densities = head_densities(density, *error_benefit(curves), max(FLOOR * density, least))
        counts = head_counts(densities, total, density)
        predictor = MassPredictor(self.plan, grid, block, device)
        computed = torch.empty(shape.heads, *forced.shape, dtype=torch.bool, device=device)
        for layer, band in dict.fromkeys((n, b) for n, b, _ in places):
            mass = predictor(layer, band)
            for index, place in enumerate(places):
                if place[:2] == (layer, band):
                    head = mass[place[2]][None]
                    computed[index] = select_blocks(head, [int(counts[index])], forced)[0]
        return BlockMask.from_dense(computed, block, grid.tokens)


def _grid(shape: Shape) -> TokenGrid:
    assert shape.grid is not None, "a shape without a grid has no masks of the demo model"
    grid = TokenGrid(*shape.grid)
    assert grid.tokens == shape.grid_tokens
    return grid
