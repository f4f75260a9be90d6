"""Offset profiles to block mass and back on a GPU. The twin is calibration's `ProfileGeometry`."""

from __future__ import annotations

import torch
from torch import Tensor

Runs = tuple[Tensor, Tensor]
Axes = tuple[Tensor, Tensor, Tensor]


def masses_of_profiles(profiles: Tensor, queries: Runs, keys: Runs, axes: Axes) -> Tensor:
    """Unnormalised block mass of profiles; only where the kernels run.

    Args:
        profiles: float32 [N, bf, bh, bw].
        queries, keys: float32 centre [blocks, runs, 3] and tokens [blocks, runs] of the blocks.
        axes: float32 bin positions along frames, height and width.

    Returns:
        float32 [N, Qb, KVb].
    """
    from .triton.profile import run_profile_kernel

    flat = profiles.reshape(len(profiles), -1).contiguous()
    mass = flat.new_empty(len(flat), len(queries[1]), len(keys[1]))
    run_profile_kernel(flat, mass, flat, queries, keys, axes, spread=False)
    return mass


def spread_values(values: Tensor, queries: Runs, keys: Runs, axes: Axes) -> Tensor:
    """Values of pairs of blocks, summed into the bins that each pair touches, by weight.

    Args:
        values: float32 [N, Qb, KVb].
        queries, keys, axes: as `masses_of_profiles`.

    Returns:
        float32 [N, bf * bh * bw], summed in float64.
    """
    from .triton.profile import run_profile_kernel

    values = values.contiguous()
    bins = len(axes[0]) * len(axes[1]) * len(axes[2])
    sums = torch.zeros(len(values), bins, dtype=torch.float64, device=values.device)
    run_profile_kernel(values, values, sums, queries, keys, axes, spread=True)
    return sums.float()
