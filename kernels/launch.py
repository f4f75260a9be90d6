"""Which tile, warps and stages a call gets, from the launch table. Pure: tested without a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from .launch_table import launch_row

USUAL_DENSITY = 0.5


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """How the attention kernel is launched.

    Attributes:
        query_tile: query rows of one program; divides the query block.
        key_tile: keys of one step of its loop; divides the key block.
        num_warps, num_stages: Triton's launch options.
        max_registers: register cap per thread, None for the compiler's choice.
        tma: load keys and values by the tensor copy engine (sm_90 and newer).
        paired: two key blocks a step, with FP8 values.
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

    What ``launch_table`` says of density 0.5: a call's own is not known on the host, and few calls
    are dense.
    """
    row = launch_row(block, head_dim, qk_bits, pv_bits, capability, USUAL_DENSITY)
    query_tile, key_tile = row.tile(block)
    return LaunchConfig(
        query_tile, key_tile, row.num_warps, row.num_stages, row.max_registers, row.tma, row.paired
    )
