"""What the INT4 kernel should make of its packed operands: the same integers, in float64."""

from __future__ import annotations

import math

import torch
from paro_attention.kernels.int4_layout import key_of_k, unpack_a, unpack_b
from paro_attention.kernels.key_packing import HIDING_BIAS
from paro_attention.kernels.packed_layout import PackedLayout
from torch import Tensor

# The exponent of two that V's steps carry in a block's record.
STEP_EXPONENT = 100
ROWS = 16


def columns(record: Tensor, row: int, count: int) -> Tensor:
    """A row of the records in order: position 4t + 2b + j of 16 holds column 8b + 2t + j."""
    stored = record[:, :, row, :count].double().unflatten(-1, (-1, 4, 2, 2))
    return stored.transpose(-2, -3).flatten(-4)


class PackedOperands:
    """The operands of all heads as float64 matrices, and where their blocks lie."""

    def __init__(self, prepared, layout: PackedLayout, key_block: int) -> None:
        width = prepared.pooled_k.shape[-1]
        order = key_of_k(torch.arange(key_block)).argsort().to(prepared.v4.device)
        v4 = unpack_b(prepared.v4, key_block, False)[..., order]
        self.q4 = unpack_a(prepared.q4, True).flatten(1, -2).double()  # [pairs, rows, D]
        self.q_scale = prepared.q_scale.double()
        self.k4 = unpack_b(prepared.k4, width, True).double()  # [pairs, blocks, keys, D]
        self.v4 = v4.transpose(-1, -2).double()
        self.k_scale = columns(prepared.record, 0, key_block)
        self.step = columns(prepared.record, 1, width) * 2.0**-STEP_EXPONENT
        self.low, self.mean = (columns(prepared.record, row, width) for row in (2, 3))
        self.pooled_k = prepared.pooled_k.double()
        self.pooled_v = prepared.pooled_v.double()
        self.layout = layout
        self.first = torch.arange(layout.stored_blocks, device=order.device) * key_block
        self.extra_end = layout.extra_start + layout.tokens - layout.grid_tokens
        of_extra = self.first >= layout.extra_start
        self.end = torch.where(of_extra, self.extra_end, layout.grid_tokens)
        self.position = self.first[:, None] + torch.arange(key_block, device=order.device)
        # Blocks between the grid's and the extra tokens' hold nothing.
        self.exists = of_extra | (self.first < layout.grid_tokens)


def attention_of_packed(
    prepared, q: Tensor, permutation: Tensor, order_of_head: Tensor, computed: Tensor,
    layout: PackedLayout, block: tuple[int, int], tail_bias: Tensor, key_bias: Tensor | None,
    *, tail: bool, scale: float,
) -> Tensor:  # fmt: skip
    """Attention [B, H, S, D] in float64 from ``Int4Inputs``; ``computed`` is bool [H, Qb, KVb]."""
    batch, heads, tokens, head_dim = q.shape
    packed = PackedOperands(prepared, layout, block[1])
    bias = torch.where(packed.position < packed.end[:, None], 0.0, -math.inf).double()
    out = torch.zeros(batch, heads, tokens, head_dim, dtype=torch.float64, device=q.device)
    sizes = (packed.end - packed.first)[: layout.key_blocks].clamp(max=block[1]).double()
    for pair in range(batch * heads):
        b, h = divmod(pair, heads)
        token_of = permutation[order_of_head[h].long()].long()
        bias_of_pair = bias.clone()
        if key_bias is not None:
            given = key_bias[b if key_bias.shape[0] > 1 else 0].double()
            place = torch.arange(len(given), device=q.device) + layout.extra_start
            bias_of_pair[place // block[1], place % block[1]] += given.masked_fill(
                given <= HIDING_BIAS, -math.inf
            )
        for first_row in (
            *range(0, layout.grid_tokens, ROWS),
            *range(layout.extra_start, packed.extra_end, ROWS),
        ):
            of_grid = first_row < layout.extra_start
            end = layout.grid_tokens if of_grid else packed.extra_end
            rows = torch.arange(first_row, min(first_row + ROWS, end), device=q.device)
            shift = 0 if of_grid else layout.extra_start - layout.grid_tokens
            token = token_of[rows - shift]
            own = packed.exists.clone()
            if of_grid:
                own[: layout.key_blocks] = computed[h, first_row // block[0]]
            q16 = torch.nn.functional.pad(
                q[b, h, token].double(), (0, packed.pooled_k.shape[-1] - head_dim)
            )
            of_means = q16 @ packed.pooled_k[pair].nan_to_num().T * scale
            pooled = of_means[:, : layout.key_blocks] + sizes.log() + tail_bias[h].double()
            hidden = own[: layout.key_blocks] if tail else torch.ones_like(own[: len(sizes)])
            pooled = pooled.masked_fill(hidden, -math.inf)
            logits = torch.einsum("rd,bkd->rbk", packed.q4[pair, rows], packed.k4[pair])
            logits = logits * packed.k_scale[pair] * packed.q_scale[pair, rows, None, None] * scale
            logits = logits + of_means[..., None] + bias_of_pair
            logits = logits.masked_fill(~own[None, :, None], -math.inf)
            value = _softmax_times_v(packed, pair, own, logits, pooled)
            out[b, h, token] = value[:, :head_dim]
    return out


def _softmax_times_v(
    packed: PackedOperands, pair: int, own: Tensor, logits: Tensor, pooled: Tensor
) -> Tensor:
    tile_top = logits.amax(2, keepdim=True).clamp_min(-1e30)
    top = torch.maximum(tile_top.amax(1), pooled.amax(1, keepdim=True)).clamp_min(-1e30)
    p = (logits - tile_top).exp()
    weight = (tile_top[..., 0] - top).exp() * (p.sum(2) > 0)
    levels = (p * 15).round()
    deviation = torch.einsum("rbk,bkd->rbd", levels, packed.v4[pair]) * packed.step[pair]
    deviation = (deviation + levels.sum(2)[..., None] * packed.low[pair]) / 15
    deviation = deviation + p.sum(2)[..., None] * packed.mean[pair]
    deviation = deviation.masked_fill(~own[None, :, None], 0.0)
    p_pooled = (pooled - top).exp()
    total = (p.sum(2) * weight).sum(1) + p_pooled.sum(1)
    value = (deviation * weight[..., None]).sum(1)
    value = value + p_pooled @ packed.pooled_v[pair, : pooled.shape[1]]
    return value / total.masked_fill(total == 0, 1.0)[:, None]
