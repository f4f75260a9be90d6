"""Following a plan while a model samples: which calls run sparse, with which masks and orders."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..kernels import BlockMask, sparse_attention
from .block_budget import BlockBudget
from .block_layout import block_count, checked_block
from .block_selection import forced_blocks, least_selected, most_selected, select_blocks
from .device_copy import to_device
from .joint_sequence import JointLayout, SequencePermutations
from .mask_store import MaskStore
from .noise_bands import checked_schedule
from .plan import Plan
from .predicted_mass import MassPredictor
from .runtime_options import RuntimeOptions
from .token_grid import TokenGrid


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
        self.blocks = tuple(block_count(grid.tokens, side) for side in self.block)
        self._permutations = SequencePermutations(plan.orders, grid, self.device)
        self._order_of_head = to_device(plan.order_of_head.to(torch.int32), self.device)
        self._tail_bias = to_device(plan.tail_bias, self.device)
        self._forced = forced_blocks(grid.tokens, self.block, self.device)
        self._least = least_selected(grid.tokens, self.block)
        self._predictor = MassPredictor(plan, grid, self.block, self.device)
        self._masks = MaskStore(self.device)
        self._budget = BlockBudget(plan, options, self.blocks[0] * self.blocks[1], self._least)
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
        if self._budget.share(per_band):
            self._masks.clear()

    @property
    def band_densities(self) -> tuple[float, ...]:
        """Density of each noise band, over the steps that run sparse."""
        return self._budget.densities

    def end_run(self) -> None:
        """Frees what is needed to build masks; the masks themselves stay for the next run."""
        self._predictor.release()
        self._masks.rest()

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
        *,
        dense_first: int = 0,
        key_bias: Tensor | None = None,
    ) -> Tensor:
        """Self-attention of one layer over its joint sequence, as the plan has it.

        The V tokens of the grid attend to the blocks that the mask keeps, to the pooled tail of the
        others and to all E = S - V extra tokens; extra tokens attend to everything. E may change
        from call to call.

        Args:
            layer: index of the layer.
            sigma: noise level of the call.
            q, k, v: [B, H, S, D] after rotary embedding, in the model's order, on the runtime's
                device; S is at least the grid's tokens.
            scale: softmax scale, D ** -0.5 when None.
            dense_first: extra tokens before the grid, 0..E; the others lie behind it.
            key_bias: float32 [B or 1, S] in the model's order, added to the logits (natural log
                units) of the extra keys; -inf or <= -1e4 hides a key. Values at grid tokens are
                ignored.

        Returns:
            [B, H, S, D] in the model's order.

        Raises:
            ValueError: tensors that do not fit the plan or the grid, dense_first out of its range.
            TypeError: a key_bias that is not float32.
        """
        layout = self._check(layer, q, dense_first)
        band = self.plan.bands.band_of(sigma)
        if q.is_cuda and key_bias is None and self._is_plain(layer, band):
            return scaled_dot_product_attention(q, k, v, scale=scale)
        with self._masks.lend(layer, band, self._build_mask) as mask:
            out = sparse_attention(
                q,
                k,
                v,
                mask,
                self._permutations(layout.first, layout.last),
                self._order_of_head[layer],
                qk_bits=self.options.qk_bits,
                pv_bits=self.options.pv_bits,
                tail=self.options.tail,
                tail_bias=self._tail_bias[layer],
                scale=scale,
                implementation=self.options.implementation,
                key_bias=layout.extra_bias(key_bias, q.shape[0], q.device),
            )
        following = self._following_layer(layer)
        if following is not None:
            self._masks.prefetch(following, band)
        return out

    def mask(self, layer: int, sigma: float) -> BlockMask:
        """The packed mask of a layer at a noise level, the caller's to keep."""
        self._check_layer(layer)
        return self._masks.get(layer, self.plan.bands.band_of(sigma), self._build_mask)

    def permutations(self, dense_first: int = 0, dense_last: int = 0) -> Tensor:
        """int32 [O, dense_first + V + dense_last], one permutation per distinct order."""
        return self._permutations(dense_first, dense_last)

    def orders(self, layer: int) -> list[str]:
        """Name of every head's order."""
        self._check_layer(layer)
        return self.plan.order_names(layer)

    def predicted_recall(self, layer: int, sigma: float) -> Tensor:
        """float32 [H]: recall that calibration measured at each head's density."""
        self._check_layer(layer)
        return torch.from_numpy(self.band_recall(layer, self.plan.bands.band_of(sigma)))

    def mean_recall(self) -> float:
        """Mean predicted recall over heads, sparse layers and noise bands; 1 where all is dense."""
        return self._budget.mean_recall()

    def band_recall(self, layer: int, band: int) -> np.ndarray:
        """float32 [H]: `predicted_recall` of a noise band."""
        return self._budget.band_recall(layer, band)

    def head_densities(self, band: int) -> np.ndarray:
        """float64 [L, H]: density that every head is given at a noise band; dense layers have 1."""
        return self._budget.head_densities(band)

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
            f"bands, {self._budget.in_words()}, keeps {self.mean_recall():.0%} of the attention by "
            f"calibration; {self._warm_steps} of {self._steps} steps dense "
            f"first{dense}; {len(plan.orders)} orders; {self.options.qk_bits}/"
            f"{self.options.pv_bits} bits, tail {'on' if self.options.tail else 'off'}"
        )

    def _build_mask(self, layer: int, band: int) -> BlockMask:
        mass = self._predictor(layer, band)
        counts = self._budget.counts[band][layer].tolist()
        computed = select_blocks(mass, counts, self._forced)
        entries = most_selected(counts, self._least, self.blocks[0] * self.blocks[1])
        return BlockMask.from_dense(computed, self.block, self.grid.tokens, entries)

    def _is_plain(self, layer: int, band: int) -> bool:
        """Whether every block is computed in 16 bits: dense attention, whatever the order."""
        options = self.options
        return (
            options.implementation == "auto"
            and options.qk_bits == options.pv_bits == 16
            and self._budget.computes_all(layer, band)
        )

    def _following_layer(self, layer: int) -> int | None:
        layers = self._budget.sparse_layers
        later = [other for other in layers if other > layer]
        return later[0] if later else (layers[0] if layers else None)

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.plan.layers:
            raise ValueError(f"layer must be in 0..{self.plan.layers - 1}, got {layer}")

    def _check(self, layer: int, q: Tensor, dense_first: int) -> JointLayout:
        self._check_layer(layer)
        heads, head_dim = self.plan.heads, self.plan.identity.head_dim
        if q.ndim != 4 or (q.shape[1], q.shape[3]) != (heads, head_dim):
            raise ValueError(f"q must be [B, {heads}, S, {head_dim}], got {list(q.shape)}")
        if q.device.type != self.device.type:
            raise ValueError(f"q must be on {self.device}, got {q.device}")
        return JointLayout.of(q.shape[2], self.grid, dense_first)
