"""One step of attention on Hopper: a tile of 8-bit keys and FP8 values from the ring."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .. import hopper_launch
from .fp8_ptx import (
    CODE_FACTOR,
    CODE_OFFSET,
    OF_FLOATS,
    OF_FLOATS_OPERANDS,
    OF_INTEGERS,
    OF_INTEGERS_OPERANDS,
    PACKED_KEYS,
)
from .hopper_layouts import (
    accumulator,
    across,
    as_operand,
    by_thread,
    first_of_pairs,
    halves,
    operand,
    stored_rows,
    thread_max,
    times_by_thread,
    whole,
)
from .hopper_ring import STEP_KEYS, SUM_COLUMNS
from .int4_mma import block_barrier
from .row_maxima_ptx import raised_maxima

QUERY_ROWS = gl.constexpr(hopper_launch.QUERY_ROWS)
P_EXPONENT = gl.constexpr(8.0)
# Binary logarithms of FP8 e4m3's smallest normal number and of its smallest.
FP8_LEAST_NORMAL = gl.constexpr(-6.0)
FP8_LEAST = gl.constexpr(-9.0)
RAISED_MAX, RAISED_MAX_OPERANDS = (gl.constexpr(x) for x in raised_maxima(0.0, True))


@gluon.jit
def exp2(x):
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def biased_logits(s, factor, bias):
    """Logits [64, keys], base 2, of integers and a bias per key in any layout."""
    LAYOUT: gl.constexpr = s.type.layout
    # Spread only now: registers of a thread that are needed nowhere else.
    bias = gl.convert_layout(bias, gl.SliceLayout(0, LAYOUT))
    return times_by_thread(s.to(gl.float32), factor) + bias[None, :]


@gluon.jit
def bytes_of_floats(x, offset, P: gl.constexpr):
    """P of logits [64, keys] in FP8, in the layout ``P`` of the next product's operand."""
    split = by_thread(as_operand(x, P), 4)
    SPLIT: gl.constexpr = split.type.layout
    p = gl.inline_asm_elementwise(
        OF_FLOATS, OF_FLOATS_OPERANDS, [split + across(offset, SPLIT)],
        dtype=gl.int8, is_pure=True, pack=PACKED_KEYS,
    )  # fmt: skip
    p = p.reshape([x.shape[0], x.shape[1]]).to(gl.float8e4nv, bitcast=True)
    return gl.convert_layout(p, P)


@gluon.jit
def bytes_of_integers(s, factor, offset, P: gl.constexpr):
    """P of integer logits [64, keys] in FP8, in the layout ``P`` of the next product's operand."""
    split = by_thread(as_operand(s, P), 4)
    SPLIT: gl.constexpr = split.type.layout
    p = gl.inline_asm_elementwise(
        OF_INTEGERS, OF_INTEGERS_OPERANDS,
        [
            split,
            across(factor, SPLIT),
            across(offset, SPLIT),
            across(factor * CODE_FACTOR, SPLIT),
            across(offset * CODE_FACTOR + CODE_OFFSET, SPLIT),
        ],
        dtype=gl.int8, is_pure=True, pack=PACKED_KEYS,
    )  # fmt: skip
    p = p.reshape([s.shape[0], s.shape[1]]).to(gl.float8e4nv, bitcast=True)
    return gl.convert_layout(p, P)


@gluon.jit
def first_state(D: gl.constexpr):
    """(acc, row_sum, row_max) of rows that have attended to nothing yet.

    ``row_sum`` and ``row_max`` [64, 4] are held by each of the four threads of a row.
    """
    sums = gl.zeros([QUERY_ROWS, SUM_COLUMNS], gl.float32, layout=accumulator(SUM_COLUMNS))
    acc = gl.zeros([QUERY_ROWS, D], gl.float32, layout=accumulator(D))
    return acc, first_of_pairs(sums), first_of_pairs(sums - 1e30)


@gluon.jit
def attend_step(state, q_tile, ring, step, row_scale, key_scales, biases, BIASED: gl.constexpr):
    """Folds the key blocks that step ``step`` fetched into (acc, row_sum, row_max).

    ``row_scale`` [64, 4] times the scale of a key block turns integers into logits in base 2;
    BIASED: ``biases`` [64] of both halves of the tile are added to them. On return every warp of
    the group has read the tile.
    """
    acc, row_sum, row_max = state
    k_tiles, v_tiles, k_full, v_full, ones = ring
    D: gl.constexpr = k_tiles.shape[2]
    BLOCK: gl.constexpr = v_tiles.shape[2]
    BLOCKS: gl.constexpr = STEP_KEYS // BLOCK
    LOGITS: gl.constexpr = accumulator(STEP_KEYS)
    OUT: gl.constexpr = accumulator(D)
    SUM: gl.constexpr = accumulator(SUM_COLUMNS)
    P: gl.constexpr = operand(D)
    THREADS: gl.constexpr = row_max.type.layout
    stage = step % k_tiles.shape[0]
    phase = (step // k_tiles.shape[0]) & 1
    mbarrier.wait(k_full.index(stage), phase)
    s = warpgroup_mma(
        q_tile, k_tiles.index(stage).permute((1, 0)),
        gl.zeros([QUERY_ROWS, STEP_KEYS], gl.int32, layout=LOGITS), use_acc=False, is_async=True,
    )  # fmt: skip
    s = warpgroup_mma_wait(0, deps=(s,))
    factor = row_scale * key_scales[0]
    last_factor = row_scale * key_scales[1]
    # The largest integer of a row is its largest logit, because the factors are positive.
    if BLOCKS == 1 and not BIASED:
        own_max = gl.convert_layout(thread_max(s), THREADS).to(gl.float32) * factor
    else:
        left, right = halves(s)
        if BIASED:
            left = biased_logits(left, factor, biases[0])
            right = biased_logits(right, last_factor, biases[1])
            own_max = gl.convert_layout(gl.maximum(thread_max(left), thread_max(right)), THREADS)
        else:
            own_max = gl.maximum(
                gl.convert_layout(thread_max(left), THREADS).to(gl.float32) * factor,
                gl.convert_layout(thread_max(right), THREADS).to(gl.float32) * last_factor,
            )
    # A whole power of two: P's rounding is the same whichever block came first.
    new_max = gl.inline_asm_elementwise(
        RAISED_MAX, RAISED_MAX_OPERANDS, [own_max, row_max], dtype=gl.float32, is_pure=True, pack=2
    )
    alpha = exp2(row_max - new_max)
    # P times 2**P_EXPONENT in numerator and denominator: FP8's subnormals are out of the way.
    offset = P_EXPONENT - new_max
    if BIASED:
        p = bytes_of_floats(left, offset, P)
        last_p = bytes_of_floats(right, offset, P)
        if BLOCKS == 1:
            p = gl.convert_layout(whole(p, last_p), P)
    elif BLOCKS == 2:
        p = bytes_of_integers(left, factor, offset, P)
        last_p = bytes_of_integers(right, last_factor, offset, P)
    else:
        p = bytes_of_integers(s, factor, offset, P)
    v_tile = v_tiles.index(stage)
    one = ones.slice(0, SUM_COLUMNS, dim=0).permute((1, 0))
    mbarrier.wait(v_full.index(stage), phase)
    product = warpgroup_mma(
        p, v_tile.slice(0, D, dim=0).permute((1, 0)),
        gl.zeros([QUERY_ROWS, D], gl.float32, layout=OUT), use_acc=False, is_async=True,
    )  # fmt: skip
    if BLOCKS == 2:
        last_v = v_tile.slice(D, D, dim=0).permute((1, 0))
        product = warpgroup_mma(last_p, last_v, product, is_async=True)
    # The denominator is of the rounded P, so that a constant V comes out as it is.
    added = warpgroup_mma(
        gl.convert_layout(p, operand(SUM_COLUMNS)), one,
        gl.zeros([QUERY_ROWS, SUM_COLUMNS], gl.float32, layout=SUM), use_acc=False, is_async=True,
    )  # fmt: skip
    if BLOCKS == 2:
        last_p = gl.convert_layout(last_p, operand(SUM_COLUMNS))
        added = warpgroup_mma(last_p, one, added, is_async=True)
    waited = warpgroup_mma_wait(0, deps=(product, added))
    product, added = waited  # pyright: ignore[reportGeneralTypeIssues]
    block_barrier()
    # A sum of its own for every tile: Hopper's tensor cores add FP8 products with about 14 bits and
    # cut the rest off, which one long sum would not survive.
    acc = times_by_thread(acc, alpha) + product
    row_sum = row_sum * alpha + first_of_pairs(added)
    return acc, row_sum, new_max


@gluon.jit
def without_missing(state, missing):
    """Takes from the denominators what ``missing`` keys added that are not there.

    Their rows of K and V are zero, so that they add nothing else, and their P is a power of two: by
    the maximum of their step exact down to FP8's smallest normal number, below which the linear
    codes, a quarter, are zero. A larger maximum of a later step may find no share where they left
    one, 2e-3 of the denominator at most.
    """
    acc, row_sum, row_max = state
    exponent = P_EXPONENT - row_max
    each = gl.where(exponent >= FP8_LEAST_NORMAL, 1.0, 0.75)
    share = each * exp2(exponent) * missing.to(gl.float32)
    # A row that attended to nothing has no maximum.
    share = gl.where((missing > 0) & (exponent >= FP8_LEAST), share, 0.0)
    return acc, row_sum - share, row_max


@gluon.jit
def write_rows(
    state, v_scale, tokens, first_token, rows, Out, head_offset, row_stride, HEAD_DIM: gl.constexpr
):
    """Divides by the denominators and stores the rows at their tokens.

    ``tokens`` [64]: in shared memory, where each row goes behind ``first_token``; ``rows``: how
    many there are; ``v_scale``: pointer to the head's D scales; ``head_offset``: of the head in a
    token's row of ``row_stride`` elements.
    """
    acc, row_sum, _row_max = state
    OUT: gl.constexpr = acc.type.layout
    STORED: gl.constexpr = stored_rows(acc.shape[1])
    total = gl.convert_layout(gl.max(row_sum, 1), gl.SliceLayout(1, OUT))
    # A row with nothing to attend to is zero.
    acc = acc * (1.0 / gl.where(total == 0.0, 1.0, total))[:, None]
    acc = acc * gl.load(v_scale + gl.arange(0, acc.shape[1], gl.SliceLayout(0, OUT)))[None, :]
    # The product's layout has 16 bytes of a row side by side, half of what L2 writes at a time.
    x = gl.convert_layout(acc.to(Out.dtype.element_ty), STORED)
    token = first_token + tokens.load(gl.SliceLayout(1, STORED)).to(gl.int64)
    valid = gl.arange(0, acc.shape[0], gl.SliceLayout(1, STORED)) < rows
    d = gl.arange(0, acc.shape[1], gl.SliceLayout(0, STORED))
    out = Out + token[:, None] * row_stride + head_offset + d[None, :]
    gl.store(out, x, mask=valid[:, None] & (d < HEAD_DIM)[None, :])
