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
from .call_plan import CallPlan
from .primitives import row_mask

STATISTICS_ROWS = 128
STATISTICS_STEP = 64


@triton.jit
def measure_chunk(
    K, V, k_stride, v_stride, chunk, S, k_partial, v_partial,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
    EVERY: tl.constexpr, OF_K: tl.constexpr, OF_V: tl.constexpr,
):  # fmt: skip
    """K's channel sums and V's channel maxima over ROWS tokens of a head.

    Pointers are to the head and, of the results, to the chunk; EVERY: distance of these tokens.
    OF_K, OF_V: which of the two are asked for.
    """
    d = tl.arange(0, D)
    k_sum = tl.zeros([D], dtype=tl.float32)
    v_max = tl.zeros([D], dtype=tl.float32)
    for start in range(0, ROWS, STEP):
        row = ((chunk * ROWS + start + tl.arange(0, STEP)) * EVERY).to(tl.int64)
        mask = row_mask(row < S, d, HEAD_DIM, D)
        if OF_K:
            k = tl.load(K + row[:, None] * k_stride + d[None, :], mask=mask, other=0.0)
            k_sum += tl.sum(k.to(tl.float32), 0)
        if OF_V:
            v = tl.load(V + row[:, None] * v_stride + d[None, :], mask=mask, other=0.0)
            v_max = tl.maximum(v_max, tl.max(tl.abs(v.to(tl.float32)), 0))
    tl.store(k_partial + d, k_sum)
    tl.store(v_partial + d, v_max)


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


def statistics_chunks(plan: CallPlan) -> int:
    """Partial results of a head."""
    return -(-_sampled_tokens(plan) // STATISTICS_ROWS)


def statistics_constants(plan: CallPlan) -> dict[str, int | bool]:
    """Constants of ``measure_chunk`` by name."""
    shape = plan.shape
    return {
        "ROWS": STATISTICS_ROWS, "STEP": STATISTICS_STEP,
        "EVERY": statistics_step(shape.sizes[2], shape.pv_bits, shape.fp8),
        "OF_K": shape.qk_bits < 16, "OF_V": shape.pv_bits == 8,
    }  # fmt: skip


def statistics_buffers(plan: CallPlan) -> dict[str, Buffer]:
    """What is written of the statistics, beside the buffer "v_scale"."""
    pairs = plan.shape.sizes[0] * plan.shape.sizes[1]
    partial = Buffer(torch.float32, (pairs, statistics_chunks(plan), plan.width))
    mean = Buffer(torch.float32, (pairs, plan.width))
    return {"k_mean": mean, "k_partial": partial, "v_partial": partial}


def summarise(plan: CallPlan, tensors: dict[str, Tensor]) -> None:
    """Writes K's mean and V's scale per channel from the partial results."""
    shape, width = plan.shape, plan.width
    plan.run(
        summary_kernel,
        (shape.sizes[0] * shape.sizes[1], 1, 1),
        tensors,
        ("k_partial", "v_partial", "k_mean", "v_scale"),
        (
            _sampled_tokens(plan), statistics_chunks(plan),
            1.0 / (FP8_V_MAX if shape.fp8 else INT8_MAX),
        ),
        {"D": width, "STEP": 32, "OF_V": shape.pv_bits == 8},
        num_warps=4,
        maxnreg=128 if width <= 128 else None,  # few programs: none is worth a spilled register
    )  # fmt: skip
