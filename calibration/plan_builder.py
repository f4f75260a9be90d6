"""From the recorder's running means to a plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata

import torch
from torch import Tensor

from .block_selection import forced_blocks
from .density_budget import default_shares
from .log2_code import decode, encode
from .mass_store import MassStore
from .metrics import recall_curve
from .noise_bands import NoiseBands
from .offset_profile import OffsetBins
from .order_choice import OrderChoice
from .plan import ModelIdentity, Origin, Plan
from .profile_correction import (
    COARSE,
    MAX_COARSE,
    MAX_POPULARITY,
    POPULARITY,
    Correction,
    choose_correction,
)
from .profile_geometry import ProfileGeometry
from .tail_bias import TAIL_BIASES
from .token_grid import TokenGrid


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that a recording knows at its end; see Recorder for the fields."""

    identity: ModelIdentity
    grid: TokenGrid
    block: tuple[int, int]
    bands: NoiseBands
    schedule: tuple[float, ...]
    candidates: tuple[str, ...]
    choice: OrderChoice
    bins: OffsetBins
    store: MassStore
    prompts: int
    steps: tuple[float, ...]
    kind: str
    criterion: str
    alpha: float
    density: float
    note: str


def build_plan(found: Findings, geometry: Callable[[str], ProfileGeometry]) -> Plan:
    """Codes the profiles, measures their recall and corrects the heads that fall short.

    Args:
        found: the recording.
        geometry: the profile geometry of an order on the recording's grid, on the device where the
            work is to be done.

    Raises:
        ValueError: a layer of which some noise band was never recorded.
    """
    names = [[found.candidates[i] for i in row] for row in found.choice.order.tolist()]
    heads = _judge_heads(found, names, geometry)
    layers, bands = found.identity.layers, found.bands.count
    shape = (layers, bands, found.identity.heads)
    orders = tuple(dict.fromkeys(name for row in names for name in row))
    index = torch.tensor([[orders.index(name) for name in row] for row in names])

    def gathered(values: list[Tensor]) -> Tensor:
        return torch.stack(values).reshape(*shape, *values[0].shape)

    by_kind = {
        kind: [head.correction.codes for head in heads if head.correction.kind == kind]
        for kind in (POPULARITY, COARSE)
    }
    blocks = found.store.pooling.blocks
    empty = {
        POPULARITY: (0, min(MAX_POPULARITY, blocks[1])),
        COARSE: (0, min(MAX_COARSE, blocks[0]), min(MAX_COARSE, blocks[1])),
    }
    codes = {
        kind: torch.stack(rows) if rows else torch.empty(empty[kind], dtype=torch.uint8)
        for kind, rows in by_kind.items()
    }
    return Plan(
        identity=found.identity,
        grid=found.grid,
        block=found.block,
        bands=found.bands,
        shares=default_shares(bands),
        schedule=found.schedule,
        orders=orders,
        candidates=found.candidates,
        bins=found.bins,
        origin=Origin(
            prompts=found.prompts,
            steps=found.steps,
            orders=found.kind,
            choice=found.criterion,
            alpha=found.alpha,
            density=found.density,
            version=_version(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            note=found.note,
        ),
        order_of_head=index.to(torch.uint8),
        candidate_error=found.choice.error,
        tail_bias=found.choice.tail_bias,
        profile=gathered([head.profile for head in heads]),
        profile_top=gathered([head.profile_top for head in heads]),
        correction=gathered([torch.tensor(h.correction.kind, dtype=torch.uint8) for h in heads]),
        popularity=codes[POPULARITY],
        coarse=codes[COARSE],
        recall_true=gathered([head.recall_true for head in heads]),
        recall_profile=gathered([head.correction.recall.cpu() for head in heads]),
        error=gathered([head.error for head in heads]),
    )


@dataclass(frozen=True, slots=True)
class _Head:
    profile: Tensor
    profile_top: Tensor
    recall_true: Tensor
    correction: Correction
    error: Tensor


def _judge_heads(
    found: Findings, names: list[list[str]], geometry: Callable[[str], ProfileGeometry]
) -> list[_Head]:
    """The coded profile, recall and correction of every (layer, band, head), in that order."""
    pooling = found.store.pooling
    judged = []
    forced: Tensor | None = None
    for layer, row in enumerate(names):
        for band in range(found.bands.count):
            for head, name in enumerate(row):
                key = (layer, band, head, name)
                if key not in found.store:
                    raise ValueError(
                        f"every layer must be recorded in every noise band, got no map of layer "
                        f"{layer} in band {band}"
                    )
                shapes = geometry(name)
                device = shapes.key_tokens.device
                if forced is None or forced.device != device:
                    forced = forced_blocks(found.grid.tokens, pooling.block, device=device)
                    rows = pooling.rows.to(device)
                profile = shapes.fill(found.store.profile(key).to(device)[None])
                codes, top = encode(profile, 3)
                predicted = pooling(shapes.evaluate(decode(codes, top)))[0]
                mass = found.store.mass(key).to(device)
                recall = recall_curve(mass[None], mass[None], forced, rows)[0]
                correction = choose_correction(mass, predicted, recall, forced, rows)
                bias = TAIL_BIASES.index(round(float(found.choice.tail_bias[layer, head]), 3))
                error = found.store.errors(key)[:, bias]
                judged.append(_Head(codes[0].cpu(), top[0].cpu(), recall.cpu(), correction, error))
    return judged


def _version() -> str:
    try:
        return metadata.version("paro-attention")
    except metadata.PackageNotFoundError:
        return "source"
