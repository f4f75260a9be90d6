"""Which tile, warps and stages a call gets, from the launch table. Pure: tested without a GPU."""

from __future__ import annotations

from .launch_table import LaunchConfig, launch_row

USUAL_DENSITY = 0.5


def select_launch(
    block: tuple[int, int], head_dim: int, qk_bits: int, pv_bits: int, capability: tuple[int, int]
) -> LaunchConfig:
    """The launch for a block, padded head dimension and bits on a card of this compute capability.

    What ``launch_table`` says of density 0.5: a call's own is not known on the host, and few calls
    are dense.
    """
    row = launch_row(block, head_dim, qk_bits, pv_bits, capability, USUAL_DENSITY)
    return row.launch_of(block)
