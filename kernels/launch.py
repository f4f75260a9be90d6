"""Launch choice as data: which tile, warps and stages a call gets. Pure, so it is tested without a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """How the attention kernel is launched.

    Attributes:
        query_tile: query rows of one program; divides the query block.
        key_tile: keys of one step of its loop; divides the key block.
        num_warps, num_stages: Triton's launch options.
        max_registers: register cap per thread, None for the compiler's choice.
    """

    query_tile: int
    key_tile: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None


def select_launch(
    block: tuple[int, int], head_dim: int, qk_bits: int, pv_bits: int, capability: tuple[int, int]
) -> LaunchConfig:
    """The launch for a block and bits on a card of this compute capability.

    Low-bit P and V are scaled per key block, so there the key tile is the key block. A 64-row tile
    with four warps keeps three programs on a multiprocessor at 8 bits.
    """
    query_block, key_block = block
    low_bits = pv_bits < 16
    query_tile = min(query_block, 64)
    key_tile = key_block if low_bits else min(key_block, 64)
    roomy = capability[0] >= 9 or capability == (8, 0)
    if qk_bits == 4 or pv_bits == 4:
        return LaunchConfig(query_tile, key_tile, 4, 1)
    if low_bits and capability[0] == 9:
        return LaunchConfig(query_tile, key_tile, 4, 2, max_registers=168)
    if low_bits:
        return LaunchConfig(query_tile, key_tile, 4, 3 if roomy else 2)
    if query_block == 128 and roomy and qk_bits == 16:
        query_tile = 128
    return LaunchConfig(query_tile, key_tile, 4, 3 if roomy else 2)
