"""``sparse_attention``: checks its arguments once, then runs the reference or the kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .block_mask import BlockMask
from .device import fp8_supported, runs_on_hopper_kernel, unavailable_reason
from .quantization import BITS
from .reference import reference_attention

IMPLEMENTATIONS = ("auto", "reference", "triton")
PV8_FORMATS = ("auto", "int8", "fp8")


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    permutation: Tensor | None = None,
    order_of_head: Tensor | None = None,
    *,
    qk_bits: int = 16,
    pv_bits: int = 16,
    tail: bool = True,
    tail_bias: Tensor | None = None,
    scale: float | None = None,
    pv8: str = "auto",
    implementation: str = "auto",
    key_bias: Tensor | None = None,
) -> Tensor:
    """Attention over the computed blocks of each head's own token order.

    Grid tokens are gathered by the head's permutation, cut into blocks, and every query block
    attends to the key blocks that ``mask`` lists. A skipped block is dropped (softmax renormalises)
    or, with ``tail``, stands as one key (the mean of its keys) and one value (the mean of its
    values) with logit ``scale * q . mean + log(tokens in the block) + tail_bias``. A row with
    neither computed blocks nor a tail is zero. Gathering, quantisation and restoring the order are
    part of the call.

    The mask covers V = ``mask.tokens`` grid tokens. The other E = S - V tokens are extra tokens
    (text, references): every query attends to all of them, and they attend to all tokens.

    Args:
        q, k, v: [B, H, S, D], S >= V, any strides with a contiguous last dimension, one dtype:
            float16 or bfloat16, and float32 for the reference. The kernels serve D in multiples
            of 8 up to 256, the reference any D.
        mask: the computed blocks of the grid, on the device of ``q``; it does not depend on E.
        permutation: int32 [O, S], a bijection of the tokens per row, one row per distinct token
            order: the V grid tokens in the order, then the E extra tokens. None means the model's
            order, in which the grid tokens must come first.
        order_of_head: int32 [H], the row of ``permutation`` that each head uses; None means row 0,
            or row h for head h where there are as many rows as heads.
        qk_bits, pv_bits: 16, 8 or 4 for Q.K and for P.V. 4 bits may run on 8-bit units.
        tail: keep the pooled tail of skipped blocks.
        tail_bias: float32 [H] added to the tail's logits; None means 0.
        scale: softmax scale, default ``D ** -0.5``.
        pv8: number format of 8-bit P.V: "fp8" (sm_89 and newer), "int8", or "auto" (FP8 where the
            card has it).
        implementation: "auto" runs the Triton kernels where they serve the inputs, else the
            reference; "triton" and "reference" insist.
        key_bias: float32 [B or 1, E] added to the logits (natural logarithm) of the extra keys, in
            the order of ``permutation``; -inf or <= -1e4 hides a key. None means 0.

    Returns:
        [B, H, S, D] in the model's token order, dtype of ``q``, stored as [B, S, H, D].

    Raises:
        ValueError, TypeError: for arguments of the wrong shape, dtype, device or value.
        RuntimeError: for ``implementation="triton"`` where the kernels cannot serve the inputs.
        torch.cuda.OutOfMemoryError: where the kernels find no room for the workspace of one head.
            As many heads run together as there is room for; the result is the same bit for bit.
    """
    _check_inputs(q, k, v, mask, qk_bits, pv_bits, pv8, implementation)
    permutation, order_of_head = _resolve_orders(q, permutation, order_of_head)
    tail_bias = _resolve_bias(q, tail_bias)
    key_bias = _resolve_key_bias(q, q.shape[2] - mask.tokens, key_bias)
    softmax_scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if not 0 < softmax_scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    fp8 = fp8_supported(q.device) if pv8 == "auto" else pv8 == "fp8"

    reason = None
    if implementation != "reference":
        reason = unavailable_reason(q.device, q.dtype, q.shape[-1])
    if implementation == "triton" and reason is not None:
        raise RuntimeError(f"implementation 'triton' cannot serve these inputs: {reason}")
    if implementation == "reference" or reason is not None:
        linear_fp8 = key_bias is None and runs_on_hopper_kernel(
            q.device, q.shape[-1], mask.block, qk_bits, pv_bits, fp8, tail
        )
        return reference_attention(
            q, k, v, mask, permutation, order_of_head, tail_bias,
            qk_bits=qk_bits, pv_bits=pv_bits, fp8=fp8, tail=tail, scale=softmax_scale,
            key_bias=key_bias, linear_fp8=linear_fp8,
        )  # fmt: skip

    from .triton import attend_blocks, block_sparse_attention

    traced = torch.compiler.is_compiling() or type(q) is not Tensor
    return (block_sparse_attention if traced else attend_blocks)(
        q, k, v, permutation, order_of_head,
        mask.row_offsets, mask.kv_indices, mask.computed_bits, tail_bias,
        # Without a bias the kernel reads none; the op takes a tensor all the same.
        tail_bias if key_bias is None else key_bias, key_bias is not None,
        mask.tokens, mask.block[0], mask.block[1], qk_bits, pv_bits, fp8, tail, softmax_scale,
    )  # fmt: skip


def _check_inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    qk_bits: int,
    pv_bits: int,
    pv8: str,
    implementation: str,
) -> None:
    if q.ndim != 4:
        raise ValueError(f"q must be [B, H, S, D], got {list(q.shape)}")
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            raise ValueError(f"{name} must have q's shape {list(q.shape)}, got {list(x.shape)}")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have q's dtype {q.dtype}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise TypeError(f"q must be float16, bfloat16 or float32, got {q.dtype}")
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.stride(-1) != 1:
            raise ValueError(
                f"{name} must be contiguous along head_dim, got strides {x.stride()}; "
                "call .contiguous()"
            )
    if mask.heads != q.shape[1] or mask.tokens > q.shape[2]:
        raise ValueError(
            f"mask must be for {q.shape[1]} heads and at most {q.shape[2]} tokens as q is, got a "
            f"mask for {mask.heads} heads and {mask.tokens} tokens"
        )
    if mask.row_offsets.device != q.device:
        raise ValueError(
            f"mask must be on q's device {q.device}, got {mask.row_offsets.device}; use mask.to()"
        )
    for name, bits in (("qk_bits", qk_bits), ("pv_bits", pv_bits)):
        if bits not in BITS:
            raise ValueError(f"{name} must be one of {BITS}, got {bits}")
    if pv8 not in PV8_FORMATS:
        raise ValueError(f"pv8 must be one of {PV8_FORMATS}, got {pv8!r}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")


def _resolve_orders(
    q: Tensor, permutation: Tensor | None, order_of_head: Tensor | None
) -> tuple[Tensor, Tensor]:
    heads, tokens = q.shape[1], q.shape[2]
    if permutation is None:
        permutation = torch.arange(tokens, dtype=torch.int32, device=q.device)[None]
    if permutation.ndim != 2 or permutation.shape[1] != tokens or permutation.dtype != torch.int32:
        raise ValueError(
            f"permutation must be int32 [orders, {tokens}], got {permutation.dtype} "
            f"{list(permutation.shape)}"
        )
    if order_of_head is None:
        rows = permutation.shape[0]
        if rows not in (1, heads):
            raise ValueError(
                f"order_of_head must be given where permutation has neither 1 nor {heads} rows, "
                f"got {rows}"
            )
        order_of_head = torch.arange(heads, dtype=torch.int32, device=q.device) * int(rows > 1)
    if order_of_head.shape != (heads,) or order_of_head.dtype != torch.int32:
        raise ValueError(
            f"order_of_head must be int32 [{heads}], got {order_of_head.dtype} "
            f"{list(order_of_head.shape)}"
        )
    for name, x in (("permutation", permutation), ("order_of_head", order_of_head)):
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")
    return permutation.contiguous(), order_of_head.contiguous()


def _resolve_bias(q: Tensor, tail_bias: Tensor | None) -> Tensor:
    heads = q.shape[1]
    if tail_bias is None:
        return torch.zeros(heads, dtype=torch.float32, device=q.device)
    if tail_bias.shape != (heads,) or tail_bias.dtype != torch.float32:
        raise ValueError(
            f"tail_bias must be float32 [{heads}], got {tail_bias.dtype} {list(tail_bias.shape)}"
        )
    if tail_bias.device != q.device:
        raise ValueError(f"tail_bias must be on q's device {q.device}, got {tail_bias.device}")
    return tail_bias.contiguous()


def _resolve_key_bias(q: Tensor, extra_tokens: int, key_bias: Tensor | None) -> Tensor | None:
    if key_bias is None:
        return None
    batch = q.shape[0]
    fits = key_bias.ndim == 2 and key_bias.shape[1] == extra_tokens
    if not fits or key_bias.shape[0] not in (1, batch) or key_bias.dtype != torch.float32:
        raise ValueError(
            f"key_bias must be float32 [{batch} or 1, {extra_tokens}] (batch, extra tokens), got "
            f"{key_bias.dtype} {list(key_bias.shape)}"
        )
    if key_bias.device != q.device:
        raise ValueError(f"key_bias must be on q's device {q.device}, got {key_bias.device}")
    return key_bias.contiguous() if extra_tokens else None
