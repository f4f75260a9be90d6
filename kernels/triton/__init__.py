"""The Triton kernels as one call.

``torch.compile`` sees it as a single opaque op. Outside of it the op's own bookkeeping costs as
much of the host's time as the launches do, so that the function behind it is called directly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attention import attend
from .call_plan import CallShape, plan_of
from .prepass import prepare


def attend_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    permutation: Tensor,
    order_of_head: Tensor,
    row_offsets: Tensor,
    kv_indices: Tensor,
    computed_bits: Tensor,
    tail_bias: Tensor,
    key_bias: Tensor,
    biased: bool,
    grid_tokens: int,
    query_block: int,
    key_block: int,
    qk_bits: int,
    pv_bits: int,
    fp8: bool,
    tail: bool,
    scale: float,
) -> Tensor:
    """Pre-pass and attention; arguments as ``kernels.sparse_attention`` resolves them.

    ``key_bias`` is read where ``biased``; ``grid_tokens`` is the length of the mask.
    """
    lists = (computed_bits.shape[1], computed_bits.shape[2], key_bias.shape[0] if biased else 0)
    pointers = (
        q, k, v, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias,
        key_bias,
    )  # fmt: skip
    plan = plan_of(
        CallShape(
            device=q.get_device(),
            dtype=q.dtype,
            sizes=tuple(q.shape),
            strides=(*q.stride(), *k.stride(), *v.stride()),
            aligned=tuple(x.data_ptr() % 16 == 0 for x in pointers),
            lists=lists,
            grid_tokens=grid_tokens,
            block=(query_block, key_block),
            qk_bits=qk_bits,
            pv_bits=pv_bits,
            fp8=fp8 and pv_bits == 8,
            tail=tail,
            biased=biased,
        )
    )
    # Triton launches on the current device, which need not be that of q.
    with torch.cuda.device_of(q):
        prepared = prepare(plan, q, k, v, permutation, order_of_head)
        out = _empty_output(q)
        attend(
            plan, q, out.transpose(1, 2), permutation, order_of_head, row_offsets, kv_indices,
            computed_bits, tail_bias, key_bias, prepared, scale,
        )  # fmt: skip
    return out


block_sparse_attention = torch.library.custom_op(
    "paro_attention::block_sparse_attention", attend_blocks, mutates_args=()
)


@block_sparse_attention.register_fake
def _(q: Tensor, *_args: object) -> Tensor:
    return _empty_output(q)


def _empty_output(q: Tensor) -> Tensor:
    """[B, H, S, D] stored as [B, S, H, D], the layout that ComfyUI's models go on with."""
    batch, heads, tokens, head_dim = q.shape
    return q.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
