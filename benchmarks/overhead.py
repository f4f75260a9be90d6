"""What reordering and quantising cost beside the attention kernel, as shares of dense attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from bench_cases import Inputs
from kernel_parts import call, parts
from paro_attention.kernels import BlockMask
from torch import Tensor

PREFIX = "overhead: "


def overhead_functions(inputs: Inputs, mask: BlockMask) -> dict[str, Callable[[], object]]:
    """The parts to time, by names that begin with PREFIX.

    Pre-pass and kernel of an 8-bit call, each with the heads' own orders and with the model's, and
    the reorder as a step of its own: rows of q, k and v gathered, against a copy of the same rows.
    """
    own = parts(call(inputs, mask, (8, 8)))
    tokens = torch.arange(inputs.shape.tokens, dtype=torch.int32, device=inputs.q.device)
    in_order = replace(inputs, permutation=tokens.expand(inputs.shape.heads, -1).contiguous())
    plain = parts(call(in_order, mask, (8, 8)))
    rows = _row_numbers(inputs)
    flat = [x.transpose(1, 2).reshape(-1, x.shape[-1]) for x in (inputs.q, inputs.k, inputs.v)]
    gathered = [torch.empty_like(x) for x in flat]

    def gather() -> None:
        for source, target in zip(flat, gathered, strict=True):
            torch.index_select(source, 0, rows, out=target)

    def copy() -> None:
        for source, target in zip(flat, gathered, strict=True):
            target.copy_(source)

    functions = {
        "pre-pass": own.prepare,
        "pre-pass in the model's order": plain.prepare,
        "kernel": own.attend,
        "kernel in the model's order": plain.attend,
        "gather": gather,
        "copy": copy,
    }
    return {PREFIX + name: function for name, function in functions.items()}


def _row_numbers(inputs: Inputs) -> Tensor:
    """int64 [B * H * S]: rows of q as stored, [B, S, H, D], in the order of head after head."""
    shape, device = inputs.shape, inputs.q.device
    head = torch.arange(shape.heads, device=device)[:, None]
    one = (inputs.permutation.long() * shape.heads + head).reshape(-1)
    batch = torch.arange(shape.batch, device=device)[:, None] * (shape.tokens * shape.heads)
    return (batch + one).reshape(-1)


def overhead_row(timings: Mapping[str, float], sdpa_ms: float) -> dict[str, float]:
    """Milliseconds of the parts and their shares of dense attention.

    The epilogue's cost is what scattering rows adds to the kernel; the reorder's alone is what
    gathering adds to a copy of q, k and v, beside what it adds to the pre-pass.
    """
    ms = {name.removeprefix(PREFIX): value for name, value in timings.items()}
    prepass, in_order = ms["pre-pass"], ms["pre-pass in the model's order"]
    epilogue = ms["kernel"] - ms["kernel in the model's order"]
    return {
        "sdpa_ms": sdpa_ms,
        "prepass_ms": prepass,
        "prepass_in_order_ms": in_order,
        "kernel_ms": ms["kernel"],
        "kernel_in_order_ms": ms["kernel in the model's order"],
        "gather_ms": ms["gather"],
        "copy_ms": ms["copy"],
        "prepass_share": prepass / sdpa_ms,
        "prepass_and_epilogue_share": (prepass + epilogue) / sdpa_ms,
        "reorder_in_call_share": (prepass - in_order + epilogue) / sdpa_ms,
        "reorder_alone_share": (ms["gather"] - ms["copy"]) / sdpa_ms,
    }
