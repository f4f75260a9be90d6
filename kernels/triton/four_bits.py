"""What a call of the 4-bit kernels, INT4 and FP4, does around its launches: groups of heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
from torch import Tensor

from ..packed_layout import PackedLayout, padded_head_dim
from .call_arguments import Buffer, total_bytes
from .head_groups import HeadGroups
from .int4_prepass import mean_of_keys

# Kinds of calls whose groups of heads are remembered.
MAX_KINDS = 512

BuffersOf = Callable[[int, PackedLayout, int, int, torch.dtype], dict[str, Buffer]]
"""(pairs of batch entry and head, layout, key block, padded head dimension, dtype) -> buffers."""


def remembered_groups(buffers_of: BuffersOf) -> Callable[..., HeadGroups]:
    """A function of (device, dtype, sizes of q, grid tokens, block) that gives all calls of a kind
    the same groups, so that what one learns the next ones know."""

    @lru_cache(maxsize=MAX_KINDS)
    def groups_of(
        device: torch.device,
        dtype: torch.dtype,
        sizes: torch.Size,
        grid_tokens: int,
        block: tuple[int, int],
    ) -> HeadGroups:
        batch, heads, tokens, head_dim = sizes
        layout = PackedLayout.of(tokens, grid_tokens, block)
        buffers = buffers_of(batch * heads, layout, block[1], padded_head_dim(head_dim), dtype)
        return HeadGroups.of(batch, heads, total_bytes(buffers), device)

    return groups_of


def attend_in_groups(
    groups_of: Callable[..., HeadGroups],
    attend_heads: Callable[..., None],
    given: dict[str, Tensor],
    grid_tokens: int,
    block: tuple[int, int],
    **options: object,
) -> Tensor:
    """Runs a call in as few groups of heads as fit; returns [B, H, S, D] stored as [B, S, H, D].

    Args:
        groups_of: of ``remembered_groups``.
        attend_heads: (tensors by name, output, row_heads, grid_tokens, block, options) -> pre-pass
            and attention of all heads of the call, or of a group of them; ``row_heads`` counts the
            heads of a row of the output.
        given: the call's tensors by name, as ``HeadGroups.run`` takes them; K's mean is added.
        grid_tokens: length of the mask.
        block: (query, key) tokens of a block.
        options: what else ``attend_heads`` takes.
    """
    q = given["q"]
    batch, heads, tokens, head_dim = q.shape
    out = q.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    # Triton launches on the current device, which need not be that of q.
    with torch.cuda.device_of(q):
        given = given | {"k_mean": mean_of_keys(given["k"], padded_head_dim(head_dim))}
        groups = groups_of(q.device, q.dtype, q.shape, grid_tokens, block)
        fixed = {"row_heads": heads, "grid_tokens": grid_tokens, "block": block}
        groups.run(given, out, partial(attend_heads, **fixed, **options))
    return out
