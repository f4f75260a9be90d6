"""Pre-pass of the INT4 kernel: q, k, v in the model's order to packed 4-bit operands.

The numbers are those of ``prepass`` at 4 bits (the table in ``kernels.quantization``); what differs
is where they go. Q, K and V are stored as ``kernels.int4_layout`` describes, a word of eight values
at a time, block by block, and everything a block's columns need beside them lies in one record of
four rows: K's scales, then V's step, lower end and mean of each channel. A record's rows are stored
permuted inside groups of 16 so that a lane of the attention kernel loads 16 bytes at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..int4_layout import LANES, NIBBLES, ROWS, STEP, WORDS
from ..packed_layout import PackedLayout
from ..quantization import hadamard_matrix, statistics_step
from .call_arguments import Buffer, allocated
from .prepass_tiles import centred, rotate, rows_of, tokens_at
from .primitives import head_offset, round_to_int, token_of_position

RECORD_ROWS = 4
# The kernel takes sums of P.V for bits of floats, n * 2**-149, and multiplies by the step first.
V_STEP_EXPONENT = 100


class Int4Inputs(NamedTuple):
    """What the INT4 kernel reads beside Q itself; KVb counts the blocks of the extra tokens too."""

    q4: Tensor  # int32 [B*H, rows / 16, D / 64, 32, 4]
    q_scale: Tensor  # float32 [B*H, rows]
    k4: Tensor  # int32 [B*H, KVb, block * D / 1024, 32, 4]
    v4: Tensor  # int32 [B*H, KVb, block * D / 1024, 32, 4]
    record: Tensor  # float32 [B*H, KVb, 4, max(D, block)]
    pooled_k: Tensor  # dtype of k [B*H, KVb, D]
    pooled_v: Tensor  # dtype of v [B*H, KVb, D]


@triton.jit
def words_of(levels, LINES: tl.constexpr, K: tl.constexpr):
    """[LINES, K] levels -> [LINES, K / 8] words, the first level in the lowest nibble."""
    levels = levels.reshape([LINES, K // 8, 8])
    return tl.sum((levels & 15) << (4 * tl.arange(0, 8))[None, None, :], 2)


@triton.jit
def place_in_b(n, word, STEPS: tl.constexpr):
    """Where ``int4_layout.pack_b`` stores the word-th eight k of column n."""
    number = (n // 8 * STEPS + word // 8) * 2 + word % 8 // 4
    return number // 4 * 128 + (n % 8 * 4 + word % 4) * 4 + number % 4


@triton.jit
def key_of_k(n):
    """``int4_layout.key_of_k``: position 8t + 2i + c of 32 holds key 8i + 2t + c."""
    return n // 32 * 32 + n % 8 // 2 * 8 + n % 32 // 8 * 2 + n % 2


@triton.jit(
    do_not_specialize=("S", "H", "grid_tokens", "extra_start", "rows_padded", "stored_blocks")
)
def int4_prepass_kernel(
    Q, K, V, permutation, order_of_head, k_mean, hadamard,
    q4, q_scale, k4, v4, record, pooled_k, pooled_v,
    q_stride_b, q_stride_h, q_stride_s,
    k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s,
    S, H, grid_tokens, extra_start, rows_padded, stored_blocks,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
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
    word = tl.arange(0, D // 8)
    # V's keys come in the order in which their levels share a word.
    stored_at = tl.where(role == 2, key_of_k(n), n)
    position = first + stored_at
    order = permutation + tl.load(order_of_head + h).to(tl.int64) * S
    token, valid = tokens_at(stored_at, (first, end, order - shift), True)
    size = tl.minimum(end - first, ROWS).to(tl.float32)
    stored = batch_head * stored_blocks + block
    record += stored * (4 * WIDTH)

    if role == 0:
        Q += head_offset(b, h, q_stride_b, q_stride_h, ALIGNMENT)
        q_x = rotate(rows_of(Q, token, valid, q_stride_s, d, HEAD_DIM, D), hadamard, ROWS, D)
        q_step = tl.maximum(tl.max(tl.abs(q_x), 1), 1e-12) * (1.0 / 7.0)
        tl.store(q_scale + batch_head * rows_padded + position, q_step)
        q_words = words_of(round_to_int(q_x * (1.0 / q_step)[:, None]), ROWS, D)
        q_line = (position // 16 * (D // 64))[:, None] + (word // 8)[None, :]
        lane = (position % 8 * 4)[:, None] + (word % 4)[None, :]
        q_place = (position % 16 // 8)[:, None] + (word % 8 // 4 * 2)[None, :]
        q4 += batch_head * rows_padded * (D // 8)
        tl.store(q4 + q_line * 128 + lane * 4 + q_place, q_words)
    elif role == 1:
        K += head_offset(b, h, k_stride_b, k_stride_h, ALIGNMENT)
        k_x = rows_of(K, token, valid, k_stride_s, d, HEAD_DIM, D)
        k_x = centred(k_x, tl.load(k_mean + batch_head * D + d), valid)
        block_mean = (tl.sum(k_x, 0) / size).to(K.dtype.element_ty)
        tl.store(pooled_k + stored * D + d, block_mean)
        k_x = rotate(centred(k_x, block_mean.to(tl.float32), valid), hadamard, ROWS, D)
        k_step = tl.maximum(tl.max(tl.abs(k_x), 1), 1e-12) * (1.0 / 7.0)
        k_words = words_of(round_to_int(k_x * (1.0 / k_step)[:, None]), ROWS, D)
        k_place = place_in_b(n[:, None], word[None, :], D // 64)
        tl.store(k4 + stored * (ROWS * D // 8) + k_place, k_words)
        # 22 bits: times the 1.5 * 2**23 at which the kernel's sums start, a scale is exact then.
        k_step = ((k_step.to(tl.int32, bitcast=True) + 2) & -4).to(tl.float32, bitcast=True)
        tl.store(record + token_of_position(n, True), k_step)
    else:
        V += head_offset(b, h, v_stride_b, v_stride_h, ALIGNMENT)
        v_x = rows_of(V, token, valid, v_stride_s, d, HEAD_DIM, D)
        v_mean = (tl.sum(v_x, 0) / size).to(V.dtype.element_ty)
        tl.store(pooled_v + stored * D + d, v_mean)
        v_x = centred(v_x, v_mean.to(tl.float32), valid)
        low = tl.min(v_x, 0)
        v_step = tl.maximum((tl.max(v_x, 0) - low) * (1.0 / 15.0), 1e-12)
        column = record + token_of_position(d, True)
        tl.store(column + WIDTH, v_step * (2.0**100))
        tl.store(column + 2 * WIDTH, low)
        tl.store(column + 3 * WIDTH, v_mean.to(tl.float32))
        levels = tl.trans(round_to_int((v_x - low[None, :]) * (1.0 / v_step)[None, :]))
        v_words = words_of(levels, D, ROWS)
        line = tl.arange(0, ROWS // 8)
        v_place = place_in_b(d[:, None], line[None, :], ROWS // 64)
        tl.store(v4 + stored * (ROWS * D // 8) + v_place, v_words)


def int4_buffers(
    pairs: int, layout: PackedLayout, key_block: int, width: int, dtype: torch.dtype
) -> dict[str, Buffer]:
    """The tensors of ``Int4Inputs`` by name, for so many pairs of batch entry and head."""
    blocks, rows = layout.stored_blocks, layout.rows
    words = (key_block * width // (NIBBLES * WORDS * LANES), LANES, WORDS)
    return {
        "q4": Buffer(torch.int32, (pairs, rows // ROWS, width // STEP, LANES, WORDS)),
        "q_scale": Buffer(torch.float32, (pairs, rows)),
        "k4": Buffer(torch.int32, (pairs, blocks, *words)),
        "v4": Buffer(torch.int32, (pairs, blocks, *words)),
        "record": Buffer(torch.float32, (pairs, blocks, RECORD_ROWS, max(width, key_block))),
        "pooled_k": Buffer(dtype, (pairs, blocks, width)),
        "pooled_v": Buffer(dtype, (pairs, blocks, width)),
    }


def prepare_int4(
    q: Tensor, k: Tensor, v: Tensor, permutation: Tensor, order_of_head: Tensor, k_mean: Tensor,
    layout: PackedLayout, key_block: int, width: int, alignment: int,
) -> Int4Inputs:  # fmt: skip
    """Runs the pre-pass; ``key_block`` is 64 or 128, ``width`` the padded head dimension.

    ``k_mean`` is what ``mean_of_keys`` makes of k.
    """
    batch, heads, tokens, head_dim = q.shape
    pairs, blocks, rows = batch * heads, layout.stored_blocks, layout.rows
    prepared = Int4Inputs(
        **allocated(int4_buffers(pairs, layout, key_block, width, q.dtype), q.device)
    )
    hadamard = hadamard_matrix(width, q.device, torch.float16)
    int4_prepass_kernel[(rows // key_block, pairs, 3)](
        q, k, v, permutation, order_of_head, k_mean, hadamard, *prepared,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        tokens, heads, layout.grid_tokens, layout.extra_start, rows, blocks,
        HEAD_DIM=head_dim, D=width, ALIGNMENT=alignment, ROWS=key_block,
        WIDTH=max(width, key_block), num_warps=4 if key_block < 128 else 8,
    )  # fmt: skip
    return prepared


def mean_of_keys(k: Tensor, width: int) -> Tensor:
    """float32 [B, H, width]: mean of a sample of the keys, zero in the padding.

    Of all heads of a call: how torch adds them up depends on how many there are.
    """
    every = statistics_step(k.shape[2], 4, False)
    mean = k[:, :, ::every].mean(2, dtype=torch.float32)
    return torch.nn.functional.pad(mean, (0, width - k.shape[-1])).contiguous()
