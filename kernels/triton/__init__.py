"""The Triton kernels behind one custom op, so that ``torch.compile`` sees a single opaque call."""

from __future__ import annotations

import torch
from torch import Tensor

from ..launch import select_launch
from .attention import attend
from .prepass import prepare


@torch.library.custom_op("paro_attention::block_sparse_attention", mutates_args=())
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    permutation: Tensor,
    order_of_head: Tensor,
    kv_num_blocks: Tensor,
    kv_indices: Tensor,
    computed_bits: Tensor,
    tail_bias: Tensor,
    query_block: int,
    key_block: int,
    qk_bits: int,
    pv_bits: int,
    fp8: bool,
    tail: bool,
    scale: float,
) -> Tensor:
    """Pre-pass and attention; arguments as ``kernels.sparse_attention`` resolves them."""
    block = (query_block, key_block)
    # Triton launches on the current device, which need not be that of q.
    with torch.cuda.device_of(q):
        prepared = prepare(
            q,
            k,
            v,
            permutation,
            order_of_head,
            block,
            qk_bits=qk_bits,
            pv_bits=pv_bits,
            fp8=fp8,
            tail=tail,
        )
        out = _empty_output(q)
        capability = (
            (9, 0) if q.device.type == "cpu" else torch.cuda.get_device_capability(q.device)
        )
        launch = select_launch(block, q.shape[-1], qk_bits, pv_bits, capability)
        attend(
            q, k, v, out.transpose(1, 2), permutation, order_of_head,
            kv_num_blocks, kv_indices, computed_bits, tail_bias, prepared, block, launch,
            qk_bits=qk_bits, pv_bits=pv_bits, fp8=fp8, tail=tail, scale=scale,
        )  # fmt: skip
    return out


@block_sparse_attention.register_fake
def _(q: Tensor, *_args: object) -> Tensor:
    return _empty_output(q)


def _empty_output(q: Tensor) -> Tensor:
    """[B, H, S, D] stored as [B, S, H, D], the layout that ComfyUI's models go on with."""
    batch, heads, tokens, head_dim = q.shape
    return q.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
