"""The joint sequence of a call: the grid's tokens with the model's extra tokens around them.

Extra tokens (text, references, registers, padding) are never reordered and always dense. Their
number may change from call to call, with the prompt or with CFG, so nothing that a plan or a mask
holds depends on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .device_copy import to_device
from .token_grid import TokenGrid
from .token_order import grid_permutation, with_extra_tokens

KEPT_LAYOUTS = 4  # positive and negative prompt, with and without references


@dataclass(frozen=True, slots=True)
class JointLayout:
    """Where the grid lies in a joint sequence.

    Attributes:
        grid_tokens: visual tokens, which lie side by side.
        first: extra tokens before them.
        last: extra tokens behind them.
    """

    grid_tokens: int
    first: int
    last: int

    @classmethod
    def of(cls, tokens: int, grid: TokenGrid, dense_first: int) -> JointLayout:
        """The layout of a sequence of `tokens` tokens whose grid starts at `dense_first`.

        Raises:
            ValueError: fewer tokens than the grid has, or a grid that reaches beyond the sequence.
        """
        extra = tokens - grid.tokens
        if extra < 0:
            raise ValueError(
                f"q must have at least the {grid.tokens} tokens of the grid {grid}, got {tokens}"
            )
        integer = isinstance(dense_first, int) and not isinstance(dense_first, bool)
        if not integer or not 0 <= dense_first <= extra:
            raise ValueError(
                f"dense_first must be in 0..{extra} for {tokens} tokens with the grid {grid}, "
                f"got {dense_first!r}"
            )
        return cls(grid.tokens, dense_first, extra - dense_first)

    @property
    def extra(self) -> int:
        """Number of extra tokens."""
        return self.first + self.last

    @property
    def tokens(self) -> int:
        """Length of the whole sequence."""
        return self.grid_tokens + self.extra

    def grid_part(self, x: Tensor, dim: int = -2) -> Tensor:
        """The grid's tokens of x along `dim`, a view."""
        return x.narrow(dim, self.first, self.grid_tokens)

    def extra_part(self, x: Tensor, dim: int = -2) -> Tensor:
        """The extra tokens of x along `dim`, leading ones first; a copy."""
        behind = self.first + self.grid_tokens
        return torch.cat([x.narrow(dim, 0, self.first), x.narrow(dim, behind, self.last)], dim)

    def extra_bias(
        self, key_bias: Tensor | None, batch: int, device: torch.device
    ) -> Tensor | None:
        """The part of a key bias that belongs to the extra tokens.

        Args:
            key_bias: float32 [B or 1, S] in the model's order, or None.
            batch: B.
            device: where q lies.

        Returns:
            float32 [B or 1, E], leading extra tokens first; None without extra tokens or bias.

        Raises:
            TypeError: another dtype.
            ValueError: another shape or device.
        """
        if key_bias is None:
            return None
        if key_bias.dtype != torch.float32:
            raise TypeError(f"key_bias must be float32, got {key_bias.dtype}")
        if key_bias.ndim != 2 or tuple(key_bias.shape) not in (
            (1, self.tokens),
            (batch, self.tokens),
        ):
            raise ValueError(
                f"key_bias must be [{batch} or 1, {self.tokens}] as q is, got "
                f"{list(key_bias.shape)}"
            )
        if key_bias.device != device:
            raise ValueError(f"key_bias must be on q's device {device}, got {key_bias.device}")
        return self.extra_part(key_bias, -1) if self.extra else None


class SequencePermutations:
    """The whole-sequence permutations of a plan's orders, kept for the last few layouts.

    Everything is computed on the device, so that a new prompt makes nobody wait for it.
    """

    def __init__(self, orders: Sequence[str], grid: TokenGrid, device: torch.device) -> None:
        permutations = torch.stack([grid_permutation(name, grid) for name in orders])
        self._grid = to_device(permutations.to(torch.int32), device)
        self._kept: OrderedDict[tuple[int, int], Tensor] = OrderedDict()

    def __call__(self, first: int, last: int) -> Tensor:
        """int32 [O, first + grid tokens + last], one `sequence_permutation` per order."""
        if first == last == 0:
            return self._grid
        key = (first, last)
        if key not in self._kept:
            self._kept[key] = with_extra_tokens(self._grid, first, last)
            if len(self._kept) > KEPT_LAYOUTS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
