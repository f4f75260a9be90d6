"""Block mass of candidate orders, streamed from q and k.

One head at a time, a tile of rows of its attention map is computed, normalised and summed into
blocks under every order; the map is never stored. The tile's columns already lie in the first
order, so that a single order costs no gather.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .attention_rows import (
    checked_heads,
    exponentials_,
    matmul_operand,
    rows_per_tile,
    scaled_logits,
)
from .block_layout import block_count, checked_block, pad_tokens, valid_tokens
from .token_order import inverse_permutation


def block_mass(
    q: Tensor,
    k: Tensor,
    permutations: Tensor | Sequence[Tensor],
    block: tuple[int, int],
    scale: float | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yields each head's block mass: probability summed over a block, mean over its valid rows.

    Args:
        q, k: [B, H, S, D] in the model's order, any strides, any device; B is averaged.
        permutations: integer [O, S], the candidate orders of all heads, or one such tensor per
            head.
        block: (query, key) tokens of a block.
        scale: softmax scale, D ** -0.5 when None.

    Yields:
        (head, float32 [O, Qb, KVb]) with rows that sum to 1, on the device of q. The caller may
        keep the tensor.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not belong together.
    """
    _, heads, tokens, head_dim = checked_heads(q, k)
    block = checked_block(block)
    per_head = [permutations] * heads if isinstance(permutations, Tensor) else list(permutations)
    if len(per_head) != heads:
        raise ValueError(f"permutations must be one per head ({heads}), got {len(per_head)}")
    for orders in per_head:
        if orders.ndim != 2 or orders.shape[1] != tokens:
            raise ValueError(f"permutations must be [O, {tokens}], got {list(orders.shape)}")
    return _stream(q, k, per_head, block, head_dim**-0.5 if scale is None else scale)


def _stream(
    q: Tensor, k: Tensor, per_head: list[Tensor], block: tuple[int, int], scale: float
) -> Iterator[tuple[int, Tensor]]:
    for head, orders in enumerate(per_head):
        orders = orders.to(q.device, torch.int64)
        mass = _head_mass(q[0, head], k[0, head], orders, block, scale)
        for entry in range(1, q.shape[0]):
            mass += _head_mass(q[entry, head], k[entry, head], orders, block, scale)
        yield head, mass.div_(q.shape[0])


def _head_mass(
    q: Tensor, k: Tensor, orders: Tensor, block: tuple[int, int], scale: float
) -> Tensor:
    """float32 [O, Qb, KVb] of one head, from q, k [S, D]."""
    tokens = q.shape[0]
    query_blocks, key_blocks = (block_count(tokens, side) for side in block)
    first = orders[0]
    rows = matmul_operand(q[first])
    keys = pad_tokens(matmul_operand(k[first]), block[1])
    # Positions of the other orders' tokens in the tile's own order.
    place = inverse_permutation(first)
    columns = [place[order] for order in orders[1:]]
    query_block_of_row = [inverse_permutation(order)[first] // block[0] for order in orders[1:]]

    mass = q.new_zeros((len(orders), query_blocks, key_blocks), dtype=torch.float32)
    step = rows_per_tile(keys.shape[0], block[0], q.device)
    for start in range(0, tokens, step):
        tile, _ = exponentials_(scaled_logits(rows[start : start + step], keys, scale), tokens)
        tile.div_(tile.sum(1, keepdim=True))
        summed = tile.view(len(tile), key_blocks, block[1]).sum(2)
        summed = pad_tokens(summed, block[0]).unflatten(0, (-1, block[0])).sum(1)
        begin = start // block[0]
        mass[0, begin : begin + len(summed)] = summed
        for index, column in enumerate(columns):
            reordered = torch.nn.functional.pad(tile[:, column], (0, keys.shape[0] - tokens))
            summed = reordered.view(len(tile), key_blocks, block[1]).sum(2)
            mass[index + 1].index_add_(0, query_block_of_row[index][start : start + step], summed)
    return mass / valid_tokens(tokens, block[0], q.device)[:, None]
