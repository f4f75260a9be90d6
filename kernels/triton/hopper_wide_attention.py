"""Block-sparse attention on Hopper's tensor cores with 16-bit values, in Gluon.

Keys have 8 or 16 bits; the numbers are those of ``attention``. Three warpgroups own 64 query rows
of one head each and share a ring of K and V tiles, which a warp fills with every key block that one
of them computes; who does not compute it lets it pass. Rows of their own would read more from L2
than it can give (benchmarks/results/kernel_log.md). All walk the same order without a list: the
union of the rows' bits, ascending, and behind it the steps whose keys have biases: tiles of the
pooled tail, the grid's ragged block, that of the extra tokens.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

from .. import hopper_wide_launch
from .hopper_layouts import accumulator
from .hopper_steps import LOG2_E, bias_of_pooled
from .hopper_wide_ring import allocate_ring, produce
from .hopper_wide_rows import (
    GROUPS,
    KEYS,
    QUERY_ROWS,
    WORD_BITS,
    anew,
    biased_steps,
    ends_of,
    number_of,
    rows_of_tile,
    words_of,
)
from .hopper_wide_step import attend_step, first_state, let_pass
from .int4_mma import block_barrier

CONSUMER_REGISTERS = gl.constexpr(hopper_wide_launch.CONSUMER_REGISTERS)
PRODUCER_REGISTERS = gl.constexpr(hopper_wide_launch.PRODUCER_REGISTERS)
NOT_SPECIALIZED = (
    "S", "H", "grid_tokens", "extra_start", "rows_padded", "query_blocks", "key_blocks",
    "stored_blocks", "bit_words", "query_block",
)  # fmt: skip


@gluon.jit
def find_tokens(row, order, tokens, token_tile, EXTRA: gl.constexpr):
    """Writes the tokens of a tile's rows into shared memory, -1 of rows that do not exist."""
    first_row, extra_rows, exists, _words, _list_row = row
    S, grid_tokens, extra_start = tokens
    # Every warp looks all of them up, each thread two.
    position = first_row + gl.arange(0, QUERY_ROWS, gl.BlockedLayout([2], [32], [4], [0]))
    shift = 0
    end = grid_tokens
    if EXTRA:
        # Of positions against columns of the permutation, behind the holes.
        shift = gl.where(extra_rows, extra_start - grid_tokens, 0)
        end = gl.where(extra_rows, extra_start - grid_tokens + S, grid_tokens)
    valid = (position < end) & exists
    token_tile.store(gl.load(order + position - shift, mask=valid, other=-1))


@gluon.jit
def gather_queries(Q, stride, token_tile, q_tile, HEAD_DIM: gl.constexpr):
    """Copies a tile's rows of the model's own Q into shared memory."""
    D: gl.constexpr = q_tile.shape[1]
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    token = token_tile.load(gl.SliceLayout(1, ROWS))
    d = gl.arange(0, D, gl.SliceLayout(0, ROWS))
    x = gl.load(
        Q + token.to(gl.int64)[:, None] * stride + d[None, :],
        mask=(token >= 0)[:, None] & (d < HEAD_DIM)[None, :], other=0.0,
    )  # fmt: skip
    q_tile.store(x)
    fence_async_shared()
    block_barrier()


@gluon.constexpr_function
def rows_by_fours(columns: int) -> gl.DistributedLinearLayout:
    """Layout of 64 rows in which the four threads of a row hold 8 channels side by side.

    They write whole sectors of L2, which the product's layout does not, and nothing leaves a warp.
    """
    further = [[0, 1 << bit] for bit in range(5, columns.bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [0, 2], [0, 4], [8, 0], *further],
        lane_bases=[[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]],
        warp_bases=[[16, 0], [32, 0]],
        block_bases=[],
        shape=[64, columns],
    )


@gluon.jit
def write_rows(state, token_tile, first_token, Out, row_stride, HEAD_DIM: gl.constexpr):
    """Divides by the denominators and stores the rows at their tokens behind ``first_token``.

    ``Out``: of the head; ``row_stride``: elements of a token.
    """
    acc, row_sum, _row_max = state
    D: gl.constexpr = acc.shape[1]
    OUT: gl.constexpr = acc.type.layout
    STORED: gl.constexpr = rows_by_fours(D)
    total = gl.convert_layout(gl.sum(row_sum, 1), gl.SliceLayout(1, OUT))
    # A row with nothing to attend to is zero.
    acc = acc * (1.0 / gl.where(total == 0.0, 1.0, total))[:, None]
    x = gl.convert_layout(acc.to(Out.dtype.element_ty), STORED)
    token = token_tile.load(gl.SliceLayout(1, STORED))
    d = gl.arange(0, D, gl.SliceLayout(0, STORED))
    out = Out + (first_token + token.to(gl.int64))[:, None] * row_stride + d[None, :]
    gl.store(out, x, mask=(token >= 0)[:, None] & (d < HEAD_DIM)[None, :])


@gluon.jit
def consume(
    which: gl.constexpr, shared, tensors, place, sizes,
    HEAD_DIM: gl.constexpr, TAIL: gl.constexpr, EXTRA: gl.constexpr,
):  # fmt: skip
    """One warpgroup: the ``which``-th tile of query rows."""
    q_tiles, q_full, token_tiles, bias_tiles, ring = shared
    Q, Out, order, row_offsets, tail_bias, q_scale, k_scale, tail_key_scale = tensors
    first_tile, b, h, H, stride, scale_log2 = place
    lists, tokens, key_blocks, stored_blocks = sizes
    LOW: gl.constexpr = q_tiles.dtype.is_int()
    D: gl.constexpr = q_tiles.shape[2]
    LOGITS: gl.constexpr = accumulator(KEYS, 8 if LOW else 16)
    OUT: gl.constexpr = accumulator(D, 16)
    row = rows_of_tile(first_tile + which, h, lists, tokens, EXTRA)
    q_tile = q_tiles.index(which)
    token_tile = token_tiles.index(which)
    bias_tile = bias_tiles.index(which)
    find_tokens(row, order, tokens, token_tile, EXTRA)
    state = first_state(D, LOGITS, OUT)
    THREADS: gl.constexpr = state[1].type.layout
    factor = state[1] + scale_log2
    if LOW:
        at = row[0] + gl.arange(0, QUERY_ROWS, gl.SliceLayout(1, THREADS))
        factor = factor * gl.load(q_scale + at)[:, None]
        mbarrier.wait(q_full, 0)
    else:
        gather_queries(Q, stride, token_tile, q_tile, HEAD_DIM)
    # Found out here: behind the long loop it would need more of what is worked out here.
    tail_tiles, of_grid, steps, own_tail, own_ragged = biased_steps(
        which, first_tile, h, row_offsets, lists, tokens, key_blocks, TAIL, EXTRA
    )
    words = gl.cdiv(ends_of(tokens, key_blocks, EXTRA)[1], WORD_BITS)
    step = 0
    for index in range(0, words):
        own, left = words_of(which, first_tile, h, index, lists, tokens, key_blocks, EXTRA)
        while left != 0:
            bit = left & -left
            left ^= bit
            if own & bit != 0:
                step_factor = factor
                if LOW:
                    # Asked for before the products, used behind them.
                    step_factor *= gl.load(k_scale + index * WORD_BITS + number_of(bit))
                state = attend_step(state, q_tile, ring, step, step_factor, bias_tile, False)
            else:
                let_pass(ring, step)
            step += 1

    row = rows_of_tile(anew(first_tile) + which, h, lists, tokens, EXTRA)
    _whole_grid, _end, grid_keys, extra_keys = ends_of(tokens, key_blocks, EXTRA)
    pooled_row = (row[3], key_blocks, key_blocks - 1, 0.0, 0.0)
    if TAIL:
        bias_of_head = gl.load(tail_bias + h) * LOG2_E
        full_bias = bias_of_head + gl.log2(KEYS * 1.0)
        last_bias = bias_of_head + gl.log2((tokens[1] - (key_blocks - 1) * KEYS).to(gl.float32))
        pooled_row = (row[3], key_blocks, key_blocks - 1, full_bias, last_bias)
    # A bias is worked out once a column and spread, not by every thread for the columns it holds.
    column = gl.arange(0, KEYS, gl.BlockedLayout([1], [32], [4], [0]))
    for index in range(0, steps):
        pooled = index < tail_tiles
        computed = gl.where(index < of_grid, own_ragged, row[2])
        if TAIL:
            computed = gl.where(pooled, own_tail, computed)
        if computed:
            step_factor = factor
            if LOW:
                block = gl.where(index < of_grid, key_blocks, stored_blocks) - 1
                key_scale = gl.load(k_scale + block)
                if TAIL:
                    tail_scale = gl.load(tail_key_scale + index, mask=pooled, other=0.0)
                    key_scale = gl.where(pooled, tail_scale, key_scale)
                step_factor *= key_scale
            size = gl.where(index < of_grid, grid_keys, extra_keys)
            bias = gl.where(column < size, 0.0, float("-inf"))
            if TAIL:
                of_block = bias_of_pooled(index * KEYS + column, pooled_row)
                bias = gl.where(pooled, of_block, bias)
            bias_tile.store(bias)
            state = attend_step(state, q_tile, ring, step, step_factor, bias_tile, True)
        else:
            let_pass(ring, step)
        step += 1
    write_rows(state, token_tile, b * tokens[0], Out + h * HEAD_DIM, H * HEAD_DIM, HEAD_DIM)


@gluon.jit(do_not_specialize=NOT_SPECIALIZED)
def hopper_wide_kernel(
    Out, permutation, order_of_head, row_offsets, computed_bits, tail_bias,
    queries, q_scale, keys, k_scale, values, tail_keys, tail_key_scale, tail_values,
    q_stride_b, q_stride_h, q_stride_s,
    S, H, grid_tokens, extra_start, rows_padded, query_blocks, key_blocks, stored_blocks,
    bit_words, query_block, scale_log2,
    HEAD_DIM: gl.constexpr, D: gl.constexpr, ALIGNMENT: gl.constexpr, TAIL: gl.constexpr,
    EXTRA: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Grid (query tiles of the extra tokens and of the grid by threes, B*H).

    ``keys``, ``values``, ``tail_keys`` and ``tail_values`` are tensor descriptors of all heads, and
    ``queries`` of 8-bit ones; in 16 bits it is the model's own Q. EXTRA: there are extra tokens,
    whose keys have no bias.
    """
    LOW: gl.constexpr = keys.dtype.is_int()
    batch_head = gl.program_id(1)
    b = (batch_head // H).to(gl.int64)
    h = batch_head % H
    q_tiles = gl.allocate_shared_memory(keys.dtype, [GROUPS, QUERY_ROWS, D], keys.layout)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    token_tiles = gl.allocate_shared_memory(gl.int32, [GROUPS, QUERY_ROWS], plain)
    bias_tiles = gl.allocate_shared_memory(gl.float32, [GROUPS, KEYS], plain)
    ring = allocate_ring(keys, values, STAGES)
    q_full = ring[2]
    if LOW:
        # Not where nobody waits for it: Triton gives the bytes of a barrier that is not used to a
        # tile, and a barrier that is valid may be written back over it.
        q_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        mbarrier.init(q_full, count=1)
    fence_async_shared()
    block_barrier()
    tokens = (S, grid_tokens, extra_start)
    first_tile = gl.program_id(0) * GROUPS
    Q = Out
    tail_tiles = gl.cdiv(key_blocks, KEYS)
    tail_row = batch_head * stored_blocks
    if LOW:
        tail_row = batch_head * tail_tiles * KEYS
        tail_key_scale += batch_head * tail_tiles
        k_scale += batch_head * stored_blocks
        q_scale += batch_head.to(gl.int64) * rows_padded
    else:
        offset = b * q_stride_b + h.to(gl.int64) * q_stride_h
        if ALIGNMENT > 1:
            offset = gl.multiple_of(offset, ALIGNMENT)
        Q = queries + offset
    shared = (q_tiles, q_full, token_tiles, bias_tiles, ring)
    order = permutation + gl.load(order_of_head + h).to(gl.int64) * S
    tensors = (Q, Out, order, row_offsets, tail_bias, q_scale, k_scale, tail_key_scale)
    place = (first_tile, b, h, H, q_stride_s, scale_log2)
    lists = (computed_bits, query_blocks, bit_words, query_block)
    sizes = (lists, tokens, key_blocks, stored_blocks)
    descriptors = (queries, keys, values, tail_keys, tail_values)
    first = (first_tile, h, batch_head * rows_padded, tail_row)
    gl.warp_specialize(
        [
            (consume, (0, shared, tensors, place, sizes, HEAD_DIM, TAIL, EXTRA)),
            (consume, (1, shared, tensors, place, sizes, HEAD_DIM, TAIL, EXTRA)),
            (consume, (2, shared, tensors, place, sizes, HEAD_DIM, TAIL, EXTRA)),
            (produce, (shared, descriptors, row_offsets, first, sizes, TAIL, EXTRA)),
        ],
        [4, 4, 1],
        [CONSUMER_REGISTERS, CONSUMER_REGISTERS, PRODUCER_REGISTERS],
    )
