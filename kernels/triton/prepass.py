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

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..quantization import hadamard_matrix
from .call_arguments import Buffer
from .call_plan import CallPlan, strides_of
from .primitives import head_offset, round_to_int, row_mask, token_of_position
from .statistics import measure, statistics_buffers

# Wider rows are rotated in halves: a 256 x 256 matrix does not fit into shared memory everywhere.
MAX_ROTATION = 128
# Rows of Q that are rotated together where the channels are more.
QUERY_ROWS = 64


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
    d = tl.arange(0, D)
    pooled = (batch_head * stored_blocks + block) * D + d
    if (role > 0) & (first >= end):
        # Holes and padding of the query side only.
        if POOL:
            # The tail loads a hole's pooled rows with its neighbours', and must not meet a NaN.
            hole = (d < D) & (block < stored_blocks)
            zero = tl.zeros([D], dtype=tl.float32)
            tl.store(pooled_k + pooled, zero.to(K.dtype.element_ty), mask=hole & (role == 1))
            tl.store(pooled_v + pooled, zero.to(V.dtype.element_ty), mask=hole & (role == 2))
        return
    order = tl.load(order_of_head + h).to(tl.int64)
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
    size = tl.minimum(end - first, ROWS).to(tl.float32)

    if (role == 0) & (FIRST_ROLE == 0):  # otherwise the compiler leaves it out
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
        # The matrix of twice the size is [[M, M], [M, -M]]. Both halves as rows of one product:
        # theirs meet in the same thread, a quarter of the instructions go and nothing spills.
        HALF: tl.constexpr = D // 2
        d = tl.arange(0, HALF)
        matrix = tl.load(hadamard + d[:, None] * HALF + d[None, :])
        halves = x.to(tl.float16).reshape([ROWS, 2, HALF]).permute([1, 0, 2])
        halves = tl.dot(halves.reshape([2 * ROWS, HALF]), matrix).reshape([2, ROWS, HALF])
        left, right = tl.split(halves.permute([1, 2, 0]))
        joined = tl.join(left + right, left - right).permute([0, 2, 1])
        return joined.reshape([ROWS, D]) * (D**-0.5)


def prepared_buffers(plan: CallPlan) -> dict[str, Buffer]:
    """What the pre-pass makes for the attention kernel, by the name of the kernel's argument."""
    batch, heads = plan.shape.sizes[:2]
    layout, width, shape = plan.layout, plan.width, plan.shape
    pairs, blocks, rows = batch * heads, layout.stored_blocks, layout.rows
    block = shape.block[1]
    v8 = torch.float8_e4m3fn if shape.fp8 else torch.int8
    qk_bits, pv_bits = shape.qk_bits, shape.pv_bits
    keys = torch.int8 if qk_bits < 16 else shape.dtype
    buffers = {"keys": Buffer(keys, (pairs, rows, width))}
    if qk_bits < 16:
        buffers["q8"] = Buffer(torch.int8, (pairs, rows, width))
        buffers["q_scale"] = Buffer(torch.float32, (pairs, rows))
        buffers["k_scale"] = Buffer(torch.float32, (pairs, blocks if qk_bits == 8 else rows))
    if pv_bits == 16:
        buffers["values"] = Buffer(shape.dtype, (pairs, rows, width))
    else:
        buffers["values"] = Buffer(v8, (pairs, blocks, width, block))
        of_scale = (pairs, width) if pv_bits == 8 else (pairs, blocks, width)
        buffers["v_scale"] = Buffer(torch.float32, of_scale)
    if pv_bits == 4:
        buffers["v_low"] = Buffer(torch.float32, (pairs, blocks, width))
    if plan.pooled:
        for name in ("pooled_k", "pooled_v"):
            buffers[name] = Buffer(shape.dtype, (pairs, blocks, width))
    if plan.low_tail:
        # The grid's pooled rows once more, in whole tiles and in the bits of the keys and values.
        tile = plan.tail_tile
        tiles = triton.cdiv(layout.key_blocks, tile)
        buffers["tail_keys"] = Buffer(torch.int8, (pairs, tiles * tile, width))
        buffers["tail_key_scale"] = Buffer(torch.float32, (pairs, tiles))
        if pv_bits == 16:
            buffers["tail_values"] = Buffer(shape.dtype, (pairs, tiles * tile, width))
        else:
            buffers["tail_values"] = Buffer(v8, (pairs, tiles, width, tile))
    if qk_bits < 16 or pv_bits == 8:
        buffers |= statistics_buffers(plan)
    return buffers


def prepare(plan: CallPlan, tensors: dict[str, Tensor]) -> None:
    """Runs the pre-pass that the call's bits and tail ask for; see the module docstring.

    Args:
        plan: of the call.
        tensors: by name, those of ``prepared_buffers``, the plan's kept ones, and q, k, v,
            permutation, order_of_head.
    """
    layout, width, shape = plan.layout, plan.width, plan.shape
    batch, heads, tokens, head_dim = shape.sizes
    qk_bits, pv_bits, fp8 = shape.qk_bits, shape.pv_bits, shape.fp8
    rows = shape.block[1]
    blocks, padded, pairs = layout.stored_blocks, layout.rows, batch * heads
    low_qk, low_pv = qk_bits < 16, pv_bits < 16
    if low_qk or pv_bits == 8:
        measure(plan, tensors)
    first_role = 0 if low_qk else 1
    parts = [(first_role, 3 - first_role, rows)]
    if qk_bits == 4 and width > MAX_ROTATION and rows > QUERY_ROWS:
        # Rows of Q need be no block, and 128 of 256 channels are more than the registers hold.
        parts = [(0, 1, QUERY_ROWS), (1, 2, rows)]
    for role, roles, side in parts:
        plan.run(
            prepass_kernel,
            (padded // side if role == 0 else blocks, pairs, roles),
            tensors,
            (
                "q", "k", "v", "permutation", "order_of_head", "k_mean", "v_scale", "hadamard",
                "q8", "q_scale", "keys", "k_scale", "values", "v_scale", "v_low",
                "pooled_k", "pooled_v",
            ),
            (
                *strides_of(shape, 0), *strides_of(shape, 1), *strides_of(shape, 2),
                tokens, heads, layout.grid_tokens, layout.extra_start, padded, blocks,
            ),
            {
                "HEAD_DIM": head_dim, "D": width, "ALIGNMENT": plan.alignment, "ROWS": side,
                "QK_BITS": qk_bits, "PV_BITS": pv_bits, "FP8": fp8, "POOL": plan.pooled,
                "GATHER": True, "PERMUTE_KEYS": low_qk and low_pv, "FIRST_ROLE": role,
            },
            launch_of=f"role {role}",
            num_warps=4 if side < 128 and width <= 128 else 8,
            maxnreg=_registers(plan),
        )  # fmt: skip
    if plan.low_tail:
        # The grid's pooled rows are a short sequence; the same kernel quantises them.
        stride = (blocks * width, 0, width)
        tile = plan.tail_tile
        tiles = triton.cdiv(layout.key_blocks, tile)
        plan.run(
            prepass_kernel,
            (tiles, pairs, 2),
            tensors,
            (
                "q", "pooled_k", "pooled_v", "permutation", "order_of_head", "k_mean", "v_scale",
                "hadamard", "q8", "q_scale", "tail_keys", "tail_key_scale", "tail_values",
                "v_scale", "v_low", "pooled_k", "pooled_v",
            ),
            (
                *stride, *stride, *stride,
                layout.key_blocks, 1, layout.key_blocks, tiles * tile, tiles * tile, tiles,
            ),
            {
                "HEAD_DIM": width, "D": width, "ALIGNMENT": 1, "ROWS": tile,
                "QK_BITS": qk_bits, "PV_BITS": pv_bits, "FP8": fp8, "POOL": False, "GATHER": False,
                "PERMUTE_KEYS": low_pv, "FIRST_ROLE": 1,
            },
            launch_of="tail",
            num_warps=8,
            maxnreg=128 if width > MAX_ROTATION and tile <= QUERY_ROWS else None,
        )  # fmt: skip


def _registers(plan: CallPlan) -> int | None:
    """Where the compiler spills a register for the sake of one more program."""
    device = plan.shape.device
    ampere = device >= 0 and torch.cuda.get_device_capability(device) == (8, 0)
    whole = plan.shape.qk_bits == plan.shape.pv_bits == 16
    return 80 if ampere and whole and plan.width == 128 else None


def rotation_matrix(plan: CallPlan, device: torch.device) -> Tensor:
    """Hadamard matrix of 4-bit Q and K; the same tensor for all calls."""
    return hadamard_matrix(min(plan.width, MAX_ROTATION), device, torch.float16)
