"""Other packs that put something in front of ComfyUI's attention. Stand-ins, but for core's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from neighbours import (
    SPARSE,
    both_orders,
    equal,
    forget_runs,
    last_run,
    load_paro,
    planned,
    relative,
    runs,
    sampler,
    scenario,
)

KEY = "optimized_attention_override"


def with_override(model: Any, make: Callable[[Callable | None], Callable]) -> Any:
    """A clone with an override: `make` is given the one that was there before."""
    clone = model.clone()
    options = dict(clone.model_options.get("transformer_options", {}))
    options[KEY] = make(options.get(KEY))
    clone.model_options["transformer_options"] = options
    return clone


def coarse(func: Callable, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    """Attention whose keys have lost precision, so that its result can be told from others."""
    q, k, v, *rest = args
    return func(q, k.to(torch.bfloat16).to(k.dtype), v, *rest, **kwargs)


def sage(model: Any) -> Any:
    """KJNodes' Patch Sage Attention: its own attention for every call, whatever was there."""
    return with_override(model, lambda _previous: lambda func, *args, **kwargs: coarse(
        func, args, kwargs
    ))  # fmt: skip


def sage_for_others(model: Any) -> Any:
    """What is right beside Sage: exact visual self-attention, Sage for the other calls."""

    def make(_previous: Any) -> Callable:
        def override(func: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
            if args[0].shape == args[1].shape:
                return func(*args, **kwargs)
            return coarse(func, args, kwargs)

        return override

    return with_override(model, make)


@scenario
def sage_attention() -> dict[str, Any]:
    expected = sampler()(sage_for_others(planned()[0]), 3.0)
    return both_orders(sage, expected=expected)


@scenario
def attention_backend_node() -> dict[str, Any]:
    """Core's own node."""
    try:
        from comfy_extras.nodes_model_advanced import ModelAttentionBackend
    except ImportError:
        return {"skip": "this ComfyUI has no ModelAttentionBackend"}
    return both_orders(lambda model: ModelAttentionBackend().patch(model, "pytorch attention")[0])


def core_sparse(model: Any, mine: Callable[..., bool], taken: list[int]) -> Any:
    """Core's Model Sparse Attention: it chains, and at each step puts itself in front again."""
    from comfy.patcher_extension import CallbacksMP

    own: list[Callable] = []

    def make(previous: Callable | None) -> Callable:
        def override(func: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
            if mine(*args):
                taken.append(1)
                return coarse(func, args, kwargs)
            if previous is not None:
                return previous(func, *args, **kwargs)
            return func(*args, **kwargs)

        own.append(override)
        return override

    def prepare_state(patcher: Any, _timestep: Any, model_options: Any = None, *_: Any) -> None:
        settings = patcher.model_options if model_options is None else model_options
        options = settings["transformer_options"]
        if options.get(KEY) not in own:
            options[KEY] = make(options.get(KEY))

    clone = with_override(model, make)
    clone.add_callback_with_key(CallbacksMP.ON_PREPARE_STATE, "test", prepare_state)
    return clone


@scenario
def sparse_attention_node() -> dict[str, Any]:
    """It takes visual self-attention, as ours does: ours, nearer to the model, has it."""
    taken: list[int] = []

    def neighbour(model: Any) -> Any:
        return core_sparse(model, lambda q, k, *_: q.shape == k.shape, taken)

    expected = sampler()(planned()[0], 3.0)
    seen = both_orders(neighbour, expected=expected)
    taken.clear()
    sampler()(neighbour(load_paro(planned()[0], **SPARSE)), 3.0)
    return seen | {"taken_beside_ours": len(taken)}


@scenario
def sparse_attention_node_declining() -> dict[str, Any]:
    """It has nothing to take, and hands every call on: nothing may be counted twice."""
    return both_orders(lambda model: core_sparse(model, lambda *_: False, []))


@scenario
def second_load() -> dict[str, Any]:
    """Two Load PARO in a row, and with a chaining neighbour between them: the last one counts."""
    model, _ = planned()
    dense = sampler()(model, 3.0)

    def chaining(patched: Any) -> Any:
        return core_sparse(patched, lambda *_: False, [])

    seen: dict[str, Any] = {}
    between = {"in_a_row": lambda patched: patched, "with_another_between": chaining}
    for name, neighbour in between.items():
        forget_runs()
        both = load_paro(neighbour(load_paro(model, **SPARSE)), dense_layers=(1,))
        result = sampler()(both, 3.0)
        seen[name] = last_run() | {"runs": runs(), "error": relative(result, dense)}
    seen["removed_is_equal"] = equal(sampler()(model, 3.0), dense)
    return seen


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Wan as MiniMax-H3 calls attention: q, k and v in containers that own them."""
    import comfy.ldm.wan.model as wan
    from comfy.ldm.modules.attention import AttentionTensorContainer

    original = wan.optimized_attention

    def call(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        held = (AttentionTensorContainer(x) for x in (q, k, v))
        return original(*held, *args, **kwargs)

    wan.optimized_attention = call
    try:
        yield
    finally:
        wan.optimized_attention = original


@scenario
def tensor_containers() -> dict[str, Any]:
    import comfy.ldm.modules.attention as attention

    if not hasattr(attention, "AttentionTensorContainer"):
        return {"skip": "this ComfyUI has no AttentionTensorContainer"}
    with contained():
        return both_orders(lambda model: model.clone())


@scenario
def tensor_containers_beside_a_backend_that_takes_them() -> dict[str, Any]:
    """An override with a `container_function` is asked for that alone, and not given `func`."""
    import comfy.ldm.modules.attention as attention

    if not hasattr(attention, "AttentionTensorContainer"):
        return {"skip": "this ComfyUI has no AttentionTensorContainer"}
    dense = attention.attention_pytorch.__wrapped__

    def neighbour(model: Any) -> Any:
        def override(_func: Callable, *args: Any, **kwargs: Any) -> torch.Tensor:
            return dense(*args, **kwargs)

        def container_function(*args: Any, **kwargs: Any) -> torch.Tensor:
            return dense(*(x.take() for x in args[:3]), *args[3:], **kwargs)

        marked: Any = override
        marked.container_function = container_function
        return with_override(model, lambda _previous: marked)

    with contained():
        return both_orders(neighbour)
