"""Rows of one head's attention map, in tiles small enough that the map itself is never stored."""

from __future__ import annotations

import torch
from torch import Tensor

GPU_TILE_BYTES = 96 << 20
CPU_TILE_BYTES = 16 << 20  # two tiles of this size still fit a server CPU's cache
# Half-precision products that come out in float32: rounding logits to bfloat16 would shift them by
# up to 2^-9 of their size. Older torch and ROCm have no such product.
_WIDE_PRODUCTS = "dtype" in torch.ops.aten.mm.overloads() and torch.version.hip is None


def rows_per_tile(columns: int, multiple: int, device: torch.device) -> int:
    """Rows of a float32 tile of about the device's tile size, a multiple of `multiple`."""
    budget = CPU_TILE_BYTES if device.type == "cpu" else GPU_TILE_BYTES
    return max(1, budget // (4 * columns * multiple)) * multiple


def matmul_operand(x: Tensor) -> Tensor:
    """x in the dtype in which its products are formed: its own on a GPU, float32 elsewhere."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    if half and x.device.type == "cuda" and _WIDE_PRODUCTS:
        return x
    return x.float()


def scaled_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """float32 [R, S] logits of q [R, D] against k [S, D], both from `matmul_operand`."""
    if q.dtype == torch.float32:
        return torch.mm(q, k.t()).mul_(scale)
    return torch.mm(q, k.t(), out_dtype=torch.float32).mul_(scale)


def exponentials_(logits: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """exp(logits - row maximum) in place; columns from `keys` on are padding and become 0.

    Returns:
        The tile and the row maxima [R, 1].
    """
    if logits.shape[1] > keys:
        logits[:, keys:] = float("-inf")
    top = logits.amax(1, keepdim=True)
    return logits.sub_(top).exp_(), top


def checked_heads(q: Tensor, k: Tensor, v: Tensor | None = None) -> tuple[int, int, int, int]:
    """(B, H, S, D) of q.

    Raises:
        ValueError: q, k (and v) differ in shape or are not [B, H, S, D].
        TypeError: they are not floating point or differ in dtype.
    """
    others = [("k", k)] if v is None else [("k", k), ("v", v)]
    if q.ndim != 4:
        raise ValueError(f"q must be [B, H, S, D], got {list(q.shape)}")
    if not q.dtype.is_floating_point:
        raise TypeError(f"q must be floating point, got {q.dtype}")
    for name, x in others:
        if x.shape != q.shape:
            raise ValueError(
                f"{name} must have the shape of q {list(q.shape)}, got {list(x.shape)}"
            )
        if x.dtype != q.dtype:
            raise TypeError(f"{name} must have the dtype of q {q.dtype}, got {x.dtype}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on the device of q {q.device}, got {x.device}")
    batch, heads, tokens, head_dim = q.shape
    return batch, heads, tokens, head_dim
