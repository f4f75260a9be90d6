"""What goes wrong in the middle of a forward, and the run after it."""

from __future__ import annotations

from typing import Any

from neighbours import equal, last_run, load_paro, planned, sampler, scenario


class Failing:
    """Makes something fail at its n-th call."""

    def __init__(self, error: BaseException, at: int):
        self._error, self._left = error, at

    def __call__(self, *_args: Any, **_kwargs: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._error


def fails(patched: Any) -> str:
    """Name of the exception that sampling ends with."""
    try:
        sampler()(patched, 3.0)
    except BaseException as error:
        return type(error).__name__
    return ""


def afterwards(patched: Any, expected: Any, ended: str) -> dict[str, Any]:
    from paro_attention.nodes.attention_call import STATE_KEY
    from paro_attention.nodes.compiled_call import _running

    options = patched.model_options["transformer_options"]
    seen = {
        "ended": ended,
        "failed": last_run()["failed"],
        "clean": STATE_KEY not in options and _running.forward is None,
    }
    result = sampler()(patched, 3.0)
    return seen | {"next": last_run(), "next_is_equal": equal(result, expected)}


@scenario
def error_in_our_path() -> dict[str, Any]:
    from paro_attention.calibration import PlanRuntime

    model, _ = planned()
    dense = sampler()(model, 3.0)
    patched = load_paro(model, density=0.3)
    expected = sampler()(patched, 3.0)
    original = PlanRuntime.attention
    failing = Failing(ZeroDivisionError("made up"), at=6)

    def attention(*args: Any, **kwargs: Any) -> Any:
        failing()
        return original(*args, **kwargs)

    PlanRuntime.attention = attention
    try:
        ended = fails(patched)
    finally:
        PlanRuntime.attention = original
    seen = afterwards(patched, expected, ended)
    return seen | {"removed_is_equal": equal(sampler()(model, 3.0), dense)}


@scenario
def interrupt_in_a_forward() -> dict[str, Any]:
    import comfy.model_management

    model, _ = planned()
    dense = sampler()(model, 3.0)
    patched = load_paro(model, density=0.3)
    expected = sampler()(patched, 3.0)
    stop = Failing(comfy.model_management.InterruptProcessingException(), at=4)
    attention = model.model.diffusion_model.blocks[1].self_attn
    hook = attention.q.register_forward_pre_hook(stop)
    try:
        ended = fails(patched)
    finally:
        hook.remove()
    seen = afterwards(patched, expected, ended)
    return seen | {"removed_is_equal": equal(sampler()(model, 3.0), dense)}


@scenario
def error_of_a_neighbour() -> dict[str, Any]:
    """The override that a declined call goes to fails."""
    from neighbours_attention import with_override

    model, _ = planned()
    failing = Failing(KeyError("made up"), at=3)

    def make(_previous: Any) -> Any:
        def override(func: Any, *args: Any, **kwargs: Any) -> Any:
            failing()
            return func(*args, **kwargs)

        return override

    dense = sampler()(model, 3.0)
    expected = sampler()(load_paro(model, density=0.3), 3.0)
    patched = load_paro(with_override(model, make), density=0.3)
    seen = afterwards(patched, expected, fails(patched))
    return seen | {"removed_is_equal": equal(sampler()(model, 3.0), dense)}
