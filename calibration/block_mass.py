"""Block mass of each head in its orders, streamed from q and k.

Where the kernels run, the maps of several heads are measured by one launch; elsewhere one head at a
time, all of its orders together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..kernels import block_mass_of, unavailable_reason
from ..kernels.attention_rows import checked_heads
from ..kernels.block_mass_reference import reference_block_mass
from .block_layout import block_count, checked_block

# Keys and masses of one launch; beside them the kernel holds some 80 MB.
LAUNCH_BYTES = 112 << 20


def block_mass(
    q: Tensor,
    k: Tensor,
    permutations: Tensor | Sequence[Tensor],
    block: tuple[int, int],
    scale: float | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Yields each head's block mass: probability summed over a block, mean over its valid rows.

    Args:
        q, k: [B, H, S, D] in the model's order, any strides, any device; B is averaged.
        permutations: integer [O, S], the candidate orders of all heads, or one such tensor per
            head.
        block: (query, key) tokens of a block.
        scale: softmax scale, D ** -0.5 when None.

    Yields:
        (head, float32 [O, Qb, KVb]) with rows that sum to 1, on the device of q. The caller may
        keep the tensor.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not belong together.
    """
    _, heads, tokens, head_dim = checked_heads(q, k)
    block = checked_block(block)
    per_head = [permutations] * heads if isinstance(permutations, Tensor) else list(permutations)
    if len(per_head) != heads:
        raise ValueError(f"permutations must be one per head ({heads}), got {len(per_head)}")
    for orders in per_head:
        if orders.ndim != 2 or orders.shape[1] != tokens:
            raise ValueError(f"permutations must be [O, {tokens}], got {list(orders.shape)}")
    factor = head_dim**-0.5 if scale is None else scale
    # Only tests may want the interpreter, which is slower than the twin.
    if q.device.type == "cuda" and unavailable_reason(q.device, q.dtype, head_dim) is None:
        return _launched(q, k, per_head, block, factor)
    return _streamed(q, k, per_head, block, factor)


def _launched(
    q: Tensor, k: Tensor, per_head: list[Tensor], block: tuple[int, int], scale: float
) -> Iterator[tuple[int, Tensor]]:
    for heads in _groups(q, per_head, block):
        rows = [per_head[head].to(q.device, torch.int32) for head in heads]
        maps = torch.tensor(
            [head for head, orders in zip(heads, rows, strict=True) for _ in orders],
            dtype=torch.int32,
        ).to(q.device)
        own = torch.arange(len(maps), dtype=torch.int32, device=q.device)
        mass = block_mass_of(q, k, torch.cat(rows), block, maps, own, scale=scale)
        split = mass.split([len(orders) for orders in rows])
        # A copy: a view would keep the masses of the whole group in memory.
        yield from ((head, x.clone()) for head, x in zip(heads, split, strict=True))


def _groups(q: Tensor, per_head: list[Tensor], block: tuple[int, int]) -> list[list[int]]:
    """Heads whose maps fit in one launch; at least one each."""
    tokens, head_dim = q.shape[2:]
    of_map = tokens * max(64, 1 << (head_dim - 1).bit_length()) * q.element_size()
    of_map += 4 * block_count(tokens, block[0]) * block_count(tokens, block[1])
    groups: list[list[int]] = []
    taken = LAUNCH_BYTES
    for head, orders in enumerate(per_head):
        taken += len(orders) * of_map
        if taken > LAUNCH_BYTES:
            groups.append([])
            taken = len(orders) * of_map
        groups[-1].append(head)
    return groups


def _streamed(
    q: Tensor, k: Tensor, per_head: list[Tensor], block: tuple[int, int], scale: float
) -> Iterator[tuple[int, Tensor]]:
    for head, orders in enumerate(per_head):
        orders = orders.to(q.device, torch.int64)
        mass = reference_block_mass(q[0, head], k[0, head], orders, block, scale)
        for entry in range(1, q.shape[0]):
            mass += reference_block_mass(q[entry, head], k[entry, head], orders, block, scale)
        yield head, mass.div_(q.shape[0])
