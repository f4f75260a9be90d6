"""Small pieces that the kernels share."""

from __future__ import annotations

from collections.abc import Iterable

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634


def stride_alignment(head_dim: int, strides: Iterable[int]) -> int:
    """What the kernels may be told to divide the strides of batch and head; 1 says nothing.

    Triton finds multiples of 16 by itself; heads of an odd multiple of 8 channels need telling.
    """
    if head_dim % 16 == 0:
        return 1
    return 8 if all(stride % 8 == 0 for stride in strides) else 1


@triton.jit
def round_to_int(x):
    """Nearest integer of |x| < 2**22, ties to even: it is the low bits of x + 1.5 * 2**23.

    One addition and no conversion instruction.
    """
    return (x + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def token_of_position(n, PERMUTE: tl.constexpr):
    """Token offset in its block that is stored at position ``n`` of the block.

    Position 8b + 2t + j of a group of 16 holds token 4t + 2b + j: columns (2t, 2t+1) of two
    adjacent 8-column accumulator fragments of a thread are then four consecutive tokens, which is
    the 8-bit operand layout of the next product.
    """
    if PERMUTE:
        r = n % 16
        return (n // 16) * 16 + 4 * ((r % 8) // 2) + 2 * (r // 8) + r % 2
    else:
        return n


@triton.jit
def columns_in_token_order(p, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Undoes ``token_of_position`` on the columns of a tile: [ROWS, COLUMNS] -> the same."""
    p = p.reshape([ROWS, COLUMNS // 16, 2, 4, 2])
    return p.permute([0, 1, 3, 2, 4]).reshape([ROWS, COLUMNS])


@triton.jit
def row_mask(valid, d, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    """Mask of [rows, D] loads and stores of rows that hold HEAD_DIM channels in memory."""
    if HEAD_DIM == D:
        return valid[:, None]
    else:
        return valid[:, None] & (d < HEAD_DIM)[None, :]


@triton.jit
def head_offset(b, h, stride_b, stride_h, ALIGNMENT: tl.constexpr):
    """Elements before the first row of a head. ALIGNMENT divides both strides.

    Triton knows which strides are multiples of 16. Heads of 72 or 120 channels are not, and without
    the hint their rows would be read a channel at a time.
    """
    offset = b * stride_b + h * stride_h
    if ALIGNMENT > 1:
        offset = tl.multiple_of(offset, ALIGNMENT)
    return offset
