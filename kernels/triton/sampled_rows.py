"""Attention of sampled query rows over all keys of their maps, whole or with some blocks left out.

The keys of a map are shared among ``splits`` programs per tile of rows, because a sample alone is
too short to fill a card; their parts are joined by weight afterwards. Whole passes also note the
log-sum-exp of every row over every step of BN keys, from which block mass follows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .block_mass import INTERPRETED_PROGRAMS
from .primitives import LOG2_E

ROW_TILE = 64


class RowAttention(NamedTuple):
    """Attention of R rows of N maps, base-2 logarithms.

    Attributes:
        output: float32 [N, R, D], softmax over the keys that were looked at.
        logsumexp: float32 [N, R] over the same keys; about -1e30 where there was none.
        notes: float32 [N, steps, R] log-sum-exp over each step of ``keys_of_step(block)`` keys;
            1 element where blocks were left out.
    """

    output: Tensor
    logsumexp: Tensor
    notes: Tensor


def keys_of_step(key_block: int) -> int:
    """Keys of one step of the kernel's loop, a divisor of the key block."""
    return min(key_block, 64)


@triton.jit
def attend_step(
    acc, row_sum, row_max, q, keys, values, first, end, kept, scale_log2,
    D: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Folds BN keys into (acc, row_sum, row_max) and returns their log-sum-exp as well.

    MASKED: rows whose ``kept`` is 0 leave these keys out; the running maximum is over all keys all
    the same, so that whole and masked passes round alike.
    """
    n = tl.arange(0, BN)
    d = tl.arange(0, D)
    s = tl.dot(q, tl.load(keys + first * D + (n[None, :] * D + d[:, None])))
    if RAGGED:
        s = tl.where((first + n < end)[None, :], s, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(s, 1) * scale_log2)
    p = tl.exp2(s * scale_log2 - new_max[:, None])
    if MASKED:
        p = p * kept[:, None]
    alpha = tl.exp2(row_max - new_max)
    total = tl.sum(p, 1)
    value = tl.load(values + first * D + (n[:, None] * D + d[None, :]))
    acc = tl.dot(p.to(value.dtype), value, acc * alpha[:, None])
    return acc, row_sum * alpha + total, new_max, new_max + tl.log2(total)


@triton.jit(
    do_not_specialize=("S", "rows", "samples", "blocks", "rows_of_block", "key_blocks", "steps")
)
def sampled_rows_kernel(
    Q, keys, values, computed, out, logsumexp, notes,
    S, rows, samples, blocks, rows_of_block, key_blocks, steps, splits, scale_log2,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STEPS_OF_BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Grid (samples / BM, splits, maps); Q [maps, samples, D], keys and values [maps, rows, D].

    MASKED: ``computed`` [maps, blocks, key_blocks] int8 says which blocks are looked at.
    """
    split = tl.program_id(1)
    n = tl.program_id(2).to(tl.int64)
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, D)
    q = tl.load(Q + (n * samples + r)[:, None] * D + d[None, :])
    keys += n * rows * D
    values += n * rows * D
    notes += n * steps * samples + r
    block_of_row = tl.minimum(r // rows_of_block, blocks - 1)
    computed += (n * blocks + block_of_row) * key_blocks
    begin = (split * steps) // splits
    end = ((split + 1) * steps) // splits
    whole = tl.minimum(end, tl.maximum(begin, S // BN))

    acc = tl.zeros([BM, D], tl.float32)
    row_sum = tl.zeros([BM], tl.float32)
    row_max = tl.full([BM], -1e30, tl.float32)
    kept = row_sum
    for step in range(begin, whole):
        if MASKED:
            kept = tl.load(computed + step // STEPS_OF_BLOCK).to(tl.float32)
        acc, row_sum, row_max, note = attend_step(
            acc, row_sum, row_max, q, keys, values, step * BN, S, kept, scale_log2,
            D, BN, MASKED, False,
        )  # fmt: skip
        if not MASKED:
            tl.store(notes + step * samples, note)
    for step in tl.range(whole, end, num_stages=1):
        if MASKED:
            kept = tl.load(computed + step // STEPS_OF_BLOCK).to(tl.float32)
        acc, row_sum, row_max, note = attend_step(
            acc, row_sum, row_max, q, keys, values, step * BN, S, kept, scale_log2,
            D, BN, MASKED, True,
        )  # fmt: skip
        if not MASKED:
            tl.store(notes + step * samples, note)

    at = (n * splits + split) * samples + r
    some = row_sum > 0.0
    acc = acc * (1.0 / tl.where(some, row_sum, 1.0))[:, None]
    tl.store(out + at[:, None] * D + d[None, :], acc)
    tl.store(logsumexp + at, tl.where(some, row_max + tl.log2(row_sum), -1e30))


def attend_sampled_rows(
    q: Tensor, keys: Tensor, values: Tensor, tokens: int, key_block: int, scale: float,
    computed: Tensor | None = None, rows_of_block: int = 1,
) -> RowAttention:  # fmt: skip
    """Attention of sampled rows.

    Args:
        q: [N, R, D], R a multiple of ROW_TILE.
        keys, values: [N, rows, D] from ``gather``, in whole key blocks, in the dtype of q.
        tokens: keys of each map; the rest of ``rows`` is padding.
        key_block: key tokens of a block.
        scale: softmax scale.
        computed: bool [N, n, KVb], the blocks that are looked at by each ``rows_of_block`` rows;
            rows behind the last of n blocks go with it. None: all blocks.
        rows_of_block: rows of q per query block.
    """
    maps, samples, width = q.shape
    keys_at_once = keys_of_step(key_block)
    steps = triton.cdiv(tokens, keys_at_once)
    splits = _splits(maps * (samples // ROW_TILE), steps, q.device)
    like = {"dtype": torch.float32, "device": q.device}
    out = torch.empty(maps, splits, samples, width, **like)
    logsumexp = torch.empty(maps, splits, samples, **like)
    whole = computed is None
    notes = torch.empty((maps, steps, samples) if whole else (1,), **like)
    hopper = q.device.type == "cpu" or torch.cuda.get_device_capability(q.device)[0] == 9
    blocks, key_blocks = (1, 1) if computed is None else computed.shape[1:]
    with torch.cuda.device_of(q):
        sampled_rows_kernel[(samples // ROW_TILE, splits, maps)](
            q, keys, values, notes if computed is None else computed.view(torch.int8),
            out, logsumexp, notes, tokens, keys.shape[1], samples, blocks, rows_of_block,
            key_blocks, steps, splits, scale * LOG2_E,
            D=width, BM=ROW_TILE, BN=keys_at_once, STEPS_OF_BLOCK=key_block // keys_at_once,
            MASKED=not whole, num_warps=4 if hopper and width <= 128 else 8,
            num_stages=2 if width <= 128 else 1,
        )  # fmt: skip
    if splits == 1:
        return RowAttention(out[:, 0], logsumexp[:, 0], notes)
    top = logsumexp.amax(1, keepdim=True)
    weight = (logsumexp - top).exp2()
    total = weight.sum(1)
    # Where no split saw a key, all of them weigh alike and their outputs are 0.
    joined = torch.einsum("nsrd,nsr->nrd", out, weight)
    return RowAttention(joined / total[..., None], top[:, 0] + total.log2(), notes)


def _splits(tiles: int, steps: int, device: torch.device) -> int:
    """Programs per tile of rows that fill the card about four times, 8 steps each at least."""
    if device.type == "cpu":
        return min(INTERPRETED_PROGRAMS, steps)
    wanted = 8 * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(-(-wanted // tiles), steps // 8, 16))
