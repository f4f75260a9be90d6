"""Which key blocks a row of the Hopper kernel steps through, and the biases of their keys."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def block_at(index, row, EXTRA: gl.constexpr):
    """Key block of a row's step: its list, or all of the grid, extra blocks, then those peeled.

    ``row``: (its list, its length, whole blocks, whole blocks of the grid, whether the last is
    ragged, the last, the first extra block).
    """
    row_list, listed, whole, grid_blocks, ragged, last_block, extra_block = row
    block = gl.load(row_list + index, mask=index < listed, other=0).to(gl.int32)
    if EXTRA:
        behind = extra_block + index - grid_blocks
        unlisted = gl.where(index < grid_blocks, index, behind)
        peeled = gl.where(index - whole < ragged, last_block, behind - ragged)
        block = gl.where(index < listed, block, gl.where(index < whole, unlisted, peeled))
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


@gluon.jit
def bias_of_keys(position, ends, given, EXTRA: gl.constexpr, BIASED: gl.constexpr):
    """Bias of keys in base 2, -inf behind the end of the grid or of the extra tokens.

    ``ends``: (end of the grid, first extra token, end of these); ``given``: (their biases, the one
    that hides).
    """
    grid_tokens, extra_start, extra_end = ends
    end = grid_tokens
    if EXTRA:
        end = gl.where(position < extra_start, grid_tokens, extra_end)
    exists = position < end
    bias = gl.where(exists, 0.0, float("-inf"))
    if BIASED:
        biases, hiding = given
        extra = position - extra_start
        key_bias = gl.load(biases + extra, mask=exists & (extra >= 0), other=0.0)
        bias += gl.where(key_bias > hiding, key_bias * LOG2_E, float("-inf"))
    return bias
