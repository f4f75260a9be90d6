"""Attention calls inside a graph of torch.compile: one opaque op, so that no graph is broken.

Noise level, masks and counters change from call to call and must not be seen by the tracer, which
would compile again for each. The op is given tensors and the call's flags only; at run time it
looks up the forward that is running in its thread and goes the same way as an uncompiled call.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .attention_call import STATE_KEY, ForwardState, ModuleLayers, is_self_attention

logger = logging.getLogger("paro_attention")

CORE_COMPILE_KEY = "torch.compile"

Respond = Callable[..., Tensor]
"""The uncompiled override: (func, *args, **kwargs) -> attention output."""

_running = threading.local()


@contextmanager
def running(options: dict[str, Any], respond: Respond) -> Iterator[None]:
    """Let the ops of this thread's graphs find `respond` and the forward's `options`."""
    before = getattr(_running, "forward", None)
    _running.forward = (options, respond)
    try:
        yield
    finally:
        _running.forward = before


class StaleGraphs:
    """Notices that a compiled model still runs graphs from before our override was put on it.

    Core's TorchCompileModel (0.33) keeps graphs whatever `transformer_options` say, wrappers and
    overrides included. A run whose first forward asks us nothing is such a case: the graphs are
    thrown away and that forward is done again.

    Attributes:
        armed: the next forward is the first of a run.
        asked: an attention call has reached our override since.
        in_vain: new graphs asked nothing either, so that no more are made.
    """

    __slots__ = ("armed", "asked", "in_vain")

    def __init__(self) -> None:
        self.in_vain = False
        self.arm()

    def arm(self) -> None:
        """A run begins."""
        self.armed, self.asked = True, False

    def wrapper(self) -> Callable:
        """The APPLY_MODEL wrapper that watches."""

        def watching(executor: Any, *args: Any, **kwargs: Any) -> Any:
            result = executor(*args, **kwargs)
            armed, self.armed = self.armed, False
            if (
                not armed
                or self.asked
                or self.in_vain
                or not _is_compiled(executor.class_obj, (*args, *kwargs.values()))
            ):
                return result
            logger.info("PARO: the model was compiled without it and is compiled again")
            torch.compiler.reset()
            result = executor(*args, **kwargs)
            self.in_vain = not self.asked
            return result

        return watching


def _is_compiled(model: Any, arguments: tuple[Any, ...]) -> bool:
    for options in arguments:
        wrappers = options.get("wrappers", {}) if isinstance(options, dict) else {}
        if CORE_COMPILE_KEY in wrappers.get("apply_model", {}):
            return True
    return any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def traced_call(func: Callable, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The op in place of a call that may be visual self-attention; None for other calls.

    Runs in the tracer only, so that it reads nothing that changes from step to step.
    """
    q, k, v, heads, *rest = args if len(args) > 3 else (*args, kwargs.get("heads"))
    options = kwargs.get("transformer_options")
    state = None if options is None else options.get(STATE_KEY)
    if state is None or state.module is None:
        return None
    if not kwargs.get("low_precision_attention", True) or kwargs.get("scale") is not None:
        return None
    flags = dict(zip(("mask", "precision", "skip_reshape", "skip_output"), rest, strict=False))
    if flags.get("precision", kwargs.get("attn_precision")) is not None:
        return None
    skip_reshape = bool(flags.get("skip_reshape", kwargs.get("skip_reshape", False)))
    enable_gqa = bool(kwargs.get("enable_gqa", False))
    if not is_self_attention(q, k, v, heads, skip_reshape, enable_gqa):
        return None
    return visual_attention(
        q,
        k,
        v,
        flags.get("mask", kwargs.get("mask")),
        state.module.tensor,
        heads,
        skip_reshape,
        bool(flags.get("skip_output", kwargs.get("skip_output_reshape", False))),
        enable_gqa,
        func.__name__,
    )


@torch.library.custom_op("paro_attention::visual_attention", mutates_args=())
def visual_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    layers: Tensor,
    heads: int,
    skip_reshape: bool,
    skip_output_reshape: bool,
    enable_gqa: bool,
    function: str,
) -> Tensor:
    """A call of ComfyUI's `optimized_attention` from a self-attention module.

    Args:
        q, k, v: as the host has them, [B, S, H * D] or [B, S, H, D], or [B, H, S, D] with
            `skip_reshape`.
        mask: as the host has it.
        layers: int64 [n], `ModuleLayers.tensor` of the module.
        heads: H.
        skip_reshape, skip_output_reshape: the host's layout flags.
        enable_gqa: k and v may have fewer heads than q.
        function: name of the host's backend in `comfy.ldm.modules.attention`.

    Returns:
        [B, S, H * D], or [B, H, S, D] with `skip_output_reshape`; contiguous.
    """
    arguments: dict[str, Any] = {
        "mask": mask,
        "skip_reshape": skip_reshape,
        "skip_output_reshape": skip_output_reshape,
        "_inside_attn_wrapper": True,
    }
    if enable_gqa:  # not every host knows it
        arguments["enable_gqa"] = True
    forward = getattr(_running, "forward", None)
    if forward is None:  # the node is gone, and the host kept the graph
        return _backend(function)(q, k, v, heads, **arguments).contiguous()
    options, respond = forward
    state: ForwardState = options[STATE_KEY]
    ids = tuple(layers.tolist())
    # Where the modules' hooks are part of the graph, nobody else says that one has begun.
    if state.module is None or state.module.ids != ids or state.next_layer() is None:
        state.enter(ModuleLayers(ids))
    arguments["transformer_options"] = options
    out = respond(_backend(function), q, k, v, heads, **arguments)
    return out.contiguous()


@visual_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    layers: Tensor,
    heads: int,
    skip_reshape: bool,
    skip_output_reshape: bool,
    enable_gqa: bool,
    function: str,
) -> Tensor:
    if skip_reshape:
        batch, _, tokens, dim = q.shape
    else:
        width = q.shape[2] * q.shape[3] if q.ndim == 4 else q.shape[2]
        batch, tokens, dim = q.shape[0], q.shape[1], width // heads
    if skip_output_reshape:
        return q.new_empty(batch, heads, tokens, dim)
    return q.new_empty(batch, tokens, heads * dim)


def _backend(name: str) -> Callable:
    """The host's backend as an override is given it: without the wrapper that asks overrides."""
    from comfy.ldm.modules import attention

    function: Any = getattr(attention, name, attention.optimized_attention)
    return getattr(function, "__wrapped__", function)
