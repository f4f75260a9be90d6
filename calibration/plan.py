"""The plan: what calibration found out about one model."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..kernels.block_mask import BLOCK_SIZES
from .metrics import RECALL_DENSITIES
from .noise_bands import NoiseBands, checked_schedule
from .offset_profile import OffsetBins
from .order_scores import ERROR_DENSITIES
from .profile_correction import COARSE, MAX_COARSE, MAX_POPULARITY, NO_CORRECTION, POPULARITY
from .token_grid import TokenGrid
from .token_order import tile_shape


class PlanError(ValueError):
    """A plan file that cannot be read, or a plan that contradicts itself."""


class PlanMismatchError(ValueError):
    """A plan that was made for another model."""


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What a plan must agree on with the model that follows it.

    Attributes:
        architecture: digest of the architecture; a plan for another one is refused.
        weights: digest of the norm weights, which survive fp8 and GGUF; another one only warns.
        layers: transformer blocks.
        heads: attention heads of a layer.
        head_dim: channels of a head.
        description: what to call the model in messages.
    """

    architecture: str
    weights: str
    layers: int
    heads: int
    head_dim: int
    description: str = ""

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "head_dim"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        for name in ("architecture", "weights", "description"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a str, got {type(getattr(self, name)).__name__}")


@dataclass(frozen=True, slots=True)
class Origin:
    """What a plan was made from.

    Attributes:
        prompts: number of prompts recorded.
        steps: sigmas that were recorded.
        orders: the kind of candidates, "fhw", "axes" or "tiles".
        choice: how orders were chosen.
        alpha: the paper metric's weight.
        density: the density at which orders were chosen.
        version: version of this package.
        created: UTC date and time, ISO 8601.
        note: free text.
    """

    prompts: int
    steps: tuple[float, ...]
    orders: str
    choice: str
    alpha: float
    density: float
    version: str
    created: str
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Orders, offset profiles and recall curves of one model. L layers, B noise bands, H heads.

    Attributes:
        identity: the model.
        grid: token grid of the calibration.
        block: (query, key) tokens of a block.
        bands: noise bands.
        shares: share of the density of each band.
        schedule: sigmas of the calibration run.
        orders: names of the distinct orders in use.
        candidates: names of all orders that were compared.
        bins: bin positions of the profiles.
        origin: what the plan was made from.
        order_of_head: uint8 [L, H], index into `orders`.
        candidate_error: float32 [L, H, len(candidates)], relative output error of each candidate.
        tail_bias: float32 [L, H].
        profile: uint8 [L, B, H, bf, bh, bw], log2 codes (log2_code.py).
        profile_top: float32 [L, B, H], log2 of each profile's maximum.
        correction: uint8 [L, B, H], kind of correction (profile_correction.py).
        popularity: uint8 [n, P], the key popularity of the heads so marked, in order.
        coarse: uint8 [n, Cq, Ck], the coarse correction of the heads so marked, in order.
        recall_true: float32 [L, B, H, 32], recall of masks by the true mass, at RECALL_DENSITIES.
        recall_profile: float32 [L, B, H, 32], recall of the masks that the plan gives.
        error: float32 [L, B, H, 6], relative output error with the tail on, at ERROR_DENSITIES.
    """

    identity: ModelIdentity
    grid: TokenGrid
    block: tuple[int, int]
    bands: NoiseBands
    shares: tuple[float, ...]
    schedule: tuple[float, ...]
    orders: tuple[str, ...]
    candidates: tuple[str, ...]
    bins: OffsetBins
    origin: Origin
    order_of_head: Tensor
    candidate_error: Tensor
    tail_bias: Tensor
    profile: Tensor
    profile_top: Tensor
    correction: Tensor
    popularity: Tensor
    coarse: Tensor
    recall_true: Tensor
    recall_profile: Tensor
    error: Tensor

    def __post_init__(self) -> None:
        _check_description(self)
        _check_tensors(self)

    @property
    def layers(self) -> int:
        return self.identity.layers

    @property
    def heads(self) -> int:
        return self.identity.heads

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by the names of their attributes."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def order_names(self, layer: int) -> list[str]:
        """Order of every head of a layer."""
        return [self.orders[index] for index in self.order_of_head[layer].tolist()]

    def check_model(self, identity: ModelIdentity) -> list[str]:
        """Compares the plan's model with the one at hand.

        Returns:
            Warnings: sentences for people, empty where everything agrees.

        Raises:
            PlanMismatchError: another architecture.
        """
        differences = [
            f"{name} {getattr(self.identity, name)} (plan) and {getattr(identity, name)} (model)"
            for name in ("layers", "heads", "head_dim", "architecture")
            if getattr(self.identity, name) != getattr(identity, name)
        ]
        if differences:
            raise PlanMismatchError(
                f"the plan was calibrated for {_named(self.identity)}, but the model is "
                f"{_named(identity)}: {'; '.join(differences)}. Calibrate this model or load the "
                "plan that belongs to it"
            )
        if self.identity.weights != identity.weights:
            return [
                f"the plan was calibrated with other weights ({_named(self.identity)}, weights "
                f"{self.identity.weights}) than the model has ({_named(identity)}, weights "
                f"{identity.weights}): another finetune, or the other Wan 2.2 expert? Calibrate "
                "again for best results"
            ]
        return []


def _named(identity: ModelIdentity) -> str:
    size = f"{identity.layers} layers x {identity.heads} heads x {identity.head_dim}"
    return f"{identity.description} ({size})" if identity.description else size


def _check_description(plan: Plan) -> None:
    if len(plan.block) != 2 or any(side not in BLOCK_SIZES for side in plan.block):
        raise PlanError(f"block must be two of {BLOCK_SIZES}, got {plan.block}")
    if len(plan.shares) != plan.bands.count or not all(0 < s < 1e6 for s in plan.shares):
        raise PlanError(
            f"shares must be {plan.bands.count} positive numbers, one per band, got {plan.shares}"
        )
    try:
        checked_schedule(plan.schedule, "schedule")
    except ValueError as error:
        raise PlanError(str(error)) from None
    for name in (*plan.orders, *plan.candidates):
        try:
            tile_shape(name)
        except ValueError as error:
            raise PlanError(str(error)) from None


def _check_tensors(plan: Plan) -> None:
    layers, heads, bands = plan.layers, plan.heads, plan.bands.count
    per_head = (layers, bands, heads)
    popularity = int((plan.correction == POPULARITY).sum())
    coarse = int((plan.correction == COARSE).sum())
    expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "order_of_head": (torch.uint8, (layers, heads)),
        "candidate_error": (torch.float32, (layers, heads, len(plan.candidates))),
        "tail_bias": (torch.float32, (layers, heads)),
        "profile": (torch.uint8, (*per_head, *plan.bins.shape)),
        "profile_top": (torch.float32, per_head),
        "correction": (torch.uint8, per_head),
        "popularity": (torch.uint8, (popularity, plan.popularity.shape[-1])),
        "coarse": (torch.uint8, (coarse, *plan.coarse.shape[-2:])),
        "recall_true": (torch.float32, (*per_head, len(RECALL_DENSITIES))),
        "recall_profile": (torch.float32, (*per_head, len(RECALL_DENSITIES))),
        "error": (torch.float32, (*per_head, len(ERROR_DENSITIES))),
    }
    for name, (dtype, shape) in expected.items():
        tensor = getattr(plan, name)
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise PlanError(
                f"{name} must be {dtype} {list(shape)}, got {tensor.dtype} {list(tensor.shape)}"
            )
    _check_range("order_of_head", plan.order_of_head, 0, len(plan.orders) - 1)
    _check_range("correction", plan.correction, NO_CORRECTION, COARSE)
    _check_range("tail_bias", plan.tail_bias, -20, 20)
    _check_range("profile_top", plan.profile_top, -200, 200)
    _check_range("candidate_error", plan.candidate_error, 0, 1e9)
    _check_range("recall_true", plan.recall_true, 0, 1.001)
    _check_range("recall_profile", plan.recall_profile, 0, 1.001)
    _check_range("error", plan.error, 0, 1e9)
    if not 1 <= plan.popularity.shape[-1] <= MAX_POPULARITY:
        raise PlanError(
            f"popularity must have 1 to {MAX_POPULARITY} values, got {plan.popularity.shape[-1]}"
        )
    if not all(1 <= side <= MAX_COARSE for side in plan.coarse.shape[-2:]):
        raise PlanError(
            f"coarse must be at most {MAX_COARSE}x{MAX_COARSE}, got {list(plan.coarse.shape[-2:])}"
        )


def _check_range(name: str, tensor: Tensor, low: float, high: float) -> None:
    if tensor.numel() == 0:
        return
    least, most = float(tensor.min()), float(tensor.max())
    if not (least >= low and most <= high):  # a NaN fails both
        raise PlanError(f"{name} must be finite and lie in {low}..{high}, got {least}..{most}")
