"""Block-sparse attention on Hopper's tensor cores, 8-bit keys and FP8 values, in Gluon.

The numbers are those of ``attention`` in 8 bits with FP8, but for the denominator, which is of the
rounded probabilities. One warpgroup owns 64 query rows of one head. Keys and values come through a
ring of two tiles by the copy engine: first the tiles of the pooled tail, then the row's list of key
blocks and those of extra tokens; blocks of 64 keys come two a step. Keys that a last block lacks,
or an odd list, are zeros, whose share is known and taken from the denominator at the end. Several
programs share a multiprocessor, and the products of one run under the softmax of the others.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from .hopper_layouts import token_of_column
from .hopper_ring import STEP_KEYS, allocate_ring, fetch, fetch_pooled, load_tile
from .hopper_steps import LOG2_E, bias_of_pooled, blocks_at, scales_of
from .hopper_tile import (
    QUERY_ROWS,
    attend_step,
    first_state,
    without_missing,
    write_rows,
)
from .int4_mma import block_barrier

# Sizes that change with length and density must not lead to another compilation.
NOT_SPECIALIZED = (
    "S", "H", "grid_tokens", "extra_start", "rows_padded", "query_blocks", "key_blocks",
    "stored_blocks", "bit_words", "query_block",
)  # fmt: skip
STAGES = gl.constexpr(2)


@gluon.jit(do_not_specialize=NOT_SPECIALIZED)
def hopper_attention_kernel(
    Out, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias,
    queries, q_scale, keys, k_scale, values, v_scale, tail_keys, tail_key_scale, tail_values,
    S, H, grid_tokens, extra_start, rows_padded, query_blocks, key_blocks, stored_blocks,
    bit_words, query_block, scale_log2,
    HEAD_DIM: gl.constexpr, D: gl.constexpr, TAIL: gl.constexpr, EXTRA: gl.constexpr,
):  # fmt: skip
    """Grid (query tiles of the extra tokens and of the grid, B*H).

    ``queries``, ``keys``, ``values``, ``tail_keys`` and ``tail_values`` are tensor descriptors of
    all heads. EXTRA: there are extra tokens, whose keys have no bias.
    """
    BLOCK: gl.constexpr = keys.block_type.shape[0]
    BLOCKS: gl.constexpr = STEP_KEYS // BLOCK
    tile = gl.program_id(0)
    batch_head = gl.program_id(1).to(gl.int64)
    b = batch_head // H
    h = batch_head % H
    first_row = tile * QUERY_ROWS
    row_shift = 0
    row_end = grid_tokens
    extra_rows = False
    # Of positions against columns of the permutation, behind the holes.
    shift = extra_start - grid_tokens
    if EXTRA:
        # Rows of extra tokens compute every block, which takes longest: their tiles start first.
        extra_tiles = gl.cdiv(S - grid_tokens, QUERY_ROWS)
        extra_rows = tile < extra_tiles
        first_row = gl.where(
            extra_rows, extra_start + first_row, first_row - extra_tiles * QUERY_ROWS
        )
        row_shift = gl.where(extra_rows, shift, 0)
        row_end = gl.where(extra_rows, shift + S, grid_tokens)
    pooled_tiles = gl.cdiv(key_blocks, STEP_KEYS)
    # Of a row that skips nothing every pooled row is hidden.
    tail_steps = pooled_tiles if TAIL else 0
    head = ((batch_head * rows_padded).to(gl.int32), (batch_head * stored_blocks).to(gl.int32))
    tail_first = (batch_head * pooled_tiles).to(gl.int32)
    tail_key_scale += tail_first
    k_scale += head[1]

    q_tile = gl.allocate_shared_memory(queries.dtype, queries.block_type.shape, queries.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    ring = allocate_ring(keys, values, STAGES)
    fence_async_shared()
    block_barrier()
    # What waits for nothing goes first: the row's list arrives meanwhile.
    mbarrier.expect(q_full, queries.block_type.nbytes)
    load_tile(queries, [head[0] + first_row, 0], q_full, q_tile)
    if TAIL:
        for ahead in gl.static_range(STAGES):  # pyright: ignore[reportGeneralTypeIssues]
            needed = ahead < tail_steps
            fetch_pooled(tail_keys, tail_values, tail_first, ahead, ring, ahead, needed)

    list_row = h * query_blocks + gl.where(extra_rows, 0, first_row // query_block)
    list_start = gl.load(row_offsets + list_row)
    count = gl.load(row_offsets + list_row + 1) - list_start
    row_list = kv_indices + list_start
    listed = count
    if EXTRA:
        listed = gl.where(extra_rows, 0, count)
        count = gl.where(extra_rows, key_blocks, count)
    blocks = count
    if EXTRA:
        extra_blocks = gl.cdiv(S - grid_tokens, BLOCK)
        blocks += extra_blocks
    row = (row_list, listed, count, extra_start // BLOCK - count, blocks)
    steps = gl.cdiv(blocks, BLOCKS)
    for ahead in gl.static_range(STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        if ahead >= tail_steps:
            index = ahead - tail_steps
            fetched = blocks_at(index, row, EXTRA, BLOCKS)
            fetch(keys, values, head, fetched, ring, ahead, index * BLOCKS < blocks)

    # Where the rows go, asked for while the first keys are on their way, and kept out of registers.
    ONCE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    out_row = first_row + gl.arange(0, QUERY_ROWS, ONCE)
    token_of = permutation + gl.load(order_of_head + h).to(gl.int64) * S
    token = gl.load(token_of + out_row - row_shift, mask=out_row < row_end, other=0)
    tokens = gl.allocate_shared_memory(
        gl.int32, [QUERY_ROWS], gl.SwizzledSharedLayout(1, 1, 1, order=[0])
    )
    tokens.store(token)

    last_block = key_blocks - 1
    last_size = grid_tokens - last_block * BLOCK
    state = first_state(D)
    rows = gl.arange(0, QUERY_ROWS, gl.SliceLayout(1, state[1].type.layout))
    row_scale = gl.load(q_scale + batch_head * rows_padded + first_row + rows) * scale_log2
    row_scale = row_scale[:, None] + gl.zeros_like(state[1])
    # A bias is computed once a column and spread, not by every thread for the columns it holds.
    HALF: gl.constexpr = STEP_KEYS // 2
    offset = token_of_column(gl.arange(0, HALF, ONCE))
    no_bias = gl.zeros([HALF], gl.float32, layout=ONCE)
    mbarrier.wait(q_full, 0)
    # Biases are stored where it lies; a barrier that is still valid may be written back over them.
    mbarrier.invalidate(q_full)

    if TAIL:
        bias_of_head = gl.load(tail_bias + h) * LOG2_E
        full_bias = bias_of_head + gl.log2(BLOCK * 1.0)
        last_bias = bias_of_head + gl.log2(last_size.to(gl.float32))
        if EXTRA:
            full_bias = gl.where(extra_rows, float("-inf"), full_bias)
            last_bias = gl.where(extra_rows, float("-inf"), last_bias)
        words = computed_bits + list_row * bit_words
        pooled_row = (words, key_blocks, last_block, full_bias, last_bias)
        for step in range(0, tail_steps):
            key_scale = gl.load(tail_key_scale + step)
            left_bias = bias_of_pooled(step * STEP_KEYS + offset, pooled_row)
            right_bias = bias_of_pooled(step * STEP_KEYS + HALF + offset, pooled_row)
            state = attend_step(
                state, q_tile, ring, step, row_scale, (key_scale, key_scale),
                (left_bias, right_bias), True,
            )  # fmt: skip
            later = step + STAGES
            if later < tail_steps:
                fetch_pooled(tail_keys, tail_values, tail_first, later, ring, later, True)
            else:
                index = later - tail_steps
                first_blocks = blocks_at(index, row, EXTRA, BLOCKS)
                fetch(keys, values, head, first_blocks, ring, later, index * BLOCKS < blocks)

    key_scales = scales_of(k_scale, blocks_at(0, row, EXTRA, BLOCKS), BLOCKS)
    fetched = blocks_at(1, row, EXTRA, BLOCKS)
    for index in range(0, steps):
        # Asked for before the products, used behind them.
        next_scales = scales_of(k_scale, fetched, BLOCKS)
        later = index + STAGES
        fetched = blocks_at(later, row, EXTRA, BLOCKS)
        step = tail_steps + index
        biases = (no_bias, no_bias)
        state = attend_step(state, q_tile, ring, step, row_scale, key_scales, biases, False)
        fetch(keys, values, head, fetched, ring, step + STAGES, later * BLOCKS < blocks)
        key_scales = next_scales

    # Keys that are not there: behind the end of the grid, of the extra tokens and of an odd list.
    missing = (steps * BLOCKS - blocks) * BLOCK
    if (count > 0) & (last_size < BLOCK):
        last_listed = gl.load(row_list + listed - 1, mask=listed > 0, other=0).to(gl.int32)
        if EXTRA:
            last_listed = gl.where(extra_rows, last_block, last_listed)
        missing += gl.where(last_listed == last_block, BLOCK - last_size, 0)
    if EXTRA:
        missing += extra_blocks * BLOCK - (S - grid_tokens)
    state = without_missing(state, missing)

    # The rows pass through shared memory, which a valid barrier must not share with them.
    _k_tiles, _v_tiles, k_full, v_full, _ones = ring
    for stage in gl.static_range(STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        mbarrier.invalidate(k_full.index(stage))
        mbarrier.invalidate(v_full.index(stage))
    block_barrier()
    write_rows(
        state, v_scale + batch_head * D, tokens, b * S, row_end - first_row, Out, h * HEAD_DIM,
        H * HEAD_DIM, HEAD_DIM,
    )  # fmt: skip
