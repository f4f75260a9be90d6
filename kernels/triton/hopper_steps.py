"""Which key blocks a row of the Hopper kernel steps through, and the biases of its pooled rows."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def block_at(index, row, EXTRA: gl.constexpr):
    """The ``index``-th key block of a row: its list, or all of the grid, then the extra ones.

    ``row``: (its list, its length, how many of the grid, the first extra block).
    """
    row_list, listed, grid_blocks, extra_block = row
    block = gl.load(row_list + index, mask=index < listed, other=0).to(gl.int32)
    if EXTRA:
        unlisted = gl.where(index < grid_blocks, index, extra_block + index - grid_blocks)
        block = gl.where(index < listed, block, unlisted)
    return block


@gluon.jit
def bias_of_pooled(pooled, row):
    """Bias of pooled rows in base 2, -inf of blocks that the row computes.

    ``row``: (its bits, key blocks, the last of them, the bias of all others, the last's).
    """
    words, key_blocks, last_block, full_bias, last_bias = row
    word = gl.load(words + pooled // 32, mask=pooled < key_blocks, other=-1)
    bias = gl.where(pooled == last_block, last_bias, full_bias)
    return gl.where(((word >> (pooled % 32)) & 1) == 0, bias, float("-inf"))
