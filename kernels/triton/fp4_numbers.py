"""NVFP4 in the kernels: codes of e2m1 and e4m3, and the product of two such operands.

A code is the upper bits of a float32, less a constant, where the format is normal; nothing is cast
to FP8, which Triton's interpreter gets wrong. ``kernels.fp4_numerics`` says what the numbers mean.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def scale_code(x):
    """e4m3 code (int32) nearest to x, which is at most 448; at least that of 2**-6."""
    bits = tl.maximum(x, 0.015625).to(tl.int32, bitcast=True)
    return ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960


@triton.jit
def value_of_scale(code):
    """float32 of an e4m3 code (int32) that is not subnormal."""
    return ((code + 960) << 20).to(tl.float32, bitcast=True)


@triton.jit
def start_of(x):
    """Bits of 1.5 * 2**22 times the power of two in x in [0, 8), at least 1.

    A float32 near that is a multiple of half that power: e2m1 has as many bits.
    """
    return (tl.maximum(x, 1.0).to(tl.int32, bitcast=True) & 0x7F800000) + 0x0B400000


@triton.jit
def rounded_to_e2m1(x):
    """Value of e2m1 nearest to x in [0, 7), ties to even."""
    start = start_of(x).to(tl.float32, bitcast=True)
    return (x + start) - start


@triton.jit
def e2m1_code(x):
    """Code of ``rounded_to_e2m1`` (int32, 0 to 7)."""
    start = start_of(x)
    sum = (x + start.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True)
    # Half the power of two counts twice as often in the next binade, and codes go on: 2 each.
    return sum - start + ((start >> 22) - 299)


@triton.jit
def value_of_e2m1(code):
    """float32 of an e2m1 code (int32, 0 to 7)."""
    normal = ((code + 252) << 22).to(tl.float32, bitcast=True)
    return tl.where(code < 2, code.to(tl.float32) * 0.5, normal)


@triton.jit
def squared_error(sizes, of_scale):
    """Of rounding sizes [L, G, 16] with scales of these codes [L, G]: [L, G]."""
    scale = value_of_scale(of_scale)
    sizes = sizes * (1.0 / scale)[:, :, None]
    error = rounded_to_e2m1(sizes) - sizes
    return tl.sum(error * error, 2) * (scale * scale)


@triton.jit
def quantize(x, LINES: tl.constexpr, K: tl.constexpr):
    """x [LINES, K] in units of its float32 scale -> bytes [LINES, K / 2], scales [LINES, K / 16].

    The first value of a pair is in the lower half of its byte; scales are e4m3 codes.
    """
    x = x.reshape([LINES, K // 16, 16])
    sizes = tl.abs(x)
    top = tl.max(sizes, 2)
    of_scale = scale_code(top * (1.0 / 6.0))
    smaller = scale_code(top * (1.0 / 4.0))
    # The codes are formed anew with the better scale: both sets would not fit into registers.
    better = squared_error(sizes, smaller) < squared_error(sizes, of_scale)
    of_scale = tl.where(better, smaller, of_scale)
    codes = e2m1_code(sizes * (1.0 / value_of_scale(of_scale))[:, :, None])
    codes = tl.where(x < 0.0, codes + 8, codes)
    even, odd = tl.split(codes.reshape([LINES, K // 2, 2]))
    return (even | (odd << 4)).to(tl.uint8), of_scale.to(tl.uint8)


@triton.jit
def pack_positive(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr, NATIVE: tl.constexpr):
    """Values in [0, 7) -> bytes [ROWS, COLUMNS / 2], as ``quantize`` packs them."""
    even, odd = tl.split(x.reshape([ROWS, COLUMNS // 2, 2]))
    if NATIVE:
        # The first operand goes to the upper half of the byte (PTX ISA, cvt).
        return tl.inline_asm_elementwise(
            """{
            .reg .b8 a, b, c, d;
            cvt.rn.satfinite.e2m1x2.f32 a, $5, $1;
            cvt.rn.satfinite.e2m1x2.f32 b, $6, $2;
            cvt.rn.satfinite.e2m1x2.f32 c, $7, $3;
            cvt.rn.satfinite.e2m1x2.f32 d, $8, $4;
            mov.b32 $0, {a, b, c, d};
            }""",
            "=r,f,f,f,f,f,f,f,f", [even, odd], dtype=tl.uint8, is_pure=True, pack=4,
        )  # fmt: skip
    else:
        return (e2m1_code(even) | (e2m1_code(odd) << 4)).to(tl.uint8)


@triton.jit
def values_of(packed, scales, LINES: tl.constexpr, K: tl.constexpr):
    """Packed e2m1 [LINES, K / 2] with e4m3 codes [LINES, K / 16] as float16, which holds them."""
    packed = packed.to(tl.int32)
    codes = tl.join(packed & 15, packed >> 4).reshape([LINES, K // 16, 16])
    size = value_of_e2m1(codes & 7) * value_of_scale(scales.to(tl.int32))[:, :, None]
    return tl.where(codes < 8, size, -size).reshape([LINES, K]).to(tl.float16)


@triton.jit
def multiply(
    a, a_scales, b, b_scales,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, NATIVE: tl.constexpr,
):  # fmt: skip
    """A @ B [M, N] in float32.

    a [M, K / 2] and b [K / 2, N] are packed e2m1, their scales [M, K / 16] and [N, K / 16] e4m3
    codes. Not NATIVE: by a float16 product, whose terms are the same numbers.
    """
    if NATIVE:
        a_scales = a_scales.to(tl.float8e4nv, bitcast=True)
        b_scales = b_scales.to(tl.float8e4nv, bitcast=True)
        return tl.dot_scaled(a, a_scales, "e2m1", b, b_scales, "e2m1")
    else:
        right = values_of(tl.trans(b), b_scales, N, K)
        return tl.dot(values_of(a, a_scales, M, K), tl.trans(right))
