"""AuraFlow."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .case import Case, text, tiny

CONFIG = {
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "dim": 512, "n_layers": 2,
    "n_double_layers": 1, "n_heads": 2, "global_conddim": 64, "cond_seq_dim": 48, "max_seq": 256,
}  # fmt: skip


def aura(name: str, **changes: Any) -> Case:
    fields: dict[str, Any] = {
        "model_class": "AuraFlow", "build": partial(tiny, "AuraFlow", CONFIG),
        "latent": lambda: torch.zeros(1, 4, 17, 29), "positive": lambda: text(7, 48, 1),
        "negative": lambda: text(5, 48, 2), "grid": (1, 9, 15), "layers": 2, "calls": 2,
    }  # fmt: skip
    return Case(name=name, family="AuraFlow", **(fields | changes))


CASES = [
    aura("auraflow"),
    aura(
        "auraflow-larger-than-its-positions",
        latent=lambda: torch.zeros(1, 4, 11, 37),
        positive=lambda: text(40, 48, 1),
        negative=lambda: text(40, 48, 2),
        grid=(1, 6, 19),
    ),
]
