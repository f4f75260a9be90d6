"""``mma.m16n8k64`` on 4-bit operands in Gluon, with operands as ``kernels.int4_layout`` packs them.

A warp multiplies 16 rows. A word of the instruction is a tensor [tiles, warps, 8, 4] (tiles of 8
columns, warps, g, t of lane 4g + t) of which a lane holds one element per tile; reshaping such
tensors to and from the layout of Triton's own matrix instructions moves no data.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy

# As a float these bits are 12582912 = 1.5 * 2**23. Sums that start there are floats already:
# 12582912 + n for |n| < 2**22. No conversion instruction is needed, which runs at a quarter rate.
FLOAT_START = gl.constexpr(0x4B400000)
# Gluon of Triton 3.9 calls these otherwise.
copy_to_shared = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
block_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else vars(gl)["barrier"]


@gluon.constexpr_function
def words_layout(warps):
    """Layout of a word [tiles, warps, 8, 4]: tiles in registers, one element per lane."""
    return gl.BlockedLayout([1, 1, 1, 1], [1, 1, 8, 4], [1, warps, 1, 1], [3, 2, 1, 0])


@gluon.constexpr_function
def matrix_layout(warps):
    """Layout of the sums [16 * warps, columns]: that of Triton's ``mma_v2``."""
    return gl.NVMMADistributedLayout([2, 0], [warps, 1], instr_shape=[16, 8])


@gluon.constexpr_function
def packed_layout(chunks, warps):
    """Layout in which every warp holds all of a packed B [chunks, 128], 16 bytes of a lane each."""
    registers = [[0, 1], [0, 2]] + [[1 << i, 0] for i in range((chunks - 1).bit_length())]
    lanes = [[0, 4 << i] for i in range(5)]
    idle = [[0, 0] for _ in range((warps - 1).bit_length())]
    return gl.DistributedLinearLayout(registers, lanes, idle, [], [chunks, 128])


@gluon.jit
def load_a(words, first_tile, STEPS: gl.constexpr, WARPS: gl.constexpr):
    """The words of A of 16 * WARPS rows: (half + 2 * upper)-th of each step of 64 k, a tuple."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 4], [1, 32], [WARPS, 1], [1, 0])
    tile = gl.arange(0, WARPS, gl.SliceLayout(1, LAYOUT))[:, None]
    word = gl.arange(0, 128, gl.SliceLayout(0, LAYOUT))[None, :]
    at = words + (first_tile + tile) * (STEPS * 128) + word
    a = _as_a(gl.load(at), WARPS)
    if STEPS == 2:
        a = a + _as_a(gl.load(at + 128), WARPS)
    return a


@gluon.jit
def _as_a(x, WARPS: gl.constexpr):
    lower, upper = gl.split(x.reshape([WARPS, 8, 4, 2, 2]).permute([0, 1, 2, 4, 3]))
    a0, a1 = gl.split(lower)
    a2, a3 = gl.split(upper)
    return (_as_word(a0, 1, WARPS), _as_word(a1, 1, WARPS),
            _as_word(a2, 1, WARPS), _as_word(a3, 1, WARPS))  # fmt: skip


@gluon.jit
def _as_word(x, TILES: gl.constexpr, WARPS: gl.constexpr):
    """[TILES, 8, 4] of all warps, or [WARPS, 8, 4] of one tile, as a word."""
    if TILES == 1:  # noqa: SIM108 - Triton compiles a branch, not a conditional tile
        x = x.reshape([1, WARPS, 8, 4])
    else:
        x = x.reshape([TILES, 1, 8, 4])
    return gl.convert_layout(x, words_layout(WARPS), assert_trivial=True)


@gluon.jit
def as_b(x, TILES: gl.constexpr, STEPS: gl.constexpr, WARPS: gl.constexpr):
    """A packed B [TILES * STEPS / 2, 128] as its words: (upper + 2 * step)-th, a tuple."""
    lower, upper = gl.split(x.reshape([TILES * STEPS // 2, 8, 4, 2, 2]))
    if STEPS == 2:
        b0, b2 = gl.split(lower)
        b1, b3 = gl.split(upper)
        return (_as_word(b0, TILES, WARPS), _as_word(b1, TILES, WARPS),
                _as_word(b2, TILES, WARPS), _as_word(b3, TILES, WARPS))  # fmt: skip
    else:
        b0 = lower.permute([0, 3, 1, 2]).reshape([TILES, 8, 4])
        b1 = upper.permute([0, 3, 1, 2]).reshape([TILES, 8, 4])
        return (_as_word(b0, TILES, WARPS), _as_word(b1, TILES, WARPS))


@gluon.jit
def multiply(
    a, b, START: gl.constexpr, TILES: gl.constexpr, STEPS: gl.constexpr, WARPS: gl.constexpr,
    TYPE: gl.constexpr,
):  # fmt: skip
    """START + A @ B: int32 [16 * WARPS, 8 * TILES] in ``matrix_layout``. TYPE: "s4" or "u4"."""
    start = gl.full([TILES, WARPS, 8, 4], START, gl.int32, words_layout(WARPS))
    c = (start, start, start, start)
    for step in gl.static_range(STEPS):  # pyright: ignore[reportGeneralTypeIssues]
        c = gl.inline_asm_elementwise(
            f"mma.sync.aligned.m16n8k64.row.col.s32.{TYPE}.{TYPE}.s32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};",
            "=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r",
            [a[4 * step], a[4 * step + 1], a[4 * step + 2], a[4 * step + 3],
             b[2 * step], b[2 * step + 1], c[0], c[1], c[2], c[3]],
            dtype=(gl.int32, gl.int32, gl.int32, gl.int32), is_pure=True, pack=1,
        )  # fmt: skip
    sums = gl.join(gl.join(c[0], c[2]), gl.join(c[1], c[3]))  # [tile, warp, g, t, half, c]
    sums = sums.permute([1, 4, 2, 0, 3, 5]).reshape([16 * WARPS, 8 * TILES])
    return gl.convert_layout(sums, matrix_layout(WARPS), assert_trivial=True)


@gluon.jit
def as_a(levels, BASE: gl.constexpr, STEPS: gl.constexpr, WARPS: gl.constexpr):
    """P [16 * WARPS, 64 * STEPS] in ``matrix_layout`` as words of A; it never leaves its lane.

    ``levels`` are 0 to 15 above BASE, whose sum over a word is taken off at once.
    """
    x = levels.reshape([WARPS, 2, 8, STEPS, 2, 2, 2, 4, 2])
    # [warp, half, g, step, upper, tile / 2, tile % 2, t, c], the last three to be put in a word.
    x = x.permute([3, 0, 2, 7, 4, 1, 5, 6, 8])
    even, odd = gl.split(x)
    even, odd = gl.split(even + (odd << 4))
    even, odd = gl.split(even + (odd << 8))
    TOTAL: gl.constexpr = (BASE * 0x11111111) & 0xFFFFFFFF
    words = even + (odd << 16) - (TOTAL - (TOTAL >> 31 << 32))
    # [step, warp, g, t, upper, half]
    if STEPS == 2:
        first, second = gl.split(words.permute([1, 2, 3, 4, 5, 0]))
        return _split_halves(first, WARPS) + _split_halves(second, WARPS)
    else:
        return _split_halves(words.reshape([WARPS, 8, 4, 2, 2]), WARPS)


@gluon.jit
def _split_halves(x, WARPS: gl.constexpr):
    low, high = gl.split(x)
    a0, a2 = gl.split(low)
    a1, a3 = gl.split(high)
    return (_as_word(a0, 1, WARPS), _as_word(a1, 1, WARPS),
            _as_word(a2, 1, WARPS), _as_word(a3, 1, WARPS))  # fmt: skip
