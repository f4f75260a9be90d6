"""One tile of the FP4 kernel's online softmax, and its pooled tail in 16 bits."""

from __future__ import annotations

import triton
import triton.language as tl

from .fp4_numbers import multiply, pack_positive, scale_code, value_of_scale

# Pooled keys of one step of the tail.
TAIL_PART = tl.constexpr(32)


@triton.jit
def pooled_tail(
    acc, row_sum, row_max, q16, words, tail_bias, pooled_k, pooled_v, key_blocks, last_size,
    scale_log2, D: tl.constexpr, KEY_BLOCK: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """Folds in the pooled keys and values of the blocks that are not in ``words``, in 16 bits."""
    column = tl.arange(0, TAIL_PART)
    d = tl.arange(0, D)
    full_bias = tail_bias + tl.log2(KEY_BLOCK * 1.0)
    last_bias = tail_bias + tl.log2(last_size.to(tl.float32))
    parts = tl.cdiv(key_blocks, TAIL_PART)
    for part in tl.range(0, parts, num_stages=1):
        block = part * TAIL_PART + column
        word = tl.load(words + block // 32, mask=block < key_blocks, other=-1)
        bias = tl.where(block == key_blocks - 1, last_bias, full_bias)
        bias = tl.where(((word >> (block % 32)) & 1) == 0, bias, float("-inf"))
        # Columns behind the last block repeat it and are hidden.
        row = tl.minimum(block, key_blocks - 1) * D
        keys = tl.load(pooled_k + row[None, :] + d[:, None])
        s = tl.dot(q16, keys) * scale_log2 + bias[None, :]
        new_max = tl.maximum(row_max, tl.max(s, 1))
        alpha = tl.exp2(row_max - new_max)
        p = tl.exp2(s - new_max[:, None])
        row_sum = row_sum * alpha + tl.sum(p, 1)
        p = p.to(pooled_v.dtype.element_ty)
        sums = ()
        for part_of_d in tl.static_range(D // PIECE):
            channel = part_of_d * PIECE + tl.arange(0, PIECE)
            values = tl.load(pooled_v + row[:, None] + channel[None, :])
            sums += (tl.dot(p, values, acc[part_of_d] * alpha[:, None]),)
        acc = sums
        row_max = new_max
    return acc, row_sum, row_max


@triton.jit
def attend_fp4_tile(
    acc, row_sum, row_max, q4, q_scale, q16, row_scale, block, masked, bias, scale_log2,
    k4, k_scale, group_mean, v4, v_scale, steps, pooled_v,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PIECE: tl.constexpr,
    BIASED: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Folds one key block into (acc, row_sum, row_max).

    ``acc`` is a tuple of D / PIECE tensors [BM, PIECE]: Triton gives each warp rows of its own only
    where a product's result is not wider than it is high.
    ``row_scale`` [BM] takes the products of Q to logits to base 2. Where ``masked``, ``bias`` is
    added to them: [BN] if BIASED, else the number of keys from which on they are hidden. The
    tensors of K and V are this head's.
    """
    n = tl.arange(0, BN)
    d = tl.arange(0, D)
    group = tl.arange(0, BN // 16)
    channel_pair = tl.arange(0, D // 2)
    k = tl.load(k4 + block * (BN * D // 2) + (n[None, :] * (D // 2) + channel_pair[:, None]))
    channel_group = tl.arange(0, D // 16)
    scale = tl.load(k_scale + block * (BN * D // 16) + n[:, None] * (D // 16) + channel_group)
    s = multiply(q4, q_scale, k, scale, BM, BN, D, NATIVE)
    # A lane's columns become 16 tokens that it shares with one other: no data moves.
    s = s.reshape([BM, BN // 32, 4, 4, 2]).permute([0, 1, 3, 2, 4]).reshape([BM, BN // 16, 16])
    means = tl.load(group_mean + block * (BN * D // 16) + (group[None, :] * D + d[:, None]))
    of_means = tl.dot(q16, means) * scale_log2
    s = s * (row_scale * tl.load(steps + block * 2))[:, None, None] + of_means[:, :, None]
    if masked:
        of_keys = bias if BIASED else tl.where(n < bias, 0.0, float("-inf"))
        s += of_keys.reshape([1, BN // 16, 16])

    # A block may be hidden whole: its maximum is -inf then, and its P zero.
    top = tl.maximum(tl.max(tl.max(s, 2), 1), -1e30)
    p = tl.exp2(s - top[:, None, None])
    tile_sum = tl.sum(tl.sum(p, 2), 1)
    # Relative to the tile's own maximum: its largest value keeps all its bits.
    scale = scale_code(tl.max(p, 2) * 448.0)
    p = p * ((448.0 * 6.0) / value_of_scale(scale))[:, :, None]
    p4 = pack_positive(p.reshape([BM, BN]), BM, BN, NATIVE)
    new_max = tl.maximum(row_max, top)
    alpha = tl.exp2(row_max - new_max)
    weight = tl.exp2(top - new_max)
    row_sum = row_sum * alpha + tile_sum * weight

    # The block's mean is weighted with the exact probabilities.
    mass = tile_sum * weight
    step = weight * tl.load(steps + block * 2 + 1) * (1.0 / (448.0 * 6.0))
    scale = scale.to(tl.uint8)
    key_pair = tl.arange(0, BN // 2)
    sums = ()
    for part in tl.static_range(D // PIECE):
        channel = part * PIECE + tl.arange(0, PIECE)
        v = tl.load(v4 + block * (BN * D // 2) + (channel[None, :] * (BN // 2) + key_pair[:, None]))
        of_v = channel[:, None] * (BN // 16) + group[None, :]
        of_v = tl.load(v_scale + block * (BN * D // 16) + of_v)
        product = multiply(p4, scale, v, of_v, BM, PIECE, BN, NATIVE)
        mean = tl.load(pooled_v + block * D + channel).to(tl.float32)
        piece = acc[part] * alpha[:, None] + product * step[:, None]
        sums += (piece + mass[:, None] * mean[None, :],)
    return sums, row_sum, new_max
