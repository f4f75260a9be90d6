"""Which calls the Hopper kernel serves, and how it is launched. Pure: tested without a GPU."""

from __future__ import annotations

HOPPER = (9, 0)
QUERY_ROWS = 64
KEY_BLOCK = 128
HEAD_DIMS = (64, 128)
NUM_WARPS = 4
# By padded head dimension and bits of the values. Three programs share a multiprocessor, four where
# they take 128 registers; a second tile of 128 channels in 16 bits would leave room for two.
MAX_REGISTERS = {(128, 8): 168, (64, 8): 128, (128, 16): 168, (64, 16): 168}
VALUE_STAGES = {(128, 8): 2, (64, 8): 2, (128, 16): 1, (64, 16): 2}


def hopper_serves(
    capability: tuple[int, int],
    head_dim: int,
    block: tuple[int, int],
    qk_bits: int,
    pv_bits: int,
    fp8: bool,
) -> bool:
    """Whether a call is one of the Hopper kernel's.

    It takes 8-bit keys, FP8 or 16-bit values and blocks of 128 keys, on sm_90.

    Args:
        capability: of the card.
        head_dim: padded head dimension.
        block: (query, key) tokens of a block.
        qk_bits, pv_bits: 16, 8 or 4.
        fp8: whether 8-bit values are FP8.
    """
    return (
        capability == HOPPER
        and qk_bits == 8
        and (pv_bits == 16 or (pv_bits == 8 and fp8))
        and head_dim in HEAD_DIMS
        and block[0] % QUERY_ROWS == 0
        and block[1] == KEY_BLOCK
    )
