"""Running means of block mass on the host, pooled where the exact maps would not fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .block_layout import block_count, valid_tokens
from .token_grid import TokenGrid

STORE_BYTES = 4 << 30


def pool_factor(
    grid: TokenGrid, block: tuple[int, int], maps: int, limit: int = STORE_BYTES
) -> int:
    """Blocks to pool per side (a power of two) for `maps` float16 maps in at most `limit` bytes."""
    factor = 1
    while (
        block_count(grid.tokens, block[0] * factor)
        * block_count(grid.tokens, block[1] * factor)
        * 2
        * maps
        > limit
    ):
        factor *= 2
    return factor


class BlockPooling:
    """Block mass of larger blocks from that of smaller ones."""

    def __init__(self, grid: TokenGrid, block: tuple[int, int], factor: int) -> None:
        self.tokens = grid.tokens
        self.block = (block[0] * factor, block[1] * factor)
        self.factor = factor
        self._rows = valid_tokens(grid.tokens, block[0])

    def __call__(self, mass: Tensor) -> Tensor:
        """[N, Qb, KVb] -> [N, Qb', KVb']: summed over keys, mean over valid query rows."""
        if self.factor == 1:
            return mass
        rows = self._rows.to(mass.device)
        columns = _grouped(mass, -1, self.factor).sum(-1)
        weighted = _grouped(columns * rows[:, None], -2, self.factor).sum(-2)
        return weighted / _grouped(rows, -1, self.factor).sum(-1)[:, None]

    @property
    def blocks(self) -> tuple[int, int]:
        """Pooled (query, key) blocks of a map."""
        return block_count(self.tokens, self.block[0]), block_count(self.tokens, self.block[1])

    @property
    def rows(self) -> Tensor:
        """Valid rows of each pooled query block."""
        return valid_tokens(self.tokens, self.block[0])


def _grouped(x: Tensor, dim: int, factor: int) -> Tensor:
    """Splits a dimension in groups of `factor`; the last group is filled with zeros."""
    missing = -x.shape[dim] % factor
    padding = [0] * (2 * (-dim - 1)) + [0, missing]
    return torch.nn.functional.pad(x, padding).unflatten(dim, (-1, factor))


class MassStore:
    """Mean over maps of block mass, fitted profiles and errors, by (layer, band, head, order)."""

    def __init__(self, pooling: BlockPooling) -> None:
        self.pooling = pooling
        self._maps: dict[tuple[int, int, int, str], int] = {}
        self._mass: dict[tuple[int, int, int, str], Tensor] = {}
        self._profile: dict[tuple[int, int, int, str], Tensor] = {}
        self._errors: dict[tuple[int, int, int, str], Tensor] = {}

    def add(self, key: tuple[int, int, int, str], mass: Tensor, profile: Tensor) -> None:
        """Adds one map.

        Args:
            key: (layer, band, head, order).
            mass: [Qb, KVb] exact block mass on any device.
            profile: [bf, bh, bw] the profile fitted to it.
        """
        # Relative to uniform attention, so that small masses stay normal numbers in float16.
        pooled = self.pooling(mass[None])[0]
        pooled = (pooled * pooled.shape[-1]).cpu()
        profile = profile.cpu()
        maps = self._maps[key] = self._maps.get(key, 0) + 1
        if maps == 1:
            self._mass[key], self._profile[key] = pooled.half(), profile.clone()
            return
        mean = self._mass[key].float()
        self._mass[key] = mean.add_(pooled - mean, alpha=1 / maps).half()
        self._profile[key].add_(profile - self._profile[key], alpha=1 / maps)

    def mass(self, key: tuple[int, int, int, str]) -> Tensor:
        """float32 [Qb', KVb'] mean block mass, rows sum to 1."""
        mass = self._mass[key].float()
        return mass / mass.sum(-1, keepdim=True)

    def profile(self, key: tuple[int, int, int, str]) -> Tensor:
        """float32 [bf, bh, bw] mean profile."""
        return self._profile[key]

    def add_errors(self, key: tuple[int, int, int, str], errors: Tensor) -> None:
        """Adds one map's squared errors and energies, [densities, biases + 1]."""
        errors = errors.cpu().double()
        self._errors[key] = self._errors[key] + errors if key in self._errors else errors

    def errors(self, key: tuple[int, int, int, str]) -> Tensor:
        """float32 [densities, biases] relative output error over all maps."""
        sums = self._errors[key]
        return (sums[:, :-1] / sums[:, -1:].clamp_min(1e-30)).sqrt().float()

    def __contains__(self, key: object) -> bool:
        return key in self._maps

    def snapshot(self, orders: tuple[str, ...]) -> dict[str, Tensor]:
        """Everything that was added, as tensors, for `restore`; the maps are not copied.

        Args:
            orders: the names that keys may hold.
        """
        keys = list(self._maps)
        index = [[*key[:3], orders.index(key[3])] for key in keys]
        tensors = {
            "keys": torch.tensor(index, dtype=torch.int64).view(-1, 4),
            "maps": torch.tensor([self._maps[key] for key in keys], dtype=torch.int64),
        }
        for row, key in enumerate(keys):
            tensors[f"mass.{row}"] = self._mass[key]
            tensors[f"profile.{row}"] = self._profile[key]
            tensors[f"errors.{row}"] = self._errors[key]
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], orders: tuple[str, ...]) -> None:
        """Puts back what `snapshot` gave; the tensors belong to the store from then on.

        Raises:
            KeyError: a tensor is missing.
            ValueError: tensors that do not belong together.
        """
        rows, maps = tensors["keys"].tolist(), tensors["maps"].tolist()
        for row, ((*place, order), count) in enumerate(zip(rows, maps, strict=True)):
            layer, band, head = place
            if not 0 <= order < len(orders) or count < 1:
                raise ValueError(f"map {row} must have been added in a known order")
            key = (layer, band, head, orders[order])
            mass = tensors[f"mass.{row}"]
            if mass.dtype != torch.float16 or tuple(mass.shape) != self.pooling.blocks:
                raise ValueError(
                    f"block mass must be float16 {list(self.pooling.blocks)}, got {mass.dtype} "
                    f"{list(mass.shape)}"
                )
            self._maps[key], self._mass[key] = count, mass
            self._profile[key] = tensors[f"profile.{row}"]
            self._errors[key] = tensors[f"errors.{row}"]
