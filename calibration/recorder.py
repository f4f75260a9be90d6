"""The recorder: from the attention of real sampling runs to a plan.

The first half of the prompts chooses every head's order and tail bias; the others measure the block
mass of the chosen order. Only a few steps of each noise band are looked at, and the attention map
itself is never stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .attention_rows import checked_heads
from .block_layout import block_count, checked_block
from .block_mass import block_mass
from .mass_store import BlockPooling, MassStore, pool_factor
from .noise_bands import NoiseBands, checked_schedule
from .offset_profile import OffsetBins
from .order_choice import CHOICES, OrderChoice, choose_orders
from .order_scores import SCORE_COLUMNS, error_curves, order_scores, sampled_blocks
from .plan import ModelIdentity, Plan
from .plan_builder import Findings, build_plan
from .profile_geometry import ProfileGeometry
from .token_grid import TokenGrid
from .token_order import candidate_orders, grid_permutation


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
        self.candidates = {kind: candidate_orders(grid, self.block, kind) for kind in kinds}
        if not kinds:
            raise ValueError("orders must name at least one kind, got none")
        self.all_candidates = tuple(
            dict.fromkeys(name for names in self.candidates.values() for name in names)
        )
        self.steps = self.bands.sampled_steps(self.schedule, steps_per_band)
        maps = layers * heads * self.bands.count * len(kinds)
        self._store = MassStore(BlockPooling(grid, self.block, pool_factor(grid, self.block, maps)))
        self._scores = torch.zeros(
            layers, heads, len(self.all_candidates), SCORE_COLUMNS, dtype=torch.float64
        )
        self._bins = OffsetBins.for_grid(grid)
        self._permutations: dict[tuple[str, torch.device], Tensor] = {}
        self._geometries: dict[tuple[str, torch.device], ProfileGeometry] = {}
        self._sampled_geometries: dict[tuple[str, torch.device], ProfileGeometry] = {}
        self._choices: dict[str, OrderChoice] = {}
        self._chosen: list[list[list[str]]] = []
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
            self._fix_choices()
        self._prompt = index
        if index == 0 and self._nothing_to_choose:
            self._chosen = [[[self.all_candidates[0]]] * self.heads] * self.layers

    def wants(self, layer: int, sigma: float) -> bool:
        """Whether a call of this layer at this noise level is to be recorded."""
        if self._prompt is None or not 0 <= layer < self.layers:
            return False
        return any(abs(sigma - step) <= 1e-3 * step for step in self.steps)

    def record(self, layer: int, sigma: float, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Takes in one attention call.

        Args:
            layer: index of the layer.
            sigma: noise level of the call.
            q, k, v: [B, H, S, D] of the visual tokens only, after rotary embedding, in the model's
                order; B holds the conditional entries. Any strides, floating point, any device.

        Raises:
            RuntimeError: no prompt was begun.
            ValueError, TypeError: tensors that do not fit the recorder.
        """
        if self._prompt is None:
            raise RuntimeError("begin_prompt must be called before record")
        self._check(layer, q, k, v)
        self._device = q.device
        choosing = self._prompt < self.choosing_runs
        if choosing:
            self._score(layer, q, k, v)
        if not choosing or self._nothing_to_choose:
            self._measure(layer, self.bands.band_of(float(sigma)), q, k, v)

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
        if not self._choices:
            self._fix_choices()
        return build_plan(
            Findings(
                identity=identity,
                grid=self.grid,
                block=self.block,
                bands=self.bands,
                schedule=self.schedule,
                candidates=self.candidates[kind],
                choice=self._choices[kind],
                bins=self._bins,
                store=self._store,
                prompts=self.prompts,
                steps=self.steps,
                kind=kind,
                criterion=self.choice,
                alpha=self.alpha,
                density=self.density,
                note=note,
            ),
            lambda order: self._geometry(order, self._device),
        )

    def _check(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        if not 0 <= layer < self.layers:
            raise ValueError(f"layer must be in 0..{self.layers - 1}, got {layer}")
        _, heads, tokens, head_dim = checked_heads(q, k, v)
        expected = (self.heads, self.grid.tokens, self.head_dim)
        if (heads, tokens, head_dim) != expected:
            raise ValueError(
                f"q must be [B, {self.heads}, {self.grid.tokens}, {self.head_dim}] for the grid "
                f"{self.grid}, got {list(q.shape)}"
            )

    def _score(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        permutations = [self._permutation(name, q.device) for name in self.all_candidates]
        profiles = [self._sampled_geometry(name, q.device) for name in self.all_candidates]
        rows = []
        for head in range(self.heads):
            scores = [
                order_scores(
                    q[entry, head],
                    k[entry, head],
                    v[entry, head],
                    permutations,
                    self.block,
                    self.density,
                    self.head_dim**-0.5,
                    with_paper_metric=self.choice == "paper_metric",
                    profiles=profiles,
                )
                for entry in range(q.shape[0])
            ]
            rows.append(torch.stack(scores).sum(0))
        self._scores[layer] += torch.stack(rows).cpu().double()

    def _fix_choices(self) -> None:
        """Ends the choosing prompt."""
        for kind, names in self.candidates.items():
            columns = [self.all_candidates.index(name) for name in names]
            self._choices[kind] = choose_orders(
                self._scores[:, :, columns], self.choice, self.alpha
            )
        self._chosen = [
            [
                list(
                    dict.fromkeys(
                        names[int(self._choices[kind].order[layer, head])]
                        for kind, names in self.candidates.items()
                    )
                )
                for head in range(self.heads)
            ]
            for layer in range(self.layers)
        ]

    def _measure(self, layer: int, band: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        chosen = self._chosen[layer]
        permutations = [
            torch.stack([self._permutation(name, q.device) for name in names]) for names in chosen
        ]
        for head, masses in block_mass(q, k, permutations, self.block):
            keys = [(layer, band, head, name) for name in chosen[head]]
            for key, mass in zip(keys, masses, strict=True):
                profile = self._geometry(key[3], q.device).fit(mass[None])[0]
                self._store.add(key, mass, profile)
            for entry in range(q.shape[0]):
                errors = error_curves(
                    q[entry, head],
                    k[entry, head],
                    v[entry, head],
                    list(permutations[head]),
                    self.block,
                    self.head_dim**-0.5,
                    [self._sampled_geometry(name, q.device) for name in chosen[head]],
                )
                for key, of_order in zip(keys, errors, strict=True):
                    self._store.add_errors(key, of_order)

    def _permutation(self, name: str, device: torch.device) -> Tensor:
        key = (name, device)
        if key not in self._permutations:
            self._permutations[key] = grid_permutation(name, self.grid).to(device)
        return self._permutations[key]

    def _sampled_geometry(self, name: str, device: torch.device) -> ProfileGeometry:
        key = (name, device)
        if key not in self._sampled_geometries:
            blocks = sampled_blocks(block_count(self.grid.tokens, self.block[0]))
            self._sampled_geometries[key] = ProfileGeometry(
                self._bins, self.grid, name, self.block, device, query_blocks=blocks
            )
        return self._sampled_geometries[key]

    def _geometry(self, name: str, device: torch.device) -> ProfileGeometry:
        key = (name, device)
        if key not in self._geometries:
            self._geometries[key] = ProfileGeometry(self._bins, self.grid, name, self.block, device)
        return self._geometries[key]
