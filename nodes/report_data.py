"""What a report shows, computed from a plan: nothing here is drawn, nothing there is computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from ..calibration import Plan, PlanRuntime, RuntimeOptions
from ..calibration.block_layout import valid_tokens
from ..calibration.block_selection import forced_blocks, select_blocks
from ..calibration.metrics import RECALL_DENSITIES
from ..calibration.order_scores import ERROR_DENSITIES
from ..calibration.predicted_mass import MassPredictor

MODEL_ORDER = "FHW"
COLUMNS = 4
DENSITIES = np.array((0.0, *RECALL_DENSITIES))


@dataclass(frozen=True, slots=True, eq=False)
class HeadView:
    """One head at one noise band.

    Attributes:
        layer, head: which.
        order: the token order of the head.
        before: float32 [Qb, KVb] expected block mass in the model's own order, rows sum to 1.
        after: float32 [Qb, KVb] in the head's order.
        mask: bool [Qb, KVb], True where the block is computed.
        kept_before, kept_after: share of the expected attention in the best blocks, as many as
            the mask has, 0..1.
        recall: float32 [33] recall of the plan's masks at DENSITIES, measured at calibration.
        best: float32 [33] recall of the best possible masks, measured at calibration.
    """

    layer: int
    head: int
    order: str
    before: np.ndarray
    after: np.ndarray
    mask: np.ndarray
    kept_before: float
    kept_after: float
    recall: np.ndarray
    best: np.ndarray

    @property
    def density(self) -> float:
        """Computed / all blocks."""
        return float(self.mask.mean())

    @property
    def recall_here(self) -> float:
        """Measured recall at this density."""
        return float(np.interp(self.density, DENSITIES, self.recall))


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer at one noise band: means over its heads.

    Attributes:
        layer: index.
        orders: (order, number of heads), most used first.
        density: mean density of the heads.
        recall: mean recall at their densities.
        worst: (head, recall) of the head that keeps least.
        error: mean relative output error with the pooled tail.
    """

    layer: int
    orders: tuple[tuple[str, int], ...]
    density: float
    recall: float
    worst: tuple[int, float]
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """Everything that the pictures say.

    Attributes:
        name: of the plan.
        model: description of the plan's model.
        grid: token grid of the calibration as text.
        block: (query, key) tokens of a block.
        density: what the user asked for, the mean over a run.
        band, bands: noise band shown, and how many there are.
        sigmas: noise levels of the band's calibration steps, highest and lowest.
        band_density: mean density in this band.
        heads: what the maps show.
        layers: one row per layer.
        band_recall: float32 [bands, 33] mean recall of all heads at DENSITIES.
        spread: float32 [2, 33] recall that 10 % and 90 % of the heads stay below, this band.
        layer_count, head_count: of the model.
    """

    name: str
    model: str
    grid: str
    block: tuple[int, int]
    density: float
    band: int
    bands: int
    sigmas: tuple[float, float]
    band_density: float
    heads: tuple[HeadView, ...]
    layers: tuple[LayerRow, ...]
    band_recall: np.ndarray
    spread: np.ndarray
    layer_count: int
    head_count: int

    @property
    def band_text(self) -> str:
        """The noise band in words."""
        high, low = self.sigmas
        return f"noise band {self.band} of 0-{self.bands - 1} (sigma {high:.2f} to {low:.2f})"

    @property
    def source(self) -> str:
        """What was looked at, one line."""
        return f"{self.name}: {self.model}, grid {self.grid}, blocks of {_size(self.block)} tokens"

    @property
    def recall(self) -> float:
        """Mean recall of all heads at their densities."""
        return float(np.mean([row.recall for row in self.layers]))

    def summary(self) -> str:
        """Three lines for the node and for text outputs."""
        low = min(self.layers, key=lambda row: row.worst[1])
        weak = max(self.layers, key=lambda row: row.error)
        return (
            f"{self.source}\n"
            f"density {self.density:.2f} ({self.band_density:.2f} in {self.band_text}): the masks "
            f"keep {self.recall:.1%} of the attention; least: layer {low.layer} head "
            f"{low.worst[0]}, {low.worst[1]:.1%}\n"
            f"greatest output error: layer {weak.layer}, {weak.error:.3f}"
        )


def chosen_heads(plan: Plan, layer: int, head: int) -> list[tuple[int, int]]:
    """The (layer, head) pairs of a report, at most COLUMNS.

    Args:
        plan: the plan.
        layer: index, or -1 for layers spread over the depth of the model.
        head: index, or -1 for heads spread over the layer (or one per layer).

    Raises:
        ValueError: a layer or head that the model does not have.
    """
    for name, value, count in (("layer", layer, plan.layers), ("head", head, plan.heads)):
        if not -1 <= value < count:
            raise ValueError(
                f"{name} must be -1 or 0 to {count - 1}, the {name}s of this plan's model, "
                f"got {value}"
            )
    if layer >= 0 and head >= 0:
        return [(layer, head)]
    if layer >= 0:
        return [(layer, h) for h in _spread(plan.heads, COLUMNS)]
    layers = _spread(plan.layers, COLUMNS)
    if head >= 0:
        return [(n, head) for n in layers]
    return [(n, (2 * i + 1) % plan.heads) for i, n in enumerate(layers)]


def make_report(
    plan: Plan, name: str, *, density: float, band: int, layer: int = -1, head: int = -1
) -> Report:
    """Look at a plan on the grid that it was calibrated on, with Load PARO's default warm-up.

    Args:
        plan: the plan.
        name: what to call it.
        density: mean density of a run, in (0, 1].
        band: noise band, 0 is the noisiest; one that the plan does not have is its last.
        layer, head: as `chosen_heads`.

    Raises:
        ValueError: a layer or head that the model does not have.
    """
    band = min(band, plan.bands.count - 1)
    runtime = PlanRuntime(plan, plan.grid, RuntimeOptions(density=density), "cpu")
    densities = runtime.head_densities(band)
    predictor = MassPredictor(plan, plan.grid, plan.block)
    recalls = _with_zero(plan.recall_profile[:, band].numpy())
    kept = np.stack([runtime.band_recall(n, band) for n in range(plan.layers)])
    errors = _errors(plan, band, densities)
    all_bands = _with_zero(plan.recall_profile.numpy())
    steps = plan.bands.steps_in(plan.schedule)[band] or [plan.schedule[0]]
    return Report(
        name=name,
        model=plan.identity.description or "a model without a name",
        grid=str(plan.grid),
        block=plan.block,
        density=density,
        band=band,
        bands=plan.bands.count,
        sigmas=(max(steps), min(steps)),
        band_density=float(densities.mean()),
        heads=tuple(
            _head_view(plan, predictor, band, n, h, densities[n, h])
            for n, h in chosen_heads(plan, layer, head)
        ),
        layers=tuple(
            LayerRow(
                layer=n,
                orders=tuple(Counter(plan.order_names(n)).most_common()),
                density=float(densities[n].mean()),
                recall=float(kept[n].mean()),
                worst=(int(kept[n].argmin()), float(kept[n].min())),
                error=float(errors[n].mean()),
            )
            for n in range(plan.layers)
        ),
        band_recall=all_bands.mean((0, 2)),
        spread=np.quantile(recalls.reshape(-1, len(DENSITIES)), (0.1, 0.9), axis=0),
        layer_count=plan.layers,
        head_count=plan.heads,
    )


def _head_view(
    plan: Plan, predictor: MassPredictor, band: int, layer: int, head: int, density: float
) -> HeadView:
    before = predictor.head(layer, band, head, MODEL_ORDER)
    after = predictor.head(layer, band, head)
    forced = forced_blocks(plan.grid.tokens, plan.block)
    mask = select_blocks(after[None], [round(density * after.numel())], forced)[0]
    rows = valid_tokens(plan.grid.tokens, plan.block[0])
    best = _with_zero(plan.recall_true[layer, band, head].numpy())
    return HeadView(
        layer=layer,
        head=head,
        order=plan.order_names(layer)[head],
        before=before.numpy(),
        after=after.numpy(),
        mask=mask.numpy(),
        kept_before=_best_share(before, rows, int(mask.sum())),
        kept_after=_best_share(after, rows, int(mask.sum())),
        recall=_with_zero(plan.recall_profile[layer, band, head].numpy()),
        best=best,
    )


def _best_share(mass: torch.Tensor, rows: torch.Tensor, blocks: int) -> float:
    """Share of the attention in the best `blocks` blocks."""
    weighted = (mass * (rows / rows.sum())[:, None]).flatten()
    return float(weighted.topk(blocks).values.sum())


def _errors(plan: Plan, band: int, densities: np.ndarray) -> np.ndarray:
    """Relative output error of every head at its density, [L, H]."""
    grid = (0.0, *ERROR_DENSITIES, 1.0)
    curves = plan.error[:, band].numpy()
    return np.array(
        [
            [np.interp(d, grid, (1.0, *curve, 0.0)) for d, curve in zip(*row, strict=True)]
            for row in zip(densities, curves, strict=True)
        ]
    )


def _with_zero(curves: np.ndarray) -> np.ndarray:
    """Recall curves [..., 32] with the point (0, 0) in front."""
    return np.concatenate([np.zeros((*curves.shape[:-1], 1), curves.dtype), curves], -1)


def _spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` indices, evenly over 0..count - 1."""
    wanted = min(wanted, count)
    return [int((i + 0.5) * count / wanted) for i in range(wanted)]


def _size(block: tuple[int, int]) -> str:
    return f"{block[0]} x {block[1]}"
