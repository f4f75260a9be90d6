"""Shapes, inputs and masks of the attention benchmarks, and the float32 rows that gate them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from _package import load_package
from torch import Tensor

load_package()

from paro_attention.kernels import BlockMask  # noqa: E402


@dataclass(frozen=True, slots=True)
class Shape:
    """One attention call.

    Attributes:
        heads, tokens, head_dim, batch: of q, k and v; extra tokens count among the tokens.
        extra_tokens: tokens behind the grid that the mask does not cover (text).
        grid: frames, height, width of the tokens in front of them, where masks of the demo model's
            heads are wanted as well.
        peers: "all", "some" (those that a user would choose at this size) or "none".
    """

    heads: int
    tokens: int
    head_dim: int
    extra_tokens: int = 0
    grid: tuple[int, int, int] | None = None
    peers: str = "none"
    batch: int = 1

    @property
    def grid_tokens(self) -> int:
        return self.tokens - self.extra_tokens

    @property
    def flops(self) -> float:
        """Operations of the two products over the whole map."""
        return 4.0 * self.batch * self.heads * self.tokens**2 * self.head_dim

    def __str__(self) -> str:
        extra = f" with {self.extra_tokens} extra" if self.extra_tokens else ""
        return f"{self.tokens:,} tokens{extra}, {self.heads} x {self.head_dim}"


@dataclass(frozen=True, slots=True)
class Inputs:
    """q, k, v [B, H, S, D] as a model hands them over, and each head's own order, int32 [H, S]."""

    shape: Shape
    q: Tensor
    k: Tensor
    v: Tensor
    permutation: Tensor


def random_inputs(
    shape: Shape, device: torch.device | str, dtype: torch.dtype = torch.bfloat16
) -> Inputs:
    """Random normal q, k, v stored [B, S, H, D]; extra tokens stay behind the grid."""
    stored = (shape.batch, shape.tokens, shape.heads * shape.head_dim)
    q, k, v = (
        torch.randn(stored, device=device, dtype=dtype)
        .view(shape.batch, shape.tokens, shape.heads, shape.head_dim)
        .transpose(1, 2)
        for _ in range(3)
    )
    behind = torch.arange(shape.grid_tokens, shape.tokens, device=device)
    orders = [torch.randperm(shape.grid_tokens, device=device) for _ in range(shape.heads)]
    permutation = torch.stack([torch.cat((order, behind)) for order in orders]).int()
    return Inputs(shape, q, k, v, permutation)


def random_mask(
    heads: int,
    tokens: int,
    block: tuple[int, int],
    density: float,
    device: torch.device | str = "cuda",
) -> BlockMask:
    """Random blocks per head; a row keeps density * uniform(0.5, 1.5) of them, at least one."""
    query_blocks, key_blocks = (math.ceil(tokens / side) for side in block)
    share = torch.rand(heads, query_blocks, 1, device=device) + 0.5
    counts = (share * density * key_blocks).round().clamp(1, key_blocks)
    if density == 1.0:
        counts = torch.full_like(counts, key_blocks)
    # Head by head: the ranks of all heads at once would take 16 bytes a block.
    chosen = [
        torch.rand(query_blocks, key_blocks, device=device).argsort(-1).argsort(-1) < counts[head]
        for head in range(heads)
    ]
    return BlockMask.from_dense(torch.stack(chosen), block, tokens)


def exact_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    permutation: Tensor,
    head: int,
    query_block: int,
    tail: bool,
) -> tuple[Tensor, Tensor]:
    """Float32 attention of one query block in the head's order, and the tokens of its rows.

    The query block behind the grid's last stands for the first extra tokens.
    """
    order = permutation[head].long()
    side, key_side = mask.block
    of_grid = query_block < mask.num_query_blocks
    first = query_block * side if of_grid else mask.tokens
    rows = order[first : min(first + side, mask.tokens if of_grid else len(order))]
    queries, keys, values = (x[0, head].float() for x in (q, k, v))
    queries, keys, values = queries[rows], keys[order], values[order]
    scale = q.shape[-1] ** -0.5
    computed = mask.to_dense()[head, min(query_block, mask.num_query_blocks - 1)]
    if not of_grid:
        computed = torch.ones_like(computed)
    kept = computed.repeat_interleave(key_side)[: mask.tokens]
    kept = F.pad(kept, (0, len(order) - mask.tokens), value=True)
    logits = (queries @ keys.T * scale).masked_fill(~kept, -math.inf)
    if tail and not bool(computed.all()):
        block_of = torch.arange(mask.tokens, device=q.device) // key_side
        sizes = torch.bincount(block_of).float()
        pooled = [
            torch.zeros(len(sizes), q.shape[-1], device=q.device).index_add_(0, block_of, x)
            / sizes[:, None]
            for x in (keys[: mask.tokens], values[: mask.tokens])
        ]
        extra = (queries @ pooled[0].T * scale + sizes.log()).masked_fill(computed, -math.inf)
        logits, values = torch.cat((logits, extra), -1), torch.cat((values, pooled[1]))
    return torch.softmax(logits, -1) @ values, rows


def relative_error(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, permutation: Tensor, tail: bool
) -> float:
    """Largest relative error over a few query blocks, the ragged last one and extra tokens too."""
    heads, last = q.shape[1], mask.num_query_blocks - 1
    errors = []
    checked = [(0, 0), (heads // 2, last // 2), (heads - 1, last)]
    if mask.tokens < q.shape[2]:
        checked.append((heads - 1, last + 1))
    for head, query_block in checked:
        want, rows = exact_rows(q, k, v, mask, permutation, head, query_block, tail)
        got = out[0, head, rows].float()
        errors.append(float((got - want).norm() / want.norm()))
    return max(errors)


def dense_error(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """``relative_error`` against full attention in the model's order."""
    heads, tokens = q.shape[1], q.shape[2]
    full = torch.ones(heads, -(-tokens // 64), -(-tokens // 128), dtype=torch.bool, device=q.device)
    mask = BlockMask.from_dense(full, (64, 128), tokens)
    order = torch.arange(tokens, dtype=torch.int32, device=q.device).expand(heads, -1)
    return relative_error(out, q, k, v, mask, order, tail=False)
