"""Block-sparse attention in plain PyTorch: the specification of the Triton kernels.

Everything is computed densely in float32 and masked, so it is right on any device and fast on none.
Low bits are simulated by rounding; integer sums are exact in float32 at these sizes. The tail
follows "one pooled key and value per skipped block" (Sol-Attn, arXiv 2607.24027; PISA, 2602.01077)
with a bias per head that calibration fits. Extra tokens (text) lie behind the grid in key blocks of
their own, which every row computes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from .block_mask import BlockMask
from .fp4_numerics import Fp4Logits, Fp4Values
from .fp8_numerics import round_probabilities
from .key_packing import KeyPacking, in_blocks
from .packed_layout import padded_head_dim, pooled_tile
from .quantization import (
    FP8_MAX,
    FP8_V_MAX,
    INT4_MAX,
    INT8_MAX,
    SCALE_FLOOR,
    UINT4_MAX,
    fake_quantize,
    hadamard,
    statistics_step,
    symmetric_scale,
)

# Floats of one logits chunk; larger problems are cut by head and by query block.
# 8 MiB stay in a processor's cache, and in the heap: twice as fast there as 128 MiB.
CPU_CHUNK_ELEMENTS = 1 << 21
CHUNK_ELEMENTS = 1 << 25
LN_2 = math.log(2.0)


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    permutation: Tensor,
    order_of_head: Tensor,
    tail_bias: Tensor,
    *,
    qk_bits: int,
    pv_bits: int,
    fp8: bool,
    tail: bool,
    scale: float,
    key_bias: Tensor | None = None,
    fp4: bool = False,
    linear_fp8: bool = False,
) -> Tensor:
    """Attention of [B, H, S, D] inputs, rows in the model's order; see ``sparse_attention``.

    ``fp4``: 4/4 bits as the FP4 kernel has them (``fp4_numerics``), not in integers.
    ``linear_fp8``: 8/8 bits as the Hopper kernel has them: P as in ``fp8_numerics``, and the
    denominator of the rounded P.
    """
    batch, heads, tokens, head_dim = q.shape
    gather = permutation.long()[order_of_head.long()]  # [H, S]
    index = gather[None, :, :, None].expand(batch, -1, -1, head_dim)
    out = torch.empty(batch, tokens, heads, head_dim, dtype=q.dtype, device=q.device)
    out = out.transpose(1, 2)
    computed = mask.to_dense()
    step = statistics_step(tokens, pv_bits, fp8)
    k_mean = k[:, :, ::step].float().mean(2, keepdim=True)
    v_scale = symmetric_scale(v[:, :, ::step].float(), FP8_V_MAX if fp8 else INT8_MAX, -2)
    chunk = _chunk_elements(q.device)
    heads_at_once = max(1, min(heads, chunk // (batch * tokens * tokens) or 1))
    for first in range(0, heads, heads_at_once):
        part = slice(first, min(heads, first + heads_at_once))
        queries, keys, values = (x[:, part].gather(2, index[:, part]).float() for x in (q, k, v))
        rows = _attend(
            queries,
            keys - k_mean[:, part] if qk_bits < 16 else keys,
            values,
            v_scale[:, part],
            computed[part],
            tail_bias[part].float(),
            mask.block,
            mask.tokens,
            key_bias,
            dtype=q.dtype,
            qk_bits=qk_bits,
            pv_bits=pv_bits,
            fp8=fp8,
            tail=tail,
            scale=scale,
            fp4=fp4,
            linear_fp8=linear_fp8,
        )
        out[:, part] = torch.empty_like(rows).scatter_(2, index[:, part], rows).to(q.dtype)
    return out


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    v_scale: Tensor,
    computed: Tensor,
    tail_bias: Tensor,
    block: tuple[int, int],
    grid_tokens: int,
    key_bias: Tensor | None,
    *,
    dtype: torch.dtype,
    qk_bits: int,
    pv_bits: int,
    fp8: bool,
    tail: bool,
    scale: float,
    fp4: bool,
    linear_fp8: bool,
) -> Tensor:
    tokens = q.shape[2]
    query_block, key_block = block
    packing = KeyPacking(tokens, grid_tokens, key_block)
    query_blocks, key_blocks = computed.shape[-2:]
    # Every row computes the extra blocks; the rows of extra queries compute every block.
    computed = pad(computed, (0, packing.blocks - key_blocks, 0, 1), value=True)
    sizes = packing.sizes(q.device)
    k, v = packing(k), packing(v)
    # Pooled rows are stored in the inputs' dtype.
    means_k, means_v = (
        (in_blocks(x, key_block).sum(-2) / sizes[:, None]).to(dtype).float() for x in (k, v)
    )
    # The tail is a short sequence of keys: in 8 bits where Q.K and P.V both are, else in 16.
    low_tail = qk_bits == 8 and pv_bits == 8
    tail_tile = key_block if linear_fp8 else pooled_tile(key_block, q.shape[-1])
    exists = packing.exists(q.device)
    if fp4:
        logit_operands = Fp4Logits(q, k, means_k[..., :key_blocks, :], exists, key_block, dtype)
        values = Fp4Values(v, means_v, exists, key_block)
    else:
        logit_operands = _Logits(
            q, k, means_k, exists, key_block, key_blocks, qk_bits, tail_tile if low_tail else 0
        )
        values = _Values(v, v_scale, means_v, exists, key_block, pv_bits, fp8, linear_fp8)
    pooled_v = means_v[..., :key_blocks, :]
    tail_values = _Values(
        pooled_v, v_scale, pooled_v, exists, tail_tile, pv_bits if low_tail else 16, fp8, linear_fp8
    )

    out = torch.empty_like(q)
    chunk = _chunk_elements(q.device)
    rows_at_once = max(1, chunk // (q.shape[0] * q.shape[1] * tokens) // query_block)
    rows_at_once *= query_block
    bias = None if key_bias is None else packing.bias_of_keys(key_bias)[:, None, None]
    log_sizes = sizes[:key_blocks].log()
    for start in range(0, tokens, rows_at_once):
        rows = slice(start, min(tokens, start + rows_at_once))
        row = torch.arange(rows.start, rows.stop, device=q.device)
        kept = computed[:, torch.where(row < grid_tokens, row // query_block, query_blocks)]
        logits = logit_operands(rows) * scale
        if bias is not None:
            logits = logits + bias
        logits = logits.masked_fill(~(kept.repeat_interleave(key_block, -1) & exists), -math.inf)
        if tail:
            pooled = logit_operands.pooled(rows) * scale + log_sizes
            pooled = pooled + tail_bias[:, None, None]
            pooled = pooled.masked_fill(kept[..., :key_blocks], -math.inf)
        else:
            pooled = torch.full((*logits.shape[:-1], 0), -math.inf, device=q.device)
        top = torch.cat((logits, pooled), -1).amax(-1, keepdim=True).clamp_min(-1e30)
        if fp8 and pv_bits == 8:
            # A whole power of two: P's rounding to FP8 must not depend on the running maximum.
            top = (top / LN_2).ceil() * LN_2
        p = (logits - top).exp()
        p_pooled = (pooled - top).exp()
        if linear_fp8:
            p, p_pooled = (round_probabilities(x, linear=True) for x in (p, p_pooled))
        total = p.sum(-1, keepdim=True) + p_pooled.sum(-1, keepdim=True)
        weighted = values(p)
        if tail:
            weighted = weighted + tail_values(p_pooled)
        out[:, :, rows] = weighted / total.masked_fill(total == 0, 1.0)
    return out


def _chunk_elements(device: torch.device) -> int:
    return CPU_CHUNK_ELEMENTS if device.type == "cpu" else CHUNK_ELEMENTS


def _rounded_by_block(k: Tensor, key_block: int) -> Tensor:
    """K rounded to int8 with one scale per block of rows."""
    scale = symmetric_scale(in_blocks(k, key_block), INT8_MAX, (-2, -1)).squeeze(-1)
    scale = scale.expand(*scale.shape[:-1], key_block).flatten(-2)[..., : k.shape[-2], None]
    return fake_quantize(k, scale, -INT8_MAX, INT8_MAX) * scale


def _rotated(x: Tensor) -> Tensor:
    """Hadamard rotation, on rows filled with zeros up to the kernels' power of two."""
    return hadamard(pad(x, (0, padded_head_dim(x.shape[-1]) - x.shape[-1])))


class _Logits:
    """Unscaled logits of a slice of rows against all packed keys, and against the pooled keys.

    ``tail_tile``: pooled keys that are rounded together to 8 bits; 0 keeps them in 16.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        means_k: Tensor,
        exists: Tensor,
        key_block: int,
        key_blocks: int,
        bits: int,
        tail_tile: int,
    ) -> None:
        self.means = None
        self.key_block = key_block
        self.pooled_k = means_k[..., :key_blocks, :]
        self.q_tail = q
        if bits == 16:
            self.q, self.k = q, k
        elif bits == 8:
            q_scale = symmetric_scale(q, INT8_MAX, -1)
            self.q = fake_quantize(q, q_scale, -INT8_MAX, INT8_MAX) * q_scale
            self.k = _rounded_by_block(k, key_block)
            self.q_tail = self.q
            if tail_tile:
                self.pooled_k = _rounded_by_block(self.pooled_k, tail_tile)
        else:
            # q.k = q.(k - block mean) + q.(block mean): the second term is exact, and it is the
            # pooled tail's own logit.
            self.means = means_k
            q_rotated = _rotated(q)
            centred = k - means_k.repeat_interleave(key_block, -2)
            k_rotated = _rotated(centred * exists[:, None])
            q_scale = symmetric_scale(q_rotated, INT4_MAX, -1)
            k_scale = symmetric_scale(k_rotated, INT4_MAX, -1)
            self.q = fake_quantize(q_rotated, q_scale, -INT4_MAX, INT4_MAX) * q_scale
            self.k = fake_quantize(k_rotated, k_scale, -INT4_MAX, INT4_MAX) * k_scale

    def __call__(self, rows: slice) -> Tensor:
        logits = self.q[:, :, rows] @ self.k.transpose(-1, -2)
        if self.means is not None:
            of_means = self.q_tail[:, :, rows] @ self.means.transpose(-1, -2)
            logits = logits + of_means.repeat_interleave(self.key_block, -1)
        return logits

    def pooled(self, rows: slice) -> Tensor:
        return self.q_tail[:, :, rows] @ self.pooled_k.transpose(-1, -2)


class _Values:
    """P @ V for probabilities relative to the row maximum, in the precision asked for.

    ``v_scale`` [B, H, 1, D] is that of 8 bits, which the tail's values share. ``rounded_p``: FP8
    probabilities come rounded.
    """

    def __init__(
        self,
        v: Tensor,
        v_scale: Tensor,
        means_v: Tensor,
        exists: Tensor,
        key_block: int,
        bits: int,
        fp8: bool,
        rounded_p: bool,
    ) -> None:
        self.rounded_p = rounded_p
        self.key_block = key_block
        self.bits = bits
        self.fp8 = fp8
        self.v = v
        if bits == 8 and fp8:
            in_range = (v * (1.0 / v_scale)).clamp(-FP8_MAX, FP8_MAX)
            self.v = in_range.to(torch.float8_e4m3fn).float() * v_scale
        elif bits == 8:
            self.v = fake_quantize(v, v_scale, -INT8_MAX, INT8_MAX) * v_scale
        elif bits == 4:
            self.means_v = means_v
            centred = (v - means_v.repeat_interleave(key_block, -2)) * exists[:, None]
            centred = in_blocks(centred, key_block)
            # The zeros that fill a ragged block lie inside [low, high]: deviations average to zero.
            low, high = centred.amin(-2, keepdim=True), centred.amax(-2, keepdim=True)
            step = ((high - low) / UINT4_MAX).clamp_min(SCALE_FLOOR)
            levels = fake_quantize(centred - low, step, 0.0, UINT4_MAX)
            self.v = (levels * step + low).flatten(-3, -2)

    def __call__(self, p: Tensor) -> Tensor:
        if self.bits == 16:
            return p @ self.v
        if self.bits == 8 and self.fp8:
            return (p if self.rounded_p else round_probabilities(p)) @ self.v
        levels = INT8_MAX if self.bits == 8 else UINT4_MAX
        in_tiles = pad(p, (0, -p.shape[-1] % self.key_block))
        in_tiles = in_tiles.unflatten(-1, (-1, self.key_block))
        p_scale = symmetric_scale(in_tiles, levels, -1)
        rounded = (fake_quantize(in_tiles, p_scale, 0.0, levels) * p_scale).flatten(-2)
        out = rounded[..., : p.shape[-1]] @ self.v
        if self.bits == 4:
            out = out + in_tiles.sum(-1) @ self.means_v
        return out
