"""Neighbours that skip or replace parts of a forward: layer ids must not drift."""

from __future__ import annotations

from typing import Any

import torch
from neighbours import (
    both_orders,
    equal,
    last_run,
    load_paro,
    planned,
    relative,
    sampler,
    scenario,
)

LAYERS = 2


def cached_forwards(model: Any) -> Any:
    """TeaCache-like: every second forward of a prompt gives the residual of the one before."""
    kept: dict[tuple[int, ...], torch.Tensor] = {}
    last: list[float] = [0.0]

    def wrapper(apply_model: Any, args: dict[str, Any]) -> torch.Tensor:
        key = tuple(args["cond_or_uncond"])
        sigma = float(args["timestep"].flatten()[0])
        if sigma > last[0]:
            kept.clear()  # another run
        last[0] = sigma
        if key in kept:
            return args["input"] + kept.pop(key)
        out = apply_model(args["input"], args["timestep"], **args["c"])
        kept[key] = out - args["input"]
        return out

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone


def cached_blocks(model: Any) -> Any:
    """A caching node inside the model: every second forward of a prompt reuses layer 0."""
    kept: dict[int, torch.Tensor] = {}

    def replaced(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        key = args["txt"].shape[1]
        if key in kept:
            return args | {"img": args["img"] + kept.pop(key)}
        out = extra["original_block"](args)
        kept[key] = out["img"] - args["img"]
        return out

    clone = model.clone()
    clone.set_model_patch_replace(replaced, "dit", "double_block", 0)
    return clone


def replaced_blocks(model: Any) -> Any:
    """patches_replace on every block: runs it twice and mixes the results."""

    def replaced(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        once = extra["original_block"](args)
        twice = extra["original_block"](args | {"img": 0.5 * args["img"]})
        return once | {"img": 0.5 * (once["img"] + twice["img"])}

    clone = model.clone()
    for block in range(LAYERS):
        clone.set_model_patch_replace(replaced, "dit", "double_block", block)
    return clone


def skipped_layers(model: Any) -> Any:
    """Core's own SkipLayerGuidanceDiT: one more forward without layer 0."""
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    return SkipLayerGuidanceDiT.execute(
        model, scale=2.0, start_percent=0.0, end_percent=1.0, double_layers="0", single_layers="",
    ).args[0]  # fmt: skip


class Noted:
    """A handler in front of a session that notes the layers of each forward."""

    def __init__(self, session: Any):
        self._session = session
        self.forwards: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def begin_forward(self) -> None:
        self.forwards.append([])
        self._session.begin_forward()

    def attend(self, call: Any) -> Any:
        self.forwards[-1].append(call.layer)
        return self._session.attend(call)


def layers_of(neighbour: Any) -> list[list[int]]:
    """The layers that each forward of a run handed to our path."""
    from paro_attention.nodes import attention_hook
    from worker import session_on

    model, plan = planned()
    _, session = session_on(plan, model, density=0.3)
    noted = Noted(session)
    sampler()(neighbour(attention_hook.install(model, noted)), 3.0)
    return noted.forwards


@scenario
def caching_of_forwards() -> dict[str, Any]:
    return both_orders(cached_forwards) | {"layers": layers_of(cached_forwards)}


@scenario
def caching_of_blocks() -> dict[str, Any]:
    return both_orders(cached_blocks) | {"layers": layers_of(cached_blocks)}


@scenario
def replaced_blocks_of_all_layers() -> dict[str, Any]:
    return both_orders(replaced_blocks) | {"layers": layers_of(replaced_blocks)}


@scenario
def skip_layer_guidance() -> dict[str, Any]:
    return both_orders(skipped_layers) | {"layers": layers_of(skipped_layers)}


@scenario
def forwards_in_threads() -> dict[str, Any]:
    return both_orders(in_threads)


@scenario
def copied_options() -> dict[str, Any]:
    """Nodes deep-copy model_options: tensors and counters of the session must stay shared."""
    import copy

    model, _ = planned()
    dense = sampler()(model, 3.0)
    patched = load_paro(model)
    copied = patched.clone()
    copied.model_options = copy.deepcopy(patched.model_options)
    key = "optimized_attention_override"
    options = [m.model_options["transformer_options"][key] for m in (patched, copied)]
    result = sampler()(copied, 3.0)
    return last_run() | {
        "shared": options[0].paro_handler is options[1].paro_handler,
        "relative": relative(result, dense),
        "equal": equal(result, sampler()(patched, 3.0)),
    }


def in_threads(model: Any) -> Any:
    """Multi-GPU samplers run each device's forward in a thread of its own."""
    from concurrent.futures import ThreadPoolExecutor

    def wrapper(apply_model: Any, args: dict[str, Any]) -> torch.Tensor:
        def call() -> torch.Tensor:
            with torch.inference_mode():
                options = {"transformer_options": dict(args["c"]["transformer_options"])}
                return apply_model(args["input"], args["timestep"], **args["c"] | options)

        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(call) for _ in range(2)]
            return 0.5 * both[0].result() + 0.5 * both[1].result()

    clone = model.clone()
    clone.set_model_unet_function_wrapper(wrapper)
    return clone


@scenario
def copied_model() -> dict[str, Any]:
    """Multi-GPU nodes give each device a copy of the model: another module with our hooks."""
    import copy

    model, _ = planned()
    dense = sampler()(model, 3.0)
    patched = load_paro(model)
    sampler()(patched, 3.0)
    other = patched.clone()
    other.model = copy.copy(model.model)
    other.model._modules = dict(model.model._modules)
    other.model.diffusion_model = copy.deepcopy(model.model.diffusion_model)
    errors, handled = [], []
    for each in (other, patched, other):
        errors.append(relative(sampler()(each, 3.0), dense))
        handled.append(last_run()["handled"])
    block = other.model.diffusion_model.blocks[0].self_attn
    hooks = len(block._forward_pre_hooks), len(block._forward_hooks)
    return last_run() | {"relative": max(errors), "all_handled": handled, "hooks": hooks}
