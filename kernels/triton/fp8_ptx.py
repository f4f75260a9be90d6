"""PTX of the Hopper kernel: from the logits of neighbouring keys to packed FP8 probabilities."""

from __future__ import annotations

from triton.experimental.gluon import language as gl

from ..fp8_numerics import FP8_MANTISSA, LINEAR_OF_FOUR, LINEAR_OFFSET
from .ptx_numbers import ptx_float

# In the order of a thread's registers: four keys of a row, of the row 8 below, and 16 keys on.
LINEAR = LINEAR_OF_FOUR[0] * 2 + LINEAR_OF_FOUR[1] * 2
PACKED_KEYS = gl.constexpr(len(LINEAR))
# Codes as parts of 256.
CODE_FACTOR = gl.constexpr(FP8_MANTISSA / 256.0)
CODE_OFFSET = gl.constexpr(LINEAR_OFFSET / 256.0)


def _bytes_of_logits(integers: bool) -> tuple[str, str]:
    """PTX that turns the logits of neighbouring keys, base 2, into packed FP8 probabilities.

    Operands: a register out for four keys; then, one per key each, the logits. Of ``integers``, the
    factor of their row, the number to add to the product, and the same two for the linear function
    of ``fp8_numerics``. Saturation hides what is below the smallest code.
    """
    keys = len(LINEAR)
    words = keys // 4
    lines = [".reg .b16 low, high;", ".reg .b32 left, right;"]
    lines.append(".reg .b32 " + ", ".join(f"p{i}" for i in range(keys)) + ";")
    for i, linear in enumerate(LINEAR):
        x, factor, offset, code_factor, code_offset = (f"${words + n * keys + i}" for n in range(5))
        if integers:
            lines.append(f"cvt.rn.f32.s32 p{i}, {x};")
            x = f"p{i}"
        else:
            code_factor, code_offset = ptx_float(CODE_FACTOR.value), ptx_float(CODE_OFFSET.value)
        if linear:
            lines.append(f"fma.rn.sat.f32 p{i}, {x}, {code_factor}, {code_offset};")
            lines.append(f"fma.rn.f32 p{i}, p{i}, {ptx_float(256)}, {ptx_float(12582912)};")
        else:
            if integers:
                lines.append(f"fma.rn.f32 p{i}, {x}, {factor}, {offset};")
                x = f"p{i}"
            lines.append(f"ex2.approx.ftz.f32 p{i}, {x};")
    for word in range(words):
        a, b, c, d = (f"p{4 * word + i}" for i in range(4))
        # As separate operations the bytes would be shuffled once more.
        lines.append(f"cvt.rn.satfinite.e4m3x2.f32 low, {b}, {a};")
        if LINEAR[4 * word + 2]:
            lines.append(f"mov.b32 left, {{low, 0}}; prmt.b32 right, {c}, {d}, 0x0040;")
            lines.append(f"prmt.b32 ${word}, left, right, 0x5410;")
        else:
            lines.append(f"cvt.rn.satfinite.e4m3x2.f32 high, {d}, {c};")
            lines.append(f"mov.b32 ${word}, {{low, high}};")
    inputs = ["r"] * keys + ["f"] * (4 * keys) if integers else ["f"] * keys
    return "{ " + " ".join(lines) + " }", ",".join(["=r"] * words + inputs)


OF_INTEGERS, OF_INTEGERS_OPERANDS = (gl.constexpr(x) for x in _bytes_of_logits(True))
OF_FLOATS, OF_FLOATS_OPERANDS = (gl.constexpr(x) for x in _bytes_of_logits(False))
