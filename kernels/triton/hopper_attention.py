"""Block-sparse attention on Hopper's tensor cores, 8-bit keys and FP8 or 16-bit values, in Gluon.

The numbers are those of ``attention`` in 8/8 bits with FP8, or in 8/16, but for the denominator,
which is of the rounded probabilities. One warpgroup owns 64 query rows of one head. Keys and values
come through rings of tiles by the copy engine: first the tiles of the pooled tail, then the row's
list of key blocks, whole extra blocks, and at last those that need a bias per key. Several programs
share a multiprocessor, and the products of one run under the softmax of the others.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from .hopper_steps import LOG2_E, bias_of_keys, bias_of_pooled, block_at
from .hopper_tile import (
    QUERY_ROWS,
    accumulator,
    allocate_ones,
    allocate_tiles,
    attend_step,
    fetch,
    first_state,
    load_tile,
    token_of_column,
    value_bits,
    write_rows,
)
from .int4_mma import block_barrier

# Sizes that change with length and density must not lead to another compilation.
NOT_SPECIALIZED = (
    "S", "H", "grid_tokens", "extra_start", "rows_padded", "query_blocks", "key_blocks",
    "stored_blocks", "bit_words", "key_bias", "bias_stride", "query_block",
)  # fmt: skip
KEY_STAGES = gl.constexpr(2)


@gluon.jit(do_not_specialize=NOT_SPECIALIZED)
def hopper_attention_kernel(
    Out, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias, key_bias,
    queries, q_scale, keys, k_scale, values, v_scale, tail_keys, tail_key_scale, tail_values,
    S, H, grid_tokens, extra_start, rows_padded, query_blocks, key_blocks, stored_blocks,
    bit_words, bias_stride, query_block, scale_log2,
    HEAD_DIM: gl.constexpr, D: gl.constexpr, TAIL: gl.constexpr,
    EXTRA: gl.constexpr, BIASED: gl.constexpr, HIDING: gl.constexpr, VALUE_STAGES: gl.constexpr,
):  # fmt: skip
    """Grid (query tiles of the extra tokens and of the grid, B*H).

    ``queries``, ``keys``, ``values``, ``tail_keys`` and ``tail_values`` are tensor descriptors of
    all heads. EXTRA: there are extra tokens; BIASED: their keys have a bias [B or 1, S -
    grid_tokens].
    """
    KEYS: gl.constexpr = keys.block_type.shape[0]
    BITS: gl.constexpr = value_bits(values.dtype)
    LOGITS: gl.constexpr = accumulator(KEYS)
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
    list_row = h * query_blocks + gl.where(extra_rows, 0, first_row // query_block)
    list_start = gl.load(row_offsets + list_row)
    count = gl.load(row_offsets + list_row + 1) - list_start
    row_list = kv_indices + list_start
    listed = count
    if EXTRA:
        listed = gl.where(extra_rows, 0, count)
        count = gl.where(extra_rows, key_blocks, count)

    last_block = key_blocks - 1
    last_size = grid_tokens - last_block * KEYS
    ragged = 0
    if (count > 0) & (last_size < KEYS):
        last_listed = gl.load(row_list + listed - 1, mask=listed > 0, other=0).to(gl.int32)
        if EXTRA:
            last_listed = gl.where(extra_rows, last_block, last_listed)
        ragged = (last_listed == last_block).to(gl.int32)
    grid_blocks = count - ragged
    whole = grid_blocks
    everything = count
    extra_block = extra_start // KEYS
    if EXTRA:
        if not BIASED:
            whole += (S - grid_tokens) // KEYS
        everything += gl.cdiv(S - grid_tokens, KEYS)
        listed = gl.where(extra_rows, 0, grid_blocks)
    row = (row_list, listed, whole, grid_blocks, ragged, last_block, extra_block)
    tail_tiles = 0
    if TAIL:  # noqa: SIM102 - decided at compilation, the next line at run time
        if count < key_blocks:
            tail_tiles = gl.cdiv(key_blocks, KEYS)
    first_block = (batch_head * stored_blocks).to(gl.int32)
    first_tail = (batch_head * gl.cdiv(key_blocks, KEYS)).to(gl.int32)
    tail_key_scale += first_tail
    k_scale += first_block

    q_tile = gl.allocate_shared_memory(queries.dtype, queries.block_type.shape, queries.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    k_ring = allocate_tiles(keys, KEY_STAGES)
    v_ring = allocate_tiles(values, VALUE_STAGES)
    rings = (k_ring, v_ring, allocate_ones(values, KEYS))
    fence_async_shared()
    block_barrier()
    mbarrier.expect(q_full, queries.block_type.nbytes)
    load_tile(queries, [(batch_head * rows_padded).to(gl.int32) + first_row, 0], q_full, q_tile)
    HEIGHT: gl.constexpr = values.block_type.shape[0]
    first_k = (batch_head * rows_padded).to(gl.int32)
    first_v = first_block * HEIGHT
    tail_k = first_tail * KEYS
    tail_v = first_tail * HEIGHT
    for ahead in gl.static_range(KEY_STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        if TAIL:
            fetch(tail_keys, tail_k, ahead, k_ring, ahead, ahead < tail_tiles)
            if ahead < VALUE_STAGES:
                fetch(tail_values, tail_v, ahead, v_ring, ahead, ahead < tail_tiles)
        if ahead >= tail_tiles:
            index = ahead - tail_tiles
            block = block_at(index, row, EXTRA)
            fetch(keys, first_k, block, k_ring, ahead, index < everything)
            if ahead < VALUE_STAGES:
                fetch(values, first_v, block, v_ring, ahead, index < everything)

    rows = gl.arange(0, QUERY_ROWS, gl.SliceLayout(1, LOGITS))
    row_scale = gl.load(q_scale + batch_head * rows_padded + first_row + rows) * scale_log2
    state = first_state(D, KEYS, BITS)
    # A bias is computed once a column and spread, not by every thread for the columns it holds.
    ONCE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    HALF: gl.constexpr = KEYS // 2
    offset = token_of_column(gl.arange(0, HALF, ONCE), BITS)
    no_bias = gl.zeros([HALF], gl.float32, layout=ONCE)
    mbarrier.wait(q_full, 0)

    if TAIL:
        bias_of_head = gl.load(tail_bias + h) * LOG2_E
        full_bias = bias_of_head + gl.log2(KEYS * 1.0)
        last_bias = bias_of_head + gl.log2(last_size.to(gl.float32))
        words = computed_bits + list_row * bit_words
        pooled_row = (words, key_blocks, last_block, full_bias, last_bias)
        for step in range(0, tail_tiles):
            left_bias = bias_of_pooled(step * KEYS + offset, pooled_row)
            right_bias = bias_of_pooled(step * KEYS + HALF + offset, pooled_row)
            state = attend_step(
                state, q_tile, rings, step, row_scale, gl.load(tail_key_scale + step),
                (left_bias, right_bias), D, True,
            )  # fmt: skip
            later = step + KEY_STAGES
            if later < tail_tiles:
                fetch(tail_keys, tail_k, later, k_ring, later, True)
            else:
                index = later - tail_tiles
                block = block_at(index, row, EXTRA)
                fetch(keys, first_k, block, k_ring, later, index < everything)
            later = step + VALUE_STAGES
            if later < tail_tiles:
                fetch(tail_values, tail_v, later, v_ring, later, True)
            else:
                index = later - tail_tiles
                block = block_at(index, row, EXTRA)
                fetch(values, first_v, block, v_ring, later, index < everything)

    key_scale = gl.load(k_scale + block_at(0, row, EXTRA))
    block = block_at(1, row, EXTRA)
    for index in range(0, whole):
        # Asked for before the products, used behind them.
        next_scale = gl.load(k_scale + block)
        v_block = block
        block = block_at(index + KEY_STAGES, row, EXTRA)
        if VALUE_STAGES == KEY_STAGES:
            v_block = block
        step = tail_tiles + index
        biases = (no_bias, no_bias)
        state = attend_step(state, q_tile, rings, step, row_scale, key_scale, biases, D, False)
        needed = index + KEY_STAGES < everything
        fetch(keys, first_k, block, k_ring, step + KEY_STAGES, needed)
        needed = index + VALUE_STAGES < everything
        fetch(values, first_v, v_block, v_ring, step + VALUE_STAGES, needed)
        key_scale = next_scale

    # Behind the others, blocks that need a bias per key.
    ends = (grid_tokens, extra_start, shift + S)
    given = (key_bias + b * bias_stride, HIDING)
    for index in range(whole, everything):
        block = block_at(index, row, EXTRA)
        first = block * KEYS
        left_bias = bias_of_keys(first + offset, ends, given, EXTRA, BIASED)
        right_bias = bias_of_keys(first + HALF + offset, ends, given, EXTRA, BIASED)
        step = tail_tiles + index
        state = attend_step(
            state, q_tile, rings, step, row_scale, gl.load(k_scale + block),
            (left_bias, right_bias), D, True,
        )  # fmt: skip
        block = block_at(index + KEY_STAGES, row, EXTRA)
        needed = index + KEY_STAGES < everything
        fetch(keys, first_k, block, k_ring, step + KEY_STAGES, needed)
        block = block_at(index + VALUE_STAGES, row, EXTRA)
        needed = index + VALUE_STAGES < everything
        fetch(values, first_v, block, v_ring, step + VALUE_STAGES, needed)

    row = first_row + gl.arange(0, QUERY_ROWS, gl.SliceLayout(1, accumulator(D, BITS)))
    valid = row < row_end
    token_of = permutation + gl.load(order_of_head + h).to(gl.int64) * S
    token = gl.load(token_of + row - row_shift, mask=valid, other=0).to(gl.int64)
    write_rows(
        state, v_scale + batch_head * D, b * S + token, valid, Out, h * HEAD_DIM, H * HEAD_DIM,
        HEAD_DIM, BITS,
    )  # fmt: skip
