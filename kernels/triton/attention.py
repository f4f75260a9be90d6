"""Block-sparse attention over lists of key blocks, in 16, 8 or 4 bits, with the pooled tail.

One program owns a tile of query rows of one head. It first folds in the pooled keys and values of
the blocks that its row skips (a few tiles), then walks the row's list of key blocks
with an online softmax, and scatters its rows back to the model's token order. Only the last key
block can be ragged; it comes last in every list and is peeled off the loop.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..launch import LaunchConfig
from .prepass import PreparedInputs
from .primitives import columns_in_token_order, round_to_int, token_of_position

LOG2_E = 1.4426950408889634
# Sizes that change with length and density must not lead to another compilation.
NOT_SPECIALIZED = ("S", "H", "rows_padded", "query_blocks", "key_blocks", "list_width", "bit_words")


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def attention_kernel(
    Q, K, V, Out, permutation, order_of_head, kv_num_blocks, kv_indices, computed_bits, tail_bias,
    q8, q_scale, k8, k_scale, v8, v_scale, v_low, pooled_k, pooled_v,
    pooled_k8, pooled_k_scale, pooled_v8,
    q_stride_b, q_stride_h, q_stride_s,
    k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s,
    S, H, rows_padded, query_blocks, key_blocks, list_width, bit_words, scale_log2,
    D: tl.constexpr, QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
    QK_BITS: tl.constexpr, PV_BITS: tl.constexpr, FP8: tl.constexpr, TAIL: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(S / BM), B*H)."""
    tile = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    b = batch_head // H
    h = batch_head % H
    d = tl.arange(0, D)
    n = tl.arange(0, BN)
    row = tile * BM + tl.arange(0, BM)
    row_valid = row < S
    token_of = permutation + tl.load(order_of_head + h).to(tl.int64) * S
    token = tl.load(token_of + row, mask=row_valid, other=0).to(tl.int64)
    list_row = h * query_blocks + (tile * BM) // QUERY_BLOCK
    count = tl.load(kv_num_blocks + list_row)
    row_list = kv_indices + list_row * list_width
    K += b * k_stride_b + h * k_stride_h
    V += b * v_stride_b + h * v_stride_h
    k_row = (batch_head * rows_padded).to(tl.int32)
    v_row = (batch_head * key_blocks * D).to(tl.int32)
    if not TMA:
        k8 += batch_head * rows_padded * D
        v8 += batch_head * key_blocks * D * KEY_BLOCK
    pooled_k += batch_head * key_blocks * D
    pooled_v += batch_head * key_blocks * D

    if QK_BITS != 8:
        q16 = tl.load(
            Q + b * q_stride_b + h * q_stride_h + token[:, None] * q_stride_s + d[None, :],
            mask=row_valid[:, None], other=0.0,
        )  # fmt: skip
    q16_scale = tl.full([BM], 1.0, tl.float32) * scale_log2
    if QK_BITS == 16:
        q = q16
        row_scale = q16_scale
    else:
        q = tl.load(q8 + (batch_head * rows_padded + row)[:, None] * D + d[None, :])
        row_scale = tl.load(q_scale + batch_head * rows_padded + row) * scale_log2
    if QK_BITS == 8:
        k_scale += batch_head * key_blocks
        q16_scale = row_scale
        q16 = q.to(Q.dtype.element_ty) if PV_BITS != 8 else q
    if QK_BITS == 4:
        k_scale += batch_head * rows_padded
    if PV_BITS == 4:
        v_scale += batch_head * key_blocks * D
        v_low += batch_head * key_blocks * D

    acc = tl.zeros([BM, D], tl.float32)
    row_sum = tl.zeros([BM], tl.float32)
    row_max = tl.full([BM], -1e30, tl.float32)
    last_block = key_blocks - 1
    last_size = S - last_block * KEY_BLOCK

    if TAIL:  # noqa: SIM102 - decided at compilation, the next line at run time
        if count < key_blocks:
            # The pooled keys and values are one more short sequence of keys, in 8 bits where the
            # keys are, else in 16; a bias per column holds the block's size or hides it.
            LOW: tl.constexpr = (QK_BITS == 8) and (PV_BITS == 8)
            PART: tl.constexpr = KEY_BLOCK if LOW else (BN if BN < 64 else 64)
            # 16-bit operands are not prefetched: the main loop needs the registers more.
            STAGES: tl.constexpr = 2 if LOW else 1
            column = tl.arange(0, PART)
            bias_of_head = tl.load(tail_bias + h) * 1.4426950408889634
            full_bias = bias_of_head + tl.log2(KEY_BLOCK * 1.0)
            last_bias = bias_of_head + tl.log2(last_size.to(tl.float32))
            words = computed_bits + list_row * bit_words
            tiles = tl.cdiv(key_blocks, PART)
            if LOW and not TMA:
                pooled_k8 += batch_head * tiles * PART * D
                pooled_v8 += batch_head * tiles * PART * D
            for part in tl.range(0, tiles, num_stages=STAGES):
                block = part * PART + token_of_position(column, LOW)
                word = tl.load(words + block // 32, mask=block < key_blocks, other=-1)
                skipped = ((word >> (block % 32)) & 1) == 0
                bias = tl.where(block == last_block, last_bias, full_bias)
                bias = tl.where(skipped, bias, float("-inf"))
                if LOW:
                    acc, row_sum, row_max = attend_tile(
                        acc, row_sum, row_max, q, q16, row_scale, part, 0, bias, S, scale_log2,
                        K, V, token_of, pooled_k8, pooled_k_scale + batch_head * tiles, pooled_v8,
                        (batch_head * tiles * PART).to(tl.int32),
                        (batch_head * tiles * D).to(tl.int32),
                        v_scale, v_low, pooled_k, pooled_v, D, D,
                        D, PART, BM, PART, 8, 8, FP8, False, True, TMA,
                    )  # fmt: skip
                else:
                    acc, row_sum, row_max = attend_tile(
                        acc, row_sum, row_max, q16, q16, q16_scale, part, 0, bias,
                        key_blocks, scale_log2,
                        pooled_k, pooled_v, token_of, k8, k_scale, v8, k_row, v_row,
                        v_scale, v_low, pooled_k, pooled_v, D, D,
                        D, PART, BM, PART, 16, 16, FP8, False, True, TMA,
                    )  # fmt: skip
            if (PV_BITS == 8) and not LOW:
                # From V's units to the accumulator's.
                acc = acc * (1.0 / tl.load(v_scale + batch_head * D + d))[None, :]
                if FP8:
                    acc *= 256.0
                    row_sum *= 256.0

    SPLIT: tl.constexpr = KEY_BLOCK // BN
    ragged = 0
    if (count > 0) & (last_size < KEY_BLOCK):
        ragged = (tl.load(row_list + count - 1) == last_block).to(tl.int32)
    for step in range(0, (count - ragged) * SPLIT):
        block = tl.load(row_list + step // SPLIT).to(tl.int32)
        acc, row_sum, row_max = attend_tile(
            acc, row_sum, row_max, q, q16, row_scale, block, step % SPLIT, row_scale, S, scale_log2,
            K, V, token_of, k8, k_scale, v8, k_row, v_row, v_scale, v_low, pooled_k, pooled_v,
            k_stride_s, v_stride_s,
            D, KEY_BLOCK, BM, BN, QK_BITS, PV_BITS, FP8, True, False, TMA,
        )  # fmt: skip
    for step in tl.range(0, ragged * SPLIT, num_stages=1):
        PERMUTED: tl.constexpr = (QK_BITS < 16) and (PV_BITS < 16)
        inside = step * BN + token_of_position(n, PERMUTED) < last_size
        acc, row_sum, row_max = attend_tile(
            acc, row_sum, row_max, q, q16, row_scale, last_block, step,
            tl.where(inside, 0.0, float("-inf")), S, scale_log2,
            K, V, token_of, k8, k_scale, v8, k_row, v_row, v_scale, v_low, pooled_k, pooled_v,
            k_stride_s, v_stride_s,
            D, KEY_BLOCK, BM, BN, QK_BITS, PV_BITS, FP8, True, True, TMA,
        )  # fmt: skip

    # A row with nothing to attend to is zero.
    acc = acc * (1.0 / tl.where(row_sum == 0.0, 1.0, row_sum))[:, None]
    if PV_BITS == 8:
        acc = acc * tl.load(v_scale + batch_head * D + d)[None, :]
    out = Out + (b * S + token)[:, None] * (H * D) + h * D + d[None, :]
    tl.store(out, acc.to(Out.dtype.element_ty), mask=row_valid[:, None])


@triton.jit
def attend_tile(
    acc, row_sum, row_max, q, q16, row_scale, block, part, bias, S, scale_log2,
    K, V, token_of, k8, k_scale, v8, k_row, v_row, v_scale, v_low, pooled_k, pooled_v,
    k_stride_s, v_stride_s,
    D: tl.constexpr, KEY_BLOCK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    QK_BITS: tl.constexpr, PV_BITS: tl.constexpr, FP8: tl.constexpr,
    GATHER: tl.constexpr, BIASED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Folds one tile of keys into (acc, row_sum, row_max).

    GATHER: 16-bit keys and values lie at their tokens; else they lie in a row. BIASED: ``bias``
    [BN] is added to the logits (base 2) of each column. TMA: ``k8`` and ``v8`` are tensor
    descriptors of all heads and ``k_row``, ``v_row`` this head's first rows; else they are this
    head's pointers.
    """
    PERMUTED: tl.constexpr = (QK_BITS < 16) and (PV_BITS < 16)
    n = tl.arange(0, BN)
    d = tl.arange(0, D)
    first = block * KEY_BLOCK + part * BN
    if QK_BITS == 16 or PV_BITS == 16:
        token = (first + n).to(tl.int64)
        exists = token < S
        if GATHER:
            token = tl.load(token_of + first + n, mask=exists, other=0).to(tl.int64)
    if QK_BITS == 16:
        if GATHER:
            kt = tl.load(K + token[None, :] * k_stride_s + d[:, None])
        else:
            kt = tl.load(
                K + token[None, :] * k_stride_s + d[:, None], mask=exists[None, :], other=0.0
            )
        s = tl.dot(q, kt)
        top = tl.max(s, 1)
        factor = row_scale
    else:
        if TMA:
            kt = tl.trans(k8.load([k_row + first, 0]))
        else:
            # A scalar base and loop-invariant 32-bit offsets: few registers, no 64-bit arithmetic.
            kt = tl.load(k8 + first * D + (n[None, :] * D + d[:, None]))
        s = tl.dot(q, kt, out_dtype=tl.int32)
        if QK_BITS == 8:
            # The largest integer of a row is its largest logit, because both scales are positive.
            top = tl.max(s, 1).to(tl.float32)
            factor = row_scale * tl.load(k_scale + block)
            s = s.to(tl.float32)
        else:
            block_mean = tl.load(pooled_k + block * D + d).to(tl.float32)
            exact = tl.sum(q16.to(tl.float32) * block_mean[None, :], 1) * scale_log2
            s = s.to(tl.float32) * tl.load(k_scale + first + n)[None, :]
            s = s * row_scale[:, None] + exact[:, None]
            top = tl.max(s, 1)
            factor = tl.full([BM], 1.0, tl.float32)
    if BIASED:
        s = s * factor[:, None] + bias[None, :]
        top = tl.max(s, 1)
        factor = tl.full([BM], 1.0, tl.float32)

    tile_max = top * factor
    if FP8:
        # A whole power of two: P's rounding is the same whichever block came first.
        tile_max = tl.ceil(tile_max)
    new_max = tl.maximum(row_max, tile_max)
    alpha = tl.exp2(row_max - new_max)
    if PV_BITS == 16:
        p = tl.exp2(s * factor[:, None] - new_max[:, None])
        row_sum = row_sum * alpha + tl.sum(p, 1)
        if GATHER:
            value = tl.load(V + token[:, None] * v_stride_s + d[None, :])
        else:
            value = tl.load(
                V + token[:, None] * v_stride_s + d[None, :], mask=exists[:, None], other=0.0
            )
        acc = tl.dot(p.to(value.dtype), value, acc * alpha[:, None])
    else:
        if TMA:
            vt = tl.trans(v8.load([v_row + block * D, 0]))
        else:
            vt = tl.load(v8 + block * (D * KEY_BLOCK) + (d[None, :] * KEY_BLOCK + n[:, None]))
        if FP8:
            # P times 2**8 in numerator and denominator: FP8's subnormals are out of the way.
            p = tl.exp2(s * factor[:, None] - (new_max - 8.0)[:, None])
            row_sum = row_sum * alpha + tl.sum(p, 1)
            p8 = p.to(tl.float8e4nv)
            if PERMUTED:
                p8 = columns_in_token_order(p8, BM, BN)
            # A sum of its own for every tile: Hopper's tensor cores add FP8 products with about 14
            # bits and cut the rest off, which one long sum would not survive.
            acc = acc * alpha[:, None] + tl.dot(p8, vt)
        else:
            LEVELS: tl.constexpr = 127.0 if PV_BITS == 8 else 15.0
            # Relative to the tile's own maximum: P's scale is per row and tile. A tile of the tail
            # may be hidden whole; its maximum is then -inf and its P zero.
            p = tl.exp2(s * factor[:, None] - tl.maximum(tile_max, -1e30)[:, None])
            weight = tl.exp2(tile_max - new_max)
            tile_sum = tl.sum(p, 1)
            row_sum = row_sum * alpha + tile_sum * weight
            p8 = round_to_int(p * LEVELS).to(tl.int8)
            if PERMUTED:
                p8 = columns_in_token_order(p8, BM, BN)
            product = tl.dot(p8, vt, out_dtype=tl.int32).to(tl.float32)
            if PV_BITS == 8:
                acc = acc * alpha[:, None] + product * (weight * (1.0 / 127.0))[:, None]
            else:
                channel = block * D + d
                step = tl.load(v_scale + channel)
                low = tl.load(v_low + channel)
                mean = tl.load(pooled_v + channel).to(tl.float32)
                mass = tl.sum(p8.to(tl.float32), 1)
                deviation = product * step[None, :] + mass[:, None] * low[None, :]
                acc = acc * alpha[:, None] + deviation * (weight * (1.0 / 15.0))[:, None]
                # The block's mean is weighted with the exact probabilities.
                acc += (tile_sum * weight)[:, None] * mean[None, :]
    return acc, row_sum, new_max


def attend(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, permutation: Tensor, order_of_head: Tensor,
    kv_num_blocks: Tensor, kv_indices: Tensor, computed_bits: Tensor, tail_bias: Tensor,
    prepared: PreparedInputs, block: tuple[int, int], launch: LaunchConfig,
    *, qk_bits: int, pv_bits: int, fp8: bool, tail: bool, scale: float,
) -> None:  # fmt: skip
    """Launches the kernel into ``out`` [B, S, H, D]."""
    batch, heads, tokens, head_dim = q.shape
    tma = launch.tma and qk_bits == 8 and pv_bits == 8
    if tma:
        prepared = _described(prepared, launch.key_tile, head_dim, tail)
    attention_kernel[(triton.cdiv(tokens, launch.query_tile), batch * heads)](
        q, k, v, out, permutation, order_of_head,
        kv_num_blocks, kv_indices, computed_bits, tail_bias, *prepared,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        tokens, heads, triton.cdiv(tokens, max(block)) * max(block),
        kv_num_blocks.shape[1], triton.cdiv(tokens, block[1]), kv_indices.shape[2],
        computed_bits.shape[2], scale * LOG2_E,
        D=head_dim, QUERY_BLOCK=block[0], KEY_BLOCK=block[1],
        BM=launch.query_tile, BN=launch.key_tile,
        QK_BITS=qk_bits, PV_BITS=pv_bits, FP8=fp8 and pv_bits == 8, TAIL=tail, TMA=tma,
        num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=launch.max_registers,
    )  # fmt: skip


def _described(prepared: PreparedInputs, keys: int, head_dim: int, tail: bool) -> PreparedInputs:
    """The 8-bit keys and values as tensor descriptors: the copy engine loads whole tiles."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    def keys_of(x: Tensor) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(x.view(-1, head_dim), [keys, head_dim])

    def values_of(x: Tensor) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(x.view(-1, keys), [head_dim, keys])

    described = {"k8": keys_of(prepared.k8), "v8": values_of(prepared.v8)}
    # Without a tail the pooled entries are not read; any descriptor of the shape will do.
    described["pooled_k8"] = keys_of(prepared.pooled_k8) if tail else described["k8"]
    described["pooled_v8"] = values_of(prepared.pooled_v8) if tail else described["v8"]
    return prepared._replace(**described)  # pyright: ignore[reportArgumentType]
