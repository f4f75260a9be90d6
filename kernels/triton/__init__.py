"""The Triton kernels as one call.

``torch.compile`` sees it as a single opaque op. Outside of it the op's own bookkeeping costs as
much of the host's time as the launches do, so that the function behind it is called directly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .attend import attend
from .call_arguments import named_tensors
from .call_plan import CallPlan, CallShape, plan_of
from .fp4 import fp4_attention, fp4_available
from .head_groups import HeadGroups
from .int4 import int4_attention, int4_available
from .prepass import prepare, prepared_buffers, rotation_matrix


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
    if qk_bits == pv_bits == 4 and q.device.type == "cuda":
        native = _kernel_of_4_bits(q, (query_block, key_block))
        if native is not None:
            return native(
                q, k, v, permutation, order_of_head, row_offsets, kv_indices, computed_bits,
                tail_bias, key_bias, biased, grid_tokens, query_block, key_block, tail, scale,
            )  # fmt: skip
    given = named_tensors(
        q, k, v, permutation, order_of_head, row_offsets, kv_indices, computed_bits, tail_bias,
        key_bias,
    )  # fmt: skip
    addresses = {name: x.data_ptr() for name, x in given.items()}
    plan = plan_of(
        CallShape(
            device=q.get_device(),
            dtype=q.dtype,
            sizes=tuple(q.shape),
            strides=(*q.stride(), *k.stride(), *v.stride()),
            aligned=tuple([address % 16 == 0 for address in addresses.values()]),
            lists=(*computed_bits.shape[1:], key_bias.shape[0] if biased else 0),
            grid_tokens=grid_tokens,
            block=(query_block, key_block),
            qk_bits=qk_bits,
            pv_bits=pv_bits,
            fp8=fp8 and pv_bits == 8,
            tail=tail,
            biased=biased,
            scale=scale,
        )
    )
    out = _empty_output(q)
    if q.device.type == "cuda":
        # Triton launches on the current device, which need not be that of q.
        with torch.cuda.device_of(q):
            stream = torch.cuda.current_stream(q.device).cuda_stream
            addresses["out"] = out.data_ptr()
            fits = True
            try:
                replayed = plan.replay(q.device, stream, addresses)
            except torch.cuda.OutOfMemoryError:
                replayed = fits = False
            if not replayed:
                _attend_anew(plan, given, out, fits)
    else:
        _attend_anew(plan, given, out, True)
    return out


def _kernel_of_4_bits(q: Tensor, block: tuple[int, int]) -> Callable[..., Tensor] | None:
    """The kernel that multiplies 4 bits as they are on this card; None where there is none."""
    kind = torch.cuda.get_device_capability(q.device), q.shape[-1], block
    if int4_available(*kind):
        return int4_attention
    return fp4_attention if fp4_available(*kind) else None


def _attend_anew(plan: CallPlan, given: dict[str, Tensor], out: Tensor, fits: bool) -> None:
    """The first call of a shape, and all calls of one that does not fit as a whole."""
    groups = plan.groups
    if groups is None:
        plan.buffers = prepared_buffers(plan)
        groups = HeadGroups.of(*plan.shape.sizes[:2], plan.workspace, out.device)
        plan.groups = groups
    if not fits:
        groups.shrink(out)
    groups.run(given, out, partial(_attend_heads, plan))


def _attend_heads(plan: CallPlan, given: dict[str, Tensor], out: Tensor) -> None:
    """Attention of all heads of the call that a plan is for, or of a group of them."""
    q = given["q"]
    shape = plan.shape
    if q.shape == shape.sizes:
        _record(plan, given, out)
        return
    addresses = {name: x.data_ptr() for name, x in given.items()}
    plan = plan_of(
        shape._replace(
            sizes=tuple(q.shape),
            aligned=tuple([address % 16 == 0 for address in addresses.values()]),
            lists=(*shape.lists[:2], min(shape.lists[2], 1)),
            row_heads=shape.sizes[1],
        )
    )
    addresses["out"] = out.data_ptr()
    stream = torch.cuda.current_stream(q.device).cuda_stream if q.is_cuda else 0
    if not plan.replay(q.device, stream, addresses):
        _record(plan, given, out)


def _record(plan: CallPlan, given: dict[str, Tensor], out: Tensor) -> None:
    """Launches a call as the next ones of its shape will be."""
    device = given["q"].device
    plan.buffers = prepared_buffers(plan)
    if plan.shape.qk_bits == 4:
        plan.kept["hadamard"] = rotation_matrix(plan, device)
    tensors = given | plan.kept | plan.allocate(device) | {"out": out.transpose(1, 2)}
    prepare(plan, tensors)
    attend(plan, tensors)
    plan.finish_recording()


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
