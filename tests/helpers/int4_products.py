"""A Gluon kernel of nothing but the INT4 kernel's two products. Imported where there is a GPU."""

from __future__ import annotations

import torch
from paro_attention.kernels.triton.int4_mma import (
    FLOAT_START,
    as_a,
    as_b,
    load_a,
    matrix_layout,
    multiply,
    packed_layout,
)
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def load_b(words, CHUNKS: gl.constexpr, WARPS: gl.constexpr):
    LAYOUT: gl.constexpr = packed_layout(CHUNKS, WARPS)
    row = gl.arange(0, CHUNKS, gl.SliceLayout(1, LAYOUT))[:, None]
    return gl.load(words + row * 128 + gl.arange(0, 128, gl.SliceLayout(0, LAYOUT))[None, :])


@gluon.jit
def int4_products(
    q4, k4, p, v4, scores, sums, N: gl.constexpr, D: gl.constexpr, WARPS: gl.constexpr
):
    """scores = Q K^T and sums = P V of one tile; P is given as integers."""
    LAYOUT: gl.constexpr = matrix_layout(WARPS)
    CHUNKS: gl.constexpr = N * D // 1024
    row = gl.arange(0, 16 * WARPS, gl.SliceLayout(1, LAYOUT))[:, None]
    n = gl.arange(0, N, gl.SliceLayout(0, LAYOUT))[None, :]
    d = gl.arange(0, D, gl.SliceLayout(0, LAYOUT))[None, :]
    a = load_a(q4, 0, D // 64, WARPS)
    b = as_b(load_b(k4, CHUNKS, WARPS), N // 8, D // 64, WARPS)
    s = multiply(a, b, FLOAT_START, N // 8, D // 64, WARPS, "s4")
    gl.store(scores + row * N + n, s - FLOAT_START)
    levels = gl.load(p + row * N + n) + FLOAT_START
    a = as_a(levels, FLOAT_START, N // 64, WARPS)
    b = as_b(load_b(v4, CHUNKS, WARPS), D // 8, N // 64, WARPS)
    gl.store(sums + row * D + d, multiply(a, b, 0, D // 8, N // 64, WARPS, "u4"))


def both_products(
    q4: Tensor, k4: Tensor, p: Tensor, v4: Tensor, keys: int, channels: int, warps: int
) -> tuple[Tensor, Tensor]:
    """int32 [16 * warps, keys] and [16 * warps, channels], from packed operands and levels P."""
    scores = torch.empty(16 * warps, keys, dtype=torch.int32, device=p.device)
    sums = torch.empty(16 * warps, channels, dtype=torch.int32, device=p.device)
    int4_products[(1,)](q4, k4, p, v4, scores, sums, keys, channels, warps, num_warps=warps)
    return scores, sums
