"""Compiles the kernels of a benchmark in several processes before the first is timed.

Triton compiles a kernel at its first launch, seconds for each, one after the other. Here each
variant is launched once on a few tokens in a process of its own; the compiled kernels are then
found in Triton's cache on disk.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variant:
    """What decides which kernels a call needs; ``launch`` overrides the launch table."""

    head_dim: int
    block: tuple[int, int]
    qk_bits: int
    pv_bits: int
    tail: bool = True
    extra: bool = False
    launch: object = None


def compile_ahead(variants: Iterable[Variant], workers: int) -> None:
    """Compiles the variants; one that fails is left to the benchmark to report."""
    unique = list(dict.fromkeys(variants))
    workers = min(workers, len(unique))
    if workers < 2:
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        for variant, problem in zip(unique, pool.map(launch_once, unique), strict=True):
            if problem:
                print(f"{variant}: {problem}", flush=True)


def launch_once(variant: Variant) -> str:
    """Runs a variant on a few tokens; returns what went wrong, if anything."""
    import torch
    from bench_cases import Shape, random_inputs, random_mask
    from kernel_parts import call, with_launch

    extra = 64 if variant.extra else 0
    shape = Shape(2, 4 * max(variant.block) + extra, variant.head_dim, extra)
    inputs = random_inputs(shape, "cuda")
    mask = random_mask(2, shape.grid_tokens, variant.block, 0.5)
    bits = variant.qk_bits, variant.pv_bits
    try:
        with with_launch(variant.launch):
            call(inputs, mask, bits, variant.tail)()
        torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return ""
