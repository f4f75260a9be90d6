"""One tile of keys of the online softmax, in every number format."""

from __future__ import annotations

import triton
import triton.language as tl

from .primitives import columns_in_token_order, round_to_int


@triton.jit
def attend_tile(
    acc, row_sum, row_max, q, q16, row_scale, block, part, bias, end, scale_log2,
    keys, k_scale, values, k_row, v_row, v_scale, v_low, pooled_k, pooled_v,
    D: tl.constexpr, KEY_BLOCK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    QK_BITS: tl.constexpr, PV_BITS: tl.constexpr, FP8: tl.constexpr,
    MASKED: tl.constexpr, BIASED: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Folds one tile of keys into (acc, row_sum, row_max).

    MASKED: rows at position ``end`` or behind it are not stored (16 bits only). BIASED: ``bias``
    [BN] is added to the logits (base 2) of each column. TMA: ``keys`` and ``values`` are tensor
    descriptors of all heads and ``k_row``, ``v_row`` this head's first rows; else they are this
    head's pointers.
    """
    PERMUTED: tl.constexpr = (QK_BITS < 16) and (PV_BITS < 16)
    n = tl.arange(0, BN)
    d = tl.arange(0, D)
    first = block * KEY_BLOCK + part * BN
    if TMA:
        kt = tl.trans(keys.load([k_row + first, 0]))
    elif MASKED:
        kt = tl.load(
            keys + first * D + (n[None, :] * D + d[:, None]),
            mask=(first + n < end)[None, :], other=0.0,
        )  # fmt: skip
    else:
        # A scalar base and loop-invariant 32-bit offsets: few registers, no 64-bit arithmetic.
        kt = tl.load(keys + first * D + (n[None, :] * D + d[:, None]))
    if QK_BITS == 16:
        s = tl.dot(q, kt)
        top = tl.max(s, 1)
        factor = row_scale
    else:
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
        if TMA:
            value = values.load([v_row + first, 0])
        elif MASKED:
            value = tl.load(
                values + first * D + (n[:, None] * D + d[None, :]),
                mask=(first + n < end)[:, None], other=0.0,
            )  # fmt: skip
        else:
            value = tl.load(values + first * D + (n[:, None] * D + d[None, :]))
        acc = tl.dot(p.to(value.dtype), value, acc * alpha[:, None])
    else:
        vt = transposed(values, v_row, block, D, KEY_BLOCK, TMA)
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
            # Relative to the tile's own maximum: P's scale is per row and tile. A tile may
            # be hidden whole; its maximum is then -inf and its P zero.
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


@triton.jit
def transposed(x, first_row, block, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr):
    """Block of ROWS rows of an 8-bit operand as [COLUMNS, ROWS]; ``x`` as in ``attend_tile``."""
    if TMA:
        return tl.trans(x.load([first_row + block * ROWS, 0]))
    else:
        column = tl.arange(0, COLUMNS)[:, None]
        row = tl.arange(0, ROWS)[None, :]
        return tl.load(x + block * (ROWS * COLUMNS) + (row * COLUMNS + column))


@triton.jit
def attend_pair(
    acc, row_sum, row_max, q, row_scale, left, right, keys, k_scale, values, k_row, v_row,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Folds two key blocks of BN keys into (acc, row_sum, row_max): 8-bit keys, FP8 values.

    One maximum, one rescaling and one sum for both, so that narrow blocks cost what wide ones do.
    """
    left_keys = transposed(keys, k_row, left, BN, D, TMA)
    right_keys = transposed(keys, k_row, right, BN, D, TMA)
    left_factor = row_scale * tl.load(k_scale + left)
    right_factor = row_scale * tl.load(k_scale + right)
    s = tl.dot(q, left_keys, out_dtype=tl.int32)
    t = tl.dot(q, right_keys, out_dtype=tl.int32)
    tile_max = tl.maximum(
        tl.max(s, 1).to(tl.float32) * left_factor, tl.max(t, 1).to(tl.float32) * right_factor
    )
    new_max = tl.maximum(row_max, tl.ceil(tile_max))
    alpha = tl.exp2(row_max - new_max)
    offset = (new_max - 8.0)[:, None]
    p = tl.exp2(s.to(tl.float32) * left_factor[:, None] - offset)
    r = tl.exp2(t.to(tl.float32) * right_factor[:, None] - offset)
    row_sum = row_sum * alpha + tl.sum(p + r, 1)
    left_values = transposed(values, v_row, left, D, BN, TMA)
    right_values = transposed(values, v_row, right, D, BN, TMA)
    product = tl.dot(columns_in_token_order(p.to(tl.float8e4nv), BM, BN), left_values)
    product = tl.dot(columns_in_token_order(r.to(tl.float8e4nv), BM, BN), right_values, product)
    return acc * alpha[:, None] + product, row_sum, new_max
