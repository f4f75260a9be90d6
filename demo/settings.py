"""The table of runs that the demo makes, and how large each run is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Orders = Literal["fhw", "axes", "tiles"]
EVERY_ORDERS: tuple[Orders, ...] = ("fhw", "axes", "tiles")
DENSITIES = (0.5, 0.3, 0.2, 0.1)
WARMUP = 0.2


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the report: how attention runs while a video is sampled.

    The defaults are the whole recipe: orders from axes and tiles, pooled tail, one budget for all
    heads, and shares of the density over the noise bands.

    Attributes:
        density: computed / all blocks, averaged over heads and over the steps that are not dense.
        qk_bits, pv_bits: bits of the two matrix products of attention.
        orders: candidates that each head's token order was chosen from; "fhw" leaves it as it is.
        tail: whether pooled keys and values stand for skipped blocks.
        budget: whether every head has the same density ("head") or all heads share one ("global").
        shares: whether noisy steps get a larger share of the density.
        warmup: fraction of steps that run dense first.
    """

    density: float
    qk_bits: int = 16
    pv_bits: int = 16
    orders: Orders = "tiles"
    tail: bool = True
    budget: Literal["head", "global"] = "global"
    shares: bool = True
    warmup: float = 0.0

    @property
    def is_recipe(self) -> bool:
        return self.orders == "tiles" and self.tail and self.budget == "global" and self.shares

    @property
    def is_plain(self) -> bool:
        """Blocks outside the mask are dropped, and nothing else is done."""
        return not self.tail and self.budget == "head" and not self.shares

    @property
    def bits(self) -> str:
        return f"{self.qk_bits}/{self.pv_bits}"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is sampled.

    Attributes:
        grid: (frames, height, width) in tokens.
        block: (query, key) tokens of a block. A small grid takes small blocks: those that every
            mask keeps (one per row, and the diagonal) must stay well below the lowest density.
        steps: sampling steps of every video.
        calibration_prompts: prompts that the plans are made from.
        recorded_per_band: steps of each noise band that calibration looks at.
        videos: prompts x seeds that every setting is sampled with (none of them calibrated on).
        probe_steps: steps of the dense trajectory at which errors are measured.
        velocity_videos: videos whose guided velocity gives step_error.
        attention_videos: videos whose own attention gives recall and layer_error.
    """

    grid: tuple[int, int, int]
    block: tuple[int, int]
    steps: int
    calibration_prompts: int
    recorded_per_band: int
    videos: int
    probe_steps: int
    velocity_videos: int
    attention_videos: int

    @property
    def probed(self) -> tuple[int, ...]:
        """Indices of the probed steps: the middles of equal parts of the run."""
        width = self.steps / self.probe_steps
        return tuple(int((part + 0.5) * width) for part in range(self.probe_steps))


FULL_SCALE = Scale((8, 32, 32), (64, 64), 20, 5, 2, 8, 8, 4, 2)
QUICK_SCALE = Scale((4, 16, 16), (32, 32), 8, 4, 1, 1, 4, 1, 1)


def plain(density: float, **changes) -> Setting:
    """Block-sparse attention as it is without any of the recipe's parts, except what changes."""
    base = Setting(density, orders="fhw", tail=False, budget="head", shares=False)
    return replace(base, **changes)


def recipe(density: float, **changes) -> Setting:
    return replace(Setting(density), **changes)


def _unique(settings: Iterable[Setting]) -> tuple[Setting, ...]:
    return tuple(dict.fromkeys(settings))


def full_table() -> tuple[Setting, ...]:
    """Every comparison that the report draws, each part changed with all else equal."""
    rows: list[Setting] = []
    # Reordering alone, with the tail, and in the whole recipe.
    rows += [plain(d, orders=o) for o in EVERY_ORDERS for d in (1.0, *DENSITIES)]
    rows += [plain(d, orders=o, tail=True) for o in ("fhw", "tiles") for d in DENSITIES]
    rows += [recipe(d, orders=o) for o in ("fhw", "tiles") for d in DENSITIES]
    rows += [plain(0.3, orders="axes", tail=True), recipe(0.3, orders="axes")]
    # One part of the recipe at a time.
    rows += [recipe(0.3, shares=False), recipe(0.3, budget="head"), recipe(0.3, tail=False)]
    rows += [plain(0.3, orders="tiles", budget="global"), plain(0.3, orders="tiles", shares=True)]
    # Bits, dense and sparse.
    rows += [plain(1.0, orders="tiles", qk_bits=q, pv_bits=p) for q, p in BITS]
    rows += [recipe(0.3, qk_bits=q, pv_bits=p) for q, p in BITS]
    rows += [recipe(d, qk_bits=b, pv_bits=b) for d in (0.5, 0.2) for b in (8, 4)]
    # The paper's pairs: half the blocks in INT4, or 30 % of them in INT8; axis orders, dropped
    # blocks, one budget per head.
    for warmup in (0.0, WARMUP):
        for orders in ("axes", "fhw"):
            rows += [
                plain(0.5, orders=orders, qk_bits=4, pv_bits=4, warmup=warmup),
                plain(0.3, orders=orders, qk_bits=8, pv_bits=8, warmup=warmup),
            ]
    # Dense warm-up.
    rows += [plain(d, warmup=WARMUP) for d in (0.5, 0.3)]
    rows += [recipe(d, warmup=WARMUP) for d in (0.5, 0.3, 0.2)]
    rows += [recipe(0.3, qk_bits=8, pv_bits=8, warmup=WARMUP)]
    return _unique(rows)


BITS = ((8, 8), (8, 16), (8, 4), (4, 8), (4, 4))


def quick_table() -> tuple[Setting, ...]:
    """The subset that two CPU cores sample in about two minutes."""
    return _unique(
        [
            plain(1.0, orders="tiles"),
            *(plain(d) for d in (0.5, 0.3, 0.1)),
            plain(0.3, orders="tiles"),
            *(recipe(d) for d in (0.5, 0.3, 0.2, 0.1)),
            recipe(0.3, qk_bits=8, pv_bits=8),
            recipe(0.5, qk_bits=4, pv_bits=4),
        ]
    )
