"""Launches the Hopper kernel, where Triton can build it: it is written in Gluon."""

from __future__ import annotations

import triton
from torch import Tensor

from ..hopper_launch import MAX_REGISTERS, NUM_WARPS, QUERY_ROWS
from .call_arguments import Tile
from .call_plan import CallPlan
from .hopper_support import GLUON_SERVES
from .primitives import LOG2_E

if GLUON_SERVES:
    from .hopper_attention import hopper_attention_kernel
else:
    hopper_attention_kernel = None


def attend_on_hopper(plan: CallPlan, tensors: dict[str, Tensor]) -> None:
    """Launches the kernel into the tensor "out" [B, S, H, D]; arguments as ``attend`` has them."""
    layout, shape, width = plan.layout, plan.shape, plan.width
    batch, heads, tokens, head_dim = shape.sizes
    query_blocks, bit_words, _biases = shape.lists
    extra_tokens = tokens - layout.grid_tokens
    keys = shape.block[1]
    tail_keys, tail_values = "tail_keys", "tail_values"
    if shape.tail:
        # A tile of pooled rows is as long as a step, and comes in pieces of a block.
        tail_keys = Tile(tail_keys, (keys, width), gluon=True)
        tail_values = Tile(tail_values, (width, keys), gluon=True)
    query_tiles = triton.cdiv(layout.grid_tokens, QUERY_ROWS) + triton.cdiv(
        extra_tokens, QUERY_ROWS
    )
    plan.run(
        hopper_attention_kernel,
        (query_tiles, batch * heads, 1),
        tensors,
        (
            "out", "permutation", "order_of_head", "row_offsets", "kv_indices", "computed_bits",
            "tail_bias", Tile("q8", (QUERY_ROWS, width), gluon=True), "q_scale",
            Tile("keys", (keys, width), gluon=True), "k_scale",
            Tile("values", (width, keys), gluon=True), "v_scale",
            tail_keys, "tail_key_scale", tail_values,
        ),
        (
            tokens, shape.row_heads or heads, layout.grid_tokens, layout.extra_start, layout.rows,
            query_blocks, layout.key_blocks, layout.stored_blocks, bit_words, shape.block[0],
            shape.scale * LOG2_E,
        ),
        {
            "HEAD_DIM": head_dim, "D": width, "TAIL": shape.tail, "EXTRA": extra_tokens > 0,
        },
        num_warps=NUM_WARPS, maxnreg=MAX_REGISTERS[width],
    )  # fmt: skip
