"""Launches the Hopper kernel of 16-bit values, where Triton can build it: it is in Gluon."""

from __future__ import annotations

import triton
from torch import Tensor

from ..hopper_launch import QUERY_ROWS, STEP_KEYS
from ..hopper_wide_launch import GROUPS, MAX_REGISTERS, NUM_WARPS, STAGES
from .call_arguments import Tile
from .call_plan import CallPlan, strides_of
from .hopper_support import GLUON_SERVES_WIDE
from .primitives import LOG2_E

if GLUON_SERVES_WIDE:
    from .hopper_wide_attention import hopper_wide_kernel
else:
    hopper_wide_kernel = None


def attend_wide(plan: CallPlan, tensors: dict[str, Tensor]) -> None:
    """Launches the kernel into the tensor "out" [B, S, H, D]; arguments as ``attend`` has them."""
    layout, shape, width = plan.layout, plan.shape, plan.width
    batch, heads, tokens, head_dim = shape.sizes
    query_blocks, bit_words, _biases = shape.lists
    extra_tokens = tokens - layout.grid_tokens
    low = shape.qk_bits == 8
    queries: str | Tile = Tile("q8", (QUERY_ROWS, width), gluon=True) if low else "q"
    tail: tuple[str | Tile, str | Tile] = ("tail_keys", "tail_values")
    if shape.tail:
        names = tail if low else ("pooled_k", "pooled_v")
        tail = tuple(Tile(name, (STEP_KEYS, width), gluon=True) for name in names)
    query_tiles = triton.cdiv(layout.grid_tokens, QUERY_ROWS) + triton.cdiv(
        extra_tokens, QUERY_ROWS
    )
    plan.run(
        hopper_wide_kernel,
        (triton.cdiv(query_tiles, GROUPS), batch * heads, 1),
        tensors,
        (
            "out", "permutation", "order_of_head", "row_offsets", "computed_bits", "tail_bias",
            queries, "q_scale", Tile("keys", (STEP_KEYS, width), gluon=True), "k_scale",
            Tile("values", (STEP_KEYS, width), gluon=True), tail[0], "tail_key_scale", tail[1],
        ),
        (
            *strides_of(shape, 0), tokens, shape.row_heads or heads, layout.grid_tokens,
            layout.extra_start, layout.rows, query_blocks, layout.key_blocks, layout.stored_blocks,
            bit_words, shape.block[0], shape.scale * LOG2_E,
        ),
        {
            "HEAD_DIM": head_dim, "D": width, "ALIGNMENT": plan.alignment, "TAIL": shape.tail,
            "EXTRA": extra_tokens > 0, "STAGES": STAGES[shape.qk_bits, width],
        },
        num_warps=NUM_WARPS, maxnreg=MAX_REGISTERS,
    )  # fmt: skip
