"""Attention of sampled query rows over all keys of their maps, whole or with some blocks left out.

Rows of q, k and v are read where the model left them, through the order of the map: a map costs no
copy of its keys, and the maps of one head share those in the cache. Where the rows are too few to
fill the card, ``splits`` programs share the keys of a tile of rows.

Running maxima are rounded up to whole numbers (base 2), so that rescaling only changes exponents:
probabilities round alike in both passes, however their sums are cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..packed_layout import padded_head_dim
from .block_mass import INTERPRETED_PROGRAMS
from .primitives import LOG2_E, head_offset

ROW_TILE = 128


class Maps(NamedTuple):
    """Rows of N maps. Fields as in ``sampled_rows_api.MapRows``."""

    q: Tensor
    k: Tensor
    v: Tensor
    permutation: Tensor
    head_of_map: Tensor
    order_of_map: Tensor
    positions: Tensor
    block: tuple[int, int]
    rows_of_block: int
    scale: float
    alignment: int


class DenseRows(NamedTuple):
    """Attention of R rows of N maps over all of their keys, base-2 logarithms.

    Attributes:
        output: float32 [N, R, D].
        logsumexp: float32 [N, R].
        top: float32 [N, R], a whole number that no logit exceeds.
        block_logsumexp: float32 [N, KVb, R], over each key block.
        block_logits: float32 [N, KVb, R], sum of the logits of each key block.
    """

    output: Tensor
    logsumexp: Tensor
    top: Tensor
    block_logsumexp: Tensor
    block_logits: Tensor


@dataclass(frozen=True, slots=True)
class RowsLaunch:
    """Launch of the two passes: rows of a program and Triton's options.

    ``kept_stages``: of the pass over some of the blocks.
    """

    rows: int
    num_warps: int
    num_stages: int
    kept_stages: int


def select_rows_launch(width: int, device: torch.device) -> RowsLaunch:
    """The launch for a padded head dimension."""
    capability = (9, 0) if device.type == "cpu" else torch.cuda.get_device_capability(device)
    roomy = capability in ((8, 0), (9, 0), (10, 0))
    if width > 128:
        return RowsLaunch(64, 8, 2, 2) if roomy else RowsLaunch(64, 8, 1, 1)
    # Tokens are fetched before their keys: five stages are one step of keys ahead, three none. With
    # three the second pass spills on sm_86.
    return RowsLaunch(ROW_TILE, 8, 5, 5) if roomy else RowsLaunch(ROW_TILE, 8, 3, 2)


@triton.jit
def rows_of(X, token, stride_s, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    """[tokens, D] rows of a head; channels behind HEAD_DIM are 0."""
    d = tl.arange(0, D)
    at = X + token.to(tl.int64)[:, None] * stride_s + d[None, :]
    if HEAD_DIM == D:
        return tl.load(at)
    else:
        return tl.load(at, mask=(d < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def logits_of(
    q, K, order, first, end, stride_s, scale_log2,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Base-2 logits of BN keys from place ``first`` on, -inf behind ``end``, and their tokens."""
    place = first + tl.arange(0, BN)
    token = tl.load(order + place, mask=place < end, other=0) if RAGGED else tl.load(order + place)
    s = tl.dot(q, tl.trans(rows_of(K, token, stride_s, HEAD_DIM, D))) * scale_log2
    if RAGGED:
        s = tl.where((place < end)[None, :], s, float("-inf"))
    return s, token


@triton.jit
def dense_step(
    acc, row_sum, row_max, block_sum, block_logits, q, K, V, order, first, end, fresh,
    k_stride_s, v_stride_s, scale_log2,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Folds BN keys into the sums; ``fresh``: a key block begins with them."""
    s, token = logits_of(  # pyright: ignore[reportGeneralTypeIssues]
        q, K, order, first, end, k_stride_s, scale_log2, HEAD_DIM, D, BN, RAGGED
    )  # fmt: skip
    new_max = tl.maximum(row_max, tl.ceil(tl.max(s, 1)))
    p = tl.exp2(s - new_max[:, None])
    alpha = tl.exp2(row_max - new_max)
    total = tl.sum(p, 1)
    if RAGGED:
        s = tl.where((first + tl.arange(0, BN) < end)[None, :], s, 0.0)
    logits = tl.sum(s, 1)
    value = rows_of(V, token, v_stride_s, HEAD_DIM, D)
    acc = tl.dot(p.to(value.dtype), value, acc * alpha[:, None])
    block_sum = tl.where(fresh, 0.0, block_sum * alpha) + total
    block_logits = tl.where(fresh, 0.0, block_logits) + logits
    return acc, row_sum * alpha + total, new_max, block_sum, block_logits


@triton.jit(do_not_specialize=("S", "rows", "key_blocks", "splits"))
def dense_rows_kernel(
    Q, K, V, permutation, positions, head_of_map, order_of_map,
    out, logsumexp, top, block_logsumexp, block_logits,
    q_stride_h, q_stride_s, k_stride_h, k_stride_s, v_stride_h, v_stride_s,
    S, rows, key_blocks, splits, scale_log2,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, STEPS_OF_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows / BM, splits, maps)."""
    split = tl.program_id(1)
    n = tl.program_id(2).to(tl.int64)
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    h = tl.load(head_of_map + n).to(tl.int64)
    order = permutation + tl.load(order_of_map + n).to(tl.int64) * S
    Q += head_offset(0, h, 0, q_stride_h, ALIGNMENT)
    K += head_offset(0, h, 0, k_stride_h, ALIGNMENT)
    V += head_offset(0, h, 0, v_stride_h, ALIGNMENT)
    q = rows_of(Q, tl.load(order + tl.load(positions + r)), q_stride_s, HEAD_DIM, D)
    block_logsumexp += n * key_blocks * rows + r
    block_logits += n * key_blocks * rows + r
    begin = (split * key_blocks) // splits * STEPS_OF_BLOCK
    end = tl.minimum(((split + 1) * key_blocks) // splits * STEPS_OF_BLOCK, (S + BN - 1) // BN)
    whole = tl.minimum(end, tl.maximum(begin, S // BN))

    acc = tl.zeros([BM, D], tl.float32)
    row_sum = tl.zeros([BM], tl.float32)
    row_max = tl.full([BM], -1e30, tl.float32)
    block_sum = row_sum
    logits = row_sum
    for step in range(begin, whole):
        acc, row_sum, row_max, block_sum, logits = dense_step(
            acc, row_sum, row_max, block_sum, logits, q, K, V, order, step * BN, S,
            step % STEPS_OF_BLOCK == 0, k_stride_s, v_stride_s, scale_log2,
            HEAD_DIM, D, BN, False,
        )  # fmt: skip
        # The last step of a block overwrites what those before it wrote.
        tl.store(block_logsumexp + step // STEPS_OF_BLOCK * rows, row_max + tl.log2(block_sum))
        tl.store(block_logits + step // STEPS_OF_BLOCK * rows, logits)
    for step in tl.range(whole, end, num_stages=1):
        acc, row_sum, row_max, block_sum, logits = dense_step(
            acc, row_sum, row_max, block_sum, logits, q, K, V, order, step * BN, S,
            step % STEPS_OF_BLOCK == 0, k_stride_s, v_stride_s, scale_log2,
            HEAD_DIM, D, BN, True,
        )  # fmt: skip
        tl.store(block_logsumexp + step // STEPS_OF_BLOCK * rows, row_max + tl.log2(block_sum))
        tl.store(block_logits + step // STEPS_OF_BLOCK * rows, logits)

    at = (n * splits + split) * rows + r
    tl.store(out + at[:, None] * D + tl.arange(0, D)[None, :], acc * (1.0 / row_sum)[:, None])
    tl.store(logsumexp + at, row_max + tl.log2(row_sum))
    tl.store(top + at, row_max)


@triton.jit
def kept_step(
    acc, row_sum, row_max, kept, q, K, V, order, first, end, k_stride_s, v_stride_s, scale_log2,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Adds BN keys to the sums of the rows whose ``kept`` is 1."""
    s, token = logits_of(  # pyright: ignore[reportGeneralTypeIssues]
        q, K, order, first, end, k_stride_s, scale_log2, HEAD_DIM, D, BN, RAGGED
    )  # fmt: skip
    p = tl.exp2(s - row_max[:, None]) * kept[:, None]
    value = rows_of(V, token, v_stride_s, HEAD_DIM, D)
    acc = tl.dot(p.to(value.dtype), value, acc)
    return acc, row_sum + tl.sum(p, 1)


@triton.jit(
    do_not_specialize=("S", "rows", "key_blocks", "splits", "blocks", "rows_of_block")
)  # fmt: skip
def kept_rows_kernel(
    Q, K, V, permutation, positions, head_of_map, order_of_map, kept, top, out, totals,
    q_stride_h, q_stride_s, k_stride_h, k_stride_s, v_stride_h, v_stride_s,
    S, rows, key_blocks, splits, blocks, rows_of_block, scale_log2,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, STEPS_OF_BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows / BM, splits, maps); ``kept`` int8 [maps, blocks, key_blocks]."""
    split = tl.program_id(1)
    n = tl.program_id(2).to(tl.int64)
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    h = tl.load(head_of_map + n).to(tl.int64)
    order = permutation + tl.load(order_of_map + n).to(tl.int64) * S
    Q += head_offset(0, h, 0, q_stride_h, ALIGNMENT)
    K += head_offset(0, h, 0, k_stride_h, ALIGNMENT)
    V += head_offset(0, h, 0, v_stride_h, ALIGNMENT)
    q = rows_of(Q, tl.load(order + tl.load(positions + r)), q_stride_s, HEAD_DIM, D)
    kept += (n * blocks + tl.minimum(r // rows_of_block, blocks - 1)) * key_blocks
    row_max = tl.load(top + n * rows + r)
    begin = (split * key_blocks) // splits * STEPS_OF_BLOCK
    end = tl.minimum(((split + 1) * key_blocks) // splits * STEPS_OF_BLOCK, (S + BN - 1) // BN)
    whole = tl.minimum(end, tl.maximum(begin, S // BN))

    acc = tl.zeros([BM, D], tl.float32)
    row_sum = tl.zeros([BM], tl.float32)
    for step in range(begin, whole):
        looked_at = tl.load(kept + step // STEPS_OF_BLOCK).to(tl.float32)
        acc, row_sum = kept_step(
            acc, row_sum, row_max, looked_at, q, K, V, order, step * BN, S,
            k_stride_s, v_stride_s, scale_log2, HEAD_DIM, D, BN, False,
        )  # fmt: skip
    for step in tl.range(whole, end, num_stages=1):
        looked_at = tl.load(kept + step // STEPS_OF_BLOCK).to(tl.float32)
        acc, row_sum = kept_step(
            acc, row_sum, row_max, looked_at, q, K, V, order, step * BN, S,
            k_stride_s, v_stride_s, scale_log2, HEAD_DIM, D, BN, True,
        )  # fmt: skip

    at = (n * splits + split) * rows + r
    tl.store(out + at[:, None] * D + tl.arange(0, D)[None, :], acc)
    tl.store(totals + at, row_sum)


def attend_all(maps: Maps, launch: RowsLaunch | None = None) -> DenseRows:
    """The rows over all keys."""
    shape, common, options = _call(maps, launch or _launch_of(maps))
    count, splits, rows, width, key_blocks = shape
    like = {"dtype": torch.float32, "device": maps.q.device}
    out = torch.empty(count, splits, rows, width, **like)
    logsumexp, top = torch.empty(2, count, splits, rows, **like)
    block_logsumexp, block_logits = torch.empty(2, count, key_blocks, rows, **like)
    with torch.cuda.device_of(maps.q):
        dense_rows_kernel[(rows // options["BM"], splits, count)](
            *common[0], out, logsumexp, top, block_logsumexp, block_logits, *common[1],
            rows, key_blocks, splits, maps.scale * LOG2_E, **options,
        )  # fmt: skip
    if splits == 1:
        return DenseRows(out[:, 0], logsumexp[:, 0], top[:, 0], block_logsumexp, block_logits)
    most = logsumexp.amax(1, keepdim=True)
    weight = (logsumexp - most).exp2_()
    total = weight.sum(1)
    joined = out.mul_(weight[..., None]).sum(1).div_(total[..., None])
    whole = total.log2_().add_(most[:, 0])
    return DenseRows(joined, whole, top.amax(1), block_logsumexp, block_logits)


def attend_kept(
    maps: Maps, kept: Tensor, top: Tensor, launch: RowsLaunch | None = None
) -> tuple[Tensor, Tensor]:
    """The rows over the blocks that ``kept``, int8 [N, n, KVb], names.

    Returns:
        float32 sum of p * v [N, R, padded D] and of p [N, R], p being relative to 2 ** ``top``.
    """
    launch = launch or _launch_of(maps)
    shape, common, options = _call(maps, replace(launch, num_stages=launch.kept_stages))
    count, splits, rows, width, key_blocks = shape
    like = {"dtype": torch.float32, "device": maps.q.device}
    out = torch.empty(count, splits, rows, width, **like)
    totals = torch.empty(count, splits, rows, **like)
    with torch.cuda.device_of(maps.q):
        kept_rows_kernel[(rows // options["BM"], splits, count)](
            *common[0], kept, top, out, totals, *common[1], rows, key_blocks, splits,
            kept.shape[1], maps.rows_of_block, maps.scale * LOG2_E, **options,
        )  # fmt: skip
    return (out[:, 0], totals[:, 0]) if splits == 1 else (out.sum(1), totals.sum(1))


def _call(
    maps: Maps, launch: RowsLaunch
) -> tuple[tuple[int, ...], tuple[tuple[Tensor, ...], tuple[int, ...]], dict[str, int]]:
    """Sizes (maps, splits, rows, width, key blocks), what both launches begin with, options."""
    tokens, head_dim = maps.q.shape[1:]
    width, key_blocks = padded_head_dim(head_dim), -(-tokens // maps.block[1])
    count, rows = len(maps.head_of_map), len(maps.positions)
    keys = min(maps.block[1], 64)
    splits = _splits(count * (rows // launch.rows), key_blocks, maps.q.device)
    tensors = (
        maps.q, maps.k, maps.v, maps.permutation, maps.positions, maps.head_of_map,
        maps.order_of_map,
    )  # fmt: skip
    strides = [x.stride(axis) for x in (maps.q, maps.k, maps.v) for axis in (0, 1)]
    options = {
        "HEAD_DIM": head_dim, "D": width, "ALIGNMENT": maps.alignment, "BM": launch.rows,
        "BN": keys, "STEPS_OF_BLOCK": maps.block[1] // keys,
        "num_warps": launch.num_warps, "num_stages": launch.num_stages,
    }  # fmt: skip
    return (count, splits, rows, width, key_blocks), (tensors, (*strides, tokens)), options


def _launch_of(maps: Maps) -> RowsLaunch:
    return select_rows_launch(padded_head_dim(maps.q.shape[-1]), maps.q.device)


def _splits(tiles: int, key_blocks: int, device: torch.device) -> int:
    """Programs per tile of rows: the fewest that leave a tenth of the card idle at most."""
    if device.type == "cpu":
        return min(INTERPRETED_PROGRAMS, key_blocks)
    processors = torch.cuda.get_device_properties(device).multi_processor_count

    def waste(splits: int) -> float:
        programs = tiles * splits
        return -(-programs // processors) * processors / programs

    return min(range(1, max(2, min(key_blocks // 4, 16) + 1)), key=lambda s: max(waste(s), 1.1))
