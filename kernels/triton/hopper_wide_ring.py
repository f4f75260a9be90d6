"""Ring of K and V tiles that the groups of a program of the wide Hopper kernel share."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from .hopper_ring import load_tile
from .hopper_wide_rows import (
    GROUPS,
    KEYS,
    WORD_BITS,
    biased_steps,
    ends_of,
    number_of,
    rows_of_tile,
    words_of,
)


@gluon.jit
def allocate_ring(keys, values, STAGES: gl.constexpr):
    """(K tiles, V tiles, barriers of full K tiles, of full V tiles, of both empty), initialised."""
    D: gl.constexpr = keys.block_type.shape[1]
    k_tiles = gl.allocate_shared_memory(keys.dtype, [STAGES, KEYS, D], keys.layout)
    v_tiles = gl.allocate_shared_memory(values.dtype, [STAGES, KEYS, D], values.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=GROUPS)
    return k_tiles, v_tiles, k_full, v_full, empty


@gluon.jit
def fetch(keys, values, first_row, ring, step):
    """Waits until all groups have read a step's tiles, and starts the copies of the next ones."""
    k_tiles, v_tiles, k_full, v_full, empty = ring
    STAGES: gl.constexpr = empty.shape[0]
    stage = step % STAGES
    mbarrier.wait(empty.index(stage), ((step // STAGES) & 1) ^ 1)
    mbarrier.expect(k_full.index(stage), keys.block_type.nbytes)
    load_tile(keys, [first_row, 0], k_full.index(stage), k_tiles.index(stage))
    mbarrier.expect(v_full.index(stage), values.block_type.nbytes)
    load_tile(values, [first_row, 0], v_full.index(stage), v_tiles.index(stage))


@gluon.jit
def produce(
    shared, descriptors, row_offsets, place, sizes, TAIL: gl.constexpr, EXTRA: gl.constexpr
):
    """One warp: fetches what the others compute."""
    q_tiles, q_full, _token_tiles, _bias_tiles, ring = shared
    queries, keys, values, tail_keys, tail_values = descriptors
    first_tile, h, first_row, tail_row = place
    lists, tokens, key_blocks, stored_blocks = sizes
    LOW: gl.constexpr = q_tiles.dtype.is_int()
    if LOW:
        mbarrier.expect(q_full, GROUPS * queries.block_type.nbytes)
        for i in gl.static_range(GROUPS):  # pyright: ignore[reportGeneralTypeIssues]
            row = rows_of_tile(first_tile + i, h, lists, tokens, EXTRA)
            load_tile(queries, [first_row + row[0], 0], q_full, q_tiles.index(i))
    tail_tiles, of_grid, steps, _own_tail, _own_ragged = biased_steps(
        0, first_tile, h, row_offsets, lists, tokens, key_blocks, TAIL, EXTRA
    )
    words = gl.cdiv(ends_of(tokens, key_blocks, EXTRA)[1], WORD_BITS)
    step = 0
    for index in range(0, words):
        _own, left = words_of(0, first_tile, h, index, lists, tokens, key_blocks, EXTRA)
        while left != 0:
            bit = left & -left
            left ^= bit
            at = first_row + (index * WORD_BITS + number_of(bit)) * KEYS
            fetch(keys, values, at, ring, step)
            step += 1
    if TAIL:
        for index in range(0, tail_tiles):
            fetch(tail_keys, tail_values, tail_row + index * KEYS, ring, step)
            step += 1
    for index in range(tail_tiles, steps):
        at = first_row + (gl.where(index < of_grid, key_blocks, stored_blocks) - 1) * KEYS
        fetch(keys, values, at, ring, step)
        step += 1
