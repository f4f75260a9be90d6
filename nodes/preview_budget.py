"""What a client needs to follow the run-time's density budget without asking again.

The heads of all sparse layers share one budget: pieces of their error curves are filled in the
order of their slopes (calibration/density_budget.py). That order does not depend on the density, so
that it is sent once and filled by the client (web/js/paro_budget.js) while the slider moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..calibration.block_layout import block_count
from ..calibration.block_selection import forced_blocks
from ..calibration.density_budget import FLOOR, concave_slopes, error_benefit
from ..calibration.plan import Plan


@dataclass(frozen=True, slots=True)
class Budget:
    """The shared budget of one noise band.

    Attributes:
        grid: densities between which the pieces lie, ascending from 0 to 1.
        pieces: uint32, steepest first: row * (len(grid) - 1) + piece, where row counts the heads of
            the sparse layers.
        first_row: row of the asked layer's first head; None where that layer is dense.
        rows: heads that share the budget.
        floor: least density of a head as a share of the band's density.
        least: least density of a head, whatever the band's.
    """

    grid: tuple[float, ...]
    pieces: np.ndarray
    first_row: int | None
    rows: int
    floor: float
    least: float


def shared_budget(plan: Plan, layer: int, band: int, dense_layers: tuple[int, ...]) -> Budget:
    """The budget of a band where `dense_layers` run dense."""
    sparse = [n for n in range(plan.layers) if n not in dense_layers]
    query_blocks, key_blocks = (block_count(plan.grid.tokens, side) for side in plan.block)
    forced = float(forced_blocks(plan.grid.tokens, plan.block).sum())
    grid, benefit = error_benefit(plan.error[sparse, band].flatten(0, 1).numpy())
    slopes = concave_slopes(np.asarray(benefit, np.float64), grid)
    start = np.broadcast_to(grid[:-1], slopes.shape)
    return Budget(
        grid=tuple(grid.tolist()),
        pieces=np.lexsort((start.ravel(), -slopes.ravel())).astype("<u4"),
        first_row=sparse.index(layer) * plan.heads if layer in sparse else None,
        rows=len(sparse) * plan.heads,
        floor=FLOOR,
        least=(forced + query_blocks) / (query_blocks * key_blocks),
    )
