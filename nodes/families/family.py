"""What the pack has to know of a family of diffusion transformers to reach its attention."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

logger = logging.getLogger("paro_attention")

Grid = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Forward:
    """One call of the model.

    Attributes:
        x: the latent that the model is called with: a tensor, or a list where a model has several.
        values: all arguments by their names in the model's own signature.
        options: ComfyUI's `transformer_options` of the call.
    """

    x: Any
    values: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def bind(cls, function: Callable | None, args: tuple, kwargs: dict[str, Any]) -> Forward:
        """Name the arguments of a call of `function`; unnamed where its signature does not fit."""
        values: dict[str, Any] = dict(kwargs)
        if function is not None:
            try:
                bound = inspect.signature(function).bind(*args, **kwargs)
            except (TypeError, ValueError):
                pass
            else:
                values = dict(bound.arguments)
                values |= values.pop("kwargs", {})
        options = values.get("transformer_options")
        if not isinstance(options, dict):
            options = next((a for a in args if isinstance(a, dict) and "sigmas" in a), {})
        x = args[0] if args else next(iter(values.values()), None)
        return cls(x, values, options)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the grid's tokens lie in the sequence of a forward's visual self-attention.

    Attributes:
        grid: token grid (frames, height, width).
        side: the end of the sequence that the grid lies at: "first" or "last".
        beside: other tokens between the grid and that end (references behind the picture).
        extra: number of all other tokens where the family knows it; None: whatever is there.
    """

    grid: Grid
    side: str = "first"
    beside: int = 0
    extra: int | None = 0

    def __post_init__(self) -> None:
        if self.side not in ("first", "last"):
            raise ValueError(f"side must be 'first' or 'last', got {self.side!r}")

    @property
    def tokens(self) -> int:
        """Tokens of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def first(self, tokens: int) -> int | None:
        """Position of the grid's first token in a sequence of `tokens`; None if it does not fit."""
        others = tokens - self.tokens
        if others < self.beside or (self.extra is not None and others != self.extra):
            return None
        return self.beside if self.side == "first" else others - self.beside


def norm_weights(module: nn.Module) -> Iterable[Tensor]:
    """All weight vectors of norms inside a module: they tell one checkpoint from another."""
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1 and "norm" in name and not name.endswith("bias"):
            yield parameter


def _reachable(_model: Any) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Family:
    """How to read one family.

    Attributes:
        name: shown to the user.
        model_class: class name that a served `diffusion_model` has among its bases.
        modules: the modules whose forwards make the visual self-attention calls, one per layer in
            order of execution. A module that makes two such calls in a forward stands twice in a
            row. Their forwards are given `transformer_options`.
        shape: (heads, head_dim) of these calls.
        layout: where the grid lies in the sequence, or a short reason why this forward runs dense.
        norms: weights of a module that identify the checkpoint.
        key_masks: a mask that only hides keys hides none of the grid's, so that it may be folded
            into the kernel.
        apply: the model's forward has no wrapper of its own in every served ComfyUI; it is watched
            one level up, where `x` has not yet been joined with other latents.
        unreachable: why no call of a model of this class arrives in this ComfyUI; empty where
            they do.
    """

    name: str
    model_class: str
    modules: Callable[[Any], list[nn.Module]]
    shape: Callable[[Any], tuple[int, int]]
    layout: Callable[[Any, Forward], Layout | str]
    norms: Callable[[nn.Module], Iterable[Tensor]] = norm_weights
    key_masks: bool = True
    apply: bool = False
    unreachable: Callable[[Any], str] = _reachable

    def read(self, model: Any, forward: Forward) -> Layout | str:
        """What `layout` says; a reason where the arguments are none that the family knows."""
        try:
            return self.layout(model, forward)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            logger.debug("arguments of a forward of %s", self.name, exc_info=True)
            return "called with arguments that PARO does not know"

    def attention_shape(self, model: Any) -> tuple[int, int, int]:
        """(layers, heads, head_dim) of the visual self-attention."""
        return (len(self.modules(model)), *self.shape(model))


def padded_grid(size: Iterable[int], patch: Iterable[int]) -> Grid:
    """Grid of a latent of this size cut into patches; what is left over is a patch too."""
    frames, height, width = (-(-int(s) // int(p)) for s, p in zip(size, patch, strict=True))
    return frames, height, width


def image_grid(x: Tensor, patch: int) -> Grid:
    """Grid of a model of single images: [B, C, H, W] or [B, C, 1, H, W] cut into square patches."""
    return padded_grid((1, x.shape[-2], x.shape[-1]), (1, patch, patch))


def latent_tokens(latents: Iterable[Tensor] | None, patch: int) -> int:
    """Tokens of reference latents [.., H, W] that are cut into square patches, frames counted."""
    total = 0
    for latent in latents or ():
        frames = latent.shape[2] if latent.ndim == 5 else 1
        _, height, width = image_grid(latent, patch)
        total += frames * height * width
    return total
