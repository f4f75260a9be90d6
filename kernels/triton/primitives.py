"""Small pieces that the kernels share."""

from __future__ import annotations

import triton
import triton.language as tl


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
