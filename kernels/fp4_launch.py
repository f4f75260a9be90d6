"""Which calls the FP4 kernel serves, and how it is launched: data, tested without a GPU."""

from __future__ import annotations

from dataclasses import dataclass

# Where Triton 3.6 multiplies NVFP4 natively in this kernel. On sm_100 it does in tiles of 128 rows,
# but not with scales that a kernel computes, as those of P are; on sm_121 not at all.
CAPABILITIES = ((12, 0),)
MAX_HEAD_DIM = 128
# One instruction sums 64 keys.
KEY_BLOCKS = (64, 128)


@dataclass(frozen=True, slots=True)
class Fp4Launch:
    """How the FP4 kernel is launched.

    Attributes:
        query_tile: query rows of one program; divides the query block. A warp owns 16.
        num_warps, num_stages: Triton's launch options.
    """

    query_tile: int
    num_warps: int
    num_stages: int


def fp4_serves(
    capability: tuple[int, int], head_dim: int, block: tuple[int, int] = (64, 64)
) -> bool:
    """Whether the FP4 kernel serves ``head_dim`` channels and this block on such a card."""
    return capability in CAPABILITIES and head_dim <= MAX_HEAD_DIM and block[1] in KEY_BLOCKS


def select_fp4_launch(block: tuple[int, int]) -> Fp4Launch:
    """The launch for a block; read off the machine code for sm_120, not timed."""
    query_tile = min(block[0], 64)
    return Fp4Launch(query_tile, query_tile // 16, 2)
