"""Block-sparse attention on block-scaled FP4 tensor cores (sm_120), in plain Triton.

Both products are ``tl.dot_scaled`` on NVFP4 operands that ``fp4_prepass`` has packed; the numbers
are those of ``kernels.fp4_numerics``. Or they are formed from the same numbers in float16, so that
the kernel can be checked on any card. One loop walks the row's list, then the extra tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..fp4_launch import select_fp4_launch
from ..key_packing import HIDING_BIAS
from ..packed_layout import PackedLayout, padded_head_dim
from .call_arguments import named_tensors
from .four_bits import attend_in_groups, remembered_groups
from .fp4_prepass import fp4_buffers, prepare_fp4
from .fp4_tile import attend_fp4_tile, pooled_tail
from .primitives import LOG2_E, head_offset, row_mask, stride_alignment

# Sizes that change with length and density must not lead to another compilation.
NOT_SPECIALIZED = (
    "S", "H", "grid_tokens", "extra_start", "rows_padded", "query_blocks", "key_blocks",
    "stored_blocks", "bit_words", "key_bias", "bias_stride",
)  # fmt: skip


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def fp4_attention_kernel(
    Q, Out, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias, key_bias,
    q4, q_scale, q_step, k4, k_scale, group_mean, v4, v_scale, steps, pooled_k, pooled_v,
    q_stride_b, q_stride_h, q_stride_s,
    S, H, grid_tokens, extra_start, rows_padded, query_blocks, key_blocks, stored_blocks,
    bit_words, bias_stride, scale_log2,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr,
    QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, BM: tl.constexpr, TAIL: tl.constexpr,
    EXTRA: tl.constexpr, BIASED: tl.constexpr, HIDING: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """Grid (query tiles of the extra tokens and of the grid, B*H).

    EXTRA: there are extra tokens; BIASED: their keys have a bias [B or 1, S - grid_tokens].
    NATIVE: multiply on FP4 tensor cores.
    """
    tile = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    b = batch_head // H
    h = batch_head % H
    d = tl.arange(0, D)
    n = tl.arange(0, KEY_BLOCK)
    token_of = permutation + tl.load(order_of_head + h).to(tl.int64) * S
    # Of positions against columns of the permutation, behind the holes.
    shift = extra_start - grid_tokens
    first_row = tile * BM
    row_shift = 0
    row_end = grid_tokens
    extra_rows = False
    if EXTRA:
        # Rows of extra tokens compute every block, which takes longest: their tiles start first.
        extra_tiles = tl.cdiv(S - grid_tokens, BM)
        extra_rows = tile < extra_tiles
        first_row = tl.where(extra_rows, extra_start + tile * BM, (tile - extra_tiles) * BM)
        row_shift = tl.where(extra_rows, shift, 0)
        row_end = tl.where(extra_rows, shift + S, grid_tokens)
    list_row = h * query_blocks + tl.where(extra_rows, 0, first_row // QUERY_BLOCK)
    list_start = tl.load(row_offsets + list_row)
    listed = tl.load(row_offsets + list_row + 1) - list_start
    row_list = kv_indices + list_start
    count = listed
    total = count
    extra_block = key_blocks
    if EXTRA:
        count = tl.where(extra_rows, key_blocks, listed)
        listed = tl.where(extra_rows, 0, listed)
        extra_block = extra_start // KEY_BLOCK
        total = count + tl.cdiv(S - grid_tokens, KEY_BLOCK)
    Q += head_offset(b, h, q_stride_b, q_stride_h, ALIGNMENT)
    key_bias += b * bias_stride
    first_block = batch_head * stored_blocks
    k4 += first_block * (KEY_BLOCK * D // 2)
    v4 += first_block * (KEY_BLOCK * D // 2)
    k_scale += first_block * (KEY_BLOCK * D // 16)
    v_scale += first_block * (KEY_BLOCK * D // 16)
    group_mean += first_block * (KEY_BLOCK * D // 16)
    steps += first_block * 2
    pooled_k += first_block * D
    pooled_v += first_block * D

    row = first_row + tl.arange(0, BM)
    row_valid = row < row_end
    token = tl.load(token_of + row - row_shift, mask=row_valid, other=0).to(tl.int64)
    q16 = tl.load(
        Q + token[:, None] * q_stride_s + d[None, :],
        mask=row_mask(row_valid, d, HEAD_DIM, D), other=0.0,
    )  # fmt: skip
    PIECE: tl.constexpr = BM if BM < D else D
    acc = ()
    for _ in tl.static_range(D // PIECE):
        acc += (tl.zeros([BM, PIECE], tl.float32),)
    row_sum = tl.zeros([BM], tl.float32)
    row_max = tl.full([BM], -1e30, tl.float32)
    if TAIL:  # noqa: SIM102 - decided at compilation, the next line at run time
        if count < key_blocks:
            acc, row_sum, row_max = pooled_tail(
                acc, row_sum, row_max, q16, computed_bits + list_row * bit_words,
                tl.load(tail_bias + h) * 1.4426950408889634, pooled_k, pooled_v, key_blocks,
                grid_tokens - (key_blocks - 1) * KEY_BLOCK, scale_log2, D, KEY_BLOCK, PIECE,
            )  # fmt: skip

    stored_row = batch_head * rows_padded + row
    row_scale = tl.load(q_step + stored_row) * scale_log2
    q_codes = tl.load(q4 + stored_row[:, None] * (D // 2) + tl.arange(0, D // 2)[None, :])
    q_scales = tl.load(q_scale + stored_row[:, None] * (D // 16) + tl.arange(0, D // 16)[None, :])
    for step in range(0, total):
        block = tl.load(row_list + step, mask=step < listed, other=0).to(tl.int32)
        unlisted = tl.where(step < count, step, extra_block + step - count)
        block = tl.where(step < listed, block, unlisted)
        first = block * KEY_BLOCK
        end = grid_tokens
        if EXTRA:
            end = tl.where(block < extra_block, grid_tokens, shift + S)
        masked = first + KEY_BLOCK > end
        if BIASED:
            masked = masked | (block >= extra_block)
        bias = end - first
        if BIASED:
            # Loaded ahead of the branch that adds it, so that it comes with the keys.
            extra = first + n - extra_start
            known = (extra >= 0) & (first + n < end)
            given = tl.load(key_bias + extra, mask=known, other=0.0)
            bias = tl.where(first + n < end, 0.0, float("-inf"))
            bias += tl.where(given > HIDING, given * 1.4426950408889634, float("-inf"))
        acc, row_sum, row_max = attend_fp4_tile(
            acc, row_sum, row_max, q_codes, q_scales, q16, row_scale, block, masked, bias,
            scale_log2, k4, k_scale, group_mean, v4, v_scale, steps, pooled_v,
            D, BM, KEY_BLOCK, PIECE, BIASED, NATIVE,
        )  # fmt: skip

    # A row with nothing to attend to is zero.
    weight = 1.0 / tl.where(row_sum == 0.0, 1.0, row_sum)
    # Looked up here again, not kept: registers are what the loop is short of.
    written = tl.load(token_of + row - row_shift, mask=row_valid, other=0).to(tl.int64)
    out = Out + (b * S + written)[:, None] * (H * HEAD_DIM) + h * HEAD_DIM
    for part in tl.static_range(D // PIECE):
        channel = part * PIECE + tl.arange(0, PIECE)
        tl.store(
            out + channel[None, :], (acc[part] * weight[:, None]).to(Out.dtype.element_ty),
            mask=row_mask(row_valid, channel, HEAD_DIM, D),
        )  # fmt: skip


def fp4_attention(
    q: Tensor, k: Tensor, v: Tensor, permutation: Tensor, order_of_head: Tensor,
    row_offsets: Tensor, kv_indices: Tensor, computed_bits: Tensor, tail_bias: Tensor,
    key_bias: Tensor, biased: bool, grid_tokens: int, query_block: int, key_block: int, tail: bool,
    scale: float, native: bool = True,
) -> Tensor:  # fmt: skip
    """Pre-pass and attention in FP4; arguments as ``kernels.sparse_attention`` resolves them.

    ``key_bias`` is read where ``biased``; ``grid_tokens`` is the length of the mask. The head
    dimension and the block are such as ``fp4_serves`` allows. ``native`` is for cards that it
    allows; without it the same numbers are multiplied in float16, on any.
    """
    given = named_tensors(
        q, k, v, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias,
        key_bias,
    )  # fmt: skip
    return attend_in_groups(
        _groups_of, _attend_heads, given, grid_tokens, (query_block, key_block),
        biased=biased, tail=tail, scale=scale, native=native,
    )  # fmt: skip


_groups_of = remembered_groups(fp4_buffers)


def _attend_heads(
    given: dict[str, Tensor], out: Tensor, *, row_heads: int, biased: bool, grid_tokens: int,
    block: tuple[int, int], tail: bool, scale: float, native: bool,
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
    launch = select_fp4_launch(block)
    extra_tokens = tokens - grid_tokens
    rows = launch.query_tile
    prepared = prepare_fp4(
        q, k, v, permutation, order_of_head, given["k_mean"], layout, block[1], width, alignment
    )
    fp4_attention_kernel[(-(-grid_tokens // rows) - (-extra_tokens // rows), batch * heads)](
        q, out, permutation, order_of_head, given["row_offsets"], given["kv_indices"], bits,
        given["tail_bias"], key_bias, *prepared, *q.stride()[:3],
        tokens, row_heads, grid_tokens, layout.extra_start, layout.rows, bits.shape[1],
        layout.key_blocks, layout.stored_blocks, bits.shape[2],
        extra_tokens if biased and key_bias.shape[0] > 1 else 0, scale * LOG2_E,
        HEAD_DIM=head_dim, D=width, ALIGNMENT=alignment,
        QUERY_BLOCK=block[0], KEY_BLOCK=block[1], BM=rows, TAIL=tail,
        EXTRA=extra_tokens > 0, BIASED=biased, HIDING=HIDING_BIAS, NATIVE=native,
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
