"""Which diffusion transformers are served, and why others are not: a table.

Each family has a file that says which modules make the visual self-attention calls and where the
grid's tokens lie in their sequence. Both are read off the running model, never off a version.
"""

from __future__ import annotations

from torch import nn

from .cogvideo import COGVIDEOX
from .family import Family, Forward, Grid, Layout
from .flux import FLUX
from .wan import WAN

FAMILIES: tuple[Family, ...] = (
    WAN,
    FLUX,
    COGVIDEOX,
)

__all__ = ["FAMILIES", "Family", "Forward", "Grid", "Layout", "find_family", "unserved_class"]

# Diffusion models that run dense, by class name, with the reason that the user is told.
UNSERVED: dict[str, str] = {}


def find_family(diffusion_model: nn.Module) -> Family | None:
    """The family that serves this model, or None; a compiled model is looked through.

    A class is served by the family that is nearest among its bases, and not at all where it, or
    a nearer base, stands among the unserved.
    """
    model = getattr(diffusion_model, "_orig_mod", diffusion_model)
    by_class = {family.model_class: family for family in FAMILIES}
    for base in type(model).__mro__:
        if base.__name__ in UNSERVED:
            return None
        family = by_class.get(base.__name__)
        if family is not None:
            return family if _is_whole(family, model) else None
    return None


def unserved_class(diffusion_model: nn.Module) -> str:
    """Why a model that belongs to no family runs dense."""
    model = getattr(diffusion_model, "_orig_mod", diffusion_model)
    for base in type(model).__mro__:
        if base.__name__ in UNSERVED:
            return f"{type(model).__name__}: {UNSERVED[base.__name__]}"
    return f"{type(model).__name__} is a model that PARO does not know"


def _is_whole(family: Family, model: nn.Module) -> bool:
    """Whether the model has the parts that the family reads; a namesake may not."""
    try:
        return bool(family.modules(model)) and min(family.shape(model)) > 0
    except (AttributeError, IndexError, TypeError):
        return False
