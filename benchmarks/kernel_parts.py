"""PARO's call for the benchmarks, whole and in its parts: the pre-pass, the attention kernel.

The one place of benchmarks/ that knows how ``kernels/triton`` is put together: the first call of a
shape runs ``prepare`` and ``attend`` in turn, and a plan per shape holds what ``select_launch``
chose and what was launched, for the calls that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from bench_cases import Inputs
from paro_attention.kernels import BlockMask, sparse_attention
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Parts:
    """The two parts of one call, to be run again and again.

    ``attend`` reads what ``prepare`` made in the recorded call and writes into ``out``.
    """

    prepare: Callable[[], object]
    attend: Callable[[], object]
    out: Tensor


def call(
    inputs: Inputs, mask: BlockMask, bits: tuple[int, int], tail: bool = True
) -> Callable[[], Tensor]:
    """The whole call, as a user pays for it; a plan too keeps its small tensors at hand."""
    heads, device = inputs.q.shape[1], inputs.q.device
    order_of_head = torch.arange(heads, dtype=torch.int32, device=device)
    order_of_head = order_of_head.clamp(max=inputs.permutation.shape[0] - 1)
    tail_bias = torch.zeros(heads, dtype=torch.float32, device=device)

    def run() -> Tensor:
        return sparse_attention(
            inputs.q,
            inputs.k,
            inputs.v,
            mask,
            inputs.permutation,
            order_of_head,
            tail_bias=tail_bias,
            qk_bits=bits[0],
            pv_bits=bits[1],
            tail=tail,
            implementation="triton",
        )

    return run


def parts(run: Callable[[], Tensor]) -> Parts:
    """Runs a call once and takes it apart."""
    from paro_attention.kernels import triton as module

    recorded: dict[str, Callable[[], object]] = {}
    original = {name: getattr(module, name) for name in ("prepare", "attend")}

    def recorder(name: str) -> Callable[..., Any]:
        def record(*args: Any, **kwargs: Any) -> Any:
            recorded[name] = lambda: original[name](*args, **kwargs)
            return original[name](*args, **kwargs)

        return record

    try:
        for name in original:
            setattr(module, name, recorder(name))
        with _new_plans():
            out = run()
    finally:
        for name, function in original.items():
            setattr(module, name, function)
    return Parts(recorded["prepare"], recorded["attend"], out)


@contextmanager
def with_launch(launch: object) -> Iterator[None]:
    """Inside, every call takes this launch of plain Triton; None leaves the choice as it is."""
    from paro_attention.kernels.triton import call_plan as module

    if launch is None:
        yield
        return
    replaced = {
        "select_launch": lambda *_args, **_kwargs: launch,
        "hopper_available": lambda *_args: False,
        "wide_available": lambda *_args: False,
    }
    original = {name: getattr(module, name) for name in replaced}
    try:
        for name, function in replaced.items():
            setattr(module, name, function)
        with _new_plans():
            yield
    finally:
        for name, function in original.items():
            setattr(module, name, function)


@contextmanager
def _new_plans() -> Iterator[None]:
    """Inside, the first call of a shape decides and records anew, as if there had been none."""
    from paro_attention.kernels.triton import call_plan as module

    plans = dict(module._plans)
    module._plans.clear()
    try:
        yield
    finally:
        module._plans.clear()
        module._plans.update(plans)
