"""Block-sparse attention on INT4 tensor cores (sm_80, sm_86, sm_89), in Gluon.

The numbers are those of ``attention`` at 4 bits; the two products are native ``mma.m16n8k64`` on
operands that ``int4_prepass`` has put in the order in which a thread wants them. A warp owns 16
rows. Key blocks travel through shared memory by asynchronous copies of 16 bytes a lane; P goes from
the sums of one product to the operand of the next without leaving its lane.

One loop walks the row's list, then the extra tokens. A tile's probabilities are relative to its own
maximum, so that the exact logit of the block's mean key (constant along a row of the tile) only
enters the weight of the whole tile; one 16-bit product forms those logits for eight tiles ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2

from ..int4_launch import select_int4_launch
from ..key_packing import HIDING_BIAS
from ..packed_layout import PackedLayout, padded_head_dim
from .call_arguments import named_tensors
from .four_bits import attend_in_groups, remembered_groups
from .int4_mma import block_barrier, copy_to_shared, load_a, matrix_layout
from .int4_prepass import int4_buffers, prepare_int4
from .int4_tile import attend_int4_tile, load_queries, pooled_tail
from .primitives import LOG2_E, stride_alignment

# Sizes that change with length and density must not lead to another compilation.
NOT_SPECIALIZED = (
    "S", "H", "grid_tokens", "extra_start", "rows_padded", "query_blocks", "key_blocks",
    "stored_blocks", "bit_words", "key_bias", "bias_stride",
)  # fmt: skip
# Tiles whose mean keys' logits are formed at once.
AHEAD = gl.constexpr(8)
# Gluon of Triton 3.9 calls it otherwise.
OLD_GLUON = gl.constexpr(hasattr(gl.shared_memory_descriptor, "_reinterpret"))


@gluon.jit
def start_copies(
    block, k4, v4, record, k_tile, v_tile, record_tile,
    CHUNKS: gl.constexpr, WIDTH: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """Starts the copies of a key block: K, V and its record."""
    WIDE: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [WARPS, 1], [1, 0])
    at = gl.arange(0, CHUNKS, gl.SliceLayout(1, WIDE))[:, None] * 128
    at += gl.arange(0, 128, gl.SliceLayout(0, WIDE))[None, :]
    copy_to_shared(k_tile, k4 + block * (CHUNKS * 128) + at)
    copy_to_shared(v_tile, v4 + block * (CHUNKS * 128) + at)
    RECORD: gl.constexpr = gl.BlockedLayout([1, 4], [128 // WIDTH, WIDTH // 4], [WARPS, 1], [1, 0])
    at = gl.arange(0, 4, gl.SliceLayout(1, RECORD))[:, None] * WIDTH
    at += gl.arange(0, WIDTH, gl.SliceLayout(0, RECORD))[None, :]
    copy_to_shared(record_tile, record + block * (4 * WIDTH) + at)


@gluon.jit
def listed_block(row_list, step, listed, count, extra_block):
    """Key block of a step: from the row's list, else in order, the extra tokens' blocks last."""
    block = gl.load(row_list + step, mask=step < listed, other=0).to(gl.int32)
    unlisted = gl.where(step < count, step, extra_block + step - count)
    return gl.where(step < listed, block, unlisted)


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
    key_bias += b * bias_stride
    k4 += batch_head * stored_blocks * (CHUNKS * 128)
    v4 += batch_head * stored_blocks * (CHUNKS * 128)
    record += batch_head * stored_blocks * (4 * WIDTH)
    pooled_k += batch_head * stored_blocks * D
    pooled_v += batch_head * stored_blocks * D
    row_token = token_of - row_shift

    acc = gl.zeros([BM, D], gl.float32, MATRIX)
    row_sum = gl.zeros([BM], gl.float32, ROW)
    row_max = gl.full([BM], -1e30, gl.float32, ROW)
    if TAIL:  # noqa: SIM102 - decided at compilation, the next line at run time
        if count < key_blocks:
            acc, row_sum, row_max = pooled_tail(
                acc, row_sum, row_max, Q, row_token, first_row, row_end, q_stride_s,
                computed_bits + list_row * bit_words, gl.load(tail_bias + h) * 1.4426950408889634,
                pooled_k, pooled_v, key_blocks, grid_tokens - (key_blocks - 1) * KEY_BLOCK,
                scale_log2, HEAD_DIM, D, KEY_BLOCK, WARPS,
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

    for step in gl.static_range(STAGES - 1):  # pyright: ignore[reportGeneralTypeIssues]
        if step < total:
            start_copies(
                listed_block(row_list, step, listed, count, extra_block), k4, v4, record,
                k_tiles.index(step), v_tiles.index(step), records.index(step), CHUNKS, WIDTH, WARPS,
            )  # fmt: skip
        async_copy.commit_group()
    for step in range(0, total):
        async_copy.wait_group(STAGES - 2)
        # Every warp's copies are there, and every warp is done with the tile before.
        block_barrier()
        later = step + STAGES - 1
        if later < total:
            stage = later % STAGES
            start_copies(
                listed_block(row_list, later, listed, count, extra_block), k4, v4, record,
                k_tiles.index(stage), v_tiles.index(stage), records.index(stage),
                CHUNKS, WIDTH, WARPS,
            )  # fmt: skip
        async_copy.commit_group()
        ahead_index = step % AHEAD  # pyright: ignore[reportOperatorIssue]
        if ahead_index == 0:
            blocks = listed_block(row_list, gl.minimum(step + ahead, total - 1), listed, count,
                                  extra_block)  # fmt: skip
            q16 = load_queries(Q, row_token, first_row, row_end, q_stride_s, HEAD_DIM, D, WARPS)
            means = gl.load(pooled_k + blocks[None, :] * D + d)
            logits = mma_v2(q16, means, gl.zeros([BM, AHEAD], gl.float32, MATRIX))
            if OLD_GLUON:
                by_column = mean_logits._reinterpret(gl.float32, [AHEAD, BM], FLAT)
            else:
                by_column = mean_logits.reinterpret(gl.float32, [AHEAD, BM], FLAT)  # pyright: ignore[reportAttributeAccessIssue]
            by_column.permute((1, 0)).store(logits * scale_log2)
        block = listed_block(row_list, step, listed, count, extra_block)
        first = block * KEY_BLOCK
        end = grid_tokens
        if EXTRA:
            end = gl.where(block < extra_block, grid_tokens, shift + S)
        masked = first + KEY_BLOCK > end
        if BIASED:
            masked = masked | (block >= extra_block)
        stage = step % STAGES  # pyright: ignore[reportOperatorIssue]
        acc, row_sum, row_max = attend_int4_tile(
            acc, row_sum, row_max, q, k_tiles.index(stage), v_tiles.index(stage),
            records.index(stage), row_scale, mean_logits.index(ahead_index), masked, first, end,
            extra_start, key_bias, D, KEY_BLOCK, BIASED, HIDING, WARPS,
        )  # fmt: skip

    # A row with nothing to attend to is zero.
    acc = acc * (1.0 / gl.where(row_sum == 0.0, 1.0, row_sum))[:, None]
    WIDE: gl.constexpr = gl.BlockedLayout([1, 4], [128 // D, D // 4], [WARPS, 1], [1, 0])
    out = gl.convert_layout(acc.to(Out.dtype.element_ty), WIDE)
    row = first_row + gl.arange(0, BM, gl.SliceLayout(1, WIDE))
    valid = row < row_end
    token = gl.load(row_token + row, mask=valid, other=0).to(gl.int64)
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
    dimension and the block are such as ``int4_serves`` allows.
    """
    given = named_tensors(
        q, k, v, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias,
        key_bias,
    )  # fmt: skip
    return attend_in_groups(
        _groups_of, _attend_heads, given, grid_tokens, (query_block, key_block),
        biased=biased, tail=tail, scale=scale,
    )  # fmt: skip


_groups_of = remembered_groups(int4_buffers)


def _attend_heads(
    given: dict[str, Tensor], out: Tensor, *, row_heads: int, biased: bool, grid_tokens: int,
    block: tuple[int, int], tail: bool, scale: float,
) -> None:  # fmt: skip
    """Pre-pass and attention of all heads of a call, or of a group of them.

    ``row_heads`` counts the heads of a row of the output.
    """
    q, k, v, key_bias = (given[name] for name in ("q", "k", "v", "key_bias"))
    permutation, order_of_head = given["permutation"], given["order_of_head"]
    bits = given["computed_bits"]
    batch, heads, tokens, head_dim = q.shape
    layout = PackedLayout.of(tokens, grid_tokens, block)
    width = padded_head_dim(head_dim)
    strides = (stride for x in (q, k, v) for stride in x.stride()[:2])
    alignment = stride_alignment(head_dim, strides)
    launch = select_int4_launch(block, width, torch.cuda.get_device_capability(q.device))
    warps = launch.warps
    extra_tokens = tokens - grid_tokens
    tiles = -(-grid_tokens // (16 * warps)) + -(-extra_tokens // (16 * warps))
    prepared = prepare_int4(
        q, k, v, permutation, order_of_head, given["k_mean"], layout, block[1], width, alignment
    )
    int4_attention_kernel[(tiles, batch * heads)](
        q, out, permutation, order_of_head, given["row_offsets"], given["kv_indices"], bits,
        given["tail_bias"], key_bias, *prepared, *q.stride()[:3],
        tokens, row_heads, grid_tokens, layout.extra_start, layout.rows, bits.shape[1],
        layout.key_blocks, layout.stored_blocks, bits.shape[2],
        extra_tokens if biased and key_bias.shape[0] > 1 else 0, scale * LOG2_E,
        HEAD_DIM=head_dim, D=width, ALIGNMENT=alignment,
        QUERY_BLOCK=block[0], KEY_BLOCK=block[1], STAGES=launch.stages, TAIL=tail,
        EXTRA=extra_tokens > 0, BIASED=biased, HIDING=HIDING_BIAS, WARPS=warps,
        num_warps=warps, maxnreg=launch.max_registers,
    )  # fmt: skip
