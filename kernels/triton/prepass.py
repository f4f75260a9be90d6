"""Pre-pass: reads q, k, v where the model left them, gathers, removes K's mean, pools, quantises.

One launch does the three tensors; statistics launches before it find K's mean and V's range. Sums
go through partial results in a fixed order, so the same input gives the same bits.

Tensors are stored in the order and with the holes of ``PackedLayout``, holes as zeros: queries and
keys [B*H, rows, D]; values [B*H, rows, D] in 16 bits and [B*H, KVb, D, block] below (transposed,
because 8-bit tensor cores read both operands along the summed dimension). KVb counts the blocks of
the extra tokens too, and D is the padded head dimension: channels past the inputs' own are zero.
Where K and V both have few bits, K's rows are stored permuted inside groups of 16 so that the
accumulator of Q.K holds P in the register order of the next product's operand.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantization import FP8_V_MAX, INT8_MAX, hadamard_matrix, statistics_step
from .call_plan import CallPlan
from .primitives import head_offset, round_to_int, row_mask, token_of_position

STATISTICS_ROWS = 128
# Wider rows are rotated in halves: a 256 x 256 matrix does not fit into shared memory everywhere.
MAX_ROTATION = 128


class PreparedInputs(NamedTuple):
    """What the attention kernel reads beside q; an entry that it does not need is q itself."""

    q8: Tensor  # int8 [B*H, rows, D], low-bit Q.K only
    q_scale: Tensor  # float32 [B*H, rows]
    keys: Tensor  # int8 or dtype of k [B*H, rows, D]
    k_scale: Tensor  # float32 [B*H, KVb] (8 bits) or [B*H, rows] (4 bits)
    values: Tensor  # int8 or float8_e4m3fn [B*H, KVb, D, block], or dtype of v [B*H, rows, D]
    v_scale: Tensor  # float32 [B*H, D] (8 bits) or [B*H, KVb, D] (4 bits)
    v_low: Tensor  # float32 [B*H, KVb, D], 4 bits only
    pooled_k: Tensor  # dtype of k [B*H, KVb, D]
    pooled_v: Tensor  # dtype of v [B*H, KVb, D]
    # The pooled rows once more in 8 bits, in tiles of the key block, where Q.K and P.V both are.
    tail_keys: Tensor  # int8 [B*H, tiles * block, D]
    tail_key_scale: Tensor  # float32 [B*H, tiles]
    tail_values: Tensor  # int8 or float8_e4m3fn [B*H, tiles, D, block]


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
    k_partial, v_partial, k_mean, v_scale, sampled, chunks, limit,
    D: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Grid (B*H,): K's mean and V's scale from the partial results, summed in their order."""
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
    tl.store(v_scale + out, tl.maximum(v_max, 1e-12) / limit)


@triton.jit(
    do_not_specialize=("S", "H", "grid_tokens", "extra_start", "rows_padded", "stored_blocks")
)
def prepass_kernel(
    Q, K, V, permutation, order_of_head, k_mean, v_scale, hadamard,
    q8, q_scale, keys, k_scale, values, v_step, v_low, pooled_k, pooled_v,
    q_stride_b, q_stride_h, q_stride_s,
    k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s,
    S, H, grid_tokens, extra_start, rows_padded, stored_blocks,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr, QK_BITS: tl.constexpr, PV_BITS: tl.constexpr,
    FP8: tl.constexpr, POOL: tl.constexpr, GATHER: tl.constexpr,
    PERMUTE_KEYS: tl.constexpr, FIRST_ROLE: tl.constexpr,
):  # fmt: skip
    """Grid (rows_padded / ROWS, B*H, roles): one block of V (role 2), K (1) or Q (0).

    GATHER: rows are gathered by the head's permutation and K's mean is removed; else the rows of K
    and V are taken as they lie.
    """
    block = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    role = tl.program_id(2) + FIRST_ROLE
    b = batch_head // H
    h = batch_head % H
    first = block * ROWS
    end = grid_tokens
    shift = 0  # of positions against columns of the permutation
    if first >= extra_start:
        shift = extra_start - grid_tokens
        end = shift + S
    if (role > 0) & (first >= end):
        return  # holes and padding of the query side only
    order = tl.load(order_of_head + h).to(tl.int64)
    d = tl.arange(0, D)
    n = tl.arange(0, ROWS)
    if role == 1:  # noqa: SIM108 - Triton compiles a branch, not a conditional tile
        position = first + token_of_position(n, PERMUTE_KEYS)
    else:
        position = first + n
    valid = position < end
    token = position.to(tl.int64)
    if GATHER:
        column = position - shift
        token = tl.load(permutation + order * S + column, mask=valid, other=0).to(tl.int64)
    mask = row_mask(valid, d, HEAD_DIM, D)
    stored = (batch_head * rows_padded + first + n)[:, None] * D + d[None, :]
    pooled = (batch_head * stored_blocks + block) * D + d
    size = tl.minimum(end - first, ROWS).to(tl.float32)

    if role == 0:
        Q += head_offset(b, h, q_stride_b, q_stride_h, ALIGNMENT)
        x = tl.load(Q + token[:, None] * q_stride_s + d[None, :], mask=mask, other=0.0)
        x = x.to(tl.float32)
        limit: tl.constexpr = 127.0 if QK_BITS == 8 else 7.0
        if QK_BITS == 4:
            x = rotate(x, hadamard, ROWS, D)
        step = tl.maximum(tl.max(tl.abs(x), 1), 1e-12) * (1.0 / limit)
        tl.store(q_scale + batch_head * rows_padded + first + n, step)
        tl.store(q8 + stored, round_to_int(x * (1.0 / step)[:, None]).to(tl.int8))
    elif role == 1:
        K += head_offset(b, h, k_stride_b, k_stride_h, ALIGNMENT)
        x = tl.load(K + token[:, None] * k_stride_s + d[None, :], mask=mask, other=0.0)
        x = x.to(tl.float32)
        if (QK_BITS < 16) and GATHER:
            x = tl.where(valid[:, None], x - tl.load(k_mean + batch_head * D + d)[None, :], 0.0)
        mean = (tl.sum(x, 0) / size).to(K.dtype.element_ty)
        if POOL:
            tl.store(pooled_k + pooled, mean)
        if QK_BITS == 16:
            tl.store(keys + stored, x.to(keys.dtype.element_ty))
        if QK_BITS == 8:
            step = tl.maximum(tl.max(tl.max(tl.abs(x), 1), 0), 1e-12) * (1.0 / 127.0)
            tl.store(k_scale + batch_head * stored_blocks + block, step)
            tl.store(keys + stored, round_to_int(x * (1.0 / step)).to(tl.int8))
        if QK_BITS == 4:
            x = tl.where(valid[:, None], x - mean.to(tl.float32)[None, :], 0.0)
            x = rotate(x, hadamard, ROWS, D)
            step_of_token = tl.maximum(tl.max(tl.abs(x), 1), 1e-12) * (1.0 / 7.0)
            tl.store(k_scale + batch_head * rows_padded + first + n, step_of_token)
            tl.store(keys + stored, round_to_int(x * (1.0 / step_of_token)[:, None]).to(tl.int8))
    else:
        V += head_offset(b, h, v_stride_b, v_stride_h, ALIGNMENT)
        x = tl.load(V + token[:, None] * v_stride_s + d[None, :], mask=mask, other=0.0)
        x = x.to(tl.float32)
        mean = (tl.sum(x, 0) / size).to(V.dtype.element_ty)
        if POOL:
            tl.store(pooled_v + pooled, mean)
        if PV_BITS == 16:
            tl.store(values + stored, x.to(values.dtype.element_ty))
        else:
            transposed = ((batch_head * stored_blocks + block) * D + d[:, None]) * ROWS + n[None, :]
            if PV_BITS == 8:
                x = x * (1.0 / tl.load(v_scale + batch_head * D + d))[None, :]
                if FP8:
                    x = tl.minimum(tl.maximum(x, -448.0), 448.0)
                    tl.store(values + transposed, tl.trans(x.to(tl.float8e4nv)))
                else:
                    tl.store(values + transposed, tl.trans(round_to_int(x).to(tl.int8)))
            else:
                x = tl.where(valid[:, None], x - mean.to(tl.float32)[None, :], 0.0)
                low = tl.min(x, 0)
                step_of_channel = tl.maximum((tl.max(x, 0) - low) * (1.0 / 15.0), 1e-12)
                tl.store(v_low + pooled, low)
                tl.store(v_step + pooled, step_of_channel)
                levels = (x - low[None, :]) * (1.0 / step_of_channel)[None, :]
                tl.store(values + transposed, tl.trans(round_to_int(levels).to(tl.int8)))


@triton.jit
def rotate(x, hadamard, ROWS: tl.constexpr, D: tl.constexpr):
    """Hadamard rotation of each row. FP16 keeps 11 bits of what becomes 4."""
    if D <= 128:
        d = tl.arange(0, D)
        matrix = tl.load(hadamard + d[:, None] * D + d[None, :])
        return tl.dot(x.to(tl.float16), matrix) * (D**-0.5)
    else:
        # The matrix of twice the size is [[M, M], [M, -M]].
        HALF: tl.constexpr = D // 2
        d = tl.arange(0, HALF)
        matrix = tl.load(hadamard + d[:, None] * HALF + d[None, :])
        left, right = tl.split(x.reshape([ROWS, 2, HALF]).permute([0, 2, 1]))
        upper = tl.dot((left + right).to(tl.float16), matrix)
        lower = tl.dot((left - right).to(tl.float16), matrix)
        return tl.join(upper, lower).permute([0, 2, 1]).reshape([ROWS, D]) * (D**-0.5)


def prepare(
    plan: CallPlan, q: Tensor, k: Tensor, v: Tensor, permutation: Tensor, order_of_head: Tensor
) -> PreparedInputs:
    """Runs the pre-pass that the call's bits and tail ask for; see the module docstring."""
    batch, heads, tokens, head_dim = q.shape
    layout, width, shape = plan.layout, plan.width, plan.shape
    qk_bits, pv_bits, fp8 = shape.qk_bits, shape.pv_bits, shape.fp8
    rows = shape.block[1]
    blocks, padded, pairs = layout.stored_blocks, layout.rows, batch * heads
    low_qk, low_pv, pool = qk_bits < 16, pv_bits < 16, plan.pooled
    tiles = triton.cdiv(layout.key_blocks, rows)
    v8_dtype = torch.float8_e4m3fn if fp8 else torch.int8

    def buffer(used: bool, *sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(sizes, dtype=dtype, device=q.device) if used else q

    k_mean = v_scale = q
    if low_qk or pv_bits == 8:
        k_mean, v_scale = _statistics(plan, k, v)
    if pv_bits == 4:
        v_scale = buffer(True, pairs, blocks, width)
    if low_pv:
        values = buffer(True, pairs, blocks, width, rows, dtype=v8_dtype)
    else:
        values = buffer(True, pairs, padded, width, dtype=v.dtype)
    prepared = PreparedInputs(
        q8=buffer(low_qk, pairs, padded, width, dtype=torch.int8),
        q_scale=buffer(low_qk, pairs, padded),
        keys=buffer(True, pairs, padded, width, dtype=torch.int8 if low_qk else k.dtype),
        k_scale=buffer(low_qk, pairs, blocks if qk_bits == 8 else padded),
        values=values,
        v_scale=v_scale,
        v_low=buffer(pv_bits == 4, pairs, blocks, width),
        pooled_k=buffer(pool, pairs, blocks, width, dtype=k.dtype),
        pooled_v=buffer(pool, pairs, blocks, width, dtype=v.dtype),
        tail_keys=buffer(plan.low_tail, pairs, tiles * rows, width, dtype=torch.int8),
        tail_key_scale=buffer(plan.low_tail, pairs, tiles),
        tail_values=buffer(plan.low_tail, pairs, tiles, width, rows, dtype=v8_dtype),
    )
    hadamard = q
    if qk_bits == 4:
        hadamard = hadamard_matrix(min(width, MAX_ROTATION), q.device, torch.float16)
    first_role = 0 if low_qk else 1
    warps = 4 if rows < 128 and width <= 128 else 8
    plan.run(
        prepass_kernel,
        (padded // rows if low_qk else blocks, pairs, 3 - first_role),
        (
            q, k, v, permutation, order_of_head, k_mean, v_scale, hadamard,
            prepared.q8, prepared.q_scale, prepared.keys, prepared.k_scale,
            prepared.values, v_scale, prepared.v_low, prepared.pooled_k, prepared.pooled_v,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            tokens, heads, layout.grid_tokens, layout.extra_start, padded, blocks,
        ),
        {
            "HEAD_DIM": head_dim, "D": width, "ALIGNMENT": plan.alignment, "ROWS": rows,
            "QK_BITS": qk_bits, "PV_BITS": pv_bits, "FP8": fp8, "POOL": pool, "GATHER": True,
            "PERMUTE_KEYS": low_qk and low_pv, "FIRST_ROLE": first_role,
        },
        num_warps=warps,
    )  # fmt: skip
    if plan.low_tail:
        # The grid's pooled rows are a short sequence; the same kernel quantises them.
        stride = (blocks * width, 0, width)
        plan.run(
            prepass_kernel,
            (tiles, pairs, 2),
            (
                q, prepared.pooled_k, prepared.pooled_v, permutation, order_of_head, k_mean,
                v_scale, hadamard, prepared.q8, prepared.q_scale, prepared.tail_keys,
                prepared.tail_key_scale, prepared.tail_values, v_scale, prepared.v_low,
                prepared.pooled_k, prepared.pooled_v,
                *stride, *stride, *stride,
                layout.key_blocks, 1, layout.key_blocks, tiles * rows, tiles * rows, tiles,
            ),
            {
                "HEAD_DIM": width, "D": width, "ALIGNMENT": 1, "ROWS": rows,
                "QK_BITS": 8, "PV_BITS": 8, "FP8": fp8, "POOL": False, "GATHER": False,
                "PERMUTE_KEYS": True, "FIRST_ROLE": 1,
            },
            num_warps=warps,
            launch_of="tail",
        )  # fmt: skip
    return prepared


def _statistics(plan: CallPlan, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of K and scale of V per channel: float32 [B*H, D] each, from a sample of the tokens.

    What the call's bits do not ask for is not computed.
    """
    batch, heads, tokens, head_dim = k.shape
    shape, width, pairs = plan.shape, plan.width, batch * heads
    every = statistics_step(tokens, shape.pv_bits, shape.fp8)
    sampled = triton.cdiv(tokens, every)
    chunks = triton.cdiv(sampled, STATISTICS_ROWS)
    k_partial, v_partial = (
        torch.empty(pairs, chunks, width, dtype=torch.float32, device=k.device) for _ in range(2)
    )
    plan.run(
        statistics_kernel,
        (chunks, pairs, 1),
        (
            k, v, k_partial, v_partial, *k.stride()[:3], *v.stride()[:3], tokens, heads, chunks,
        ),
        {
            "HEAD_DIM": head_dim, "D": width, "ALIGNMENT": plan.alignment,
            "ROWS": STATISTICS_ROWS, "STEP": 64, "EVERY": every,
            "OF_K": shape.qk_bits < 16, "OF_V": shape.pv_bits == 8,
        },
        num_warps=4,
    )  # fmt: skip
    k_mean, v_scale = (
        torch.empty(pairs, width, dtype=torch.float32, device=k.device) for _ in range(2)
    )
    plan.run(
        summary_kernel,
        (pairs, 1, 1),
        (
            k_partial, v_partial, k_mean, v_scale, sampled, chunks,
            FP8_V_MAX if shape.fp8 else INT8_MAX,
        ),
        {"D": width, "STEP": 32},
        num_warps=4,
    )  # fmt: skip
    return k_mean, v_scale
