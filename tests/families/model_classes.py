"""Which diffusion model each class of `comfy.supported_models` makes, without making it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any


class Made(Exception):
    """Carries the class of the diffusion model out of the constructor that would build it."""


def model_classes() -> dict[str, dict[str, Any]]:
    """Per class of models: its diffusion model's class, and what the pack says of that class.

    `known` is true of a class that a family serves, or that the pack names a reason for.
    """
    import comfy.model_base
    import comfy.supported_models
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from paro_attention.nodes.families import FAMILIES, UNSERVED

    def made(_self: Any, *_args: Any, unet_model: type = UNetModel, **_kwargs: Any) -> None:
        raise Made(unet_model)

    known = {family.model_class for family in FAMILIES} | set(UNSERVED)
    found: dict[str, dict[str, Any]] = {}
    constructor = comfy.model_base.BaseModel.__init__
    comfy.model_base.BaseModel.__init__ = made
    try:
        for model_class in comfy.supported_models.models:
            made_class = _diffusion_model(model_class)
            bases = {base.__name__ for base in made_class.__mro__}
            found[model_class.__name__] = {
                "diffusion_model": made_class.__name__,
                "known": bool(bases & known),
            }
    finally:
        comfy.model_base.BaseModel.__init__ = constructor
    return found


def _diffusion_model(model_class: Any) -> type:
    weights: dict[str, Any] = defaultdict(lambda: None)  # some models look at a weight's shape
    config = defaultdict(lambda: 1, model_class.unet_config)  # and at sizes
    try:
        model_class(config).get_model(weights, "", device="cpu")
    except Made as answer:
        return answer.args[0]
    raise AssertionError(f"{model_class.__name__} makes no model")
