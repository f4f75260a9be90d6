"""First launch of the pre-pass: Q, and beside it the statistics that K and V wait for.

Few programs sample K and V, which take longer to arrive than to be added up. They start first, and
the others, which quantise Q, hide the wait.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .call_plan import CallPlan, strides_of
from .prepass_tiles import pack_queries, span_at
from .primitives import head_offset
from .statistics import measure_chunk, statistics_chunks, statistics_constants

QUERY_TILE = 64


@triton.jit(
    do_not_specialize=("S", "H", "grid_tokens", "extra_start", "rows_padded", "chunks", "measured")
)
def queries_kernel(
    Q, K, V, permutation, order_of_head, hadamard, q8, q_scale, k_partial, v_partial,
    q_stride_b, q_stride_h, q_stride_s,
    k_stride_b, k_stride_h, k_stride_s,
    v_stride_b, v_stride_h, v_stride_s,
    S, H, grid_tokens, extra_start, rows_padded, chunks, measured,
    HEAD_DIM: tl.constexpr, D: tl.constexpr, ALIGNMENT: tl.constexpr, QUERY_ROWS: tl.constexpr,
    QK_BITS: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr, EVERY: tl.constexpr,
    OF_K: tl.constexpr, OF_V: tl.constexpr,
):  # fmt: skip
    """Grid (programs,): ``measured`` chunks of all heads' K and V, then tiles of QUERY_ROWS of Q.

    16 bits leave Q as it is.
    """
    program = tl.program_id(0)
    if program < measured:
        batch_head = (program // chunks).to(tl.int64)
        b = batch_head // H
        h = batch_head % H
        K += head_offset(b, h, k_stride_b, k_stride_h, ALIGNMENT)
        V += head_offset(b, h, v_stride_b, v_stride_h, ALIGNMENT)
        place = program.to(tl.int64) * D
        measure_chunk(
            K, V, k_stride_s, v_stride_s, program % chunks, S, k_partial + place, v_partial + place,
            HEAD_DIM, D, ROWS, STEP, EVERY, OF_K, OF_V,
        )  # fmt: skip
        return
    if QK_BITS < 16:
        tiles = rows_padded // QUERY_ROWS
        batch_head = ((program - measured) // tiles).to(tl.int64)
        first = (program - measured) % tiles * QUERY_ROWS
        b = batch_head // H
        h = batch_head % H
        Q += head_offset(b, h, q_stride_b, q_stride_h, ALIGNMENT)
        span = span_at(first, permutation, order_of_head, h, S, grid_tokens, extra_start)
        row = batch_head * rows_padded + first
        pack_queries(
            Q, q_stride_s, span, hadamard, q8 + row * D, q_scale + row,
            HEAD_DIM, D, QUERY_ROWS, QK_BITS,
        )  # fmt: skip


def prepare_queries(plan: CallPlan, tensors: dict[str, Tensor]) -> None:
    """Writes "q8" and "q_scale", and partial statistics of K and V; see ``prepare``."""
    layout, shape = plan.layout, plan.shape
    batch, heads, tokens, head_dim = shape.sizes
    chunks = statistics_chunks(plan)
    measured = batch * heads * chunks
    rows = min(shape.block[1], QUERY_TILE)
    tiles = batch * heads * (layout.rows // rows) if shape.qk_bits < 16 else 0
    plan.run(
        queries_kernel,
        (measured + tiles, 1, 1),
        tensors,
        (
            "q", "k", "v", "permutation", "order_of_head", "hadamard", "q8", "q_scale", "k_partial",
            "v_partial",
        ),
        (
            *strides_of(shape, 0), *strides_of(shape, 1), *strides_of(shape, 2),
            tokens, heads, layout.grid_tokens, layout.extra_start, layout.rows, chunks, measured,
        ),
        {
            "HEAD_DIM": head_dim, "D": plan.width, "ALIGNMENT": plan.alignment,
            "QUERY_ROWS": rows, "QK_BITS": shape.qk_bits, **statistics_constants(plan),
        },
        num_warps=8 if shape.qk_bits == 4 else 4,
    )  # fmt: skip
