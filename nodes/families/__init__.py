"""Which diffusion transformers are served, and why others are not: a table.

Each family has a file that says which modules make the visual self-attention calls and where the
grid's tokens lie in their sequence. Both are read off the running model, never off a version.
"""

from __future__ import annotations

from torch import nn

from .aura import AURAFLOW
from .chroma import CHROMA
from .cogvideo import COGVIDEOX
from .cosmos import COSMOS, COSMOS_PREDICT2
from .family import Family, Forward, Grid, Layout
from .flux import FLUX
from .hidream import HIDREAM
from .hunyuan import HUNYUAN
from .kandinsky import KANDINSKY5
from .krea import IDEOGRAM4, KREA2, MAGE_FLOW, PIXELDIT
from .lens import JOYIMAGE, LENS
from .ltx import LTX
from .lumina import LUMINA
from .minimax import MINIMAX_H3
from .mochi import MOCHI
from .omnigen import BOOGU, OMNIGEN2
from .qwen import QWEN_IMAGE
from .sd3 import SD3
from .wan import WAN_FAMILIES, WAN_UNSERVED

FAMILIES: tuple[Family, ...] = (
    *WAN_FAMILIES,
    HUNYUAN,
    FLUX,
    CHROMA,
    QWEN_IMAGE,
    SD3,
    AURAFLOW,
    COGVIDEOX,
    LUMINA,
    HIDREAM,
    OMNIGEN2,
    BOOGU,
    KREA2,
    MAGE_FLOW,
    IDEOGRAM4,
    PIXELDIT,
    LENS,
    JOYIMAGE,
    COSMOS,
    COSMOS_PREDICT2,
    LTX,
    MOCHI,
    KANDINSKY5,
    MINIMAX_H3,
)

__all__ = [
    "FAMILIES",
    "UNSERVED",
    "Family",
    "Forward",
    "Grid",
    "Layout",
    "class_entry",
    "find_family",
    "unserved_class",
]

CONVOLUTIONAL = "a convolutional network, not a diffusion transformer"
UNREACHABLE = "its attention does not go through ComfyUI's attention hook"
AUDIO = "makes sound, which has no token grid"
SHAPE = "makes 3D shapes, whose tokens lie on no regular grid"
NO_DIFFUSION = "recognises pictures, it makes none"

# Diffusion models that run dense, by class name, with the reason that the user is told.
UNSERVED: dict[str, str] = {
    **WAN_UNSERVED,
    "UNetModel": CONVOLUTIONAL,
    "StageB": CONVOLUTIONAL,
    "StageC": CONVOLUTIONAL,
    "HunYuanDiT": UNREACHABLE,
    "PixArtMS": UNREACHABLE,
    "ErnieImageModel": UNREACHABLE,
    "NaDiT": "its attention runs in windows, and not through ComfyUI's attention hook",
    "HiDreamO1Transformer": "its text attends causally, in calls of a language model",
    "AudioDiffusionTransformer": AUDIO,
    "ACEStepTransformer2DModel": AUDIO,
    "AceStepConditionGenerationModel": AUDIO,
    "MiniMaxMusic3DiT": AUDIO,
    "Hunyuan3Dv2": SHAPE,
    "HunYuanDiTPlain": SHAPE,
    "LatentSeqMMFlowModel": SHAPE,
    "Trellis2": SHAPE,
    "RTv4": NO_DIFFUSION,
    "SAM3Model": NO_DIFFUSION,
    "DepthAnything3Net": NO_DIFFUSION,
}


def find_family(diffusion_model: nn.Module) -> Family | None:
    """The family that serves this model, or None; a compiled model is looked through.

    A class is served by the family that is nearest among its bases, and not at all where it, or
    a nearer base, stands among the unserved.
    """
    found = _look_up(diffusion_model)
    return None if isinstance(found, str) else found


def unserved_class(diffusion_model: nn.Module) -> str:
    """Why a model that belongs to no family runs dense."""
    found = _look_up(diffusion_model)
    name = type(getattr(diffusion_model, "_orig_mod", diffusion_model)).__name__
    if isinstance(found, str) and found:
        return f"{name}: {found}"
    return f"{name} is a model that PARO does not know"


def class_entry(model_class: type) -> Family | str | None:
    """What the table says of a class of diffusion models: its family, or why it runs dense.

    None for a class that is not in the table.
    """
    by_class = {family.model_class: family for family in FAMILIES}
    for base in model_class.__mro__:
        entry = UNSERVED.get(base.__name__) or by_class.get(base.__name__)
        if entry is not None:
            return entry
    return None


def _look_up(diffusion_model: nn.Module) -> Family | str:
    """The family of a model, or why it is not served; empty for a model that is not known."""
    model = getattr(diffusion_model, "_orig_mod", diffusion_model)
    entry = class_entry(type(model))
    if isinstance(entry, Family):
        return (entry.unreachable(model) or entry) if _is_whole(entry, model) else ""
    return entry or ""


def _is_whole(family: Family, model: nn.Module) -> bool:
    """Whether the model has the parts that the family reads; a namesake may not."""
    try:
        return bool(family.modules(model)) and min(family.shape(model)) > 0
    except (AttributeError, IndexError, TypeError):
        return False
