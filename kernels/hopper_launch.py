"""Which calls the Hopper kernel of 8-bit values serves, and how it is launched. Pure.

That of 16-bit values is in ``hopper_wide_launch``.
"""

from __future__ import annotations

HOPPER = (9, 0)
QUERY_ROWS = 64
# Keys of a step, one block or two narrow ones, and pooled rows of a tile (``packed_layout``).
STEP_KEYS = 128
KEY_BLOCKS = (64, 128)
HEAD_DIMS = (64, 128)
NUM_WARPS = 4
# By padded head dimension: three programs share a multiprocessor, or four.
MAX_REGISTERS = {128: 168, 64: 128}


def hopper_serves(
    capability: tuple[int, int],
    head_dim: int,
    block: tuple[int, int],
    qk_bits: int,
    pv_bits: int,
    fp8: bool,
    tail: bool,
) -> bool:
    """Whether a call is one of the Hopper kernel's: sm_90, 8-bit keys, FP8 values.

    Calls whose keys have biases are not: the caller sees to that.

    Args:
        capability: of the card.
        head_dim: padded head dimension.
        block: (query, key) tokens of a block.
        qk_bits, pv_bits: 16, 8 or 4.
        fp8: whether 8-bit values are FP8.
        tail: whether blocks that are not computed have a pooled tail.
    """
    return (
        capability == HOPPER
        and qk_bits == pv_bits == 8
        and fp8
        and head_dim in HEAD_DIMS
        and block[0] % QUERY_ROWS == 0
        and block[1] in KEY_BLOCKS
        # The zero keys that fill an odd list's last step drown keys whose logits all lie far below
        # the mean key's. With a tail a row always has larger ones.
        and (tail or block[1] == STEP_KEYS)
    )
