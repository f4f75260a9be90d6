"""Following a plan while a model samples: which calls run sparse, with which masks and orders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..kernels import BlockMask, sparse_attention
from .block_layout import block_count, checked_block
from .block_selection import forced_blocks, select_blocks
from .density_budget import FLOOR, GLOBAL_FROM, band_densities, head_counts, head_densities
from .mask_store import MaskStore
from .metrics import RECALL_DENSITIES
from .noise_bands import checked_schedule
from .plan import Plan
from .predicted_mass import MassPredictor
from .token_grid import TokenGrid
from .token_order import sequence_permutation

BITS = (16, 8, 4)
BUDGETS = ("global", "head")


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What the user sets.

    Attributes:
        density: computed / all blocks, mean over the run's sparse steps, in (0, 1].
        qk_bits, pv_bits: 16, 8 or 4.
        tail: let pooled keys and values stand for skipped blocks.
        budget: "global" (heads share one budget by mass) or "head" (each has the same density).
        shares: noisy bands take more of the density; False: all bands the same.
        warmup: fraction of the steps that run dense first, 0..1.
        dense_layers: layers that always run dense.
        implementation: as `sparse_attention`.
        block: (query, key) tokens of a block; the plan's when None.
        dense_first, dense_last: non-grid tokens before and behind the grid; always dense.
    """

    density: float = 0.3
    qk_bits: int = 8
    pv_bits: int = 8
    tail: bool = True
    budget: str = "global"
    shares: bool = True
    warmup: float = 0.15
    dense_layers: tuple[int, ...] = ()
    implementation: str = "auto"
    block: tuple[int, int] | None = None
    dense_first: int = 0
    dense_last: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        for name in ("qk_bits", "pv_bits"):
            if getattr(self, name) not in BITS:
                raise ValueError(f"{name} must be one of {BITS}, got {getattr(self, name)!r}")
        if self.budget not in BUDGETS:
            raise ValueError(f"budget must be one of {BUDGETS}, got {self.budget!r}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must lie in 0..1, got {self.warmup}")
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in self.dense_layers):
            raise ValueError(f"dense_layers must be layer indices, got {self.dense_layers!r}")
        for name in ("dense_first", "dense_last"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a number of tokens, got {value!r}")
        if self.block is not None:
            checked_block(self.block)


class PlanRuntime:
    """A plan at work on one grid with one set of options."""

    def __init__(
        self, plan: Plan, grid: TokenGrid, options: RuntimeOptions, device: torch.device | str
    ) -> None:
        """Prepares permutations; masks are built when they are first needed.

        Raises:
            ValueError: a dense layer that the plan's model does not have.
        """
        beyond = [layer for layer in options.dense_layers if layer >= plan.layers]
        if beyond:
            raise ValueError(
                f"dense_layers must be below the model's {plan.layers} layers, got {beyond}"
            )
        self.plan, self.grid, self.options = plan, grid, options
        self.device = torch.device(device)
        self.block = plan.block if options.block is None else checked_block(options.block)
        self.dense_tokens = options.dense_first + options.dense_last
        self.tokens = grid.tokens + self.dense_tokens
        self.blocks = tuple(block_count(self.tokens, side) for side in self.block)
        self._permutations = torch.stack(
            [
                sequence_permutation(name, grid, options.dense_first, options.dense_last)
                for name in plan.orders
            ]
        ).to(self.device, torch.int32)
        self._order_of_head = plan.order_of_head.to(self.device, torch.int32)
        self._tail_bias = plan.tail_bias.to(self.device)
        self._forced = forced_blocks(self.tokens, self.block, self.dense_tokens, self.device)
        self._predictor = MassPredictor(plan, grid, self.block, self.device)
        self._masks = MaskStore(self._build_mask, self.device)
        self._sparse_layers = [n for n in range(plan.layers) if n not in set(options.dense_layers)]
        self._counts: tuple[np.ndarray, ...] = ()
        self.band_densities: tuple[float, ...] = ()
        self._warm_above = math.inf
        self._warm_steps = 0
        self._steps = 0
        self.begin_run(plan.schedule)

    def begin_run(self, sigmas: Sequence[float]) -> None:
        """Decides the dense warm-up and the density of each noise band for a run.

        Args:
            sigmas: the run's noise levels, descending; a final 0 is ignored. Until the first call
                the calibration's own schedule is assumed.
        """
        steps = checked_schedule(sigmas)
        warm = min(len(steps), math.floor(self.options.warmup * len(steps) + 0.5))
        self._warm_steps, self._steps = warm, len(steps)
        if warm == len(steps):
            self._warm_above = -math.inf
        else:
            # Halfway to the last dense step: sigmas come back from the device rounded.
            self._warm_above = math.inf if warm == 0 else (steps[warm - 1] + steps[warm]) / 2
        per_band = [len(band) for band in self.plan.bands.steps_in(steps[warm:])]
        shares = self.plan.shares if self.options.shares else (1.0,) * self.plan.bands.count
        densities = band_densities(self.options.density, shares, per_band)
        counts = tuple(self._band_counts(band, value) for band, value in enumerate(densities))
        unchanged = len(counts) == len(self._counts) and all(
            np.array_equal(a, b) for a, b in zip(counts, self._counts, strict=True)
        )
        self.band_densities = densities
        if not unchanged:
            self._counts = counts
            self._masks.clear()

    def is_dense(self, layer: int, sigma: float) -> str | None:
        """Why a call runs dense: "warm-up", "dense layer", or None where it does not."""
        if sigma > self._warm_above:
            return "warm-up"
        return "dense layer" if layer in self.options.dense_layers else None

    def attention(
        self,
        layer: int,
        sigma: float,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None = None,
    ) -> Tensor:
        """Visual self-attention of one layer as the plan has it.

        Args:
            layer: index of the layer.
            sigma: noise level of the call.
            q, k, v: [B, H, S, D] after rotary embedding, in the model's order, on the runtime's
                device; S is the grid's tokens plus the dense ones at either end.
            scale: softmax scale, D ** -0.5 when None.

        Returns:
            [B, H, S, D] in the model's order.

        Raises:
            ValueError: tensors that do not fit the plan or the grid.
        """
        self._check(layer, q)
        band = self.plan.bands.band_of(sigma)
        out = sparse_attention(
            q,
            k,
            v,
            self._masks.get(layer, band),
            self._permutations,
            self._order_of_head[layer],
            qk_bits=self.options.qk_bits,
            pv_bits=self.options.pv_bits,
            tail=self.options.tail,
            tail_bias=self._tail_bias[layer],
            scale=scale,
            implementation=self.options.implementation,
        )
        following = self._following_layer(layer)
        if following is not None:
            self._masks.prefetch(following, band)
        return out

    def mask(self, layer: int, sigma: float) -> BlockMask:
        """The packed mask of a layer at a noise level."""
        self._check_layer(layer)
        return self._masks.get(layer, self.plan.bands.band_of(sigma))

    def permutations(self) -> Tensor:
        """int32 [O, S], one whole-sequence permutation per distinct order of the plan."""
        return self._permutations

    def orders(self, layer: int) -> list[str]:
        """Name of every head's order."""
        self._check_layer(layer)
        return self.plan.order_names(layer)

    def predicted_recall(self, layer: int, sigma: float) -> Tensor:
        """float32 [H]: recall that calibration measured at each head's density."""
        self._check_layer(layer)
        band = self.plan.bands.band_of(sigma)
        curves = self.plan.recall_profile[layer, band].numpy()
        densities = self._counts[band][layer] / (self.blocks[0] * self.blocks[1])
        grid = (0.0, *RECALL_DENSITIES)
        recall = [
            np.interp(d, grid, (0.0, *curve)) for d, curve in zip(densities, curves, strict=True)
        ]
        return torch.tensor(recall, dtype=torch.float32)

    def describe(self) -> str:
        """One line about what was done to the plan for this run."""
        plan = self.plan
        size = f"{self.block[0]}x{self.block[1]}"
        grid = f"grid {self.grid}"
        if self.grid != plan.grid:
            grid += f", calibrated on {plan.grid}: profiles evaluated with offsets kept in tokens"
        if self.block != plan.block:
            size += f" (calibrated with {plan.block[0]}x{plan.block[1]})"
        bands = "/".join(f"{value:.2f}" for value in self.band_densities)
        dense = f", {len(set(self.options.dense_layers))} dense layers" * bool(
            self.options.dense_layers
        )
        return (
            f"{grid}; blocks {size}; density {self.options.density:g} as {bands} over the noise "
            f"bands, {self._budget_in_words()}; {self._warm_steps} of {self._steps} steps dense "
            f"first{dense}; {len(plan.orders)} orders; {self.options.qk_bits}/"
            f"{self.options.pv_bits} bits, tail {'on' if self.options.tail else 'off'}"
        )

    @property
    def _pooled_budget(self) -> bool:
        return self.options.budget == "global" and self.options.density >= GLOBAL_FROM - 1e-9

    def _budget_in_words(self) -> str:
        if self._pooled_budget:
            return "one budget for all heads"
        if self.options.budget == "global":
            return f"the same for every head (density below {GLOBAL_FROM:g})"
        return "the same for every head"

    def _band_counts(self, band: int, density: float) -> np.ndarray:
        """Blocks to compute in each head at one noise band, int64 [L, H]."""
        blocks = self.blocks[0] * self.blocks[1]
        counts = np.full((self.plan.layers, self.plan.heads), blocks, dtype=np.int64)
        if self._sparse_layers:
            curves = self.plan.recall_profile[self._sparse_layers, band].flatten(0, 1).numpy()
            # Forced blocks and one per row are computed in any case.
            least = (float(self._forced.sum()) + self.blocks[0]) / blocks
            densities = head_densities(
                density, curves, max(FLOOR * density, least), self._pooled_budget
            )
            shared = head_counts(densities, blocks, density)
            counts[self._sparse_layers] = shared.reshape(-1, self.plan.heads)
        return counts

    def _build_mask(self, layer: int, band: int) -> BlockMask:
        mass = self._predictor(layer, band)
        mass = torch.nn.functional.pad(
            mass, (0, self.blocks[1] - mass.shape[2], 0, self.blocks[0] - mass.shape[1])
        )
        computed = select_blocks(mass, self._counts[band][layer].tolist(), self._forced)
        return BlockMask.from_dense(computed, self.block, self.tokens)

    def _following_layer(self, layer: int) -> int | None:
        layers = self._sparse_layers
        later = [other for other in layers if other > layer]
        return later[0] if later else (layers[0] if layers else None)

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.plan.layers:
            raise ValueError(f"layer must be in 0..{self.plan.layers - 1}, got {layer}")

    def _check(self, layer: int, q: Tensor) -> None:
        self._check_layer(layer)
        if q.ndim != 4:
            raise ValueError(f"q must be [B, H, S, D], got {list(q.shape)}")
        expected = (self.plan.heads, self.tokens, self.plan.identity.head_dim)
        if tuple(q.shape[1:]) != expected:
            raise ValueError(
                f"q must be [B, {expected[0]}, {expected[1]}, {expected[2]}] for the grid "
                f"{self.grid} with {self.dense_tokens} dense tokens, got {list(q.shape)}"
            )
        if q.device.type != self.device.type:
            raise ValueError(f"q must be on {self.device}, got {q.device}")
