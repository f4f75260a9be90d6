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
from .packed_layout import low_tail, pooled_tile
from .quantization import (
    FP8_V_MAX,
    INT8_MAX,
    statistics_step,
    symmetric_scale,
)
from .reference_operands import Logits, Values

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
    # The tail is a short sequence of keys: in the bits of the others, or all in 16.
    low = low_tail(qk_bits, pv_bits)
    tail_tile = pooled_tile(key_block, q.shape[-1])
    exists = packing.exists(q.device)
    if fp4:
        logit_operands = Fp4Logits(q, k, means_k[..., :key_blocks, :], exists, key_block, dtype)
        values = Fp4Values(v, means_v, exists, key_block)
    else:
        logit_operands = Logits(
            q, k, means_k, exists, key_block, key_blocks, qk_bits, tail_tile if low else 0
        )
        values = Values(v, v_scale, means_v, exists, key_block, pv_bits, fp8, linear_fp8)
    pooled_v = means_v[..., :key_blocks, :]
    tail_values = Values(
        pooled_v, v_scale, pooled_v, exists, tail_tile, pv_bits if low else 16, fp8, linear_fp8
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
