"""``block_mass_of``: checks its arguments once, then runs the Triton kernel or its twin."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .attention_rows import checked_heads
from .block_mask import BLOCK_SIZES
from .block_mass_reference import reference_block_mass
from .device import unavailable_reason

IMPLEMENTATIONS = ("auto", "reference", "triton")


def block_mass_of(
    q: Tensor,
    k: Tensor,
    permutation: Tensor,
    block: tuple[int, int],
    head_of_map: Tensor | None = None,
    order_of_map: Tensor | None = None,
    *,
    scale: float | None = None,
    implementation: str = "auto",
) -> Tensor:
    """Block mass of some maps: probability summed over a block, mean over its valid query rows.

    A map is one head in one order. The kernel forms products in 16 bits with sums in float32 and
    gives the same bits for the same input; it holds, beside the result, the keys of all maps and
    some 100 MB of notes, so that long sequences are to be handed over in groups of maps.

    Args:
        q, k: [B, H, S, D], any strides; B is averaged.
        permutation: int32 [O, S], a bijection of the tokens per row.
        block: (query, key) tokens of a block, each of BLOCK_SIZES.
        head_of_map: int32 [N], the head of each map; heads 0..H-1 when None.
        order_of_map: int32 [N], each map's row of ``permutation``; row 0 for all when None.
        scale: softmax scale, D ** -0.5 when None.
        implementation: "auto" runs the kernel where it serves the inputs (float16 or bfloat16 on
            the cards of ``unavailable_reason``), else the twin; "triton" and "reference" insist.

    Returns:
        float32 [N, ceil(S / block[0]), ceil(S / block[1])], rows sum to 1, on the device of q.

    Raises:
        ValueError, TypeError: arguments of the wrong shape, dtype, device or value.
        RuntimeError: for ``implementation="triton"`` where the kernel cannot serve the inputs.
    """
    _, heads, tokens, head_dim = checked_heads(q, k)
    if len(block) != 2 or any(side not in BLOCK_SIZES for side in block):
        raise ValueError(f"block must be two of {BLOCK_SIZES} (query, key tokens), got {block}")
    if permutation.ndim != 2 or permutation.shape[1] != tokens or permutation.dtype != torch.int32:
        raise ValueError(
            f"permutation must be int32 [orders, {tokens}], got {permutation.dtype} "
            f"{list(permutation.shape)}"
        )
    if head_of_map is None:
        head_of_map = torch.arange(heads, dtype=torch.int32, device=q.device)
    if order_of_map is None:
        order_of_map = torch.zeros_like(head_of_map)
    maps = {"head_of_map": head_of_map, "order_of_map": order_of_map}
    for name, x in maps.items():
        if x.ndim != 1 or x.dtype != torch.int32 or len(x) != len(head_of_map) or len(x) == 0:
            raise ValueError(
                f"{name} must be int32 [{len(head_of_map)}], at least one map, got {x.dtype} "
                f"{list(x.shape)}"
            )
    for name, x in {"permutation": permutation, **maps}.items():
        if x.device != q.device:
            raise ValueError(f"{name} must be on q's device {q.device}, got {x.device}")
    softmax_scale = head_dim**-0.5 if scale is None else float(scale)
    if not 0 < softmax_scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}")
    reason = None
    if implementation != "reference":
        reason = unavailable_reason(q.device, q.dtype, head_dim)
    if implementation == "triton" and reason is not None:
        raise RuntimeError(f"implementation 'triton' cannot serve these inputs: {reason}")
    if implementation == "reference" or reason is not None:
        return _reference(q, k, permutation, block, head_of_map, order_of_map, softmax_scale)

    from .triton.block_mass import kernel_block_mass

    return kernel_block_mass(q, k, permutation, block, head_of_map, order_of_map, softmax_scale)


def _reference(
    q: Tensor,
    k: Tensor,
    permutation: Tensor,
    block: tuple[int, int],
    head_of_map: Tensor,
    order_of_map: Tensor,
    scale: float,
) -> Tensor:
    masses = []
    for head, order in zip(head_of_map.tolist(), order_of_map.tolist(), strict=True):
        orders = permutation[order : order + 1].long()
        mass = sum(
            reference_block_mass(entry[head], keys[head], orders, block, scale)[0]
            for entry, keys in zip(q, k, strict=True)
        )
        masses.append(mass / q.shape[0])
    return torch.stack(masses)
