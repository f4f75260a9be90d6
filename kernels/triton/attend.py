"""Launches the attention kernel as a call's plan has it."""

from __future__ import annotations

import triton
from torch import Tensor

from ..key_packing import HIDING_BIAS
from .attention import attention_kernel
from .call_arguments import Tile
from .call_plan import CallPlan, strides_of
from .hopper import attend_on_hopper
from .hopper_wide import attend_wide
from .primitives import LOG2_E


def attend(plan: CallPlan, tensors: dict[str, Tensor]) -> None:
    """Launches the kernel into the tensor "out" [B, S, H, D].

    Args:
        plan: of the call.
        tensors: by name, what ``prepare`` made and what the caller gave.
    """
    if plan.hopper:
        attend_on_hopper(plan, tensors)
        return
    if plan.wide:
        attend_wide(plan, tensors)
        return
    layout, launch, shape = plan.layout, plan.launch, plan.shape
    batch, heads, tokens, head_dim = shape.sizes
    query_blocks, bit_words, biases = shape.lists
    extra_tokens = tokens - layout.grid_tokens
    keys, values, tail_keys, tail_values = _operands(plan)
    query_tiles = triton.cdiv(layout.grid_tokens, launch.query_tile) + triton.cdiv(
        extra_tokens, launch.query_tile
    )
    plan.run(
        attention_kernel,
        (query_tiles, batch * heads, 1),
        tensors,
        (
            "q", "out", "permutation", "order_of_head", "row_offsets", "kv_indices",
            "computed_bits", "tail_bias", "key_bias", "q8", "q_scale", keys, "k_scale", values,
            "v_scale", "v_low", "pooled_k", "pooled_v", tail_keys, "tail_key_scale", tail_values,
        ),
        (
            *strides_of(shape, 0), tokens, shape.row_heads or heads, layout.grid_tokens,
            layout.extra_start, layout.rows, query_blocks, layout.key_blocks, layout.stored_blocks,
            bit_words, extra_tokens if biases > 1 else 0, shape.scale * LOG2_E,
        ),
        {
            "HEAD_DIM": head_dim, "D": plan.width, "ALIGNMENT": plan.alignment,
            "QUERY_BLOCK": shape.block[0], "KEY_BLOCK": shape.block[1],
            "BM": launch.query_tile, "BN": launch.key_tile,
            "QK_BITS": shape.qk_bits, "PV_BITS": shape.pv_bits, "FP8": shape.fp8,
            "TAIL": shape.tail, "TMA": plan.tma, "PAIRED": plan.paired,
            "EXTRA": extra_tokens > 0, "BIASED": shape.biased, "HIDING": HIDING_BIAS,
            "TAIL_TILE": plan.tail_tile, "TAIL_ROWS": plan.tail_rows,
        },
        num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=launch.max_registers,
    )  # fmt: skip


def _operands(plan: CallPlan) -> tuple[str | Tile, ...]:
    """Keys and values, the grid's and the tail's: where the copy engine loads them, as tiles."""
    if not plan.tma:
        return "keys", "values", "tail_keys", "tail_values"

    def tiles(keys: str, values: str, rows: int, packed: bool) -> tuple[Tile, Tile]:
        of_values = (rows, width) if packed else (width, rows)
        return Tile(keys, (rows, width)), Tile(values, of_values)

    width = plan.width
    packed = plan.shape.pv_bits == 16
    main = tiles("keys", "values", plan.launch.key_tile, packed)
    if plan.low_tail:
        return *main, *tiles("tail_keys", "tail_values", plan.tail_rows, packed)
    if plan.shape.tail:
        return *main, *tiles("pooled_k", "pooled_v", plan.tail_rows, True)
    return *main, "tail_keys", "tail_values"
