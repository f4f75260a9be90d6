"""PAROAttention's own two criteria for a token order (arXiv 2506.16054, equations 1 to 3).

M_sparse is the share of blocks in which at least SPARSE_SHARE of the probabilities lie below an
epsilon; M_quant is the mean incoherence (maximum / mean) of the blocks. As printed, the objective
adds M_sparse, of which more is better, to a sum that is minimised; here 1 - M_sparse stands in its
place. The printed epsilon of 1e-3 belongs to 17,550 tokens; since probabilities average 1 / tokens,
epsilon * tokens is held constant.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.attention_rows import (
    exponentials_,
    matmul_operand,
    rows_per_tile,
    scaled_logits,
)
from .block_layout import block_count, pad_tokens, valid_tokens
from .row_sample import RowSample

EPSILON_TIMES_TOKENS = 1e-3 * 17550
SPARSE_SHARE = 0.9


def paper_criteria(
    q: Tensor, k: Tensor, order: Tensor, block: tuple[int, int], scale: float
) -> Tensor:
    """(M_sparse, M_quant) of one head in one order, from some of its query blocks.

    Args:
        q, k: [V, D] of one head's grid tokens in the model's order.
        order: int64 [V], on the device of q.
        block: (query, key) tokens of a block.
        scale: softmax scale.

    Returns:
        float32 [2].
    """
    tokens = q.shape[0]
    sample = RowSample.of(tokens, block[0], q.device, whole=True)
    rows = matmul_operand(q[order[sample.positions.view(-1)]])
    keys = pad_tokens(matmul_operand(k[order]), block[1])
    step = rows_per_tile(keys.shape[0], block[0], q.device)
    sums = torch.zeros(2, device=q.device)
    for start in range(0, len(rows), step):
        tile, _ = exponentials_(scaled_logits(rows[start : start + step], keys, scale), tokens)
        part = slice(start // block[0], start // block[0] + len(tile) // block[0])
        tile *= sample.valid[part].reshape(-1, 1) / tile.sum(1, keepdim=True)
        in_blocks = tile.unflatten(0, (-1, block[0]))
        sums += paper_statistics(in_blocks, sample.valid[part].sum(1), tokens, block[1])
    return sums / (len(sample.blocks) * block_count(tokens, block[1]))


def paper_statistics(p: Tensor, rows: Tensor, tokens: int, key_block: int) -> Tensor:
    """Sums over blocks of (is sparse, incoherence) for some query blocks.

    Args:
        p: float32 [n, bq, KVb * key_block] probabilities in the order's own layout; invalid rows
            and columns are 0.
        rows: [n] valid rows of each query block.
        tokens: sequence length.
        key_block: key tokens of a block.

    Returns:
        float32 [2].
    """
    blocks = p.unflatten(-1, (-1, key_block))
    entries = rows[:, None] * valid_tokens(tokens, key_block, p.device)[None, :]
    large = (blocks >= EPSILON_TIMES_TOKENS / tokens).sum((1, 3))
    sparse = (entries - large) >= SPARSE_SHARE * entries
    mean = blocks.sum((1, 3)) / entries
    incoherence = blocks.amax((1, 3)) / mean.clamp_min(1e-30)
    return torch.stack([sparse.sum(dtype=torch.float32), incoherence.sum()])


def paper_score(sparse: Tensor, incoherence: Tensor, alpha: float) -> Tensor:
    """Equation 3 with the sign mended: smaller is better.

    Args:
        sparse: [..., O] M_sparse of each candidate.
        incoherence: [..., O] M_quant of each candidate.
        alpha: weight of M_sparse against M_quant, 0..1.

    Returns:
        [..., O].
    """
    dense = 1 - sparse
    share = dense / dense.sum(-1, keepdim=True).clamp_min(1e-12)
    return alpha * share + (1 - alpha) * incoherence / incoherence.sum(-1, keepdim=True).clamp_min(
        1e-12
    )
