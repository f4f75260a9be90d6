"""Which calls the Hopper kernel of 16-bit values serves, and how it is launched. Pure.

It is the wide one: a program holds three tiles of query rows, where that of 8-bit values holds one.
"""

from __future__ import annotations

from .hopper_launch import HOPPER, QUERY_ROWS, STEP_KEYS

# Tiles of query rows of a program, each a warpgroup's, that share keys and values.
GROUPS = 3
NUM_WARPS = 4
# A thread's registers as the program starts, with 16 warps; then its groups share them out.
MAX_REGISTERS = 128
CONSUMER_REGISTERS = 160
PRODUCER_REGISTERS = 32
# Tiles of K and of V in shared memory, by bits of the keys and padded head dimension: what fits
# into 227 KiB beside Q's.
STAGES = {(8, 128): 4, (16, 128): 2, (8, 64): 8, (16, 64): 6}


def wide_serves(
    capability: tuple[int, int], head_dim: int, block: tuple[int, int], qk_bits: int, pv_bits: int
) -> bool:
    """Whether a call is the kernel's: sm_90, keys of 8 or 16 bits, values of 16.

    Calls whose keys have biases are not: the caller sees to that.

    Args:
        capability: of the card.
        head_dim: padded head dimension.
        block: (query, key) tokens of a block.
        qk_bits, pv_bits: 16, 8 or 4.
    """
    return (
        capability == HOPPER
        and pv_bits == 16
        and (qk_bits, head_dim) in STAGES
        and block[0] % QUERY_ROWS == 0
        and block[1] == STEP_KEYS
    )
