"""Instructions of ``ptx_machine`` that a warp executes together: shuffles and matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
G, T = np.arange(32) // 4, np.arange(32) % 4


def e2m1_code(x: Array) -> Array:
    """cvt.rn.satfinite.e2m1x2: nearest code, ties to even, the sign above it."""
    size = np.minimum(np.abs(x.astype(np.float64)), 6.0)
    distance = np.abs(size[..., None] - E2M1)
    # Of two codes at the same distance the even one.
    code = np.argmin(distance + 1e-12 * (np.arange(8) % 2), -1)
    return (code + 8 * np.signbit(x)).astype(np.uint8)


def _words(m: Any, names: list[str]) -> Array:
    """Registers of all warps, [warps, registers, 32] uint32."""
    x = np.stack([m.value(name, "b32") for name in names])
    return x.reshape(len(names), -1, 32).transpose(1, 0, 2)


def _set_words(m: Any, names: list[str], words: Array) -> None:
    for number, name in enumerate(names):
        m.set(name, np.ascontiguousarray(words[:, number]).reshape(-1))


def shuffle(m: Any, kinds: list[str], operands: list[Any]) -> None:
    to, of, by, clamp, _ = operands
    assert int(m.value(clamp, "u32")[0]) == 31, "shuffles inside a part of a warp"
    by = m.value(by, "u32").astype(np.int64)
    lane = m.lane ^ by if "bfly" in kinds else by & 31
    thread = np.arange(m.threads)
    m.set(to, m.value(of, "b32")[thread - m.lane + lane])


def _matrix_bytes(m: Any, kinds: list[str], address: str) -> tuple[Array, int]:
    """Places in shared memory of rows of 8x8 matrices, [warps, matrices, 8, 16]; their number."""
    count = int(next(kind for kind in kinds if kind in ("x1", "x2", "x4"))[1])
    at = m._address(address, "u32").astype(np.int64).reshape(-1, 32)[:, : 8 * count]
    return at.reshape(-1, count, 8)[..., None] + np.arange(16), count


def load_matrices(m: Any, kinds: list[str], operands: list[Any]) -> None:
    names = [operands[0]] if isinstance(operands[0], str) else operands[0]
    at, count = _matrix_bytes(m, kinds, operands[1])
    rows = np.ascontiguousarray(m.shared[at]).view(np.uint16)  # [warps, matrices, 8, 8]
    if "trans" in kinds:
        rows = np.ascontiguousarray(rows.swapaxes(-1, -2))
    words = rows.view(np.uint32)[:, :, G, T]
    assert count == len(names)
    _set_words(m, names, words)


def store_matrices(m: Any, kinds: list[str], operands: list[Any]) -> None:
    assert "trans" not in kinds
    at, _ = _matrix_bytes(m, kinds, operands[0])
    words = _words(m, operands[1])
    rows = words.reshape(*words.shape[:2], 8, 4)
    m.shared[at] = np.ascontiguousarray(rows).view(np.uint8).reshape(at.shape)


def multiply(m: Any, kinds: list[str], operands: list[Any]) -> None:
    to, a, b, c, *scales = operands
    left, right = _words(m, a), _words(m, b)  # [warps, registers, 32]
    if "m16n8k64" in kinds:
        left, right = _fp4_operands(m, kinds, left, right, scales)
    else:
        half = np.float16 if kinds.count("f16") else None
        left = _halves(left, half).reshape(-1, 2, 2, 32, 2)  # upper k, lower row
        right = _halves(right, half)
        rows = np.zeros((len(left), 16, 16))
        columns = np.zeros((len(left), 16, 8))
        for upper in range(2):
            for odd in range(2):
                k = 8 * upper + 2 * T + odd
                columns[:, k, G] = right[:, upper, :, odd]
                for lower in range(2):
                    rows[:, G + 8 * lower, k] = left[:, upper, lower, :, odd]
        left, right = rows, columns
    sums = left @ right
    start = _words(m, c).view(np.float32)
    words = np.empty_like(start)
    for number in range(4):
        words[:, number] = sums[:, G + number // 2 * 8, 2 * T + number % 2] + start[:, number]
    _set_words(m, to, words.view(np.uint32))


def _halves(words: Array, half: Any) -> Array:
    x = np.ascontiguousarray(words).view(np.uint16).reshape(*words.shape, 2)
    if half is not None:
        return x.view(half).astype(np.float64)
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def _nibbles(words: Array) -> Array:
    """e2m1 [..., 8] of words, the lowest nibble first."""
    codes = words[..., None] >> (4 * np.arange(8, dtype=np.uint32)) & 15
    return E2M1[codes & 7] * np.where(codes & 8, -1, 1)


def _fp4_operands(
    m: Any, kinds: list[str], a: Array, b: Array, scales: list[Any]
) -> tuple[Array, Array]:
    """A [warps, 16, 64] and B [warps, 64, 8] with the scales of 16 k each applied."""
    assert "scale_vec::4X" in kinds and kinds[-1] == "ue4m3"
    assert scales[1] == scales[3] == ["0", "0"], "scales of other bytes or lanes"
    left, right = _nibbles(a), _nibbles(b)
    rows, columns = np.zeros((len(a), 16, 64)), np.zeros((len(a), 64, 8))
    for upper in range(2):
        for number in range(8):
            k = 32 * upper + 8 * T + number
            columns[:, k, G] = right[:, upper, :, number]
            for lower in range(2):
                rows[:, G + 8 * lower, k] = left[:, 2 * upper + lower, :, number]
    of_rows, of_columns = (_scales(_words(m, [x])[:, 0]) for x in (scales[0], scales[2]))
    # Lane 4g gives the scales of row g and of column g, lane 4g + 1 those of row g + 8.
    of_rows = np.concatenate((of_rows[:, 0::4], of_rows[:, 1::4]), 1)
    rows *= of_rows.repeat(16, -1)
    columns *= of_columns[:, 0::4].repeat(16, -1).swapaxes(-1, -2)
    return rows, columns


def _scales(words: Array) -> Array:
    """e4m3 without sign, [warps, 32, 4], from the bytes of words, the lowest first."""
    code = words[..., None] >> (8 * np.arange(4, dtype=np.uint32)) & 255
    exponent, mantissa = (code >> 3).astype(np.int64), code & 7
    normal = np.ldexp(1 + mantissa / 8, exponent - 7)
    return np.where(exponent > 0, normal, np.ldexp(mantissa / 8, -6))


MATRIX = {
    "shfl": shuffle,
    "ldmatrix": load_matrices,
    "stmatrix": store_matrices,
    "mma": multiply,
}
