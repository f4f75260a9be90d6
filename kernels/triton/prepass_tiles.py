"""What one program of the pre-pass does to a tile of Q, of K, or of V.

Tokens lie at ``span``: (first position, end of the positions that hold tokens, pointer to the
head's order at position 0). Pointers are to the head in the inputs, and to the tile in the outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .primitives import round_to_int, row_mask, token_of_position

# Wider rows are rotated in halves: a 256 x 256 matrix does not fit into shared memory everywhere.
MAX_ROTATION = 128


@triton.jit
def pack_queries(
    Q, stride, span, hadamard, packed, scale,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Q's tile in 8 or 4 bits, a scale per token."""
    n = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    token, valid = tokens_at(n, span, True)  # pyright: ignore[reportGeneralTypeIssues]
    x = rows_of(Q, token, valid, stride, d, HEAD_DIM, D)
    limit: tl.constexpr = 127.0 if BITS == 8 else 7.0
    if BITS == 4:
        x = rotate(x, hadamard, ROWS, D)
    step = tl.maximum(tl.max(tl.abs(x), 1), 1e-12) * (1.0 / limit)
    tl.store(scale + n, step)
    levels = round_to_int(x * (1.0 / step)[:, None]).to(tl.int8)
    tl.store(packed + n[:, None] * D + d[None, :], levels)


@triton.jit
def pack_keys(
    K, stride, span, mean_of_head, hadamard, packed, scale, pooled,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    BITS: tl.constexpr, POOL: tl.constexpr, GATHER: tl.constexpr, PERMUTE: tl.constexpr,
):  # fmt: skip
    """A block of K, without the head's mean below 16 bits; its own mean goes to ``pooled``."""
    first, end, _order = span
    size = tl.minimum(end - first, ROWS).to(tl.float32)
    d = tl.arange(0, D)
    centre = tl.zeros([D], dtype=tl.float32)
    if (BITS < 16) and GATHER:
        centre = tl.load(mean_of_head + d)
    if BITS == 8:
        # Read once for the scale and once to be scaled, the second time from a cache: with few
        # registers many programs wait for memory side by side.
        totals = tl.zeros([CHUNK, D], dtype=tl.float32)
        peaks = tl.zeros([CHUNK, D], dtype=tl.float32)
        for start in range(0, ROWS, CHUNK):
            n = start + tl.arange(0, CHUNK)
            token, valid = tokens_at(token_of_position(n, PERMUTE), span, GATHER)
            x = centred(rows_of(K, token, valid, stride, d, HEAD_DIM, D), centre, valid)
            totals += x
            peaks = tl.maximum(peaks, tl.abs(x))
        if POOL:
            tl.store(pooled + d, (tl.sum(totals, 0) / size).to(K.dtype.element_ty))
        step = tl.maximum(tl.max(tl.max(peaks, 1), 0), 1e-12) * (1.0 / 127.0)
        tl.store(scale, step)
        for start in range(0, ROWS, CHUNK):
            n = start + tl.arange(0, CHUNK)
            token, valid = tokens_at(token_of_position(n, PERMUTE), span, GATHER)
            x = centred(rows_of(K, token, valid, stride, d, HEAD_DIM, D), centre, valid)
            levels = round_to_int(x * (1.0 / step)).to(tl.int8)
            tl.store(packed + n[:, None] * D + d[None, :], levels)
    else:
        n = tl.arange(0, ROWS)
        token, valid = tokens_at(token_of_position(n, PERMUTE), span, GATHER)
        x = rows_of(K, token, valid, stride, d, HEAD_DIM, D)
        if (BITS < 16) and GATHER:
            x = centred(x, centre, valid)
        mean = (tl.sum(x, 0) / size).to(K.dtype.element_ty)
        if POOL:
            tl.store(pooled + d, mean)
        place = packed + n[:, None] * D + d[None, :]
        if BITS == 16:
            tl.store(place, x.to(packed.dtype.element_ty))
        else:
            x = rotate(centred(x, mean.to(tl.float32), valid), hadamard, ROWS, D)
            step = tl.maximum(tl.max(tl.abs(x), 1), 1e-12) * (1.0 / 7.0)
            tl.store(scale + n, step)
            tl.store(place, round_to_int(x * (1.0 / step)[:, None]).to(tl.int8))


@triton.jit
def pack_values(
    V, stride, span, first_channel, packed, scale, low, pooled,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr,
    BITS: tl.constexpr, FP8: tl.constexpr, POOL: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """CHANNELS channels of a block of V, transposed below 16 bits; their mean goes to ``pooled``.

    ``scale``: of 8 bits, the head's, is read; of 4 bits, the block's, is written, as ``low`` is.
    """
    first, end, _order = span
    size = tl.minimum(end - first, ROWS).to(tl.float32)
    n = tl.arange(0, ROWS)
    d = first_channel + tl.arange(0, CHANNELS)
    token, valid = tokens_at(n, span, GATHER)  # pyright: ignore[reportGeneralTypeIssues]
    x = rows_of(V, token, valid, stride, d, HEAD_DIM, D)
    mean = (tl.sum(x, 0) / size).to(V.dtype.element_ty)
    if POOL:
        tl.store(pooled + d, mean)
    transposed = packed + d[:, None] * ROWS + n[None, :]
    if BITS == 16:
        tl.store(packed + n[:, None] * D + d[None, :], x.to(packed.dtype.element_ty))
    elif BITS == 8:
        of_scale = tl.load(scale + d)
        inverse = 1.0 / of_scale
        # Triton's division is up to two units off, and many of a channel's values lie between two
        # codes of FP8: a Newton step rounds as PyTorch does, and spills less than div_rn.
        inverse = tl.fma(inverse, tl.fma(-of_scale, inverse, 1.0), inverse)
        x = x * inverse[None, :]
        if FP8:
            x = tl.minimum(tl.maximum(x, -448.0), 448.0)
            tl.store(transposed, tl.trans(x.to(tl.float8e4nv)))
        else:
            tl.store(transposed, tl.trans(round_to_int(x).to(tl.int8)))
    else:
        x = centred(x, mean.to(tl.float32), valid)
        least = tl.min(x, 0)
        step = tl.maximum((tl.max(x, 0) - least) * (1.0 / 15.0), 1e-12)
        tl.store(low + d, least)
        tl.store(scale + d, step)
        levels = (x - least[None, :]) * (1.0 / step)[None, :]
        tl.store(transposed, tl.trans(round_to_int(levels).to(tl.int8)))


@triton.jit
def span_at(first, permutation, order_of_head, h, S, grid_tokens, extra_start):
    """The span of a head's tile that begins at position ``first``; see the module docstring."""
    end = grid_tokens
    shift = 0  # of positions against columns of the permutation
    if first >= extra_start:
        shift = extra_start - grid_tokens
        end = shift + S
    return first, end, permutation + tl.load(order_of_head + h).to(tl.int64) * S - shift


@triton.jit
def tokens_at(n, span, GATHER: tl.constexpr):
    """Tokens of the tile's rows ``n``, and whether there are any."""
    first, end, order = span
    position = first + n
    valid = position < end
    token = position.to(tl.int64)
    if GATHER:
        token = tl.load(order + position, mask=valid, other=0).to(tl.int64)
    return token, valid


@triton.jit
def rows_of(X, token, valid, stride, d, HEAD_DIM: tl.constexpr, D: tl.constexpr):
    """Channels ``d`` of these tokens, zero where there is no token or no channel."""
    mask = row_mask(valid, d, HEAD_DIM, D)
    return tl.load(X + token[:, None] * stride + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def centred(x, mean, valid):
    """Rows without this mean; those that are not there stay zero."""
    return tl.where(valid[:, None], x - mean[None, :], 0.0)


@triton.jit
def rotate(x, hadamard, ROWS: tl.constexpr, D: tl.constexpr):
    """Hadamard rotation of each row. FP16 keeps 11 bits of what becomes 4."""
    if D <= 128:
        d = tl.arange(0, D)
        matrix = tl.load(hadamard + d[:, None] * D + d[None, :])
        return tl.dot(x.to(tl.float16), matrix) * (D**-0.5)
    else:
        # The matrix of twice the size is [[M, M], [M, -M]]. Both halves as rows of one product:
        # theirs meet in the same thread, a quarter of the instructions go and nothing spills.
        HALF: tl.constexpr = D // 2
        d = tl.arange(0, HALF)
        matrix = tl.load(hadamard + d[:, None] * HALF + d[None, :])
        halves = x.to(tl.float16).reshape([ROWS, 2, HALF]).permute([1, 0, 2])
        halves = tl.dot(halves.reshape([2 * ROWS, HALF]), matrix).reshape([2, ROWS, HALF])
        left, right = tl.split(halves.permute([1, 2, 0]))
        joined = tl.join(left + right, left - right).permute([0, 2, 1])
        return joined.reshape([ROWS, D]) * (D**-0.5)
