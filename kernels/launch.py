"""Launch choice as data: which tile, warps and stages a call gets. Pure: tested without a GPU."""

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
        tma: load keys and values by the tensor copy engine (sm_90 and newer).
        paired: two key blocks a step, with FP8 values that come by the copy engine.
    """

    query_tile: int
    key_tile: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    tma: bool = False
    paired: bool = False


def select_launch(
    block: tuple[int, int], head_dim: int, qk_bits: int, pv_bits: int, capability: tuple[int, int]
) -> LaunchConfig:
    """The launch for a block, padded head dimension and bits on a card of this compute capability.

    Low-bit P and V are scaled per key block, so there the key tile is the key block. Only the rows
    for Hopper were measured; the others follow shared memory and registers as compiled.
    """
    query_block, key_block = block
    hopper = capability[0] == 9
    low_bits = pv_bits < 16
    query_tile = min(query_block, 64)
    if head_dim > 128:
        return _wide_launch(block, qk_bits, pv_bits, hopper)
    if qk_bits == 4 or pv_bits == 4:
        return LaunchConfig(query_tile, key_block if low_bits else min(key_block, 64), 4, 2)
    if low_bits and hopper and qk_bits == 16:
        return LaunchConfig(query_tile, key_block, 4, 2, tma=True)
    if low_bits and hopper:
        # 64x128: 168 registers and two stages hold three programs on a multiprocessor (660 against
        # 612 TFLOP/s with three stages, 561 without the cap, at density 0.5 on an H100).
        stages = 2 if key_block == 128 or qk_bits == 8 else 3
        return LaunchConfig(
            query_tile, key_block, 4, stages, max_registers=168, tma=True, paired=key_block == 64
        )
    if low_bits:
        return LaunchConfig(query_tile, key_block, 4, 3 if capability == (8, 0) else 2)
    if hopper:
        # Shared memory leaves room for two programs, so that registers need no cap. 16 bits: 471
        # TFLOP/s dense against 418 with two stages and 445 with 128 rows (an H100).
        key_tile = min(key_block, 64) if qk_bits == 16 else key_block
        return LaunchConfig(query_tile, key_tile, 4, 3 if qk_bits == 16 else 2, tma=True)
    return LaunchConfig(query_tile, min(key_block, 64), 4, 2)


def _wide_launch(block: tuple[int, int], qk_bits: int, pv_bits: int, hopper: bool) -> LaunchConfig:
    """Rows of 256 channels. Not timed: chosen by registers and shared memory as compiled.

    Only Hopper has more than 99 KiB of shared memory for sure, and 64 rows suit its instructions.
    """
    query_block, key_block = block
    low_bits = pv_bits < 16
    key_tile = key_block if low_bits else min(key_block, 64)
    if qk_bits == 4 or pv_bits == 4 or (qk_bits == 16 and not hopper):
        # A 16-bit K of 128 keys fills the memory by itself: no second stage.
        stages = 1 if qk_bits == 16 and low_bits and not hopper else 2
        warps = 8 if low_bits or qk_bits == 4 else 4
        return LaunchConfig(min(query_block, 32), key_tile, warps, stages)
    return LaunchConfig(min(query_block, 64), key_tile, 8, 2, tma=hopper)
