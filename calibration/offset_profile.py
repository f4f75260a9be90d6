"""Bins of the offset profile, and where an order's blocks lie on the grid.

An offset profile holds, for one head and noise band, the mean probability that a query gives to one
key at the signed offset (df, dh, dw) in tokens. Bins are dense near 0 and coarse far away, and are
shared by all heads. See profile_geometry.py for how block mass and profiles follow from each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .block_layout import block_count
from .device_copy import to_device
from .token_grid import TokenGrid
from .token_order import grid_permutation

BIN_DISTANCES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 112, 160, 224)
MAX_BINS = 16384
RUNS_PER_BLOCK = 2


@dataclass(frozen=True, slots=True)
class OffsetBins:
    """Bin positions of the three axes: signed distances in tokens, ascending, symmetric about 0."""

    frames: tuple[int, ...]
    height: tuple[int, ...]
    width: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, positions in zip(("frames", "height", "width"), self.axes, strict=True):
            ascending = all(a < b for a, b in pairwise(positions))
            if 0 not in positions or not ascending:
                raise ValueError(f"{name} bins must ascend and contain 0, got {positions}")

    @classmethod
    def for_grid(cls, grid: TokenGrid) -> OffsetBins:
        """Bins that reach every offset of a grid, thinned where there would be too many."""
        reach = [
            [d for d in BIN_DISTANCES if d < side - 1] + [side - 1] * (side > 1)
            for side in grid.shape
        ]
        reach = [list(dict.fromkeys(distances or [0])) for distances in reach]
        while _bin_count(reach) > MAX_BINS:
            longest = max(reach, key=len)
            del longest[-2]
        return cls(*(tuple([-d for d in distances[:0:-1]] + distances) for distances in reach))

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        return (self.frames, self.height, self.width)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of bins along (frames, height, width)."""
        return (len(self.frames), len(self.height), len(self.width))


def _bin_count(reach: list[list[int]]) -> int:
    count = 1
    for distances in reach:
        count *= 2 * len(distances) - 1
    return count


@dataclass(frozen=True, slots=True)
class RunCentres:
    """Where the runs of an order's blocks lie.

    Attributes:
        centre: float32 [blocks, runs, 3] mean (frame, row, column) of each run's tokens.
        tokens: float32 [blocks, runs] tokens in each run (0 behind the end).
    """

    centre: Tensor
    tokens: Tensor

    @classmethod
    def of(
        cls,
        order: str,
        grid: TokenGrid,
        block: int,
        runs: int = RUNS_PER_BLOCK,
        device: torch.device | str = "cpu",
    ) -> RunCentres:
        permutation = grid_permutation(order, grid)
        frame = permutation // (grid.height * grid.width)
        inside = permutation % (grid.height * grid.width)
        place = torch.stack([frame, inside // grid.width, inside % grid.width], -1).float()
        blocks = block_count(grid.tokens, block)
        padding = blocks * block - grid.tokens
        place = torch.nn.functional.pad(place, (0, 0, 0, padding)).view(blocks, runs, -1, 3)
        valid = (torch.arange(blocks * block) < grid.tokens).float().view(blocks, runs, -1)
        tokens = valid.sum(-1)
        centre = (place * valid[..., None]).sum(2) / tokens.clamp_min(1)[..., None]
        device = torch.device(device)
        return cls(to_device(centre, device), to_device(tokens, device))

    def at(self, blocks: Tensor | None) -> RunCentres:
        """The runs of some blocks; of all when None."""
        if blocks is None:
            return self
        blocks = blocks.to(self.tokens.device)
        return RunCentres(self.centre[blocks], self.tokens[blocks])
