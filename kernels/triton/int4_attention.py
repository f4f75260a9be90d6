"""Block-sparse attention on INT4 tensor cores (sm_80, sm_86, sm_89), in Gluon.

The numbers are those of ``attention`` at 4 bits; the two products are native ``mma.m16n8k64`` on
operands that ``int4_prepass`` has put in the order in which a thread wants them. A warp owns 16
rows. Key blocks travel through shared memory by asynchronous copies of 16 bytes a lane; P goes from
the sums of one product to the operand of the next without leaving its lane.

One loop walks the row's list, then the extra tokens. A tile's probabilities are relative to its own
maximum, so that the exact logit of the block's mean key (constant along a row of the tile) only
enters the weight of the whole tile; those logits come from one 16-bit product for 16 tiles ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from ..key_packing import HIDING_BIAS
from ..packed_layout import PackedLayout, padded_head_dim
from .int4_mma import FLOAT_START, as_a, as_b, load_a, matrix_layout, multiply, packed_layout
from .int4_prepass import V_STEP_EXPONENT, prepare_int4

LOG2_E = 1.4426950408889634
# Sizes that change with length and density must not lead to another compilation.
NOT_SPECIALIZED = (
    "S", "H", "grid_tokens", "extra_start", "rows_padded", "query_blocks", "key_blocks",
    "stored_blocks", "bit_words", "key_bias", "bias_stride",
)  # fmt: skip
# Tiles whose mean keys' logits are formed at once, pooled keys of one step of the tail.
INT4_STAGES = 2
AHEAD = gl.constexpr(16)
TAIL_PART = gl.constexpr(64)
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
def start_copies(
    block, k4, v4, record, k_tile, v_tile, record_tile,
    CHUNKS: gl.constexpr, WIDTH: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Starts the copies of a key block: K, V and its record."""
    WIDE: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [WARPS, 1], [1, 0])
    at = gl.arange(0, CHUNKS, gl.SliceLayout(1, WIDE))[:, None] * 128
    at += gl.arange(0, 128, gl.SliceLayout(0, WIDE))[None, :]
    async_copy.async_copy_global_to_shared(k_tile, k4 + block * (CHUNKS * 128) + at)
    async_copy.async_copy_global_to_shared(v_tile, v4 + block * (CHUNKS * 128) + at)
    RECORD: gl.constexpr = gl.BlockedLayout([1, 4], [128 // WIDTH, WIDTH // 4], [WARPS, 1], [1, 0])
    at = gl.arange(0, 4, gl.SliceLayout(1, RECORD))[:, None] * WIDTH
    at += gl.arange(0, WIDTH, gl.SliceLayout(0, RECORD))[None, :]
    async_copy.async_copy_global_to_shared(record_tile, record + block * (4 * WIDTH) + at)


@gluon.jit
def load_queries(Q, token, row_valid, stride, HEAD_DIM: gl.constexpr, D: gl.constexpr,
                 WARPS: gl.constexpr):  # fmt: skip
    """Rows of Q as the operand of a 16-bit product; token, row_valid [rows] in its rows' layout."""
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, matrix_layout(WARPS), k_width=2)
    d = gl.arange(0, D, gl.SliceLayout(0, OPERAND))[None, :]
    mask = row_valid[:, None]
    if HEAD_DIM < D:
        mask = mask & (d < HEAD_DIM)
    return gl.load(Q + token[:, None] * stride + d, mask=mask, other=0.0)


@gluon.jit
def listed_block(row_list, step, listed, count, extra_block):
    """Key block of a step: from the row's list, else in order, the extra tokens' blocks last."""
    block = gl.load(row_list + step, mask=step < listed, other=0).to(gl.int32)
    unlisted = gl.where(step < count, step, extra_block + step - count)
    return gl.where(step < listed, block, unlisted)


@gluon.jit
def pooled_tail(
    acc, row_sum, row_max, q16, words, tail_bias, pooled_k, pooled_v, key_blocks, last_size,
    scale_log2, D: gl.constexpr, KEY_BLOCK: gl.constexpr, WARPS: gl.constexpr,
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
    for part in range(0, gl.cdiv(key_blocks, TAIL_PART)):
        block = part * TAIL_PART + column
        word = gl.load(words + block // 32, mask=block < key_blocks, other=-1)
        bias = gl.where(block == key_blocks - 1, last_bias, full_bias)
        bias = gl.where(((word >> (block % 32)) & 1) == 0, bias, float("-inf"))
        pooled = part * TAIL_PART + line
        at = pooled[:, None] * D + d
        inside = (pooled < key_blocks)[:, None]
        k_tile = gl.allocate_shared_memory(
            pooled_k.dtype.element_ty, [TAIL_PART, D], SHARED,
            gl.load(pooled_k + at, mask=inside, other=0.0),
        )  # fmt: skip
        v_tile = gl.allocate_shared_memory(
            pooled_v.dtype.element_ty, [TAIL_PART, D], SHARED,
            gl.load(pooled_v + at, mask=inside, other=0.0),
        )  # fmt: skip
        zero = gl.zeros([16 * WARPS, TAIL_PART], gl.float32, MATRIX)
        s = mma_v2(q16, k_tile.permute((1, 0)).load(OPERAND), zero)
        s = s * scale_log2 + bias[None, :]
        new_max = gl.maximum(row_max, gl.max(s, 1))
        alpha = gl.exp2(row_max - new_max)
        p = gl.exp2(s - new_max[:, None])
        row_sum = row_sum * alpha + gl.sum(p, 1)
        p16 = gl.convert_layout(p.to(pooled_v.dtype.element_ty), P_OPERAND)
        acc = mma_v2(p16, v_tile.load(OPERAND), acc * alpha[:, None])
        row_max = new_max
    return acc, row_sum, row_max


@gluon.jit
def attend_int4_tile(
    acc, row_sum, row_max, q, k_tile, v_tile, record, row_scale, mean_logit, bias, masked,
    D: gl.constexpr, KEY_BLOCK: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Folds one key block into (acc, row_sum, row_max).

    ``row_scale`` [rows] takes logits to base 2, ``mean_logit`` [rows] is that of the block's mean
    key; ``bias`` [KEY_BLOCK] (base 2) is added where ``masked``.
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
        s = s + bias[None, :] * (1.0 / row_scale)[:, None]
    # A block may be hidden whole: its maximum is -inf then, and its P zero.
    top = gl.maximum(gl.max(s, 1), -1e30) * row_scale
    p = gl.exp2(gl.fma(s, row_scale[:, None], -top[:, None]))
    tile_sum = gl.sum(p, 1)
    tile_max = top + mean_logit
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


@gluon.jit(do_not_specialize=NOT_SPECIALIZED)
def int4_attention_kernel(
    Q, Out, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias, key_bias,
    q4, q_scale, k4, v4, record, pooled_k, pooled_v,
    q_stride_b, q_stride_h, q_stride_s,
    S, H, grid_tokens, extra_start, rows_padded, query_blocks, key_blocks, stored_blocks,
    bit_words, bias_stride, scale_log2,
    HEAD_DIM: gl.constexpr, D: gl.constexpr, ALIGNMENT: gl.constexpr,
    QUERY_BLOCK: gl.constexpr, KEY_BLOCK: gl.constexpr, STAGES: gl.constexpr, TAIL: gl.constexpr,
    EXTRA: gl.constexpr, BIASED: gl.constexpr, HIDING: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Grid (query tiles of the extra tokens and of the grid, B*H).

    EXTRA: there are extra tokens; BIASED: their keys have a bias [B or 1, S - grid_tokens].
    """
    BM: gl.constexpr = 16 * WARPS
    MATRIX: gl.constexpr = matrix_layout(WARPS)
    ROW: gl.constexpr = gl.SliceLayout(1, MATRIX)
    Q_ROW: gl.constexpr = gl.SliceLayout(1, gl.DotOperandLayout(0, MATRIX, k_width=2))
    CHUNKS: gl.constexpr = KEY_BLOCK * D // 1024
    WIDTH: gl.constexpr = D if D > KEY_BLOCK else KEY_BLOCK
    tile = gl.program_id(0)
    batch_head = gl.program_id(1).to(gl.int64)
    b = batch_head // H
    h = batch_head % H
    token_of = permutation + gl.load(order_of_head + h).to(gl.int64) * S
    # Of positions against columns of the permutation, behind the holes.
    shift = extra_start - grid_tokens
    first_row = tile * BM
    row_shift = 0
    row_end = grid_tokens
    extra_rows = False
    if EXTRA:
        # Rows of extra tokens compute every block, which takes longest: their tiles start first.
        extra_tiles = gl.cdiv(S - grid_tokens, BM)
        extra_rows = tile < extra_tiles
        first_row = gl.where(extra_rows, extra_start + tile * BM, (tile - extra_tiles) * BM)
        row_shift = gl.where(extra_rows, shift, 0)
        row_end = gl.where(extra_rows, shift + S, grid_tokens)
    list_row = h * query_blocks + gl.where(extra_rows, 0, first_row // QUERY_BLOCK)
    list_start = gl.load(row_offsets + list_row)
    listed = gl.load(row_offsets + list_row + 1) - list_start
    row_list = kv_indices + list_start
    count = listed
    extra_block = key_blocks
    total = count
    if EXTRA:
        count = gl.where(extra_rows, key_blocks, listed)
        listed = gl.where(extra_rows, 0, listed)
        extra_block = extra_start // KEY_BLOCK
        total = count + gl.cdiv(S - grid_tokens, KEY_BLOCK)
    offset = b * q_stride_b + h * q_stride_h
    if ALIGNMENT > 1:
        offset = gl.multiple_of(offset, ALIGNMENT)
    Q += offset
    k4 += batch_head * stored_blocks * (CHUNKS * 128)
    v4 += batch_head * stored_blocks * (CHUNKS * 128)
    record += batch_head * stored_blocks * (4 * WIDTH)
    pooled_k += batch_head * stored_blocks * D
    pooled_v += batch_head * stored_blocks * D
    q_row = first_row + gl.arange(0, BM, Q_ROW)
    q_valid = q_row < row_end
    q_token = gl.load(token_of + q_row - row_shift, mask=q_valid, other=0).to(gl.int64)

    acc = gl.zeros([BM, D], gl.float32, MATRIX)
    row_sum = gl.zeros([BM], gl.float32, ROW)
    row_max = gl.full([BM], -1e30, gl.float32, ROW)
    if TAIL:  # noqa: SIM102 - decided at compilation, the next line at run time
        if count < key_blocks:
            q16 = load_queries(Q, q_token, q_valid, q_stride_s, HEAD_DIM, D, WARPS)
            acc, row_sum, row_max = pooled_tail(
                acc, row_sum, row_max, q16, computed_bits + list_row * bit_words,
                gl.load(tail_bias + h) * 1.4426950408889634, pooled_k, pooled_v, key_blocks,
                grid_tokens - (key_blocks - 1) * KEY_BLOCK, scale_log2, D, KEY_BLOCK, WARPS,
            )  # fmt: skip

    row = first_row + gl.arange(0, BM, ROW)
    row_scale = gl.load(q_scale + batch_head * rows_padded + row) * scale_log2
    q = load_a(q4 + batch_head * rows_padded * (D // 8), first_row // 16, D // 64, WARPS)
    FLAT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
    k_tiles = gl.allocate_shared_memory(gl.int32, [STAGES, CHUNKS, 128], FLAT)
    v_tiles = gl.allocate_shared_memory(gl.int32, [STAGES, CHUNKS, 128], FLAT)
    records = gl.allocate_shared_memory(gl.float32, [STAGES, 4, WIDTH], FLAT)
    mean_logits = gl.allocate_shared_memory(gl.float32, [AHEAD, 1, BM], FLAT)
    MEANS: gl.constexpr = gl.DotOperandLayout(1, MATRIX, k_width=2)
    d = gl.arange(0, D, gl.SliceLayout(1, MEANS))[:, None]
    ahead = gl.arange(0, AHEAD, gl.SliceLayout(0, MEANS))
    n = gl.arange(0, KEY_BLOCK, gl.SliceLayout(0, MATRIX))

    for step in gl.static_range(STAGES - 1):
        if step < total:
            start_copies(
                listed_block(row_list, step, listed, count, extra_block), k4, v4, record,
                k_tiles.index(step), v_tiles.index(step), records.index(step), CHUNKS, WIDTH, WARPS,
            )  # fmt: skip
        async_copy.commit_group()
    for step in range(0, total):
        async_copy.wait_group(STAGES - 2)
        # Every warp's copies are there, and every warp is done with the tile before.
        gl.thread_barrier()
        later = step + STAGES - 1
        if later < total:
            stage = later % STAGES
            start_copies(
                listed_block(row_list, later, listed, count, extra_block), k4, v4, record,
                k_tiles.index(stage), v_tiles.index(stage), records.index(stage),
                CHUNKS, WIDTH, WARPS,
            )  # fmt: skip
        async_copy.commit_group()
        if step % AHEAD == 0:
            blocks = listed_block(row_list, gl.minimum(step + ahead, total - 1), listed, count,
                                  extra_block)  # fmt: skip
            q16 = load_queries(Q, q_token, q_valid, q_stride_s, HEAD_DIM, D, WARPS)
            means = gl.load(pooled_k + blocks[None, :] * D + d)
            logits = mma_v2(q16, means, gl.zeros([BM, AHEAD], gl.float32, MATRIX))
            by_column = mean_logits._reinterpret(gl.float32, [AHEAD, BM], FLAT).permute((1, 0))
            by_column.store(logits * scale_log2)
        block = listed_block(row_list, step, listed, count, extra_block)
        first = block * KEY_BLOCK
        end = grid_tokens
        if EXTRA:
            end = gl.where(block < extra_block, grid_tokens, shift + S)
        masked = first + KEY_BLOCK > end
        if BIASED:
            masked = masked | (block >= extra_block)
        bias = gl.where(first + n < end, 0.0, float("-inf"))
        if BIASED:
            extra = first + n - extra_start
            given = gl.load(
                key_bias + b * bias_stride + extra,
                mask=masked & (extra >= 0) & (first + n < end), other=0.0,
            )  # fmt: skip
            bias += gl.where(given > HIDING, given * 1.4426950408889634, float("-inf"))
        mean_logit = mean_logits.index(step % AHEAD).load(rows_layout(WARPS)).reshape([BM])
        mean_logit = gl.convert_layout(mean_logit, ROW, assert_trivial=True)
        stage = step % STAGES
        acc, row_sum, row_max = attend_int4_tile(
            acc, row_sum, row_max, q, k_tiles.index(stage), v_tiles.index(stage),
            records.index(stage), row_scale, mean_logit, bias, masked, D, KEY_BLOCK, WARPS,
        )  # fmt: skip

    # A row with nothing to attend to is zero.
    acc = acc * (1.0 / gl.where(row_sum == 0.0, 1.0, row_sum))[:, None]
    WIDE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [WARPS, 1], [1, 0])
    out = gl.convert_layout(acc.to(Out.dtype.element_ty), WIDE)
    row = first_row + gl.arange(0, BM, gl.SliceLayout(1, WIDE))
    valid = row < row_end
    token = gl.load(token_of + row - row_shift, mask=valid, other=0).to(gl.int64)
    channel = gl.arange(0, D, gl.SliceLayout(0, WIDE))[None, :]
    mask = valid[:, None]
    if HEAD_DIM < D:
        mask = mask & (channel < HEAD_DIM)
    at = (b * S + token)[:, None] * (H * HEAD_DIM) + h * HEAD_DIM + channel
    gl.store(Out + at, out, mask=mask)


def int4_attention(
    q: Tensor, k: Tensor, v: Tensor, permutation: Tensor, order_of_head: Tensor,
    row_offsets: Tensor, kv_indices: Tensor, computed_bits: Tensor, tail_bias: Tensor,
    key_bias: Tensor, biased: bool, grid_tokens: int, query_block: int, key_block: int, tail: bool,
    scale: float,
) -> Tensor:  # fmt: skip
    """Pre-pass and attention in 4 bits; arguments as ``kernels.sparse_attention`` resolves them.

    ``key_bias`` is read where ``biased``; ``grid_tokens`` is the length of the mask. The head
    dimension is at most 128 and a key block 64 or 128 tokens (``int4_serves``).
    """
    batch, heads, tokens, head_dim = q.shape
    block = (query_block, key_block)
    layout = PackedLayout.of(tokens, grid_tokens, block)
    width = padded_head_dim(head_dim)
    alignment = _alignment(q, k, v)
    warps = min(query_block, 64) // 16
    extra_tokens = tokens - grid_tokens
    tiles = -(-grid_tokens // (16 * warps)) + -(-extra_tokens // (16 * warps))
    out = q.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    # Triton launches on the current device, which need not be that of q.
    with torch.cuda.device_of(q):
        prepared = prepare_int4(
            q, k, v, permutation, order_of_head, layout, key_block, width, alignment
        )
        int4_attention_kernel[(tiles, batch * heads)](
            q, out, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias,
            key_bias, *prepared, *q.stride()[:3],
            tokens, heads, grid_tokens, layout.extra_start, layout.rows, computed_bits.shape[1],
            layout.key_blocks, layout.stored_blocks, computed_bits.shape[2],
            extra_tokens if biased and key_bias.shape[0] > 1 else 0, scale * LOG2_E,
            HEAD_DIM=head_dim, D=width, ALIGNMENT=alignment,
            QUERY_BLOCK=query_block, KEY_BLOCK=key_block, STAGES=INT4_STAGES, TAIL=tail,
            EXTRA=extra_tokens > 0, BIASED=biased, HIDING=HIDING_BIAS, WARPS=warps,
            num_warps=warps,
        )  # fmt: skip
    return out


def _alignment(*tensors: Tensor) -> int:
    """What the kernels may be told to divide the strides of batch and head; 1 says nothing.

    Triton finds multiples of 16 by itself; heads of an odd multiple of 8 channels need telling.
    """
    if tensors[0].shape[-1] % 16 == 0:
        return 1
    strides = [stride for x in tensors for stride in x.stride()[:2]]
    return 8 if all(stride % 8 == 0 for stride in strides) else 1
