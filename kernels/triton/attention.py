"""Block-sparse attention over lists of key blocks, in 16, 8 or 4 bits, with the pooled tail.

One program owns a tile of query rows of one head. It first folds in the pooled keys and values of
the blocks that its row skips (a few tiles), then walks the row's list of key blocks
with an online softmax, then all extra tokens, and scatters its rows back to the model's token
order. Two key blocks can be ragged: the grid's last, which comes last in every list, and the last
of the extra tokens. Those, and all extra keys that have a bias, are peeled off the loop.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .primitives import head_offset, row_mask, token_of_position
from .tile import attend_pair, attend_tile

# Sizes that change with length and density must not lead to another compilation.
NOT_SPECIALIZED = (
    "S", "H", "grid_tokens", "extra_start", "rows_padded", "query_blocks", "key_blocks",
    "stored_blocks", "bit_words", "key_bias", "bias_stride",
)  # fmt: skip


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def attention_kernel(
    Q, Out, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias, key_bias,
    q8, q_scale, keys, k_scale, values, v_scale, v_low, pooled_k, pooled_v,
    tail_keys, tail_key_scale, tail_values,
    q_stride_b, q_stride_h, q_stride_s,
    S, H, grid_tokens, extra_start, rows_padded, query_blocks, key_blocks, stored_blocks,
    bit_words, bias_stride, scale_log2,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr,
    QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    QK_BITS: tl.constexpr, PV_BITS: tl.constexpr, FP8: tl.constexpr, TAIL: tl.constexpr,
    TMA: tl.constexpr, PAIRED: tl.constexpr,
    EXTRA: tl.constexpr, BIASED: tl.constexpr, HIDING: tl.constexpr,
    TAIL_TILE: tl.constexpr, TAIL_ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (query tiles of the extra tokens and of the grid, B*H).

    PAIRED: two key blocks a step. TAIL_TILE: pooled rows that were quantised together. TAIL_ROWS:
    those of a step of the tail; divides TAIL_TILE. EXTRA: there are extra tokens; BIASED: their
    keys have a bias [B or 1, S - grid_tokens].
    """
    tile = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    b = batch_head // H
    h = batch_head % H
    d = tl.arange(0, D)
    n = tl.arange(0, BN)
    token_of = permutation + tl.load(order_of_head + h).to(tl.int64) * S
    # Of positions against columns of the permutation, behind the holes.
    shift = extra_start - grid_tokens
    if EXTRA:
        # Rows of extra tokens compute every block, which takes longest: their tiles start first.
        extra_tiles = tl.cdiv(S - grid_tokens, BM)
        extra_rows = tile < extra_tiles
        first_row = tl.where(extra_rows, extra_start + tile * BM, (tile - extra_tiles) * BM)
        row = first_row + tl.arange(0, BM)
        row_valid = row < tl.where(extra_rows, shift + S, grid_tokens)
        listed_at = row - tl.where(extra_rows, shift, 0)
        list_row = h * query_blocks + tl.where(extra_rows, 0, first_row // QUERY_BLOCK)
        list_start = tl.load(row_offsets + list_row)
        listed_blocks = tl.load(row_offsets + list_row + 1) - list_start
        count = tl.where(extra_rows, key_blocks, listed_blocks)
    else:
        row = tile * BM + tl.arange(0, BM)
        row_valid = row < S
        listed_at = row
        list_row = h * query_blocks + (tile * BM) // QUERY_BLOCK
        list_start = tl.load(row_offsets + list_row)
        count = tl.load(row_offsets + list_row + 1) - list_start
    row_list = kv_indices + list_start
    Q += head_offset(b, h, q_stride_b, q_stride_h, ALIGNMENT)
    k_row = (batch_head * rows_padded).to(tl.int32)
    if PV_BITS == 16:  # noqa: SIM108 - Triton compiles a branch, not a conditional expression
        v_row = k_row
    else:
        v_row = (batch_head * stored_blocks * D).to(tl.int32)
    if not TMA:
        keys += batch_head * rows_padded * D
        if PV_BITS == 16:
            values += batch_head * rows_padded * D
        else:
            values += batch_head * stored_blocks * D * KEY_BLOCK
    pooled_k += batch_head * stored_blocks * D
    pooled_v += batch_head * stored_blocks * D

    if QK_BITS != 8:
        token = tl.load(token_of + listed_at, mask=row_valid, other=0).to(tl.int64)
        q16 = tl.load(
            Q + token[:, None] * q_stride_s + d[None, :],
            mask=row_mask(row_valid, d, HEAD_DIM, D), other=0.0,
        )  # fmt: skip
    q16_scale = tl.full([BM], 1.0, tl.float32) * scale_log2
    if QK_BITS == 16:
        q = q16
        row_scale = q16_scale
    else:
        q = tl.load(q8 + (batch_head * rows_padded + row)[:, None] * D + d[None, :])
        row_scale = tl.load(q_scale + batch_head * rows_padded + row) * scale_log2
    if QK_BITS == 8:
        k_scale += batch_head * stored_blocks
        q16_scale = row_scale
        q16 = q.to(Q.dtype.element_ty) if PV_BITS == 4 else q
    if QK_BITS == 4:
        k_scale += batch_head * rows_padded
    if PV_BITS == 4:
        v_scale += batch_head * stored_blocks * D
        v_low += batch_head * stored_blocks * D

    acc = tl.zeros([BM, D], tl.float32)
    row_sum = tl.zeros([BM], tl.float32)
    row_max = tl.full([BM], -1e30, tl.float32)
    last_block = key_blocks - 1
    last_size = grid_tokens - last_block * KEY_BLOCK

    if TAIL:  # noqa: SIM102 - decided at compilation, the next line at run time
        if count < key_blocks:
            # The pooled keys and values are one more short sequence of keys, in the bits of the
            # others (packed_layout.low_tail) or in 16; a bias per column holds the block's size or
            # hides it.
            LOW: tl.constexpr = (QK_BITS == 8) and (PV_BITS != 4)
            TAIL_SPLIT: tl.constexpr = TAIL_TILE // TAIL_ROWS
            # A 16-bit tail is prefetched by the copy engine only: pointers take registers. On
            # Hopper ptxas makes all products of the kernel wait without the prefetch (C7515).
            STAGES: tl.constexpr = 2 if LOW or TMA else 1
            column = tl.arange(0, TAIL_ROWS)
            bias_of_head = tl.load(tail_bias + h) * 1.4426950408889634
            full_bias = bias_of_head + tl.log2(KEY_BLOCK * 1.0)
            last_bias = bias_of_head + tl.log2(last_size.to(tl.float32))
            words = computed_bits + list_row * bit_words
            tiles = tl.cdiv(key_blocks, TAIL_TILE)
            if LOW and not TMA:
                tail_keys += batch_head * tiles * TAIL_TILE * D
                tail_values += batch_head * tiles * TAIL_TILE * D
            if PV_BITS == 16:
                tail_v_row = (batch_head * tiles * TAIL_TILE).to(tl.int32)
            else:
                tail_v_row = (batch_head * tiles * D).to(tl.int32)
            for part in tl.range(0, tl.cdiv(key_blocks, TAIL_ROWS), num_stages=STAGES):
                block = part * TAIL_ROWS + token_of_position(column, LOW and PV_BITS == 8)
                word = tl.load(words + block // 32, mask=block < key_blocks, other=-1)
                skipped = ((word >> (block % 32)) & 1) == 0
                bias = tl.where(block == last_block, last_bias, full_bias)
                bias = tl.where(skipped, bias, float("-inf"))
                # A reduction keeps the compiler from computing all this anew in every thread of a
                # row, for its own columns: 654 instead of 1,017 instructions, and no spills.
                bias = tl.max(tl.join(bias, bias), 1)
                if LOW:
                    acc, row_sum, row_max = attend_tile(
                        acc, row_sum, row_max, q, q16, row_scale, part // TAIL_SPLIT,
                        part % TAIL_SPLIT, bias, S, scale_log2,
                        tail_keys, tail_key_scale + batch_head * tiles, tail_values,
                        (batch_head * tiles * TAIL_TILE).to(tl.int32), tail_v_row,
                        v_scale, v_low, pooled_k, pooled_v,
                        D, TAIL_TILE, BM, TAIL_ROWS, QK_BITS, PV_BITS, FP8, False, True, TMA,
                    )  # fmt: skip
                elif TMA:
                    # Rows of the next head may follow the last: finite, and hidden by the bias.
                    pooled_row = (batch_head * stored_blocks).to(tl.int32)
                    acc, row_sum, row_max = attend_tile(
                        acc, row_sum, row_max, q16, q16, q16_scale, part, 0, bias, S, scale_log2,
                        tail_keys, k_scale, tail_values, pooled_row, pooled_row, v_scale, v_low,
                        pooled_k, pooled_v,
                        D, TAIL_ROWS, BM, TAIL_ROWS, 16, 16, FP8, False, True, True,
                    )  # fmt: skip
                else:
                    acc, row_sum, row_max = attend_tile(
                        acc, row_sum, row_max, q16, q16, q16_scale, part, 0, bias,
                        key_blocks, scale_log2,
                        pooled_k, k_scale, pooled_v, k_row, v_row, v_scale, v_low,
                        pooled_k, pooled_v,
                        D, TAIL_ROWS, BM, TAIL_ROWS, 16, 16, FP8, True, True, False,
                    )  # fmt: skip
            if (PV_BITS == 8) and not LOW:
                # From V's units to the accumulator's.
                acc = acc * (1.0 / tl.load(v_scale + batch_head * D + d))[None, :]
                if FP8:
                    acc *= 256.0
                    row_sum *= 256.0

    SPLIT: tl.constexpr = KEY_BLOCK // BN
    PERMUTED: tl.constexpr = (QK_BITS < 16) and (PV_BITS < 16)
    ragged = 0
    if EXTRA:
        extra_end = shift + S
        extra_block = extra_start // KEY_BLOCK
        whole_extra = 0 if BIASED else (S - grid_tokens) // KEY_BLOCK
        if (count > 0) & (last_size < KEY_BLOCK):
            # Rows of extra tokens have no list: the step is the block.
            last_listed = tl.load(row_list + count - 1, mask=tile >= extra_tiles, other=0)
            ragged = ((last_listed == last_block) | extra_rows).to(tl.int32)
        listed = tl.where(extra_rows, 0, count - ragged)
    else:
        extra_block = key_blocks
        whole_extra = 0
        if (count > 0) & (last_size < KEY_BLOCK):
            ragged = (tl.load(row_list + count - 1) == last_block).to(tl.int32)
        listed = count - ragged
    grid_blocks = count - ragged
    whole = grid_blocks + whole_extra
    if PAIRED:
        for pair in range(0, whole // 2):
            left = block_of_step(2 * pair, row_list, listed, grid_blocks, extra_block, EXTRA)
            right = block_of_step(2 * pair + 1, row_list, listed, grid_blocks, extra_block, EXTRA)
            acc, row_sum, row_max = attend_pair(
                acc, row_sum, row_max, q, row_scale, left, right, keys, k_scale, values,
                k_row, v_row, D, BM, BN, TMA,
            )  # fmt: skip
        # The odd one out is a single step: not worth a pipeline.
        for step in tl.range(whole // 2 * 2, whole, num_stages=1):
            block = block_of_step(step, row_list, listed, grid_blocks, extra_block, EXTRA)
            acc, row_sum, row_max = attend_tile(
                acc, row_sum, row_max, q, q16, row_scale, block, 0, row_scale, S, scale_log2,
                keys, k_scale, values, k_row, v_row, v_scale, v_low, pooled_k, pooled_v,
                D, KEY_BLOCK, BM, BN, QK_BITS, PV_BITS, FP8, False, False, TMA,
            )  # fmt: skip
    else:
        for step in range(0, whole * SPLIT):
            block = block_of_step(step // SPLIT, row_list, listed, grid_blocks, extra_block, EXTRA)
            acc, row_sum, row_max = attend_tile(
                acc, row_sum, row_max, q, q16, row_scale, block, step % SPLIT, row_scale, S,
                scale_log2, keys, k_scale, values, k_row, v_row, v_scale, v_low, pooled_k, pooled_v,
                D, KEY_BLOCK, BM, BN, QK_BITS, PV_BITS, FP8, False, False, TMA,
            )  # fmt: skip
    if EXTRA:
        ragged_steps = ragged * tl.cdiv(last_size, BN)
        peeled_steps = ragged_steps + tl.cdiv(S - grid_tokens, BN) - whole_extra * SPLIT
    else:
        peeled_steps = ragged * SPLIT
    for step in tl.range(0, peeled_steps, num_stages=1):
        if EXTRA:
            of_grid = step < ragged_steps
            extra_step = step - ragged_steps + whole_extra * SPLIT
            block = tl.where(of_grid, last_block, extra_block + extra_step // SPLIT)
            part = tl.where(of_grid, step, extra_step % SPLIT)
            end = tl.where(of_grid, grid_tokens, extra_end)
            position = block * KEY_BLOCK + part * BN + token_of_position(n, PERMUTED)
            bias = tl.where(position < end, 0.0, float("-inf"))
            if BIASED:
                extra = position - extra_start
                given = tl.load(
                    key_bias + b * bias_stride + extra, mask=(extra >= 0) & (position < end),
                    other=0.0,
                )  # fmt: skip
                bias += tl.where(given > HIDING, given * 1.4426950408889634, float("-inf"))
        else:
            block = last_block
            part = step
            inside = step * BN + token_of_position(n, PERMUTED) < last_size
            bias = tl.where(inside, 0.0, float("-inf"))
        acc, row_sum, row_max = attend_tile(
            acc, row_sum, row_max, q, q16, row_scale, block, part, bias, S, scale_log2,
            keys, k_scale, values, k_row, v_row, v_scale, v_low, pooled_k, pooled_v,
            D, KEY_BLOCK, BM, BN, QK_BITS, PV_BITS, FP8, False, True, TMA,
        )  # fmt: skip

    # A row with nothing to attend to is zero.
    acc = acc * (1.0 / tl.where(row_sum == 0.0, 1.0, row_sum))[:, None]
    if PV_BITS == 8:
        acc = acc * tl.load(v_scale + batch_head * D + d)[None, :]
    # Looked up here, not at the start: registers are what the loops are short of.
    written = tl.load(token_of + listed_at, mask=row_valid, other=0).to(tl.int64)
    out = Out + (b * S + written)[:, None] * (H * HEAD_DIM) + h * HEAD_DIM + d[None, :]
    tl.store(out, acc.to(Out.dtype.element_ty), mask=row_mask(row_valid, d, HEAD_DIM, D))


@triton.jit
def block_of_step(step, row_list, listed, grid_blocks, extra_block, EXTRA: tl.constexpr):
    """Key block of a step: the row's list, or all of the grid, and then the extra tokens."""
    if EXTRA:
        block = tl.load(row_list + step, mask=step < listed, other=0).to(tl.int32)
        unlisted = tl.where(step < grid_blocks, step, extra_block + step - grid_blocks)
        block = tl.where(step < listed, block, unlisted)
    else:
        block = tl.load(row_list + step).to(tl.int32)
    return block
