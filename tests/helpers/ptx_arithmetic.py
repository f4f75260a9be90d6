"""Arithmetic of ``ptx_machine``, thread by thread."""

from __future__ import annotations

import numpy as np

Array = np.ndarray
INTEGER = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "min": np.minimum, "max": np.maximum, "mul": np.multiply,
}  # fmt: skip


def floats(x: Array) -> Array:
    return x.view(np.float32)


def permuted(a: Array, b: Array, selector: Array) -> Array:
    both = np.concatenate((a.view(np.uint8).reshape(-1, 4), b.view(np.uint8).reshape(-1, 4)), 1)
    chosen = selector[:, None] >> (4 * np.arange(4, dtype=np.uint32)) & 15
    bytes = np.take_along_axis(both, (chosen & 7).astype(np.int64), 1)
    sign = np.where(bytes & 128, 255, 0).astype(np.uint8)
    return np.ascontiguousarray(np.where(chosen & 8, sign, bytes)).view(np.uint32)[:, 0]


def float_result(name: str, given: list[Array]) -> Array:
    with np.errstate(all="ignore"):
        if name == "fma":  # rounded once
            a, b, c = (x.astype(np.float64) for x in given)
            return (a * b + c).astype(np.float32)
        if name == "ex2":
            return np.exp2(given[0].astype(np.float64)).astype(np.float32)
        if name in ("neg", "abs"):
            return -given[0] if name == "neg" else np.abs(given[0])
        operation = {"div": np.divide, "min": np.fmin, "max": np.fmax}.get(name)
        return (operation or INTEGER[name])(*given)


def packed(x: Array) -> Array:
    return np.ascontiguousarray(x, np.float32).view(np.uint64)[:, 0]


def to_bf16(x: Array) -> Array:
    bits = x.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_f16(x: Array) -> Array:
    return x.astype(np.float16).view(np.uint16)
