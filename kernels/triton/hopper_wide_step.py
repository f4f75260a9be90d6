"""One step of attention on Hopper with 16-bit values: a key block from a ring of several groups.

Four threads of a warp share a row. What a row has one of, its maximum, sum and factor, is kept once
a thread, [64, 4], so that nothing is exchanged in a step whose rows need no larger maximum.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from .hopper_layouts import accumulator, across, by_thread, halves, thread_max, times_by_thread
from .hopper_tile import exp2
from .hopper_wide_rows import KEYS, QUERY_ROWS
from .int4_mma import block_barrier
from .row_maxima_ptx import raised_maxima

# A row's maximum is raised when a step's lies more than this above it, in powers of two: P is at
# most 2**8, far from the end of float16, and the sums are rarely scaled.
SLACK = gl.constexpr(8.0)
# Keys whose products with V start together.
PIECE = gl.constexpr(32)


def _scaled_ptx(count: int) -> tuple[str, str]:
    """PTX that multiplies sums by 2 to their rows' exponents, unless the whole warp's are 0.

    Operands: ``count`` sums out, the same in, and the exponent of each, of which a thread has two:
    in the order of its registers those of a row, a row, the row 8 below, and that again.
    """
    first, second = f"${2 * count}", f"${2 * count + 2}"
    lines = [
        ".reg .pred p, q; .reg .f32 a, b;",
        f"setp.neu.f32 p, {first}, 0f00000000; setp.neu.f32 q, {second}, 0f00000000;",
        "or.pred p, p, q; vote.sync.any.pred p, p, 0xffffffff; @!p bra skip;",
        f"ex2.approx.ftz.f32 a, {first}; ex2.approx.ftz.f32 b, {second};",
    ]
    lines += [f"mul.f32 ${i}, ${i}, {'b' if i // 2 % 2 else 'a'};" for i in range(count)]
    operands = ["=f"] * count + [str(i) for i in range(count)] + ["f"] * count
    return "{ " + " ".join(lines) + " skip: }", ",".join(operands)


RAISED, RAISED_OPERANDS = (gl.constexpr(x) for x in raised_maxima(SLACK.value, False))
SCALED_32, SCALED_32_OPERANDS = (gl.constexpr(x) for x in _scaled_ptx(32))
SCALED_64, SCALED_64_OPERANDS = (gl.constexpr(x) for x in _scaled_ptx(64))


@gluon.jit
def sums_of_threads(x):
    """Sums [64, 4] of what each thread of a row holds of a tile that is ``by_thread``."""
    return gl.sum(gl.sum(x, 3), 1)


@gluon.jit
def first_state(D: gl.constexpr, LOGITS: gl.constexpr, OUT: gl.constexpr):
    """(acc, row_sum, row_max) of rows that have attended to nothing yet."""
    nothing = gl.zeros([QUERY_ROWS, KEYS], gl.float32, layout=LOGITS)
    row_sum = sums_of_threads(by_thread(nothing, 2))
    lowest = row_sum - 1e30  # pyright: ignore[reportOperatorIssue]
    return gl.zeros([QUERY_ROWS, D], gl.float32, layout=OUT), row_sum, lowest


@gluon.jit
def scaled(acc, exponent):
    """Sums times 2 to their rows' exponents, which are mostly 0."""
    D: gl.constexpr = acc.shape[1]
    OUT: gl.constexpr = acc.type.layout
    zeros = by_thread(gl.zeros_like(acc), 2)
    SPLIT: gl.constexpr = zeros.type.layout
    exponents = (zeros + across(exponent, SPLIT)).reshape([QUERY_ROWS, D])
    exponents = gl.convert_layout(exponents, OUT)
    if D == 128:
        acc = gl.inline_asm_elementwise(
            SCALED_64, SCALED_64_OPERANDS, [acc, exponents],
            dtype=gl.float32, is_pure=True, pack=64,
        )  # fmt: skip
    else:
        acc = gl.inline_asm_elementwise(
            SCALED_32, SCALED_32_OPERANDS, [acc, exponents],
            dtype=gl.float32, is_pure=True, pack=32,
        )  # fmt: skip
    return acc


@gluon.jit
def pieces_of(x):
    """The columns of a tile in pieces: registers of their own, nothing moves."""
    left, right = halves(x)
    if x.shape[1] == 2 * PIECE:
        pieces = (left, right)
    else:
        a, b = halves(left)
        c, d = halves(right)
        pieces = (a, b, c, d)
    return pieces


@gluon.jit
def wait_for(full, step):
    """Waits until a step's tile is there."""
    STAGES: gl.constexpr = full.shape[0]
    mbarrier.wait(full.index(step % STAGES), (step // STAGES) & 1)


@gluon.jit
def let_pass(ring, step):
    """Gives a step's tiles back that this group does not compute.

    Not before they are there: the group would run ahead of the barriers' phases.
    """
    _k_tiles, _v_tiles, k_full, v_full, empty = ring
    wait_for(k_full, step)
    wait_for(v_full, step)
    # A warp that runs ahead by a ring would take the barriers' phases from one that still waits.
    block_barrier()
    mbarrier.arrive(empty.index(step % empty.shape[0]), count=1)


@gluon.jit
def attend_step(state, q_tile, ring, step, factor, bias_tile, BIASED: gl.constexpr):
    """Folds the key block of a step into (acc, row_sum, row_max) and gives its tiles back.

    ``factor`` [64, 4] turns products into logits in base 2. BIASED: the keys' biases, which are
    added to them, lie in ``bias_tile`` [keys] in shared memory.
    """
    k_tiles, v_tiles, k_full, v_full, empty = ring
    stage = step % empty.shape[0]
    k_tile = k_tiles.index(stage)
    v_tile = v_tiles.index(stage)
    wait_for(k_full, step)
    if BIASED:
        # In halves: biases take registers.
        HALF: gl.constexpr = KEYS // 2
        for i in gl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
            state = fold(
                state, q_tile, k_tile.slice(i * HALF, HALF, dim=0),
                v_tile.slice(i * HALF, HALF, dim=0), v_full, step, factor,
                bias_tile.slice(i * HALF, HALF, dim=0), True,
            )  # fmt: skip
    else:
        state = fold(state, q_tile, k_tile, v_tile, v_full, step, factor, bias_tile, False)
    # Every warp of the group has read them.
    block_barrier()
    mbarrier.arrive(empty.index(stage), count=1)
    return state


@gluon.jit
def fold(state, q_tile, k_tile, v_tile, v_full, step, factor, bias_tile, BIASED: gl.constexpr):
    """Folds keys [n, D] and values into (acc, row_sum, row_max); see ``attend_step``."""
    acc, row_sum, row_max = state
    COLUMNS: gl.constexpr = k_tile.shape[0]
    LOW: gl.constexpr = k_tile.dtype.is_int()
    LOGITS: gl.constexpr = accumulator(COLUMNS, 8 if LOW else 16)
    OUT: gl.constexpr = acc.type.layout
    P: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=OUT, k_width=2)
    THREADS: gl.constexpr = row_max.type.layout
    TYPE: gl.constexpr = gl.int32 if LOW else gl.float32
    s = warpgroup_mma(
        q_tile, k_tile.permute((1, 0)),
        gl.zeros([QUERY_ROWS, COLUMNS], TYPE, layout=LOGITS), use_acc=False, is_async=True,
    )  # fmt: skip
    s = warpgroup_mma_wait(0, deps=(s,))
    if BIASED:
        # Not before the products are there: registers of a thread that are needed nowhere else.
        block_barrier()
        s = biased_logits(s, factor, bias_tile)
        own_max = gl.convert_layout(thread_max(s), THREADS)
    else:
        # The largest product of a row is its largest logit, because the factors are positive.
        own_max = gl.convert_layout(thread_max(s), THREADS).to(gl.float32) * factor
    new_max = gl.inline_asm_elementwise(
        RAISED, RAISED_OPERANDS, [own_max, row_max], dtype=gl.float32, is_pure=True, pack=2
    )
    acc = scaled(acc, row_max - new_max)
    row_sum = row_sum * exp2(row_max - new_max)
    pieces = pieces_of(s)
    wait_for(v_full, step)
    # The products of a piece run under the exponentials of the next.
    for i in gl.static_range(COLUMNS // PIECE):  # pyright: ignore[reportGeneralTypeIssues]
        p = probabilities(pieces[i], factor, new_max, BIASED)
        row_sum += gl.convert_layout(sums_of_threads(p), THREADS)
        p = gl.convert_layout(p.to(v_tile.dtype).reshape([QUERY_ROWS, PIECE]), P)
        acc = warpgroup_mma(p, v_tile.slice(i * PIECE, PIECE, dim=0), acc, is_async=True)
    acc = warpgroup_mma_wait(0, deps=(acc,))
    return acc, row_sum, new_max


@gluon.jit
def biased_logits(s, factor, bias_tile):
    """Logits in base 2 of products and their keys' biases in shared memory."""
    LAYOUT: gl.constexpr = s.type.layout
    bias = bias_tile.load(gl.SliceLayout(0, LAYOUT))
    return times_by_thread(s.to(gl.float32), factor) + bias[None, :]


@gluon.jit
def probabilities(x, factor, row_max, BIASED: gl.constexpr):
    """P by thread of products [64, n], or BIASED of logits."""
    split = by_thread(x.to(gl.float32), 2)
    SPLIT: gl.constexpr = split.type.layout
    if not BIASED:
        split = split * across(factor, SPLIT)
    return exp2(split - across(row_max, SPLIT))
