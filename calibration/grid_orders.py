"""Permutations and profile geometries of orders on one grid, computed once per device."""

from __future__ import annotations

import torch
from torch import Tensor

from .block_layout import block_count
from .offset_profile import OffsetBins
from .profile_geometry import ProfileGeometry
from .row_sample import sampled_blocks
from .token_grid import TokenGrid
from .token_order import grid_permutation


class GridOrders:
    """What a recording needs to know of each order on its grid."""

    def __init__(self, grid: TokenGrid, block: tuple[int, int]) -> None:
        self.grid, self.block = grid, block
        self.bins = OffsetBins.for_grid(grid)
        self._permutations: dict[tuple[str, torch.device], Tensor] = {}
        self._geometries: dict[tuple[str, torch.device, bool], ProfileGeometry] = {}

    def permutation(self, name: str, device: torch.device) -> Tensor:
        """int64 [grid tokens] on the device."""
        key = (name, device)
        if key not in self._permutations:
            self._permutations[key] = grid_permutation(name, self.grid).to(device)
        return self._permutations[key]

    def geometry(self, name: str, device: torch.device, sampled: bool = False) -> ProfileGeometry:
        """The order's geometry: of all query blocks, or of those that order scores sample."""
        key = (name, device, sampled)
        if key not in self._geometries:
            count = block_count(self.grid.tokens, self.block[0])
            blocks = sampled_blocks(count) if sampled else None
            self._geometries[key] = ProfileGeometry(
                self.bins, self.grid, name, self.block, device, query_blocks=blocks
            )
        return self._geometries[key]
