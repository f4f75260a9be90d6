"""Block-sparse attention on Hopper's tensor cores, 8-bit keys and FP8 values, in Gluon.

The numbers are those of ``attention`` in 8 bits with FP8, but for the denominator, which is of the
rounded probabilities. One warpgroup owns 64 query rows of one head. Keys and values come through a
ring of two tiles by the copy engine: first the tiles of the pooled tail, then the row's list of key
blocks, whole extra blocks, and at last those that need a bias per key. Narrow blocks come two a
step. Three programs share a multiprocessor, and the products of one run under the softmax of the
others.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from .hopper_steps import LOG2_E, bias_of_keys, bias_of_pooled, blocks_at
from .hopper_tile import (
    QUERY_ROWS,
    STAGES,
    SUM_COLUMNS,
    accumulator,
    attend_step,
    fetch,
    first_of_pairs,
    load_tile,
    token_of_column,
)
from .int4_mma import block_barrier

# Sizes that change with length and density must not lead to another compilation.
NOT_SPECIALIZED = (
    "S", "H", "grid_tokens", "extra_start", "rows_padded", "query_blocks", "key_blocks",
    "stored_blocks", "bit_words", "key_bias", "bias_stride", "query_block",
)  # fmt: skip
STEP_KEYS = gl.constexpr(128)


@gluon.jit
def allocate_ring(keys, values, UNITS: gl.constexpr):
    """(K tiles, V tiles, K's barriers, V's barriers, ones), barriers initialised."""
    KEYS: gl.constexpr = keys.block_type.shape[0]
    D: gl.constexpr = keys.block_type.shape[1]
    k_tiles = gl.allocate_shared_memory(keys.dtype, [STAGES, UNITS * KEYS, D], keys.layout)
    v_tiles = gl.allocate_shared_memory(values.dtype, [STAGES, UNITS * D, KEYS], values.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
    ONES: gl.constexpr = gl.BlockedLayout([1, 16], [128 // KEYS * 4, KEYS // 16], [4, 1], [1, 0])
    ones = gl.allocate_shared_memory(gl.float8e4nv, [2 * SUM_COLUMNS, KEYS], values.layout)
    # The bits of 1.0: ptxas leaves two bytes of a converted constant undefined.
    bits = gl.full([2 * SUM_COLUMNS, KEYS], 0x38, gl.int8, layout=ONES)
    ones.store(bits.to(gl.float8e4nv, bitcast=True))
    return k_tiles, v_tiles, k_full, v_full, ones


@gluon.jit(do_not_specialize=NOT_SPECIALIZED)
def hopper_attention_kernel(
    Out, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias, key_bias,
    queries, q_scale, keys, k_scale, values, v_scale, tail_keys, tail_key_scale, tail_values,
    S, H, grid_tokens, extra_start, rows_padded, query_blocks, key_blocks, stored_blocks,
    bit_words, bias_stride, query_block, scale_log2,
    HEAD_DIM: gl.constexpr, D: gl.constexpr, TAIL: gl.constexpr,
    EXTRA: gl.constexpr, BIASED: gl.constexpr, HIDING: gl.constexpr,
):  # fmt: skip
    """Grid (query tiles of the extra tokens and of the grid, B*H).

    ``queries``, ``keys``, ``values``, ``tail_keys`` and ``tail_values`` are tensor descriptors of
    all heads. EXTRA: there are extra tokens; BIASED: their keys have a bias [B or 1, S -
    grid_tokens].
    """
    BLOCK: gl.constexpr = keys.block_type.shape[0]
    KEYS: gl.constexpr = STEP_KEYS
    UNITS: gl.constexpr = KEYS // BLOCK
    LOGITS: gl.constexpr = accumulator(KEYS)
    OUT: gl.constexpr = accumulator(D)
    OUT_ROWS: gl.constexpr = gl.SliceLayout(1, OUT)
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
    last_size = grid_tokens - last_block * BLOCK
    ragged = 0
    if (count > 0) & (last_size < BLOCK):
        last_listed = gl.load(row_list + listed - 1, mask=listed > 0, other=0).to(gl.int32)
        if EXTRA:
            last_listed = gl.where(extra_rows, last_block, last_listed)
        ragged = (last_listed == last_block).to(gl.int32)
    grid_blocks = count - ragged
    whole = grid_blocks
    everything = count
    extra_block = extra_start // BLOCK
    if EXTRA:
        if not BIASED:
            whole += (S - grid_tokens) // BLOCK
        everything += gl.cdiv(S - grid_tokens, BLOCK)
        listed = gl.where(extra_rows, 0, grid_blocks)
    # Blocks that need a bias per key, and the odd one out, are stepped through behind the others.
    main_steps = whole // UNITS
    steps = main_steps + gl.cdiv(everything - main_steps * UNITS, UNITS)
    row = (row_list, listed, whole, everything, (grid_blocks, ragged, last_block, extra_block))
    tail_tiles = gl.cdiv(key_blocks, BLOCK)
    tail_steps = 0
    if TAIL:  # noqa: SIM102 - decided at compilation, the next line at run time
        if count < key_blocks:
            tail_steps = gl.cdiv(tail_tiles, UNITS)
    head = ((batch_head * rows_padded).to(gl.int32), (batch_head * stored_blocks).to(gl.int32))
    tail_first = (batch_head * tail_tiles).to(gl.int32)
    tail_head = (tail_first * BLOCK, tail_first)
    tail_key_scale += tail_first
    k_scale += head[1]

    q_tile = gl.allocate_shared_memory(queries.dtype, queries.block_type.shape, queries.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(q_full, count=1)
    ring = allocate_ring(keys, values, UNITS)
    fence_async_shared()
    block_barrier()
    mbarrier.expect(q_full, queries.block_type.nbytes)
    load_tile(queries, [head[0] + first_row, 0], q_full, q_tile)
    for step in gl.static_range(STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        if TAIL:
            units = (UNITS * step, gl.minimum(UNITS * step + 1, tail_tiles - 1))
            fetch(tail_keys, tail_values, tail_head, units, ring, step, step < tail_steps, D, UNITS)
        if step >= tail_steps:
            index = step - tail_steps
            units = blocks_at(index * UNITS, row, EXTRA, UNITS)
            fetch(keys, values, head, units, ring, step, index < steps, D, UNITS)

    rows = gl.arange(0, QUERY_ROWS, gl.SliceLayout(1, LOGITS))
    row_scale = gl.load(q_scale + batch_head * rows_padded + first_row + rows) * scale_log2
    acc = gl.zeros([QUERY_ROWS, D], gl.float32, layout=OUT)
    row_sum = first_of_pairs(
        gl.zeros([QUERY_ROWS, SUM_COLUMNS], gl.float32, layout=accumulator(SUM_COLUMNS))
    )
    row_max = gl.full([QUERY_ROWS], -1e30, gl.float32, layout=gl.SliceLayout(1, LOGITS))
    state = (acc, row_sum, row_max)
    # A bias is computed once a column and spread, not by every thread for the columns it holds.
    ONCE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    HALF: gl.constexpr = KEYS // 2
    offset = token_of_column(gl.arange(0, HALF, ONCE))
    no_bias = gl.zeros([HALF], gl.float32, layout=ONCE)
    mbarrier.wait(q_full, 0)

    if TAIL:
        bias_of_head = gl.load(tail_bias + h) * LOG2_E
        full_bias = bias_of_head + gl.log2(BLOCK * 1.0)
        last_bias = bias_of_head + gl.log2(last_size.to(gl.float32))
        words = computed_bits + list_row * bit_words
        pooled_row = (words, key_blocks, last_block, full_bias, last_bias)
        for step in range(0, tail_steps):
            first = UNITS * step
            second = gl.minimum(first + 1, tail_tiles - 1)
            key_scales = gl.load(tail_key_scale + first), gl.load(tail_key_scale + second)
            left_bias = bias_of_pooled(step * KEYS + offset, pooled_row)
            right_bias = bias_of_pooled(step * KEYS + HALF + offset, pooled_row)
            state = attend_step(
                state, q_tile, ring, step, row_scale, key_scales, (left_bias, right_bias),
                D, UNITS, True,
            )  # fmt: skip
            later = step + STAGES
            if later < tail_steps:
                units = (UNITS * later, gl.minimum(UNITS * later + 1, tail_tiles - 1))
                fetch(tail_keys, tail_values, tail_head, units, ring, later, True, D, UNITS)
            else:
                index = later - tail_steps
                units = blocks_at(index * UNITS, row, EXTRA, UNITS)
                fetch(keys, values, head, units, ring, later, index < steps, D, UNITS)

    units = blocks_at(0, row, EXTRA, UNITS)
    key_scales = gl.load(k_scale + units[0]), gl.load(k_scale + units[1])
    units = blocks_at(UNITS, row, EXTRA, UNITS)
    for index in range(0, main_steps):
        # Asked for before the products, used behind them.
        next_scales = gl.load(k_scale + units[0]), gl.load(k_scale + units[1])
        units = blocks_at((index + STAGES) * UNITS, row, EXTRA, UNITS)
        turn = tail_steps + index
        state = attend_step(
            state, q_tile, ring, turn, row_scale, key_scales, (no_bias, no_bias), D, UNITS, False
        )
        later = index + STAGES
        fetch(keys, values, head, units, ring, turn + STAGES, later < steps, D, UNITS)
        key_scales = next_scales

    ends = (grid_tokens, extra_start, shift + S)
    given = (key_bias + b * bias_stride, HIDING)
    for index in range(main_steps, steps):
        units = blocks_at(index * UNITS, row, EXTRA, UNITS)
        first = units[0] * BLOCK
        second = first + HALF
        exists = True
        if UNITS == 2:
            second = units[1] * BLOCK
            exists = index * UNITS + 1 < everything
        left_bias = bias_of_keys(first + offset, True, ends, given, EXTRA, BIASED)
        right_bias = bias_of_keys(second + offset, exists, ends, given, EXTRA, BIASED)
        key_scales = gl.load(k_scale + units[0]), gl.load(k_scale + units[1])
        turn = tail_steps + index
        state = attend_step(
            state, q_tile, ring, turn, row_scale, key_scales, (left_bias, right_bias),
            D, UNITS, True,
        )  # fmt: skip
        later = index + STAGES
        units = blocks_at(later * UNITS, row, EXTRA, UNITS)
        fetch(keys, values, head, units, ring, turn + STAGES, later < steps, D, UNITS)

    acc, row_sum, row_max = state
    total = gl.convert_layout(gl.max(row_sum, 1), OUT_ROWS)
    # A row with nothing to attend to is zero.
    acc = acc * (1.0 / gl.where(total == 0.0, 1.0, total))[:, None]
    d = gl.arange(0, D, gl.SliceLayout(0, OUT))
    acc = acc * gl.load(v_scale + batch_head * D + d)[None, :]
    row = first_row + gl.arange(0, QUERY_ROWS, OUT_ROWS)
    valid = row < row_end
    token_of = permutation + gl.load(order_of_head + h).to(gl.int64) * S
    token = gl.load(token_of + row - row_shift, mask=valid, other=0).to(gl.int64)
    out = Out + (b * S + token)[:, None] * (H * HEAD_DIM) + h * HEAD_DIM + d[None, :]
    gl.store(out, acc.to(Out.dtype.element_ty), mask=valid[:, None] & (d < HEAD_DIM)[None, :])
