"""Pre-pass: reads q, k, v where the model left them, gathers, removes K's mean, pools, quantises.

A first launch does Q and samples K and V, a second finds K's mean and V's range, where the bits ask
for them; another does K and V, and one more an 8-bit tail. Sums go through partial results in a
fixed order, so the same input gives the same bits.

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
from .prepass_queries import prepare_queries
from .prepass_tiles import MAX_ROTATION, pack_keys, pack_values, span_at
from .primitives import head_offset
from .statistics import statistics_buffers, summarise

# Channels of a tile of V, and tokens of 8-bit K that are held at a time.
CHANNELS = 64
KEY_CHUNK = 32


@triton.jit(
    do_not_specialize=("S", "H", "grid_tokens", "extra_start", "rows_padded", "stored_blocks")
)
def prepass_kernel(
    K, V, permutation, order_of_head, k_mean, v_scale, hadamard,
    keys, k_scale, values, v_step, v_low, pooled_k, pooled_v,
    k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s,
    S, H, grid_tokens, extra_start, rows_padded, stored_blocks,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr,
    QK_BITS: tl.constexpr, PV_BITS: tl.constexpr, FP8: tl.constexpr, POOL: tl.constexpr,
    GATHER: tl.constexpr, PERMUTE_KEYS: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, B*H, 2): a tile of K (0) or V (1), or nothing behind the last.

    A tile is a block of ROWS tokens of K, or CHANNELS channels of one of V. CHUNK: tokens of 8-bit
    K that are held at a time. GATHER: rows are gathered by the head's permutation and K's mean is
    removed; else the rows of K and V are taken as they lie.
    """
    tile = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    of_values = tl.program_id(2) == 1
    b = batch_head // H
    h = batch_head % H
    block = tile
    first_channel = 0
    if of_values:
        block = tile // (D // CHANNELS)
        first_channel = tile % (D // CHANNELS) * CHANNELS
    first = block * ROWS
    if first >= rows_padded:  # K has fewer tiles than V
        return
    span = span_at(first, permutation, order_of_head, h, S, grid_tokens, extra_start)
    pooled = (batch_head * stored_blocks + block) * D
    if first >= span[1]:
        # Holes and padding of the query side only.
        if POOL:
            # The tail loads a hole's pooled rows with its neighbours', and must not meet a NaN.
            d = tl.arange(0, D)
            hole = (d < D) & (block < stored_blocks) & (first_channel == 0)
            zero = tl.zeros([D], dtype=tl.float32)
            hole_of_keys = hole & (of_values == 0)
            tl.store(pooled_k + pooled + d, zero.to(K.dtype.element_ty), mask=hole_of_keys)
            tl.store(pooled_v + pooled + d, zero.to(V.dtype.element_ty), mask=hole & of_values)
        return
    row = batch_head * rows_padded + first
    if of_values == 0:
        K += head_offset(b, h, k_stride_b, k_stride_h, ALIGNMENT)
        scale = k_scale
        if QK_BITS == 8:
            scale += batch_head * stored_blocks + block
        else:
            scale += row
        pack_keys(
            K, k_stride_s, span, k_mean + batch_head * D, hadamard,
            keys + row * D, scale, pooled_k + pooled,
            HEAD_DIM, D, ROWS, CHUNK, QK_BITS, POOL, GATHER, PERMUTE_KEYS,
        )  # fmt: skip
    else:
        V += head_offset(b, h, v_stride_b, v_stride_h, ALIGNMENT)
        stored = values + pooled * ROWS
        if PV_BITS == 16:
            stored = values + row * D
        step = v_step + pooled
        if PV_BITS == 8:
            step = v_scale + batch_head * D
        pack_values(
            V, v_stride_s, span, first_channel, stored, step, v_low + pooled, pooled_v + pooled,
            HEAD_DIM, D, ROWS, CHANNELS, PV_BITS, FP8, POOL, GATHER,
        )  # fmt: skip


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
        # Two pairs more than there are: the Hopper kernel asks for scales ahead of a head's end.
        buffers["k_scale"] = Buffer(torch.float32, (pairs + 2, blocks if qk_bits == 8 else rows))
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
        prepare_queries(plan, tensors)
        summarise(plan, tensors)
    channels = min(width, CHANNELS)
    plan.run(
        prepass_kernel,
        (blocks * (width // channels), pairs, 2),
        tensors,
        (
            "k", "v", "permutation", "order_of_head", "k_mean", "v_scale", "hadamard",
            "keys", "k_scale", "values", "v_scale", "v_low", "pooled_k", "pooled_v",
        ),
        (
            *strides_of(shape, 1), *strides_of(shape, 2),
            tokens, heads, layout.grid_tokens, layout.extra_start, padded, blocks,
        ),
        {
            "HEAD_DIM": head_dim, "D": width, "ALIGNMENT": plan.alignment, "ROWS": rows,
            "CHANNELS": channels, "CHUNK": min(rows, KEY_CHUNK),
            "QK_BITS": qk_bits, "PV_BITS": pv_bits, "FP8": fp8, "POOL": plan.pooled,
            "GATHER": True, "PERMUTE_KEYS": low_qk and low_pv,
        },
        launch_of="tokens",
        num_warps=_warps(rows, width, qk_bits, pv_bits),
    )  # fmt: skip
    if plan.low_tail:
        # The grid's pooled rows are a short sequence; the same kernel quantises them.
        stride = (blocks * width, 0, width)
        tile = plan.tail_tile
        tiles = triton.cdiv(layout.key_blocks, tile)
        plan.run(
            prepass_kernel,
            (tiles * (width // channels), pairs, 2),
            tensors,
            (
                "pooled_k", "pooled_v", "permutation", "order_of_head", "k_mean", "v_scale",
                "hadamard", "tail_keys", "tail_key_scale", "tail_values",
                "v_scale", "v_low", "pooled_k", "pooled_v",
            ),
            (
                *stride, *stride,
                layout.key_blocks, 1, layout.key_blocks, tiles * tile, tiles * tile, tiles,
            ),
            {
                "HEAD_DIM": width, "D": width, "ALIGNMENT": 1, "ROWS": tile,
                "CHANNELS": channels, "CHUNK": min(tile, KEY_CHUNK),
                "QK_BITS": qk_bits, "PV_BITS": pv_bits, "FP8": fp8, "POOL": False, "GATHER": False,
                "PERMUTE_KEYS": low_pv,
            },
            launch_of="tail",
            num_warps=8,
        )  # fmt: skip


def _warps(rows: int, width: int, qk_bits: int, pv_bits: int) -> int:
    """Few, which wait for each other least, where the tile that is held is small."""
    return 4 if width <= 128 and (rows < 128 or (qk_bits == 8 and pv_bits != 4)) else 8


def rotation_matrix(plan: CallPlan, device: torch.device) -> Tensor:
    """Hadamard matrix of 4-bit Q and K; the same tensor for all calls."""
    return hadamard_matrix(min(plan.width, MAX_ROTATION), device, torch.float16)
