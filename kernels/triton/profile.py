"""Offset profiles to block mass and back, without the table of corners that PyTorch needs.

The mass of a pair of blocks is read off a profile at the offsets between the centres of their runs
of tokens, trilinearly; the other way round a value of the pair is spread over the same 8 bins of
each pair of runs. Both find the bins on the fly. Sums over pairs are in float64: their order is not
fixed, and float32 would show it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

KEYS_AT_ONCE = 128


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


@triton.jit(do_not_specialize=("query_blocks", "key_blocks", "frames", "height", "width", "bins"))
def profile_kernel(
    profiles, values, sums,
    query_centre, query_tokens, key_centre, key_tokens, frame_bins, height_bins, width_bins,
    query_blocks, key_blocks, frames, height, width, bins,
    RUNS: tl.constexpr, BC: tl.constexpr, SIZE: tl.constexpr, SPREAD: tl.constexpr,
):  # fmt: skip
    """Grid (query blocks, key blocks / BC, profiles).

    Writes ``values`` [N, query_blocks, key_blocks] from ``profiles`` [N, bins], or with SPREAD adds
    each value times the pair's weight in each bin to ``sums`` float64 [N, bins].
    """
    i = tl.program_id(0)
    n = tl.program_id(2).to(tl.int64)
    j = tl.program_id(1) * BC + tl.arange(0, BC)
    exists = j < key_blocks
    at = values + (n * query_blocks + i) * key_blocks + j
    total = 0.0
    for query_run in tl.static_range(RUNS):  # pyright: ignore[reportGeneralTypeIssues]
        total += tl.load(query_tokens + i * RUNS + query_run)
    mass = tl.zeros([BC], tl.float32)
    if SPREAD:
        mass = tl.load(at, mask=exists, other=0.0)
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
                        sums + n * bins + index, (weight * mass).to(tl.float64),
                        mask=exists & (weight > 0), sem="relaxed",
                    )  # fmt: skip
                else:
                    mass += weight * tl.load(profiles + n * bins + index, mask=exists, other=0.0)
    if not SPREAD:
        tl.store(at, mass, mask=exists)


def run_profile_kernel(
    profiles: Tensor, values: Tensor, sums: Tensor, queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor], axes: tuple[Tensor, Tensor, Tensor], *, spread: bool,
) -> None:  # fmt: skip
    """Launches the kernel; all tensors contiguous and on one device.

    Args:
        profiles: float32 [N, bins], read without ``spread``.
        values: float32 [N, Qb, KVb], read with ``spread`` and written without.
        sums: float64 [N, bins], added to with ``spread``.
        queries, keys: float32 centres [blocks, runs, 3] and tokens [blocks, runs] of their runs.
        axes: float32 bin positions along frames, height and width.
        spread: from values to sums.
    """
    count, query_blocks, key_blocks = values.shape
    sizes = [len(axis) for axis in axes]
    with torch.cuda.device_of(values):
        profile_kernel[(query_blocks, triton.cdiv(key_blocks, KEYS_AT_ONCE), count)](
            profiles, values, sums, *queries, *keys, *axes,
            query_blocks, key_blocks, *sizes, sizes[0] * sizes[1] * sizes[2],
            RUNS=queries[1].shape[1], BC=KEYS_AT_ONCE,
            SIZE=triton.next_power_of_2(max(sizes)), SPREAD=spread, num_warps=4,
        )  # fmt: skip
