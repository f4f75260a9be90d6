"""What a test has to know of a tiny model of one family; runs inside a ComfyUI."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Conditioning = list[list[Any]]


@dataclass(frozen=True)
class Case:
    """One model, with what to sample and what must be seen.

    Attributes:
        name: unique, as the tests list it.
        family: name of the family that must serve it; empty where it must run dense.
        model_class: class of `comfy.supported_models`; hosts without it skip the case.
        build: makes the ModelPatcher; `tiny` does it for most.
        latent: makes the latent to sample, of an odd grid.
        positive, negative: make the conditioning, of different lengths where the model allows.
        grid: token grid that must be found.
        layers: visual self-attention calls of a forward, all of which must be ours.
        calls: attention calls of a forward that go through ComfyUI's hook, ours and others. In
            a case that is declined: those declined.
        columns: columns of the grid that the latent fills; None for all.
        reason: what a dense case must say, in part. With a family: why every visual call of the
            positive prompt is declined; the negative's are served.
        frames: first and last frame of the latent that belong to the grid and are not given, for
            models whose latent has others; needs patches of one frame.
        noise_mask: makes the mask of what is sampled; None: all of the latent is.
        repeats: visual calls of a forward beyond one a layer.
        sampled: of a dense case: it is also sampled, and its calls are counted.
        note: for the support table.
        exists: whether this host has what the case needs beside the class.
    """

    name: str
    family: str
    model_class: str
    build: Callable[[], Any]
    latent: Callable[[], Tensor]
    positive: Callable[[], Conditioning]
    negative: Callable[[], Conditioning]
    grid: tuple[int, int, int]
    layers: int
    calls: int
    columns: int | None = None
    reason: str = ""
    frames: tuple[int, int] | None = None
    noise_mask: Callable[[], Tensor] | None = None
    repeats: int = 0
    sampled: bool = False
    note: str = ""
    exists: Callable[[], bool] = field(default=lambda: True)


def tiny(model_class: str, config: dict[str, Any], seed: int = 0, gain: float = 1.0) -> Any:
    """A ModelPatcher around random weights of a class of `comfy.supported_models`.

    Args:
        model_class: name of the class.
        config: its `unet_config`, with small sizes.
        seed: of the weights.
        gain: on all matrices; below 1 for models that would amplify a bfloat16's rounding.
    """
    import comfy.supported_models

    made = getattr(comfy.supported_models, model_class)(config)
    made.unet_config |= {key: config[key] for key in made.unet_extra_config if key in config}
    return around(made, seed, gain)


def around(made: Any, seed: int = 0, gain: float = 1.0) -> Any:
    """A ModelPatcher around random weights of an instance of such a class."""
    import comfy.model_management
    import comfy.model_patcher

    device = comfy.model_management.get_torch_device()
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    made.set_inference_dtype(dtype, None)
    model = made.get_model({}, "", device=device)
    # Without a dtype: what the host keeps in float32 must stay so.
    model.diffusion_model.to(device)
    randomize(model.diffusion_model, seed, gain)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=device, offload_device=torch.device("cpu")
    )


def accepted(parameters: Any, config: dict[str, Any]) -> dict[str, Any]:
    """The entries of `config` that a host's parameter class or constructor knows."""
    known = inspect.signature(parameters).parameters
    return {key: value for key, value in config.items() if key in known or key == "image_model"}


def randomize(module: torch.nn.Module, seed: int, gain: float = 1.0) -> None:
    """Weights whose activations neither vanish nor explode, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                noise = 0.1 * noise + float("bias" not in name)
            else:
                noise *= gain * max(1, parameter[0].numel()) ** -0.5
            parameter.copy_(noise)


def text(length: int, width: int, seed: int, **extras: Any) -> Conditioning:
    """Conditioning of random text features [1, length, width]; `extras` go beside them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, length, width, generator=generator)
    return [[features, {"pooled_output": None, **extras}]]


def noise(*shape: int, seed: int = 5) -> Tensor:
    """Random normal numbers, the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
