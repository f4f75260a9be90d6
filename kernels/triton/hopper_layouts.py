"""Layouts of the Hopper kernels' tiles, and their other shapes, for which no data moves.

A warpgroup multiplies 64 rows. Four threads hold a row of a product, two neighbouring columns of
every eight each; of an operand in 8 bits four of every sixteen.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def accumulator(columns: int, operand_bits: int = 8) -> gl.NVMMADistributedLayout:
    """Layout of a product of 64 rows."""
    return gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, columns, 256 // operand_bits]
    )


@gluon.constexpr_function
def operand(columns: int) -> gl.DotOperandLayout:
    """Layout of 8-bit rows that are multiplied from registers; of ``accumulator(columns)``."""
    return gl.DotOperandLayout(operand_index=0, parent=accumulator(columns), k_width=4)


@gluon.constexpr_function
def stored_rows(columns: int) -> gl.BlockedLayout:
    """Layout of 64 rows of 16 bits in which threads side by side hold 16 bytes each of one row."""
    lanes = min(columns // 8, 32)
    return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [4, 1], [1, 0])


@gluon.jit
def token_of_column(n):
    """Token offset whose key is stored at row ``n``; see ``primitives.token_of_position``."""
    r = n % 16
    return (n // 16) * 16 + 4 * ((r % 8) // 2) + 2 * (r // 8) + r % 2


@gluon.jit
def as_operand(x, LAYOUT: gl.constexpr):
    """A tile in the accumulator's registers as the next product's operand: nothing moves.

    K's rows are stored permuted inside groups of 16 for this; see ``token_of_column``.
    """
    ROWS: gl.constexpr = x.shape[0]
    KEYS: gl.constexpr = x.shape[1]
    x = x.reshape([ROWS, KEYS // 16, 2, 4, 2]).permute([0, 1, 3, 2, 4]).reshape([ROWS, KEYS])
    return gl.convert_layout(x, LAYOUT)


@gluon.jit
def first_of_pairs(x):
    """Every other column: a thread holds two neighbours, which are equal here."""
    return gl.split(x.reshape([x.shape[0], x.shape[1] // 2, 2]))[0]


@gluon.jit
def halves(x):
    """The left and the right half of a tile's columns: registers of their own, nothing moves."""
    return gl.split(x.reshape([x.shape[0], 2, x.shape[1] // 2]).permute([0, 2, 1]))


@gluon.jit
def whole(left, right):
    """Undoes ``halves``."""
    x = gl.join(left, right).permute([0, 2, 1])
    return x.reshape([x.shape[0], 2 * x.shape[2]])


@gluon.jit
def by_thread(x, NEIGHBOURS: gl.constexpr):
    """A tile [64, n] as [64, n / 4k, 4, k]: the four threads of a row are the third dimension.

    k: neighbouring columns of a thread, 2 in a product and 4 in an operand of 8 bits.
    """
    return x.reshape([x.shape[0], x.shape[1] // (4 * NEIGHBOURS), 4, NEIGHBOURS])


@gluon.jit
def across(x, LAYOUT: gl.constexpr):
    """A number per row and thread [64, 4], to be used with a tile of this layout by thread."""
    x = gl.convert_layout(x, gl.SliceLayout(1, gl.SliceLayout(3, LAYOUT)))
    return x[:, None, :].expand_dims(3)


@gluon.jit
def times_by_thread(x, factor):
    """A product's rows times ``factor`` [64, 4], which is the same for all threads of a row."""
    LAYOUT: gl.constexpr = x.type.layout
    split = by_thread(x, 2)
    SPLIT: gl.constexpr = split.type.layout
    scaled = split * across(factor, SPLIT)
    return gl.convert_layout(scaled.reshape([x.shape[0], x.shape[1]]), LAYOUT)


@gluon.jit
def thread_max(x):
    """The largest of a row [64, 4] that each of its four threads holds of a product."""
    # In one go: ptxas then takes three integers at a time.
    return gl.max(
        by_thread(x, 2).permute([0, 2, 1, 3]).reshape([x.shape[0], 4, x.shape[1] // 4]), 2
    )
