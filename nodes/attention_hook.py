"""The place that knows how ComfyUI calls attention, and puts a handler in front of it.

`install` returns a clone of the model that carries

* an `optimized_attention_override`, which sees every attention call of the transformer and hands
  the visual self-attention calls to the handler; an override that was there before is the dense
  path of every call that is declined;
* a DIFFUSION_MODEL wrapper (APPLY_MODEL where a model has none), which publishes layout and noise
  level once per forward and puts the override back if a later node replaced it;
* an OUTER_SAMPLE wrapper, which tells the handler where a sampling run begins and ends.

Hooks on the layers' self-attention modules give the layer index and tell self- from
cross-attention. They are put on the shared module once, and do nothing unless a forward carries
our state. Nothing of ComfyUI is patched.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .attention_call import (
    STATE_KEY,
    ForwardState,
    HostCall,
    ModuleLayers,
    VisualCall,
    classify,
)
from .compiled_call import StaleGraphs, running, traced_call
from .families import Family, Forward, find_family, unserved_class

logger = logging.getLogger("paro_attention")

OVERRIDE_KEY = "optimized_attention_override"
LAYERS_ATTRIBUTE = "paro_layers"
HOOK_ID = "paro"

_hooked_models: weakref.WeakSet[nn.Module] = weakref.WeakSet()


class AttentionHandler(Protocol):
    """What `install` puts in front of the host's attention."""

    def begin_run(self, sigmas: list[float], model: Any) -> None:
        """A sampling run starts; `sigmas` are its steps' noise levels, `model` its ModelPatcher."""
        ...

    def end_run(self, failed: bool) -> None:
        """The sampling run ended, with an error or an interrupt if `failed`."""
        ...

    def begin_forward(self) -> None:
        """One forward of the transformer starts."""
        ...

    def cannot_serve(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Why tensors of this kind are not handled, or None."""
        ...

    def attend(self, call: VisualCall) -> Tensor | str:
        """The attention output [B, H, S, D], or the reason why this call runs dense."""
        ...

    def declined(self, reason: str) -> None:
        """A call ran dense for this reason."""
        ...


def install(model: Any, handler: AttentionHandler) -> Any:
    """Put `handler` in front of the attention of a clone of `model`.

    Args:
        model: ComfyUI ModelPatcher. A handler that this pack installed earlier is taken off.
        handler: gets the visual self-attention calls.

    Returns:
        The clone.

    Raises:
        ValueError: the model belongs to no served family; check with `find_family` first.
    """
    from comfy.patcher_extension import WrappersMP

    diffusion_model = model.get_model_object("diffusion_model")
    family = find_family(diffusion_model)
    if family is None:
        raise ValueError(unserved_class(diffusion_model))
    _hook_layers(diffusion_model, family)
    patched = uninstall(model)
    options = dict(patched.model_options.get("transformer_options", {}))
    stale = StaleGraphs()
    options[OVERRIDE_KEY] = _make_override(handler, options.get(OVERRIDE_KEY), stale)
    patched.model_options["transformer_options"] = options
    kind = WrappersMP.APPLY_MODEL if family.apply else WrappersMP.DIFFUSION_MODEL
    for place, wrapper in (
        (WrappersMP.APPLY_MODEL, stale.wrapper()),
        (kind, _make_forward_wrapper(handler, family, stale)),
        (WrappersMP.OUTER_SAMPLE, _make_run_wrapper(handler, stale)),
    ):
        patched.add_wrapper_with_key(place, STATE_KEY, wrapper)
    return patched


def uninstall(model: Any) -> Any:
    """A clone of `model` without this pack's handler, if it carries one."""
    from comfy.patcher_extension import WrappersMP

    clone = model.clone()
    for kind in (WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL, WrappersMP.OUTER_SAMPLE):
        clone.remove_wrappers_with_key(kind, STATE_KEY)
    options = dict(clone.model_options.get("transformer_options", {}))
    override: Any = options.get(OVERRIDE_KEY)
    if hasattr(override, "paro_handler"):
        previous = override.paro_previous
        if previous is None:
            del options[OVERRIDE_KEY]
        else:
            options[OVERRIDE_KEY] = previous
        clone.model_options["transformer_options"] = options
    return clone


def _make_override(
    handler: AttentionHandler, previous: Callable | None, stale: StaleGraphs
) -> Callable:
    def respond(func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        stale.asked = True
        call = HostCall.bind(args, kwargs)
        state: ForwardState | None = (call.transformer_options or {}).get(STATE_KEY)
        if state is not None and state.answered:
            return func(*args, **kwargs) if previous is None else previous(func, *args, **kwargs)
        visual = classify(call, state, handler.cannot_serve)
        if isinstance(visual, VisualCall):
            result = handler.attend(visual)
            if isinstance(result, Tensor):
                return call.restore(result)
            visual = result
        handler.declined(visual)
        if previous is None:
            return func(*args, **kwargs)
        if state is None:
            return previous(func, *args, **kwargs)
        state.answered = True
        try:
            return previous(func, *args, **kwargs)
        finally:
            state.answered = False

    # A plain function: ComfyUI deep-copies model_options, and only functions are shared by that.
    def override(func: Callable, *args: Any, **kwargs: Any) -> Tensor:
        if not torch.compiler.is_compiling():
            return respond(func, *args, **kwargs)
        traced = traced_call(func, args, kwargs)
        if traced is not None:
            return traced
        if previous is not None:
            return previous(func, *args, **kwargs)
        return func(*args, **kwargs)

    marked: Any = override
    marked.paro_handler = handler
    marked.paro_previous = previous
    marked.paro_respond = respond
    return marked


def _make_forward_wrapper(
    handler: AttentionHandler, family: Family, stale: StaleGraphs
) -> Callable:
    # recursive=False: a compiled model below this wrapper stays compiled. The handler does not.
    begin_forward: Any = torch.compiler.disable(handler.begin_forward)

    @torch.compiler.disable(recursive=False)
    def forward_wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        forward = Forward.bind(getattr(executor, "original", None), args, kwargs)
        options: Any = forward.options
        if options.get("sigmas") is None:
            return executor(*args, **kwargs)  # not called by a sampler
        model = executor.class_obj.diffusion_model if family.apply else executor.class_obj
        _hook_layers(model, family)  # another GPU's copy of the model is a new one
        begin_forward()
        sigma = float(options["sigmas"].flatten()[0])  # the only host read of a forward
        batch = forward.x[0].shape[0] if isinstance(forward.x, list) else forward.x.shape[0]
        rows = _conditional_rows(options.get("cond_or_uncond"), batch)
        layout = family.read(getattr(model, "_orig_mod", model), forward)
        options[STATE_KEY] = ForwardState(
            layout, sigma, rows, family.key_masks, _may_change_masks(options)
        )
        override = options.get(OVERRIDE_KEY)
        if getattr(override, "paro_handler", None) is not handler:
            override = options[OVERRIDE_KEY] = _make_override(handler, override, stale)
        try:
            with running(options, override.paro_respond):
                return executor(*args, **kwargs)
        finally:
            options.pop(STATE_KEY, None)

    return forward_wrapper


def _make_run_wrapper(handler: AttentionHandler, stale: StaleGraphs) -> Callable:
    def run_wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        sigmas = kwargs.get("sigmas", args[3] if len(args) > 3 else None)
        levels = [] if sigmas is None else [float(s) for s in sigmas.flatten().tolist()]
        stale.arm()
        # The last level is where the run ends, not a step: 0, or what the next stage starts from.
        handler.begin_run(levels[:-1], executor.class_obj.model_patcher)
        failed = True
        try:
            result = executor(*args, **kwargs)
            failed = False
            return result
        finally:
            handler.end_run(failed)

    return run_wrapper


def _may_change_masks(options: dict[str, Any]) -> bool:
    """Whether other nodes hand arguments to blocks or to attention, its mask among them."""
    return bool(options.get("patches", {}).get("attn1_patch") or options.get("patches_replace", {}))


def _conditional_rows(cond_or_uncond: list[int] | None, batch: int) -> tuple[int, ...] | None:
    """Batch entries of the positive prompt: ComfyUI concatenates one equal chunk per condition."""
    if not cond_or_uncond or batch % len(cond_or_uncond):
        return None
    size = batch // len(cond_or_uncond)
    return tuple(
        chunk * size + i
        for chunk, kind in enumerate(cond_or_uncond)
        if kind == 0
        for i in range(size)
    )


def _hook_layers(diffusion_model: nn.Module, family: Family) -> None:
    """Hook every self-attention module once; the module is shared by all clones of the model."""
    model = getattr(diffusion_model, "_orig_mod", diffusion_model)
    if model in _hooked_models:
        return
    layers_of: dict[nn.Module, list[int]] = {}
    for layer, module in enumerate(family.modules(model)):
        layers_of.setdefault(module, []).append(layer)
    for module, layers in layers_of.items():
        setattr(module, LAYERS_ATTRIBUTE, ModuleLayers(tuple(layers)))
        _share_id(module, module.register_forward_pre_hook(_enter, with_kwargs=True))
        _share_id(module, module.register_forward_hook(_leave, with_kwargs=True, always_call=True))
    _hooked_models.add(model)


def _share_id(module: nn.Module, handle: Any) -> None:
    """Give a hook the id that it has on every module.

    torch.compile guards on ids of hooks: with ids of their own, blocks that are compiled one by one
    would each need a graph, and there may be only 8 of a piece of code.
    """
    for table in vars(module).values():
        if isinstance(table, dict) and handle.id in table:
            table[HOOK_ID] = table.pop(handle.id)


# The hooks are the same for all modules: a compiled graph that serves several blocks holds the
# hooks of the first.
def _enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    state = _state_of(args, kwargs)
    if state is not None:
        state.enter(getattr(module, LAYERS_ATTRIBUTE))


def _leave(_module: nn.Module, args: tuple, kwargs: dict[str, Any], _output: Any) -> None:
    state = _state_of(args, kwargs)
    if state is not None:
        state.enter(None)


def _state_of(args: tuple, kwargs: dict[str, Any]) -> ForwardState | None:
    options = kwargs.get("transformer_options")
    if options is None:
        options = next((a for a in args if isinstance(a, dict)), None)
    return None if options is None else options.get(STATE_KEY)
