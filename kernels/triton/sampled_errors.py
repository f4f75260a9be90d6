"""What lies between and behind the two passes over sampled rows: block mass, choice of the blocks,
pooled values, output errors. Every sum has a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..packed_layout import padded_head_dim
from .primitives import head_offset, row_mask
from .sampled_rows import DenseRows, Maps

COLUMNS = 8  # of the error kernel's rows: one per tail bias, the energy, unused


@triton.jit(do_not_specialize=("rows", "blocks", "key_blocks", "rows_of_block"))
def mass_kernel(
    block_logsumexp, logsumexp, valid, mass, rows, blocks, key_blocks, rows_of_block,
    BI: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """Grid (blocks / BI, key_blocks / BJ, maps): mean probability over a block's valid rows."""
    i = tl.program_id(0) * BI + tl.arange(0, BI)
    j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    n = tl.program_id(2).to(tl.int64)
    exists = (j < key_blocks)[:, None] & (i < blocks)[None, :]
    notes = block_logsumexp + (n * key_blocks + j)[:, None] * rows
    total = tl.zeros([BJ, BI], tl.float32)
    count = tl.zeros([BI], tl.float32)
    for row in range(0, rows_of_block):
        r = i * rows_of_block + row
        weight = tl.load(valid + r, mask=i < blocks, other=0.0)
        whole = tl.load(logsumexp + n * rows + r, mask=i < blocks, other=0.0)
        note = tl.load(notes + r[None, :], mask=exists, other=float("-inf"))
        total += tl.exp2(note - whole[None, :]) * weight[None, :]
        count += weight
    out = mass + (n * blocks + i)[None, :] * key_blocks + j[:, None]
    tl.store(out, total / tl.maximum(count, 1.0)[None, :], mask=exists)


@triton.jit(do_not_specialize=("blocks", "key_blocks", "maps"))
def keep_kernel(
    score, mass, row_weight, counts, kept, retained, blocks, key_blocks, maps,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (maps, densities): the blocks of greatest score, the first of equals.

    ``score`` [maps, blocks * key_blocks] >= 0, infinite where a block is kept whatever the count;
    floats >= 0 are ordered as their bits are, so that the bits of the last score that is kept are
    found one by one. Writes ``kept`` int8 [densities, maps, ...] and the mass kept, weighted by
    ``row_weight`` [blocks].
    """
    n = tl.program_id(0).to(tl.int64)
    density = tl.program_id(1)
    count = tl.load(counts + density)
    total = blocks * key_blocks
    bits = (score + n * total).to(tl.pointer_type(tl.int32))
    k = tl.arange(0, BLOCK)
    least = tl.full([], 0, tl.int32)
    for step in range(0, 31):
        candidate = least | (1 << (30 - step))
        reached = tl.zeros([BLOCK], tl.int32)
        for first in range(0, total, BLOCK):
            value = tl.load(bits + first + k, mask=first + k < total, other=-1)
            reached += (value >= candidate).to(tl.int32)
        least = tl.where(tl.sum(reached, 0) >= count, candidate, least)
    greater = tl.zeros([BLOCK], tl.int32)
    for first in range(0, total, BLOCK):
        value = tl.load(bits + first + k, mask=first + k < total, other=-1)
        greater += (value > least).to(tl.int32)
    equals_left = count - tl.sum(greater, 0)
    kept += (density * maps + n) * total
    mass += n * total
    held = tl.zeros([BLOCK], tl.float32)
    for first in range(0, total, BLOCK):
        exists = first + k < total
        value = tl.load(bits + first + k, mask=exists, other=-1)
        equal = (value == least).to(tl.int32)
        place = tl.cumsum(equal, 0)
        keep = (value > least) | ((equal == 1) & (place <= equals_left)) | (value == 0x7F800000)
        equals_left -= tl.sum(equal, 0)
        tl.store(kept + first + k, keep.to(tl.int8), mask=exists)
        weight = tl.load(row_weight + (first + k) // key_blocks, mask=exists, other=0.0)
        value_mass = tl.load(mass + first + k, mask=exists, other=0.0)
        held += tl.where(keep, value_mass * weight, 0.0)
    tl.store(retained + n * tl.num_programs(1) + density, tl.sum(held, 0))


@triton.jit(do_not_specialize=("S", "blocks"))
def pool_kernel(
    X, permutation, head_of_map, order_of_map, pooled, stride_h, stride_s, S, blocks,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (blocks, maps): mean of each block's tokens, float32 [maps, blocks, D]."""
    block = tl.program_id(0)
    n = tl.program_id(1).to(tl.int64)
    h = tl.load(head_of_map + n).to(tl.int64)
    order = permutation + tl.load(order_of_map + n).to(tl.int64) * S
    d = tl.arange(0, D)
    place = block * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(order + place, mask=place < S, other=0).to(tl.int64)
    X += head_offset(0, h, 0, stride_h, ALIGNMENT)
    mask = row_mask(place < S, d, HEAD_DIM, D)
    x = tl.load(X + token[:, None] * stride_s + d[None, :], mask=mask, other=0.0)
    size = tl.minimum(S - block * BLOCK, BLOCK).to(tl.float32)
    tl.store(pooled + (n * blocks + block) * D + d, tl.sum(x.to(tl.float32), 0) / size)


@triton.jit(do_not_specialize=("S", "rows", "blocks", "key_blocks", "rows_of_block"))
def error_kernel(
    dense, logsumexp, top, block_logits, part, part_total, kept, pooled, valid, biases,
    extra_part, extra_total, extra_shrink, out,
    S, rows, blocks, key_blocks, rows_of_block,
    D: tl.constexpr, BM: tl.constexpr, BJ: tl.constexpr, KEY_BLOCK: tl.constexpr,
    BIASES: tl.constexpr, COLUMNS: tl.constexpr, EXTRA: tl.constexpr,
):  # fmt: skip
    """Grid (rows / BM, maps): squared error of each row for every tail bias, and its energy.

    ``biases``: exp of each bias. EXTRA: what the extra keys add, see ``ExtraPart``.
    """
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1).to(tl.int64)
    d = tl.arange(0, D)
    at = n * rows + r
    whole = tl.load(logsumexp + at)
    kept += (n * blocks + tl.minimum(r // rows_of_block, blocks - 1)) * key_blocks
    tail = tl.zeros([BM, D], tl.float32)
    tail_total = tl.zeros([BM], tl.float32)
    for first in range(0, key_blocks, BJ):
        j = first + tl.arange(0, BJ)
        exists = j < key_blocks
        size = tl.maximum(tl.minimum(S - j * KEY_BLOCK, KEY_BLOCK), 1).to(tl.float32)
        logits = tl.load(
            block_logits + (n * key_blocks + j)[None, :] * rows + r[:, None],
            mask=exists[None, :], other=0.0,
        )  # fmt: skip
        computed = tl.load(kept[:, None] + j[None, :], mask=exists[None, :], other=1)
        weight = tl.exp2(logits / size[None, :] - whole[:, None]) * size[None, :]
        weight = tl.where(computed == 0, weight, 0.0)
        tail_total += tl.sum(weight, 1)
        value = tl.load(
            pooled + (n * key_blocks + j)[:, None] * D + d[None, :],
            mask=exists[:, None], other=0.0,
        )  # fmt: skip
        tail = tl.dot(weight, value, tail, input_precision="tf32x3")

    cell = at[:, None] * D + d[None, :]
    brought = tl.exp2(tl.load(top + at) - whole)
    exact = tl.load(part + cell) * brought[:, None]
    exact_total = tl.load(part_total + at) * brought
    reference = tl.load(dense + cell)
    if EXTRA:
        shrink = tl.load(extra_shrink + at)
        more = tl.load(extra_part + cell)
        more_total = tl.load(extra_total + at)
        reference = (reference * shrink[:, None] + more) / (shrink + more_total)[:, None]
        exact = exact * shrink[:, None] + more
        exact_total = exact_total * shrink + more_total
        tail *= shrink[:, None]
        tail_total *= shrink
    # Output minus reference is ((exact - total * ref) + w * (the tail's alike)) / all weights.
    off = exact - exact_total[:, None] * reference
    off_tail = tail - tail_total[:, None] * reference
    own = tl.sum(off * off, 1)
    mixed = tl.sum(off * off_tail, 1)
    tails = tl.sum(off_tail * off_tail, 1)
    counted = tl.load(valid + r)
    for index in tl.static_range(BIASES):
        w = tl.load(biases + index)
        total = exact_total + w * tail_total
        error = (own + 2 * w * mixed + w * w * tails) / (total * total)
        tl.store(out + at * COLUMNS + index, error * counted)
    energy = tl.sum(reference * reference, 1)
    tl.store(out + at * COLUMNS + BIASES, energy * counted)


def mass_of_rows(
    rows: DenseRows, valid: Tensor, blocks: int, rows_of_block: int, out: Tensor
) -> None:
    """Writes block mass float32 [N, blocks, KVb] of sampled rows; ``valid`` float32 [R]."""
    maps, key_blocks, count = rows.block_logsumexp.shape
    with torch.cuda.device_of(out):
        mass_kernel[(triton.cdiv(blocks, 32), triton.cdiv(key_blocks, 32), maps)](
            rows.block_logsumexp, rows.logsumexp, valid, out, count, blocks, key_blocks,
            rows_of_block, BI=32, BJ=32, num_warps=4,
        )  # fmt: skip


def keep_greatest(
    score: Tensor, mass: Tensor, row_weight: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """The blocks of greatest score of each map, as many as ``counts`` int32 [K] says.

    Args:
        score: float32 [N, n, KVb] >= 0, infinite where a block is kept always.
        mass: float32 [N, n, KVb].
        row_weight: float32 [n], factor of each row's mass.
        counts: int32 [K].

    Returns:
        int8 [K, N, n, KVb], and float32 [N, K], the weighted sum of the mass that is kept.
    """
    maps, blocks, key_blocks = score.shape
    kept = torch.empty(len(counts), *score.shape, dtype=torch.int8, device=score.device)
    retained = torch.empty(maps, len(counts), dtype=torch.float32, device=score.device)
    with torch.cuda.device_of(score):
        keep_kernel[(maps, len(counts))](
            score, mass, row_weight, counts, kept, retained, blocks, key_blocks, maps,
            BLOCK=4096, num_warps=16,
        )  # fmt: skip
    return kept, retained


def pool_values(maps: Maps) -> Tensor:
    """float32 [N, KVb, padded D]: mean value of each key block."""
    tokens, head_dim = maps.v.shape[1:]
    width, block = padded_head_dim(head_dim), maps.block[1]
    count, blocks = len(maps.head_of_map), triton.cdiv(tokens, block)
    pooled = torch.empty(count, blocks, width, dtype=torch.float32, device=maps.v.device)
    with torch.cuda.device_of(maps.v):
        pool_kernel[(blocks, count)](
            maps.v, maps.permutation, maps.head_of_map, maps.order_of_map, pooled,
            maps.v.stride(0), maps.v.stride(1), tokens, blocks,
            HEAD_DIM=head_dim, D=width, ALIGNMENT=maps.alignment, BLOCK=block,
            num_warps=4 if block * width <= 8192 else 8,
        )  # fmt: skip
    return pooled


def error_rows(width: int, device: torch.device) -> int:
    """Rows of a program of the error kernel for a padded head dimension."""
    # Hopper's matrix instructions take 64 rows; the others' leave registers for 32.
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return 16 if width > 128 else 64 if hopper else 32


def row_errors(
    rows: DenseRows, part: tuple[Tensor, Tensor], kept: Tensor, pooled: Tensor, valid: Tensor,
    biases: Tensor, tokens: int, key_block: int, rows_of_block: int,
    extra: tuple[Tensor, Tensor, Tensor] | None, side: int | None = None,
) -> Tensor:  # fmt: skip
    """float32 [N, R, COLUMNS]: squared errors for each of ``biases``, then the energy.

    Args:
        rows: the dense pass.
        part: from ``attend_kept``.
        kept: int8 [N, n, KVb].
        pooled: float32 [N, KVb, padded D], mean values.
        valid: float32 [R], 0 for rows that do not count.
        biases: float32, exp of each tail bias.
        tokens: keys of each map.
        key_block: key tokens of a block.
        rows_of_block: rows of each query block.
        extra: what the extra keys add, [N, R, padded D], [N, R] and [N, R].
        side: rows of a program; ``error_rows`` has the usual ones.
    """
    maps, count, width = rows.output.shape
    blocks, key_blocks = kept.shape[1:]
    out = torch.zeros(maps, count, COLUMNS, dtype=torch.float32, device=kept.device)
    more = extra or (rows.output, rows.logsumexp, rows.logsumexp)
    side = side or error_rows(width, kept.device)
    with torch.cuda.device_of(kept):
        error_kernel[(count // side, maps)](
            rows.output, rows.logsumexp, rows.top, rows.block_logits, *part, kept, pooled, valid,
            biases, *more, out, tokens, count, blocks, key_blocks, rows_of_block,
            D=width, BM=side, BJ=32, KEY_BLOCK=key_block, BIASES=len(biases), COLUMNS=COLUMNS,
            EXTRA=extra is not None, num_warps=8, num_stages=2,
        )  # fmt: skip
    return out
