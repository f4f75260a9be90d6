"""Kernels of single pieces of the FP4 path."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from paro_attention.kernels.triton.fp4_numbers import (
    e2m1_code,
    multiply,
    pack_positive,
    quantize,
    scale_code,
)
from torch import Tensor


@triton.jit
def codes_kernel(x, values, scales, COUNT: tl.constexpr):
    n = tl.program_id(0) * COUNT + tl.arange(0, COUNT)
    given = tl.load(x + n)
    tl.store(values + n, e2m1_code(given))
    tl.store(scales + n, scale_code(given))


def codes_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes of e2m1 and of e4m3 (both int32) of float32 [multiple of 1024], in [0, 7)."""
    values, scales = (torch.empty_like(x, dtype=torch.int32) for _ in range(2))
    codes_kernel[(len(x) // 1024,)](x, values, scales, COUNT=1024)
    return values, scales


@triton.jit
def product_kernel(
    a, a_scale, b, b_scale, packed, of_packed, out,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, NATIVE: tl.constexpr, SHARED: tl.constexpr,
):  # fmt: skip
    """SHARED 16: as in the attention kernel; 32: the same call with scales of powers of two."""
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K // 2)
    group = tl.arange(0, K // SHARED)
    left = tl.load(a + m[:, None] * (K // 2) + k[None, :])
    right = tl.load(b + n[None, :] * (K // 2) + k[:, None])
    of_left = tl.load(a_scale + m[:, None] * (K // SHARED) + group[None, :])
    of_right = tl.load(b_scale + n[:, None] * (K // SHARED) + group[None, :])
    if SHARED == 16:
        sums = multiply(left, of_left, right, of_right, M, N, K, NATIVE)
    else:
        sums = tl.dot_scaled(left, of_left, "e2m1", right, of_right, "e2m1")
    tl.store(out + m[:, None] * N + n[None, :], sums)
    wide = tl.arange(0, K)
    column = m[:, None] * K + wide[None, :]
    tl.store(of_packed + m[:, None] * (K // 2) + k[None, :],
             pack_positive(tl.load(packed + column), M, K, NATIVE))  # fmt: skip


def product(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, positive: Tensor, native: bool
) -> tuple[Tensor, Tensor]:
    """A @ B^T float32 [M, N] from packed bytes and scales; ``positive`` [M, K] packed to bytes.

    Scales are [M, K / 16] codes of e4m3, or [M, K / 32] biased exponents.
    """
    m, n, k = a.shape[0], b.shape[0], 2 * a.shape[1]
    out = torch.empty(m, n, device=a.device)
    packed = torch.empty_like(a)
    product_kernel[(1,)](
        a, a_scale, b, b_scale, positive, packed, out, m, n, k, native, k // a_scale.shape[1],
        num_warps=4,
    )  # fmt: skip
    return out, packed


@triton.jit
def quantize_kernel(x, packed, scales, LINES: tl.constexpr, K: tl.constexpr):
    line, pair, group = tl.arange(0, LINES), tl.arange(0, K // 2), tl.arange(0, K // 16)
    given = tl.load(x + line[:, None] * K + tl.arange(0, K)[None, :])
    bytes, codes = quantize(given, LINES, K)
    tl.store(packed + line[:, None] * (K // 2) + pair[None, :], bytes)
    tl.store(scales + line[:, None] * (K // 16) + group[None, :], codes)


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes and scales of x [lines, K], both powers of two, as the pre-pass makes them."""
    lines, k = x.shape
    packed = torch.empty(lines, k // 2, dtype=torch.uint8, device=x.device)
    scales = torch.empty(lines, k // 16, dtype=torch.uint8, device=x.device)
    quantize_kernel[(1,)](x, packed, scales, lines, k)
    return packed, scales
