"""Offset profiles to block mass and back, without the table of corners that PyTorch needs.

The mass of a pair of blocks is read off a profile at the offsets between the centres of their runs
of tokens, trilinearly; the other way round a value of the pair is spread over the same 8 bins of
each pair of runs. Both find the bins on the fly. Sums over pairs are in whole numbers of a small
unit: their order is not fixed, and these do not depend on it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KEYS_AT_ONCE = 128
LARGEST_RATIO = tl.constexpr(1048576.0)


@triton.jit
def bracket(offset, positions, count, SIZE: tl.constexpr):
    """Lower and upper bin of each offset and the fraction between them; ends are held."""
    i = tl.arange(0, SIZE)
    listed = tl.load(positions + i, mask=i < count, other=float("inf"))
    least = tl.load(positions)
    most = tl.load(positions + count - 1)
    offset = tl.minimum(tl.maximum(offset, least), most)
    high = tl.sum((listed[None, :] < offset[:, None]).to(tl.int32), 1)
    high = tl.minimum(high, count - 1)
    low = tl.maximum(high - 1, 0)
    start = tl.load(positions + low)
    width = tl.maximum(tl.load(positions + high) - start, 1.0)
    return low, high, (offset - start) / width


@triton.jit
def corners_of_pairs(
    profile, sums, values, unit, i, j,
    query_centre, query_tokens, key_centre, key_tokens, frame_bins, height_bins, width_bins,
    key_blocks, frames, height, width,
    RUNS: tl.constexpr, BC: tl.constexpr, SIZE: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """The mass of query block ``i`` with key blocks ``j`` [BC], read off ``profile``.

    SPREAD: adds ``values`` [BC], in units, to the bins ``sums`` instead.
    """
    exists = j < key_blocks
    total = 0.0
    for query_run in tl.static_range(RUNS):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(query_tokens + i * RUNS + query_run)
    mass = tl.zeros([BC], tl.float32)
    for query_run in tl.static_range(RUNS):
        query = i * RUNS + query_run
        share = tl.load(query_tokens + query) / total
        for key_run in tl.static_range(RUNS):
            key = j * RUNS + key_run
            tokens = tl.load(key_tokens + key, mask=exists, other=0.0) * share
            df = tl.load(key_centre + key * 3, mask=exists, other=0.0)
            dh = tl.load(key_centre + key * 3 + 1, mask=exists, other=0.0)
            dw = tl.load(key_centre + key * 3 + 2, mask=exists, other=0.0)
            f0, f1, f = bracket(df - tl.load(query_centre + query * 3), frame_bins, frames, SIZE)
            h0, h1, h = bracket(
                dh - tl.load(query_centre + query * 3 + 1), height_bins, height, SIZE
            )
            w0, w1, w = bracket(dw - tl.load(query_centre + query * 3 + 2), width_bins, width, SIZE)
            for corner in tl.static_range(8):
                if corner // 4 == 0:
                    index = f0
                    weight = tokens * (1 - f)
                else:
                    index = f1
                    weight = tokens * f
                if (corner // 2) % 2 == 0:
                    index = index * height + h0
                    weight = weight * (1 - h)
                else:
                    index = index * height + h1
                    weight = weight * h
                if corner % 2 == 0:
                    index = index * width + w0
                    weight = weight * (1 - w)
                else:
                    index = index * width + w1
                    weight = weight * w
                if SPREAD:
                    tl.atomic_add(
                        sums + index, (weight * values * unit).to(tl.int64),
                        mask=exists & (weight > 0), sem="relaxed",
                    )  # fmt: skip
                else:
                    mass += weight * tl.load(profile + index, mask=exists, other=0.0)
    return mass


@triton.jit(
    do_not_specialize=("query_blocks", "key_blocks", "frames", "height", "width", "bins", "unit")
)  # fmt: skip
def profile_kernel(
    profiles, measured, values, sums, forced, order_of_profile,
    query_centre, query_tokens, key_centre, key_tokens, frame_bins, height_bins, width_bins,
    query_blocks, key_blocks, frames, height, width, bins, unit,
    RUNS: tl.constexpr, BC: tl.constexpr, SIZE: tl.constexpr,
    EVALUATE: tl.constexpr, SPREAD: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, profiles); a program owns a row of ``values`` [N, query_blocks, KVb].

    EVALUATE: the row becomes the mass that the profile predicts, with sum 1. SPREAD: ``measured``,
    or with EVALUATE its ratio to the prediction, is added to ``sums`` int64 [N, bins] in units.
    RANK: the row's greatest mass and the ``forced`` blocks become infinite.
    """
    i = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    order = tl.load(order_of_profile + n).to(tl.int64)
    query_centre += order * query_blocks * RUNS * 3
    query_tokens += order * query_blocks * RUNS
    key_centre += order * key_blocks * RUNS * 3
    key_tokens += order * key_blocks * RUNS
    profiles += n * bins
    sums += n * bins
    row = (n * query_blocks + i) * key_blocks
    c = tl.arange(0, BC)
    total = 0.0
    if EVALUATE:
        for first in range(0, key_blocks, BC):
            j = first + c
            mass = corners_of_pairs(
                profiles, sums, 0.0, unit, i, j, query_centre, query_tokens, key_centre,
                key_tokens, frame_bins, height_bins, width_bins, key_blocks, frames, height, width,
                RUNS, BC, SIZE, False,
            )  # fmt: skip
            total += tl.sum(tl.where(j < key_blocks, mass, 0.0), 0)
            tl.store(values + row + j, mass, mask=j < key_blocks)
        total = tl.maximum(total, 1e-30)
        tl.debug_barrier()  # other threads of this program may have written what follows
    best = -1.0
    best_at = 0
    for first in range(0, key_blocks, BC):
        j = first + c
        exists = j < key_blocks
        mass = tl.zeros([BC], tl.float32)
        if EVALUATE:
            mass = tl.load(values + row + j, mask=exists, other=0.0) / total
        if SPREAD:
            value = tl.load(measured + row + j, mask=exists, other=0.0)
            if EVALUATE:
                value = tl.minimum(value / tl.maximum(mass, 1e-12), LARGEST_RATIO)
            corners_of_pairs(
                profiles, sums, value, unit, i, j, query_centre, query_tokens, key_centre,
                key_tokens, frame_bins, height_bins, width_bins, key_blocks, frames, height, width,
                RUNS, BC, SIZE, True,
            )  # fmt: skip
        else:
            if RANK:
                here = tl.max(tl.where(exists, mass, -1.0), 0)
                at = first + tl.argmax(tl.where(exists, mass, -1.0), 0)
                best_at = tl.where(here > best, at, best_at)
                best = tl.maximum(best, here)
                held = tl.load(forced + i * key_blocks + j, mask=exists, other=0)
                mass = tl.where(held != 0, float("inf"), mass)
            tl.store(values + row + j, mass, mask=exists)
    if RANK:
        tl.debug_barrier()
        tl.store(values + row + best_at, float("inf"))


def run_profile_kernel(
    profiles: Tensor, measured: Tensor, values: Tensor, sums: Tensor, forced: Tensor,
    order_of_profile: Tensor, queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor],
    axes: tuple[Tensor, Tensor, Tensor], unit: float,
    *, evaluate: bool, spread: bool, rank: bool,
) -> None:  # fmt: skip
    """Launches the kernel; all tensors contiguous and on one device.

    Args:
        profiles: float32 [N, bins], read with ``evaluate``.
        measured: float32 [N, Qb, KVb], read with ``spread``.
        values: float32 [N, Qb, KVb], written with ``evaluate``.
        sums: int64 [N, bins], added to with ``spread``.
        forced: int8 [Qb, KVb], read with ``rank``.
        order_of_profile: int32 [N], which of the geometries.
        queries, keys: float32 centres [O, blocks, runs, 3] and tokens [O, blocks, runs] of runs.
        axes: float32 bin positions along frames, height and width.
        unit: steps of ``sums`` per 1.
        evaluate, spread, rank: what is done, see the kernel.
    """
    query_blocks, key_blocks, runs = queries[1].shape[1], *keys[1].shape[1:]
    sizes = [len(axis) for axis in axes]
    with torch.cuda.device_of(values):
        profile_kernel[(query_blocks, len(order_of_profile))](
            profiles, measured, values, sums, forced, order_of_profile, *queries, *keys, *axes,
            query_blocks, key_blocks, *sizes, sizes[0] * sizes[1] * sizes[2], unit,
            RUNS=runs, BC=KEYS_AT_ONCE, SIZE=triton.next_power_of_2(max(sizes)),
            EVALUATE=evaluate, SPREAD=spread, RANK=rank, num_warps=4,
        )  # fmt: skip
