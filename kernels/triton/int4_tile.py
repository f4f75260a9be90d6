"""One tile of the INT4 kernel's online softmax, and its pooled tail in 16 bits."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from .int4_mma import (
    FLOAT_START,
    as_a,
    as_b,
    block_barrier,
    copy_to_shared,
    matrix_layout,
    multiply,
    packed_layout,
)
from .int4_prepass import V_STEP_EXPONENT

# Pooled keys of one step of the tail.
TAIL_PART = gl.constexpr(32)
# A sum n of P.V is not negative; its bits are those of the subnormal float n * 2**-149. V's steps
# are stored times 2**V_STEP_EXPONENT, and this is the rest of the way back, with P's scale.
UNIT = gl.constexpr(2.0 ** (149 - V_STEP_EXPONENT) / 15.0)


@gluon.constexpr_function
def record_layout(count, warps):
    """Layout [1, count] in which lane 4g + t holds four stored values side by side, for every g."""
    registers = [[0, 1], [0, 2]] + [[0, 16 << i] for i in range((count // 16 - 1).bit_length())]
    lanes = [[0, 4], [0, 8], [0, 0], [0, 0], [0, 0]]
    idle = [[0, 0] for _ in range((warps - 1).bit_length())]
    return gl.DistributedLinearLayout(registers, lanes, idle, [], [1, count])


@gluon.constexpr_function
def rows_layout(warps):
    """Layout [1, 16 * warps] of one value per row, in every lane that holds the row's sums."""
    lanes = [[0, 0], [0, 0], [0, 1], [0, 2], [0, 4]]
    warp = [[0, 16 << i] for i in range((warps - 1).bit_length())]
    return gl.DistributedLinearLayout([[0, 8]], lanes, warp, [], [1, 16 * warps])


@gluon.jit
def columns_of(record, row: gl.constexpr, COUNT: gl.constexpr, WARPS: gl.constexpr):
    """Row of a block's record as [1, COUNT] beside the sums."""
    x = record.slice(row, 1).slice(0, COUNT, dim=1).load(record_layout(COUNT, WARPS))
    x = x.reshape([COUNT // 16, 4, 2, 2]).permute([0, 2, 1, 3]).reshape([COUNT])
    COLUMNS: gl.constexpr = gl.SliceLayout(0, matrix_layout(WARPS))
    return gl.convert_layout(x, COLUMNS, assert_trivial=True)[None, :]


@gluon.jit
def load_queries(
    Q, token_of, first_row, row_end, stride,
    HEAD_DIM: gl.constexpr, D: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Rows of Q as the operand of a 16-bit product.

    They are read where they are needed, few times: there are no registers to keep them in.
    """
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, matrix_layout(WARPS), k_width=2)
    row = first_row + gl.arange(0, 16 * WARPS, gl.SliceLayout(1, OPERAND))
    token = gl.load(token_of + row, mask=row < row_end, other=0).to(gl.int64)
    d = gl.arange(0, D, gl.SliceLayout(0, OPERAND))[None, :]
    if HEAD_DIM < D:
        return gl.load(Q + token[:, None] * stride + d, mask=d < HEAD_DIM, other=0.0)
    else:
        return gl.load(Q + token[:, None] * stride + d)


@gluon.jit
def pooled_tail(
    acc, row_sum, row_max, Q, token_of, first_row, row_end, stride, words, tail_bias, pooled_k,
    pooled_v, key_blocks, last_size, scale_log2,
    HEAD_DIM: gl.constexpr, D: gl.constexpr, KEY_BLOCK: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Folds in the pooled keys and values of the blocks that are not in ``words``, in 16 bits."""
    MATRIX: gl.constexpr = matrix_layout(WARPS)
    P_OPERAND: gl.constexpr = gl.DotOperandLayout(0, MATRIX, k_width=2)
    OPERAND: gl.constexpr = gl.DotOperandLayout(1, MATRIX, k_width=2)
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(8, 1, 8, [1, 0])
    column = gl.arange(0, TAIL_PART, gl.SliceLayout(0, MATRIX))
    line = gl.arange(0, TAIL_PART, gl.SliceLayout(1, WIDE))
    d = gl.arange(0, D, gl.SliceLayout(0, WIDE))[None, :]
    full_bias = tail_bias + gl.log2(KEY_BLOCK * 1.0)
    last_bias = tail_bias + gl.log2(last_size.to(gl.float32))
    k_tile = gl.allocate_shared_memory(pooled_k.dtype.element_ty, [TAIL_PART, D], SHARED)
    v_tile = gl.allocate_shared_memory(pooled_v.dtype.element_ty, [TAIL_PART, D], SHARED)
    for part in range(0, gl.cdiv(key_blocks, TAIL_PART)):
        # Columns behind the last block repeat it and are hidden.
        at = gl.minimum(part * TAIL_PART + line, key_blocks - 1)[:, None] * D + d
        block_barrier()
        copy_to_shared(k_tile, pooled_k + at)
        async_copy.commit_group()
        copy_to_shared(v_tile, pooled_v + at)
        async_copy.commit_group()
        block = part * TAIL_PART + column
        word = gl.load(words + block // 32, mask=block < key_blocks, other=-1)
        bias = gl.where(block == key_blocks - 1, last_bias, full_bias)
        bias = gl.where(((word >> (block % 32)) & 1) == 0, bias, float("-inf"))
        async_copy.wait_group(1)
        block_barrier()
        zero = gl.zeros([16 * WARPS, TAIL_PART], gl.float32, MATRIX)
        q16 = load_queries(Q, token_of, first_row, row_end, stride, HEAD_DIM, D, WARPS)
        s = mma_v2(q16, k_tile.permute((1, 0)).load(OPERAND), zero)
        s = s * scale_log2 + bias[None, :]
        new_max = gl.maximum(row_max, gl.max(s, 1))
        alpha = gl.exp2(row_max - new_max)
        p = gl.exp2(s - new_max[:, None])
        row_sum = row_sum * alpha + gl.sum(p, 1)
        p16 = gl.convert_layout(p.to(pooled_v.dtype.element_ty), P_OPERAND)
        async_copy.wait_group(0)
        block_barrier()
        acc = mma_v2(p16, v_tile.load(OPERAND), acc * alpha[:, None])
        row_max = new_max
    return acc, row_sum, row_max


@gluon.jit
def attend_int4_tile(
    acc, row_sum, row_max, q, k_tile, v_tile, record, row_scale, mean_logits,
    masked, first, end, extra_start, key_bias,
    D: gl.constexpr, KEY_BLOCK: gl.constexpr, BIASED: gl.constexpr, HIDING: gl.constexpr,
    WARPS: gl.constexpr,
):  # fmt: skip
    """Folds one key block into (acc, row_sum, row_max).

    ``row_scale`` [rows] takes logits to base 2, ``mean_logits`` [1, rows] are those of the
    block's mean key. The block begins at position ``first``; where ``masked``, there are no keys
    from ``end`` on, and those of the extra tokens have a bias.
    """
    CHUNKS: gl.constexpr = KEY_BLOCK * D // 1024
    PACKED: gl.constexpr = packed_layout(CHUNKS, WARPS)
    START: gl.constexpr = 12582912.0  # FLOAT_START as a float
    k = as_b(k_tile.load(PACKED), KEY_BLOCK // 8, D // 64, WARPS)
    s = multiply(q, k, FLOAT_START, KEY_BLOCK // 8, D // 64, WARPS, "s4")
    # A scale of K has 22 bits, so that its product with START is exact and so is the difference.
    k_scale = columns_of(record, 0, KEY_BLOCK, WARPS)
    s = gl.fma(s.to(gl.float32, bitcast=True), k_scale, k_scale * -START)
    if masked:
        position = first + gl.arange(0, KEY_BLOCK, gl.SliceLayout(0, matrix_layout(WARPS)))
        bias = gl.where(position < end, 0.0, float("-inf"))
        if BIASED:
            extra = position - extra_start
            known = (extra >= 0) & (position < end)
            given = gl.load(key_bias + extra, mask=known, other=0.0)
            bias += gl.where(given > HIDING, given * 1.4426950408889634, float("-inf"))
        s = s + bias[None, :] * (1.0 / row_scale)[:, None]
    # A block may be hidden whole: its maximum is -inf then, and its P zero.
    top = gl.maximum(gl.max(s, 1), -1e30) * row_scale
    p = gl.exp2(gl.fma(s, row_scale[:, None], -top[:, None]))
    tile_sum = gl.sum(p, 1)
    mean_logit = mean_logits.load(rows_layout(WARPS)).reshape([16 * WARPS])
    ROWS: gl.constexpr = gl.SliceLayout(1, matrix_layout(WARPS))
    tile_max = top + gl.convert_layout(mean_logit, ROWS, assert_trivial=True)
    new_max = gl.maximum(row_max, tile_max)
    alpha = gl.exp2(row_max - new_max)
    weight = gl.exp2(tile_max - new_max)
    row_sum = row_sum * alpha + tile_sum * weight
    # Nearest integers are the low bits of p * 15 + START.
    levels = gl.fma(p, 15.0, START).to(gl.int32, bitcast=True)
    BASE: gl.constexpr = (FLOAT_START * KEY_BLOCK) & 0xFFFFFFFF
    mass = (gl.sum(levels, 1) - (BASE - (BASE >> 31 << 32))).to(gl.float32)
    p4 = as_a(levels, FLOAT_START, KEY_BLOCK // 64, WARPS)
    v = as_b(v_tile.load(PACKED), D // 8, KEY_BLOCK // 64, WARPS)
    product = multiply(p4, v, 0, D // 8, KEY_BLOCK // 64, WARPS, "u4")
    deviation = product.to(gl.float32, bitcast=True) * columns_of(record, 1, D, WARPS)
    acc = acc * alpha[:, None] + deviation * (weight * UNIT)[:, None]
    acc += (mass * weight * (1.0 / 15.0))[:, None] * columns_of(record, 2, D, WARPS)
    # The block's mean is weighted with the exact probabilities.
    acc += (tile_sum * weight)[:, None] * columns_of(record, 3, D, WARPS)
    return acc, row_sum, new_max
