"""Pre-pass of the FP4 kernel: q, k, v in the model's order to packed NVFP4 operands.

``kernels.fp4_numerics`` says what is rounded to what. K's rows lie permuted inside groups of 32 so
that the sums of Q.K hold P in the register order of the next product's operand.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..fp4_numerics import GROUP
from ..packed_layout import PackedLayout
from ..quantization import hadamard_matrix
from .call_arguments import Buffer, allocated
from .fp4_numbers import quantize
from .int4_prepass import key_of_k
from .prepass_tiles import centred, rotate, rows_of, tokens_at
from .primitives import head_offset


class Fp4Inputs(NamedTuple):
    """What the FP4 kernel reads beside Q itself; KVb counts the blocks of the extra tokens too.

    Packed values are two to a byte, the first in the lower half; scales are codes of e4m3.
    """

    q4: Tensor  # uint8 [B*H, rows, D / 2]
    q_scale: Tensor  # uint8 [B*H, rows, D / 16]
    q_step: Tensor  # float32 [B*H, rows]
    k4: Tensor  # uint8 [B*H, KVb, block, D / 2], rows permuted by ``key_of_k``
    k_scale: Tensor  # uint8 [B*H, KVb, block, D / 16]
    group_mean: Tensor  # dtype of k [B*H, KVb, block / 16, D], of 16 keys each
    v4: Tensor  # uint8 [B*H, KVb, D, block / 2]
    v_scale: Tensor  # uint8 [B*H, KVb, D, block / 16]
    steps: Tensor  # float32 [B*H, KVb, 2], of K and of V
    pooled_k: Tensor  # dtype of k [B*H, KVb, D]
    pooled_v: Tensor  # dtype of v [B*H, KVb, D]


@triton.jit
def step_of(top):
    """float32 scale of values up to ``top``: 6 times 256 of it."""
    return tl.maximum(top, 1e-12) * (1.0 / 1536.0)


@triton.jit
def rotate_in_groups(x, hadamard, ROWS: tl.constexpr, D: tl.constexpr):
    """``rotate``, with its channels in the order of ``fp4_numerics.in_groups``.

    The 16 of a group are what one lane holds of a row of the product.
    """
    x = rotate(x, hadamard, ROWS, D).reshape([ROWS, D // 64, 8, 4, 2])
    return x.permute([0, 1, 3, 2, 4]).reshape([ROWS, D])


@triton.jit(
    do_not_specialize=("S", "H", "grid_tokens", "extra_start", "rows_padded", "stored_blocks")
)
def fp4_prepass_kernel(
    Q, K, V, permutation, order_of_head, k_mean, hadamard,
    q4, q_scale, q_step, k4, k_scale, group_mean, v4, v_scale, steps, pooled_k, pooled_v,
    q_stride_b, q_stride_h, q_stride_s,
    k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s,
    S, H, grid_tokens, extra_start, rows_padded, stored_blocks,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (rows_padded / ROWS, B*H, 3): one block of V (role 2), K (1) or Q (0)."""
    block = tl.program_id(0)
    batch_head = tl.program_id(1).to(tl.int64)
    role = tl.program_id(2)
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
    d = tl.arange(0, D)
    n = tl.arange(0, ROWS)
    pair = tl.arange(0, D // 2)
    group = tl.arange(0, D // 16)
    order = permutation + tl.load(order_of_head + h).to(tl.int64) * S
    span = (0, end, order - shift)  # rows are asked for by their positions
    size = tl.minimum(end - first, ROWS).to(tl.float32)
    stored = batch_head * stored_blocks + block

    # Q and V go in parts of 64 tokens: registers do not hold more of what rounding needs.
    part = tl.arange(0, 64)
    if role == 0:
        Q += head_offset(b, h, q_stride_b, q_stride_h, ALIGNMENT)
        for start in range(0, ROWS, 64):
            at = first + start + part
            token, valid = tokens_at(at, span, True)
            q = rows_of(Q, token, valid, q_stride_s, d, HEAD_DIM, D)
            q = rotate_in_groups(q, hadamard, 64, D)
            q_unit = step_of(tl.max(tl.abs(q), 1))
            q_packed, q_scales = quantize(q * (1.0 / q_unit)[:, None], 64, D)
            q_row = batch_head * rows_padded + at
            tl.store(q_step + q_row, q_unit)
            tl.store(q4 + q_row[:, None] * (D // 2) + pair[None, :], q_packed)
            tl.store(q_scale + q_row[:, None] * (D // 16) + group[None, :], q_scales)
    elif role == 1:
        K += head_offset(b, h, k_stride_b, k_stride_h, ALIGNMENT)
        token, valid = tokens_at(first + n, span, True)
        k = rows_of(K, token, valid, k_stride_s, d, HEAD_DIM, D)
        k = centred(k, tl.load(k_mean + batch_head * D + d), valid)
        k = k.reshape([ROWS // 16, 16, D])
        sums = tl.sum(k, 1)
        tl.store(pooled_k + stored * D + d, (tl.sum(sums, 0) / size).to(K.dtype.element_ty))
        m = tl.arange(0, ROWS // 16)
        count = tl.minimum(tl.maximum(end - first - m * 16, 1), 16).to(tl.float32)
        mean = (sums / count[:, None]).to(K.dtype.element_ty)
        tl.store(group_mean + (stored * (ROWS // 16) + m)[:, None] * D + d[None, :], mean)
        k = (k - mean.to(tl.float32)[:, None, :]).reshape([ROWS, D])
        k = rotate_in_groups(tl.where(valid[:, None], k, 0.0), hadamard, ROWS, D)
        k_unit = step_of(tl.max(tl.max(tl.abs(k), 1), 0))
        k_packed, k_scales = quantize(k * (1.0 / k_unit), ROWS, D)
        k_row = stored * ROWS + key_of_k(n)
        tl.store(steps + stored * 2, k_unit)
        tl.store(k4 + k_row[:, None] * (D // 2) + pair[None, :], k_packed)
        tl.store(k_scale + k_row[:, None] * (D // 16) + group[None, :], k_scales)
    else:
        V += head_offset(b, h, v_stride_b, v_stride_h, ALIGNMENT)
        total = tl.zeros([D], tl.float32)
        high = tl.full([D], float("-inf"), tl.float32)
        low = -high
        for start in range(0, ROWS, 64):
            token, valid = tokens_at(first + start + part, span, True)
            v = rows_of(V, token, valid, v_stride_s, d, HEAD_DIM, D)
            total += tl.sum(v, 0)
            high = tl.maximum(high, tl.max(tl.where(valid[:, None], v, float("-inf")), 0))
            low = tl.minimum(low, tl.min(tl.where(valid[:, None], v, float("inf")), 0))
        v_mean = (total / size).to(V.dtype.element_ty)
        tl.store(pooled_v + stored * D + d, v_mean)
        v_mean = v_mean.to(tl.float32)
        v_unit = step_of(tl.max(tl.maximum(high - v_mean, v_mean - low), 0))
        tl.store(steps + stored * 2 + 1, v_unit)
        key_pair = tl.arange(0, 32)
        key_group = tl.arange(0, 4)
        v_row = (stored * D + d)[:, None]
        for start in range(0, ROWS, 64):
            token, valid = tokens_at(first + start + part, span, True)
            v = centred(rows_of(V, token, valid, v_stride_s, d, HEAD_DIM, D), v_mean, valid)
            v_packed, v_scales = quantize(tl.trans(v * (1.0 / v_unit)), D, 64)
            tl.store(v4 + v_row * (ROWS // 2) + start // 2 + key_pair[None, :], v_packed)
            tl.store(v_scale + v_row * (ROWS // 16) + start // 16 + key_group[None, :], v_scales)


def fp4_buffers(
    pairs: int, layout: PackedLayout, key_block: int, width: int, dtype: torch.dtype
) -> dict[str, Buffer]:
    """The tensors of ``Fp4Inputs`` by name, for so many pairs of batch entry and head."""
    blocks, rows = layout.stored_blocks, layout.rows
    sizes = {
        "q4": (torch.uint8, rows, width // 2),
        "q_scale": (torch.uint8, rows, width // GROUP),
        "q_step": (torch.float32, rows),
        "k4": (torch.uint8, blocks, key_block, width // 2),
        "k_scale": (torch.uint8, blocks, key_block, width // GROUP),
        "group_mean": (dtype, blocks, key_block // GROUP, width),
        "v4": (torch.uint8, blocks, width, key_block // 2),
        "v_scale": (torch.uint8, blocks, width, key_block // GROUP),
        "steps": (torch.float32, blocks, 2),
        "pooled_k": (dtype, blocks, width),
        "pooled_v": (dtype, blocks, width),
    }
    return {name: Buffer(kind, (pairs, *size)) for name, (kind, *size) in sizes.items()}


def prepare_fp4(
    q: Tensor, k: Tensor, v: Tensor, permutation: Tensor, order_of_head: Tensor, k_mean: Tensor,
    layout: PackedLayout, key_block: int, width: int, alignment: int,
) -> Fp4Inputs:  # fmt: skip
    """Runs the pre-pass; ``key_block`` is 64 or 128, ``width`` the padded head dimension.

    ``k_mean`` is what ``mean_of_keys`` makes of k.
    """
    batch, heads, tokens, head_dim = q.shape
    pairs, blocks, rows = batch * heads, layout.stored_blocks, layout.rows
    prepared = Fp4Inputs(
        **allocated(fp4_buffers(pairs, layout, key_block, width, q.dtype), q.device)
    )
    hadamard = hadamard_matrix(width, q.device, torch.float16)
    fp4_prepass_kernel[(rows // key_block, pairs, 3)](
        q, k, v, permutation, order_of_head, k_mean, hadamard, *prepared,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        tokens, heads, layout.grid_tokens, layout.extra_start, rows, blocks,
        HEAD_DIM=head_dim, D=width, ALIGNMENT=alignment, ROWS=key_block,
        num_warps=8,
    )  # fmt: skip
    return prepared
