"""Which diffusion model each class of `comfy.supported_models` makes, without making it."""

from __future__ import annotations

import inspect
from collections import defaultdict
from typing import Any


class Made(Exception):
    """Carries the class of the diffusion model out of the constructor that would build it."""


def model_classes(cases: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Per class of models, what the pack says of its diffusion model's class.

    Keys: `diffusion_model`, its class; `family`, the one that serves it; `reason`, why it runs
    dense; `cases`, the cases of this diffusion model that this ComfyUI can run.
    """
    import comfy.supported_models
    from paro_attention.nodes.families import Family, class_entry

    named = {model_class.__name__: model_class for model_class in comfy.supported_models.models}
    made = diffusion_models(list(named.values()))
    found: dict[str, dict[str, Any]] = {}
    for name, diffusion_model in made.items():
        entry = class_entry(diffusion_model)
        found[name] = {
            "diffusion_model": f"{diffusion_model.__module__}.{diffusion_model.__qualname__}",
            "family": entry.name if isinstance(entry, Family) else "",
            "reason": entry if isinstance(entry, str) else "",
            "cases": [
                case.name
                for case in cases.values()
                if made.get(case.model_class) is diffusion_model and case.exists()
            ],
        }
    return found


def diffusion_models(classes: list[Any]) -> dict[str, type]:
    """The class of the diffusion model that each class of models hands to its constructor."""
    import comfy.model_base

    constructor = comfy.model_base.BaseModel.__init__
    signature = inspect.signature(constructor)

    def made(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        raise Made(bound.arguments["unet_model"])

    comfy.model_base.BaseModel.__init__ = made
    try:
        return {model_class.__name__: _diffusion_model(model_class) for model_class in classes}
    finally:
        comfy.model_base.BaseModel.__init__ = constructor


def _diffusion_model(model_class: Any) -> type:
    weights: dict[str, Any] = defaultdict(lambda: None)  # some models look at a weight's shape
    config = defaultdict(lambda: 1, model_class.unet_config)  # and at sizes
    try:
        model_class(config).get_model(weights, "", device="cpu")
    except Made as answer:
        return answer.args[0]
    raise AssertionError(f"{model_class.__name__} makes no model")
