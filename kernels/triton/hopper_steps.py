"""Which key blocks a row of the Hopper kernel steps through, and the biases of its pooled rows."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def blocks_at(step, row, EXTRA: gl.constexpr, BLOCKS: gl.constexpr):
    """The first and the last key block of a row's step, negative where the last of two is missing.

    ``row``: (its list, its length, how many of the grid, what the first extra block is beyond that,
    how many in all).
    """
    first = block_at(step * BLOCKS, row, EXTRA)
    last = first
    if BLOCKS == 2:
        index = step * BLOCKS + 1
        last = gl.where(index < row[4], block_at(index, row, EXTRA), -1)
    return first, last


@gluon.jit
def block_at(index, row, EXTRA: gl.constexpr):
    """The ``index``-th key block of a row: its list, or all of the grid, then the extra ones."""
    row_list, listed, grid_blocks, extra_shift, _all = row
    block = gl.load(row_list + index, mask=index < listed, other=0).to(gl.int32)
    if EXTRA:
        unlisted = index + gl.where(index < grid_blocks, 0, extra_shift)
        block = gl.where(index < listed, block, unlisted)
    return block


@gluon.jit
def scales_of(scales, blocks, BLOCKS: gl.constexpr):
    """The scales of a step's first and last key block."""
    first = gl.load(scales + blocks[0])
    last = first
    if BLOCKS == 2:
        last = gl.load(scales + gl.maximum(blocks[1], 0))
    return first, last


@gluon.jit
def bias_of_pooled(pooled, row):
    """Bias of pooled rows in base 2, -inf of blocks that the row computes.

    ``row``: (its bits, key blocks, the last of them, the bias of all others, the last's).
    """
    words, key_blocks, last_block, full_bias, last_bias = row
    word = gl.load(words + pooled // 32, mask=pooled < key_blocks, other=-1)
    bias = gl.where(pooled == last_block, last_bias, full_bias)
    return gl.where(((word >> (pooled % 32)) & 1) == 0, bias, float("-inf"))
