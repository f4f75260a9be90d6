"""Statistics of K and V over the sequence: what the pre-pass removes and scales by.

Sums go through partial results that are added in a fixed order: the same input gives the same bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantization import FP8_V_MAX, INT8_MAX, statistics_step
from .call_arguments import Buffer
from .call_plan import CallPlan, strides_of
from .primitives import head_offset, row_mask

STATISTICS_ROWS = 128


@triton.jit(do_not_specialize=("S", "H", "chunks"))
def statistics_kernel(
    K, V, k_partial, v_partial,
    k_stride_b, k_stride_h, k_stride_s, v_stride_b, v_stride_h, v_stride_s,
    S, H, chunks,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, EVERY: tl.constexpr,
    OF_K: tl.constexpr, OF_V: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, B*H): K's channel sums and V's channel maxima over ROWS tokens.

    EVERY: distance of these tokens. OF_K, OF_V: which of the two are asked for.
    """
    chunk = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    b = batch_head // H
    h = batch_head % H
    d = tl.arange(0, D)
    K += head_offset(b, h, k_stride_b, k_stride_h, ALIGNMENT)
    V += head_offset(b, h, v_stride_b, v_stride_h, ALIGNMENT)
    k_sum = tl.zeros([D], dtype=tl.float32)
    v_max = tl.zeros([D], dtype=tl.float32)
    for start in range(0, ROWS, STEP):
        row = ((chunk * ROWS + start + tl.arange(0, STEP)) * EVERY).to(tl.int64)
        mask = row_mask(row < S, d, HEAD_DIM, D)
        if OF_K:
            k = tl.load(K + row[:, None] * k_stride_s + d[None, :], mask=mask, other=0.0)
            k_sum += tl.sum(k.to(tl.float32), 0)
        if OF_V:
            v = tl.load(V + row[:, None] * v_stride_s + d[None, :], mask=mask, other=0.0)
            v_max = tl.maximum(v_max, tl.max(tl.abs(v.to(tl.float32)), 0))
    out = (batch_head * chunks + chunk) * D + d
    tl.store(k_partial + out, k_sum)
    tl.store(v_partial + out, v_max)


@triton.jit(do_not_specialize=("sampled", "chunks"))
def summary_kernel(
    k_partial, v_partial, k_mean, v_scale, sampled, chunks, of_limit,
    D: tl.constexpr, STEP: tl.constexpr, OF_V: tl.constexpr,
):  # fmt: skip
    """Grid (B*H,): K's mean and V's scale from the partial results, summed in their order.

    ``of_limit``: what a channel's largest magnitude is multiplied with.
    """
    d = tl.arange(0, D)
    base = tl.program_id(0).to(tl.int64) * chunks * D
    k_sum = tl.zeros([D], dtype=tl.float32)
    v_max = tl.zeros([D], dtype=tl.float32)
    for start in range(0, chunks, STEP):
        row = start + tl.arange(0, STEP)
        at = base + row[:, None] * D + d[None, :]
        k_sum += tl.sum(tl.load(k_partial + at, mask=(row < chunks)[:, None], other=0.0), 0)
        v_part = tl.load(v_partial + at, mask=(row < chunks)[:, None], other=0.0)
        v_max = tl.maximum(v_max, tl.max(v_part, 0))
    out = tl.program_id(0) * D + d
    tl.store(k_mean + out, k_sum / sampled)
    if OF_V:
        tl.store(v_scale + out, tl.maximum(v_max, 1e-12) * of_limit)


def _sampled_tokens(plan: CallPlan) -> int:
    shape = plan.shape
    return -(-shape.sizes[2] // statistics_step(shape.sizes[2], shape.pv_bits, shape.fp8))


def _chunks(plan: CallPlan) -> int:
    return -(-_sampled_tokens(plan) // STATISTICS_ROWS)


def statistics_buffers(plan: CallPlan) -> dict[str, Buffer]:
    """What ``measure`` writes, beside the buffer "v_scale"."""
    pairs = plan.shape.sizes[0] * plan.shape.sizes[1]
    partial = Buffer(torch.float32, (pairs, _chunks(plan), plan.width))
    mean = Buffer(torch.float32, (pairs, plan.width))
    return {"k_mean": mean, "k_partial": partial, "v_partial": partial}


def measure(plan: CallPlan, tensors: dict[str, Tensor]) -> None:
    """Writes K's mean and V's scale per channel, from a sample of the tokens."""
    shape, width = plan.shape, plan.width
    batch, heads, tokens, head_dim = shape.sizes
    pairs, sampled = batch * heads, _sampled_tokens(plan)
    chunks = _chunks(plan)
    plan.run(
        statistics_kernel,
        (chunks, pairs, 1),
        tensors,
        ("k", "v", "k_partial", "v_partial"),
        (*strides_of(shape, 1), *strides_of(shape, 2), tokens, heads, chunks),
        {
            "HEAD_DIM": head_dim, "D": width, "ALIGNMENT": plan.alignment,
            "ROWS": STATISTICS_ROWS, "STEP": 64,
            "EVERY": statistics_step(tokens, shape.pv_bits, shape.fp8),
            "OF_K": shape.qk_bits < 16, "OF_V": shape.pv_bits == 8,
        },
        num_warps=4,
    )  # fmt: skip
    plan.run(
        summary_kernel,
        (pairs, 1, 1),
        tensors,
        ("k_partial", "v_partial", "k_mean", "v_scale"),
        (sampled, chunks, 1.0 / (FP8_V_MAX if shape.fp8 else INT8_MAX)),
        {"D": width, "STEP": 32, "OF_V": shape.pv_bits == 8},
        num_warps=4,
        maxnreg=128 if width <= 128 else None,  # few programs: none is worth a spilled register
    )
