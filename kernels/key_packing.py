"""The keys of a joint sequence in whole blocks, for the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

# A key's bias from here down hides it: softmax would give it nothing, were it not alone.
HIDING_BIAS = -1e4


@dataclass(frozen=True, slots=True)
class KeyPacking:
    """Cuts the keys of a joint sequence into whole blocks: grid tokens first, then extra tokens.

    Either part's last block may be ragged; the holes behind it hold zeros.
    """

    tokens: int
    grid_tokens: int
    key_block: int

    @property
    def parts(self) -> tuple[int, int]:
        return self.grid_tokens, self.tokens - self.grid_tokens

    @property
    def blocks(self) -> int:
        return sum(-(-part // self.key_block) for part in self.parts)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., S, D] -> [..., blocks * key_block, D]."""
        if not any(part % self.key_block for part in self.parts):
            return x
        return torch.cat(
            [whole_blocks(part, self.key_block) for part in x.split(self.parts, -2)], -2
        )

    def exists(self, device: torch.device) -> Tensor:
        """bool [blocks * key_block], False at holes."""
        return self(torch.ones(self.tokens, 1, device=device)).squeeze(-1) > 0

    def sizes(self, device: torch.device) -> Tensor:
        """float32 [blocks], tokens in each block."""
        return self.exists(device).view(-1, self.key_block).sum(-1, dtype=torch.float32)

    def bias_of_keys(self, key_bias: Tensor) -> Tensor:
        """[B, E] -> [B, blocks * key_block]: zero at grid tokens, -inf at hidden extra tokens."""
        bias = key_bias.masked_fill(key_bias <= HIDING_BIAS, -math.inf)
        bias = pad(bias, (self.grid_tokens, 0))
        return self(bias[..., None]).squeeze(-1)


def whole_blocks(x: Tensor, block: int) -> Tensor:
    """[..., S, D] with zeros behind the last row, up to a multiple of ``block`` rows."""
    return pad(x, (0, 0, 0, -x.shape[-2] % block))


def in_blocks(x: Tensor, block: int) -> Tensor:
    """[..., S, D] -> [..., blocks, block, D], a ragged last block filled with zeros."""
    return whole_blocks(x, block).unflatten(-2, (-1, block))
