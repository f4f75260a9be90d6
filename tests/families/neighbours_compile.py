"""torch.compile as ComfyUI's own node applies it: of the whole model, or block by block."""

from __future__ import annotations

import functools
from typing import Any

import torch
from cases.case import tiny
from cases.wan import CONFIG
from neighbours import last_run, load_paro, make_plan, planned, relative, sampler, scenario

DEPTH = 12  # more blocks than torch.compile makes graphs of one piece of code


class Graphs:
    """A backend that runs graphs as they are and counts how many there are."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, _inputs: Any, **_options: Any) -> Any:
        self.count += 1
        return graph.forward


def compiled(
    model: Any, graphs: Graphs, keys: list[str], fullgraph: bool = False, options: Any = None
) -> Any:
    """Core's TorchCompileModel node with the graphs counted."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    clone = model.clone()
    set_torch_compile_wrapper(
        clone, backend=graphs, keys=keys, fullgraph=fullgraph, options=options
    )
    return clone


def watched(model: Any, graphs: Graphs, seen: list[int]) -> Any:
    """A clone that notes after each forward how many graphs there are."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return executor(*args, **kwargs)
        finally:
            seen.append(graphs.count)

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    return clone


def pytorch_attention(model: Any) -> Any:
    """The dense backend of a GPU: the one that a CPU gets by default breaks graphs itself."""
    from comfy.ldm.modules import attention

    backend = attention.attention_pytorch.__wrapped__

    def override(_func: Any, *args: Any, **kwargs: Any) -> Any:
        return backend(*args, **kwargs)

    clone = model.clone()
    options = clone.model_options.get("transformer_options", {})
    clone.model_options["transformer_options"] = options | {
        "optimized_attention_override": override
    }
    return clone


@functools.cache
def deep() -> tuple[Any, Any]:
    """(model, plan) with many layers."""
    model = tiny("WAN21_T2V", CONFIG | {"num_layers": DEPTH})
    return model, make_plan(model)


def run(
    pair: tuple[Any, Any],
    keys: list[str],
    order: str,
    fullgraph: bool = False,
    name: str = "wan-t2v",
    **options: Any,
) -> dict[str, Any]:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model, plan = pytorch_attention(pair[0]), pair[1]
    sample = sampler(name)
    expected = sample(load_paro(model, plan, **options), 3.0)
    uncompiled = last_run()
    graphs, seen = Graphs(), []
    if order == "after":
        both = load_paro(compiled(model, graphs, keys, fullgraph), plan, **options)
    else:
        both = compiled(load_paro(model, plan, **options), graphs, keys, fullgraph)
    result = sample(watched(both, graphs, seen), 3.0)
    alone = Graphs()
    torch._dynamo.reset()
    sample(compiled(model, alone, keys, fullgraph), 3.0)
    return last_run() | {
        "error": relative(result, expected),
        "same_calls": last_run()["handled"] == uncompiled["handled"],
        "graphs": seen,
        "graphs_alone": alone.count,
        "breaks": dict(counters["graph_break"]),
    }


def both_orders(*args: Any, **options: Any) -> dict[str, Any]:
    return {order: run(*args, order, **options) for order in ("after", "before")}


def blocks(count: int) -> list[str]:
    return [f"diffusion_model.blocks.{i}" for i in range(count)]


@scenario
def compile_model() -> dict[str, Any]:
    return both_orders(planned(), ["diffusion_model"])


@scenario
def compile_joint_sequence() -> dict[str, Any]:
    """Flux: two kinds of blocks, text in the sequence, and layout flags of its own."""
    return both_orders(planned("flux"), ["diffusion_model"], name="flux", density=0.3)


@scenario
def compile_heads_apart() -> dict[str, Any]:
    """SD3.5 medium: values whose heads are apart, and two calls of a block."""
    return both_orders(planned("sd3.5-medium"), ["diffusion_model"], name="sd3.5-medium")


@scenario
def compile_shared_heads() -> dict[str, Any]:
    """OmniGen 2: two heads of queries share one of keys and values."""
    return both_orders(planned("omnigen-2"), ["diffusion_model"], name="omnigen-2")


@scenario
def compile_blocks() -> dict[str, Any]:
    return both_orders(deep(), blocks(DEPTH), fullgraph=True)


@scenario
def compile_sparse() -> dict[str, Any]:
    """Masks that differ between noise bands and layers, a dense layer and a warm-up."""
    settings = {"density": 0.3, "qk_bits": 8, "pv_bits": 8, "dense_layers": (1,)}
    return both_orders(deep(), blocks(DEPTH), fullgraph=True, **settings)


def unguarded(entries: Any) -> list[bool]:
    """Core's TorchCompileModel from 0.33 on: graphs are kept whatever transformer_options say."""
    return ["transformer_options" not in entry.name for entry in entries]


def switched(order: str) -> dict[str, Any]:
    """Without, with, without and with Load PARO, from one store of graphs."""
    torch._dynamo.reset()
    model, plan = pytorch_attention(planned()[0]), planned()[1]
    sample = sampler()
    graphs = Graphs()
    settings = {"options": {"guard_filter_fn": unguarded}}
    dense = sample(model, 3.0)
    expected = sample(load_paro(model, plan, density=0.3), 3.0)
    seen: list[dict[str, Any]] = []
    for _ in range(3):
        alone = sample(compiled(model, graphs, ["diffusion_model"], **settings), 3.0)
        if order == "after":
            both = compiled(model, graphs, ["diffusion_model"], **settings)
            both = load_paro(both, plan, density=0.3)
        else:
            both = load_paro(model, plan, density=0.3)
            both = compiled(both, graphs, ["diffusion_model"], **settings)
        result = sample(both, 3.0)
        seen.append(
            last_run()
            | {
                "alone": relative(alone, dense),
                "result": relative(result, expected),
                "graphs": graphs.count,
            }
        )
    return {"runs": seen}


@scenario
def compile_without_guards() -> dict[str, Any]:
    return {order: switched(order) for order in ("after", "before")}
