"""The Triton kernels as one call.

``torch.compile`` sees it as a single opaque op. Outside of it the op's own bookkeeping costs as
much of the host's time as the launches do, so that the function behind it is called directly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..launch import select_launch
from ..packed_layout import PackedLayout, padded_head_dim
from .attention import attend
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
    block = (query_block, key_block)
    layout = PackedLayout.of(q.shape[2], grid_tokens, block)
    width = padded_head_dim(q.shape[-1])
    alignment = _alignment(q, k, v)
    # Triton launches on the current device, which need not be that of q.
    with torch.cuda.device_of(q):
        prepared = prepare(
            q,
            k,
            v,
            permutation,
            order_of_head,
            layout,
            key_block,
            width,
            alignment,
            qk_bits=qk_bits,
            pv_bits=pv_bits,
            fp8=fp8,
            tail=tail,
        )
        out = _empty_output(q)
        capability = (
            (9, 0) if q.device.type == "cpu" else torch.cuda.get_device_capability(q.device)
        )
        launch = select_launch(block, width, qk_bits, pv_bits, capability)
        attend(
            q, k, v, out.transpose(1, 2), permutation, order_of_head,
            row_offsets, kv_indices, computed_bits, tail_bias, key_bias, prepared, block, layout,
            launch, width, alignment,
            biased=biased, qk_bits=qk_bits, pv_bits=pv_bits, fp8=fp8, tail=tail, scale=scale,
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


def _alignment(*tensors: Tensor) -> int:
    """What the kernels may be told to divide the strides of batch and head; 1 says nothing.

    Triton finds multiples of 16 by itself; heads of an odd multiple of 8 channels need telling.
    """
    if tensors[0].shape[-1] % 16 == 0:
        return 1
    strides = [stride for x in tensors for stride in x.stride()[:2]]
    return 8 if all(stride % 8 == 0 for stride in strides) else 1
