"""Block mass in plain PyTorch: the specification of the kernel, and what runs where it does not.

A tile of rows of a head's attention map is computed, normalised and summed into blocks under every
order; the map is never stored. The tile's columns already lie in the first order, so that a single
order costs no gather.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .attention_rows import exponentials_, matmul_operand, rows_per_tile, scaled_logits


def reference_block_mass(
    q: Tensor, k: Tensor, orders: Tensor, block: tuple[int, int], scale: float
) -> Tensor:
    """Block mass of one head in some orders.

    Args:
        q, k: [S, D].
        orders: int64 [O, S] permutations, on the device of q.
        block: (query, key) tokens of a block.
        scale: softmax scale.

    Returns:
        float32 [O, Qb, KVb], rows sum to 1.
    """
    tokens = q.shape[0]
    query_blocks, key_blocks = (-(-tokens // side) for side in block)
    first = orders[0]
    rows = matmul_operand(q[first])
    keys = pad(matmul_operand(k[first]), (0, 0, 0, -tokens % block[1]))
    # Positions of the other orders' tokens in the tile's own order.
    place = _inverse(first)
    columns = [place[order] for order in orders[1:]]
    query_block_of_row = [_inverse(order)[first] // block[0] for order in orders[1:]]

    mass = q.new_zeros((len(orders), query_blocks, key_blocks), dtype=torch.float32)
    step = rows_per_tile(keys.shape[0], block[0], q.device)
    for start in range(0, tokens, step):
        tile, _ = exponentials_(scaled_logits(rows[start : start + step], keys, scale), tokens)
        tile.div_(tile.sum(1, keepdim=True))
        summed = tile.view(len(tile), key_blocks, block[1]).sum(2)
        summed = pad(summed, (0, 0, 0, -len(tile) % block[0])).unflatten(0, (-1, block[0])).sum(1)
        begin = start // block[0]
        mass[0, begin : begin + len(summed)] = summed
        for index, column in enumerate(columns):
            reordered = pad(tile[:, column], (0, keys.shape[0] - tokens))
            summed = reordered.view(len(tile), key_blocks, block[1]).sum(2)
            mass[index + 1].index_add_(0, query_block_of_row[index][start : start + step], summed)
    starts = torch.arange(query_blocks, device=q.device) * block[0]
    return mass / (tokens - starts).clamp(max=block[0]).float()[:, None]


def _inverse(permutation: Tensor) -> Tensor:
    inverse = torch.empty_like(permutation)
    inverse[permutation] = torch.arange(len(permutation), device=permutation.device)
    return inverse
