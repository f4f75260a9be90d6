"""Ring of tiles in shared memory, which the copy engine fills with keys and values."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .. import hopper_launch

# Triton 3.9 renamed it.
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared

STEP_KEYS = gl.constexpr(hopper_launch.STEP_KEYS)
# Of the ones that add P's rows up: the narrowest product there is.
SUM_COLUMNS = gl.constexpr(8)


@gluon.jit
def allocate_ring(keys, values, STAGES: gl.constexpr):
    """(K tiles, V tiles, K's barriers, V's barriers, ones), barriers initialised.

    A tile holds a step's key blocks, one below the other.
    """
    BLOCK: gl.constexpr = keys.block_type.shape[0]
    D: gl.constexpr = keys.block_type.shape[1]
    BLOCKS: gl.constexpr = STEP_KEYS // BLOCK
    k_tiles = gl.allocate_shared_memory(keys.dtype, [STAGES, STEP_KEYS, D], keys.layout)
    v_tiles = gl.allocate_shared_memory(values.dtype, [STAGES, BLOCKS * D, BLOCK], values.layout)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
    ONES: gl.constexpr = gl.BlockedLayout([1, 16], [128 // BLOCK * 4, BLOCK // 16], [4, 1], [1, 0])
    ones = gl.allocate_shared_memory(gl.float8e4nv, [2 * SUM_COLUMNS, BLOCK], values.layout)
    # The bits of 1.0: ptxas leaves two bytes of a converted constant undefined.
    bits = gl.full([2 * SUM_COLUMNS, BLOCK], 0x38, gl.int8, layout=ONES)
    ones.store(bits.to(gl.float8e4nv, bitcast=True))
    return k_tiles, v_tiles, k_full, v_full, ones


@gluon.jit
def fetch(keys, values, first, blocks, ring, step, needed):
    """Starts the copies of a step's key blocks into the ring; the tile there must have been read.

    ``keys`` and ``values``: descriptors; ``first``: (row, block) at which the head's begin;
    ``blocks``: the first and the last of the step; of a negative one come zeros.
    """
    k_tiles, v_tiles, k_full, v_full, _ones = ring
    BLOCK: gl.constexpr = keys.block_type.shape[0]
    D: gl.constexpr = values.block_type.shape[0]
    first_row, first_block = first
    stage = step % k_tiles.shape[0]
    k_barrier, v_barrier = k_full.index(stage), v_full.index(stage)
    k_tile, v_tile = k_tiles.index(stage), v_tiles.index(stage)
    mbarrier.expect(k_barrier, STEP_KEYS * D, pred=needed)
    k_place = [first_row + blocks[0] * BLOCK, 0]
    load_tile(keys, k_place, k_barrier, k_tile.slice(0, BLOCK, dim=0), pred=needed)
    if BLOCK < STEP_KEYS:
        k_place = [gl.where(blocks[1] < 0, -BLOCK, first_row + blocks[1] * BLOCK), 0]
        load_tile(keys, k_place, k_barrier, k_tile.slice(BLOCK, BLOCK, dim=0), pred=needed)
    mbarrier.expect(v_barrier, STEP_KEYS * D, pred=needed)
    v_place = [(first_block + blocks[0]) * D, 0]
    load_tile(values, v_place, v_barrier, v_tile.slice(0, D, dim=0), pred=needed)
    if BLOCK < STEP_KEYS:
        v_place = [gl.where(blocks[1] < 0, -D, (first_block + blocks[1]) * D), 0]
        load_tile(values, v_place, v_barrier, v_tile.slice(D, D, dim=0), pred=needed)


@gluon.jit
def fetch_pooled(keys, values, first_tile, tile, ring, step, needed):
    """Starts the copies of a tile of pooled rows; see ``fetch``.

    ``first_tile``: the head's first.
    """
    k_tiles, v_tiles, k_full, v_full, _ones = ring
    BLOCK: gl.constexpr = keys.block_type.shape[0]
    D: gl.constexpr = values.block_type.shape[0]
    stage = step % k_tiles.shape[0]
    k_barrier, v_barrier = k_full.index(stage), v_full.index(stage)
    k_tile, v_tile = k_tiles.index(stage), v_tiles.index(stage)
    mbarrier.expect(k_barrier, STEP_KEYS * D, pred=needed)
    mbarrier.expect(v_barrier, STEP_KEYS * D, pred=needed)
    for i in gl.static_range(STEP_KEYS // BLOCK):  # pyright: ignore[reportGeneralTypeIssues]
        k_place = [(first_tile + tile) * STEP_KEYS + i * BLOCK, 0]
        load_tile(keys, k_place, k_barrier, k_tile.slice(i * BLOCK, BLOCK, dim=0), pred=needed)
        v_place = [(first_tile + tile) * D, i * BLOCK]
        load_tile(values, v_place, v_barrier, v_tile.slice(i * D, D, dim=0), pred=needed)
