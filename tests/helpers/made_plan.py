"""Plans that nobody calibrated: any size, with profiles of a known shape."""

from __future__ import annotations

import torch
from paro_attention.calibration import ModelIdentity, NoiseBands, Plan, TokenGrid
from paro_attention.calibration.log2_code import encode, encode_ratio
from paro_attention.calibration.metrics import RECALL_DENSITIES
from paro_attention.calibration.offset_profile import OffsetBins
from paro_attention.calibration.order_scores import ERROR_DENSITIES
from paro_attention.calibration.plan import Origin
from paro_attention.calibration.profile_correction import COARSE, POPULARITY

ORDERS = ("FHW", "HWF", "WHF", "4x8x8", "1x8x16", "2x8x8")


def make_plan(
    grid: tuple[int, int, int],
    layers: int,
    heads: int,
    block: tuple[int, int] = (64, 64),
    bands: int = 4,
    corrected: bool = True,
    shares: tuple[float, ...] | None = None,
) -> Plan:
    """Every head looks at a neighbourhood of its own size; the same call gives the same plan."""
    random = torch.Generator().manual_seed(len(ORDERS) * heads + layers)
    token_grid = TokenGrid(*grid)
    bins = OffsetBins.for_grid(token_grid)
    places = torch.meshgrid(
        *(torch.tensor(axis).float().abs() for axis in bins.axes), indexing="ij"
    )
    shape = (layers, bands, heads)
    width = 0.5 + 8 * torch.rand(*shape, 3, generator=random)
    profile = torch.empty(*shape, *bins.shape, dtype=torch.uint8)
    top = torch.empty(shape)
    for layer in range(layers):
        distance = sum(
            places[axis] / width[layer, ..., axis, None, None, None] for axis in range(3)
        )
        assert isinstance(distance, torch.Tensor)
        profile[layer], top[layer] = encode(torch.exp(-distance) + 1e-4, 3)
    correction = torch.zeros(shape, dtype=torch.uint8)
    if corrected:
        correction[0, :, 0] = POPULARITY
        correction[-1, :, -1] = COARSE
    counts = [int((correction == kind).sum()) for kind in (POPULARITY, COARSE)]
    cells = [min(8, -(-token_grid.tokens // side)) for side in block]
    good = 1 + 4 * torch.rand(*shape, 1, generator=random)
    steps = tuple(1 - step / 20 for step in range(20))
    return Plan(
        identity=ModelIdentity("architecture", "weights", layers, heads, 64, "made model"),
        grid=token_grid,
        block=block,
        bands=NoiseBands.from_schedule(steps, bands),
        shares=shares or (2.0,) + (1.0,) * (bands - 1),
        schedule=steps,
        orders=ORDERS,
        candidates=ORDERS,
        bins=bins,
        origin=Origin(
            prompts=2, steps=steps[:4], orders="tiles", choice="output_error", alpha=0.5,
            density=0.3, version="0", created="2026-01-01T00:00:00", note="made",
        ),
        order_of_head=torch.randint(len(ORDERS), (layers, heads), generator=random).byte(),
        candidate_error=torch.rand(layers, heads, len(ORDERS), generator=random),
        tail_bias=torch.zeros(layers, heads),
        profile=profile,
        profile_top=top,
        correction=correction,
        popularity=encode_ratio(0.5 + torch.rand(counts[0], cells[1], generator=random)),
        coarse=encode_ratio(0.5 + torch.rand(counts[1], *cells, generator=random)),
        recall_true=1 - (1 - torch.tensor(RECALL_DENSITIES)) ** (good + 1),
        recall_profile=1 - (1 - torch.tensor(RECALL_DENSITIES)) ** good,
        error=0.5 * (1 - torch.tensor(ERROR_DENSITIES)) ** good,
    )  # fmt: skip
