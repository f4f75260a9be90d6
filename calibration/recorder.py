"""The recorder: from the attention of real sampling runs to a plan.

The first half of the prompts chooses every head's order and tail bias; the others measure the block
mass of the chosen order. Only a few steps of each noise band are looked at, and the attention map
itself is never stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..kernels.attention_rows import checked_heads
from .block_layout import checked_block
from .call_measures import CallMeasures
from .extra_keys import RecordedCall
from .grid_orders import GridOrders
from .joint_sequence import JointLayout
from .mass_store import BlockPooling, MassStore, pool_factor
from .noise_bands import NoiseBands, checked_schedule
from .order_choice import CHOICES, OrderContest
from .plan import ModelIdentity, Plan
from .plan_builder import Findings, build_plan
from .token_grid import TokenGrid
from .token_order import candidate_orders


class Recorder:
    """Collects what a plan needs while a model samples.

    Call `begin_prompt` before each of `runs_needed` sampling runs, offer every visual
    self-attention call to `record`, then `finish`. The first half of the prompts chooses orders
    (one of two or three, two of four or five), the others measure mass; with one prompt the caller
    runs it twice.

    Several kinds of orders can share one recording: pass a sequence of kinds and call `finish` once
    per kind. Each costs no more than the maps of the heads on whose order the kinds disagree.
    """

    def __init__(
        self,
        grid: TokenGrid,
        *,
        layers: int,
        heads: int,
        head_dim: int,
        schedule: Sequence[float],
        bands: NoiseBands | None = None,
        block: tuple[int, int] = (64, 64),
        orders: str | Sequence[str] = "tiles",
        choice: str = "output_error",
        alpha: float = 0.5,
        density: float = 0.3,
        prompts: int = 1,
        steps_per_band: int = 2,
    ) -> None:
        """Prepares a recording.

        Args:
            grid: the run's token grid.
            layers, heads, head_dim: sizes of the model.
            schedule: sigmas of the run's steps, descending; a final 0 is ignored.
            bands: noise bands, four of equal step count when None.
            block: (query, key) tokens of a block.
            orders: candidates: "fhw", "axes" or "tiles", or several of them.
            choice: "output_error", "block_mass" or "paper_metric".
            alpha: the paper metric's weight of M_sparse against M_quant, 0..1.
            density: computed / all blocks at which orders are compared.
            prompts: number of prompts that will be run.
            steps_per_band: steps that are recorded in each noise band.

        Raises:
            ValueError, TypeError: an argument out of its range, named.
        """
        if not 0 < density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {density}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must lie in 0..1, got {alpha}")
        if choice not in CHOICES:
            raise ValueError(f"choice must be one of {', '.join(CHOICES)}, got {choice!r}")
        for name, value in (("prompts", prompts), ("steps_per_band", steps_per_band)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        ModelIdentity("", "", layers, heads, head_dim)  # checks the sizes
        self.grid = grid
        self.layers, self.heads, self.head_dim = layers, heads, head_dim
        self.schedule = checked_schedule(schedule, "schedule")
        self.bands = NoiseBands.from_schedule(self.schedule) if bands is None else bands
        self.block = checked_block(block)
        self.choice, self.alpha, self.density = choice, float(alpha), float(density)
        self.prompts = prompts
        kinds = (orders,) if isinstance(orders, str) else tuple(orders)
        if not kinds:
            raise ValueError("orders must name at least one kind, got none")
        self.candidates = {kind: candidate_orders(grid, self.block, kind) for kind in kinds}
        self._contest = OrderContest(self.candidates, layers, heads)
        self.steps = self.bands.sampled_steps(self.schedule, steps_per_band)
        maps = layers * heads * self.bands.count * len(kinds)
        self._store = MassStore(BlockPooling(grid, self.block, pool_factor(grid, self.block, maps)))
        self._orders = GridOrders(grid, self.block)
        self._measures = CallMeasures(self._orders, self.block, self.density)
        self._prompt: int | None = None
        self._device = torch.device("cpu")

    @property
    def runs_needed(self) -> int:
        """Sampling runs to make: one per prompt, or two of a single prompt.

        Where there is nothing to choose, one run of one prompt is enough.
        """
        return self.prompts if self._nothing_to_choose else max(2, self.prompts)

    @property
    def choosing_runs(self) -> int:
        """The first runs, on which orders are chosen."""
        return max(1, self.prompts // 2)

    @property
    def all_candidates(self) -> tuple[str, ...]:
        """The candidates of all kinds, each once."""
        return self._contest.names

    @property
    def _nothing_to_choose(self) -> bool:
        return len(self.all_candidates) == 1

    def begin_prompt(self, index: int) -> None:
        """Starts a sampling run; runs come in order, beginning with 0.

        Raises:
            ValueError: the run is out of turn.
        """
        expected = 0 if self._prompt is None else self._prompt + 1
        if index != expected or index >= self.runs_needed:
            raise ValueError(
                f"prompt index must be {expected} of {self.runs_needed} runs, got {index}"
            )
        if index == self.choosing_runs:
            self._contest.decide(self.choice, self.alpha)
        self._prompt = index

    def wants(self, layer: int, sigma: float) -> bool:
        """Whether a call of this layer at this noise level is to be recorded."""
        if self._prompt is None or not 0 <= layer < self.layers:
            return False
        return any(abs(sigma - step) <= 1e-3 * step for step in self.steps)

    def record(
        self,
        layer: int,
        sigma: float,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        dense_first: int = 0,
        key_bias: Tensor | None = None,
    ) -> None:
        """Takes in one attention call: the grid's queries over all keys.

        The extra keys count exactly in every output error and not at all in block mass; their
        number may differ from call to call.

        Args:
            layer: index of the layer.
            sigma: noise level of the call.
            q, k, v: [B, H, S, D] of the joint sequence, after rotary embedding, in the model's
                order; B holds the conditional entries. Any strides, floating point, any device.
            dense_first: extra tokens before the grid; the others lie behind it.
            key_bias: float32 [B or 1, S] in the model's order, added to the logits of the extra
                keys; -inf or <= -1e4 hides a key. Values at grid tokens are ignored.

        Raises:
            RuntimeError: no prompt was begun.
            ValueError, TypeError: tensors that do not fit the recorder.
        """
        if self._prompt is None:
            raise RuntimeError("begin_prompt must be called before record")
        layout = self._check(layer, q, k, v, dense_first)
        bias = layout.extra_bias(key_bias, q.shape[0], q.device)
        call = RecordedCall(q, k, v, layout, bias)
        self._device = q.device
        choosing = self._prompt < self.choosing_runs
        if choosing:
            paper_metric = self.choice == "paper_metric"
            scores = self._measures.scores(call, self.all_candidates, paper_metric=paper_metric)
            self._contest.add(layer, scores)
        if not choosing or self._nothing_to_choose:
            self._measure(layer, self.bands.band_of(float(sigma)), call)

    def finish(self, identity: ModelIdentity, note: str = "", orders: str | None = None) -> Plan:
        """Makes the plan.

        Args:
            identity: the model that was recorded.
            note: free text kept in the plan.
            orders: which kind of candidates, where the recorder was given several; the first when
                None.

        Raises:
            RuntimeError: fewer runs than needed were recorded.
            ValueError: an identity with other sizes, an unknown kind, or layers without a map.
        """
        kind = next(iter(self.candidates)) if orders is None else orders
        if kind not in self.candidates:
            raise ValueError(f"orders must be one of {', '.join(self.candidates)}, got {kind!r}")
        if self._prompt is None or self._prompt + 1 < self.runs_needed:
            done = 0 if self._prompt is None else self._prompt + 1
            raise RuntimeError(f"{self.runs_needed} runs must be recorded, got {done}")
        sizes = (self.layers, self.heads, self.head_dim)
        if (identity.layers, identity.heads, identity.head_dim) != sizes:
            raise ValueError(
                f"identity must have layers, heads, head_dim {sizes}, got "
                f"{(identity.layers, identity.heads, identity.head_dim)}"
            )
        if not self._contest.choices:
            self._contest.decide(self.choice, self.alpha)
        return build_plan(
            Findings(
                identity=identity,
                grid=self.grid,
                block=self.block,
                bands=self.bands,
                schedule=self.schedule,
                candidates=self.candidates[kind],
                choice=self._contest.choices[kind],
                bins=self._orders.bins,
                store=self._store,
                prompts=self.prompts,
                steps=self.steps,
                kind=kind,
                criterion=self.choice,
                alpha=self.alpha,
                density=self.density,
                note=note,
            ),
            lambda order: self._orders.geometry(order, self._device),
        )

    def _check(self, layer: int, q: Tensor, k: Tensor, v: Tensor, dense_first: int) -> JointLayout:
        if not 0 <= layer < self.layers:
            raise ValueError(f"layer must be in 0..{self.layers - 1}, got {layer}")
        _, heads, tokens, head_dim = checked_heads(q, k, v)
        if (heads, head_dim) != (self.heads, self.head_dim):
            raise ValueError(
                f"q must be [B, {self.heads}, S, {self.head_dim}], got {list(q.shape)}"
            )
        return JointLayout.of(tokens, self.grid, dense_first)

    def _measure(self, layer: int, band: int, call: RecordedCall) -> None:
        chosen = self._contest.chosen[layer]
        for head, name, mass, profile in self._measures.masses(call, chosen):
            self._store.add((layer, band, head, name), mass, profile)
        for entry in range(call.q.shape[0]):
            for head, errors in enumerate(self._measures.errors(call, entry, chosen)):
                for name, of_order in zip(chosen[head], errors, strict=True):
                    self._store.add_errors((layer, band, head, name), of_order)

    def snapshot(self) -> dict[str, Tensor]:
        """What the runs so far have given, as tensors, for `restore`; large ones are not copied.

        Between two runs: after the last call of one, before `begin_prompt` of the next.
        """
        return {
            "scores": self._contest.scores,
            **self._store.snapshot(self.all_candidates),
        }

    def restore(self, runs: int, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        """Goes on behind an earlier recorder's finished runs; `begin_prompt(runs)` comes next.

        Args:
            runs: number of finished runs.
            tensors: the earlier recorder's `snapshot`; they belong to this one from then on.
            device: where `finish` works, should no further call be recorded.

        Raises:
            RuntimeError: this recorder has begun a run of its own.
            KeyError, ValueError: the tensors are not those of a recorder like this one.
        """
        if self._prompt is not None:
            raise RuntimeError("restore must be called before begin_prompt")
        if not 1 <= runs <= self.runs_needed:
            raise ValueError(f"runs must be in 1..{self.runs_needed}, got {runs}")
        self._contest.restore(tensors["scores"])
        self._store.restore(tensors, self.all_candidates)
        if runs > self.choosing_runs:
            self._contest.decide(self.choice, self.alpha)
        self._prompt, self._device = runs - 1, device
