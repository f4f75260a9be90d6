"""Which model is this: a digest of the architecture and a fingerprint of the norm weights.

A plan is refused by a model of another architecture, and warned about on other weights of the same
one (another finetune; Wan 2.2's high- against low-noise expert). The norms of q and k are looked
at because fp8 and GGUF files keep them, or round them only slightly; LoRAs leave them alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..calibration import ModelIdentity, Plan
from .families import Family, find_family, unserved_class

logger = logging.getLogger("paro_attention")

_BUCKETS = 64
_UNKNOWN = "unknown"
# Half an ulp relative to the value, as a root mean square over uniformly spread mantissas.
_ROUNDING = {
    "f32": 2.0**-25,
    "f16": 2.0**-12,
    "bf16": 2.0**-9,
    "f8": 2.0**-5,
}
_DTYPE_NAMES = {
    torch.float32: "f32",
    torch.float64: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
}
_KEYS = ("image_model", "model_type", "in_dim", "out_dim", "dim", "ffn_dim", "num_heads",
         "num_layers", "patch_size")  # fmt: skip


def identify(model: Any) -> ModelIdentity:
    """The identity of a ComfyUI ModelPatcher's diffusion transformer.

    Raises:
        ValueError: the model belongs to no served family.
    """
    diffusion_model = model.get_model_object("diffusion_model")
    family = find_family(diffusion_model)
    if family is None:
        raise ValueError(unserved_class(diffusion_model))
    diffusion_model = getattr(diffusion_model, "_orig_mod", diffusion_model)
    layers, heads, head_dim = family.attention_shape(diffusion_model)
    unet_config = getattr(getattr(model.model, "model_config", None), "unet_config", None) or {}
    config = {key: _plain(unet_config[key]) for key in _KEYS if key in unet_config}
    config |= {"class": type(diffusion_model).__name__, "family": family.name}
    config |= {"layers": layers, "heads": heads, "head_dim": head_dim}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    parts = [family.name, str(config.get("model_type", "")), f"({config['class']})"]
    description = " ".join(filter(None, parts))
    if "in_dim" in config and "in_channels" not in unet_config:  # Chroma's is another size
        description += f", {config['in_dim']} input channels"
    return ModelIdentity(
        architecture=digest,
        weights=norm_fingerprint(diffusion_model, family),
        layers=layers,
        heads=heads,
        head_dim=head_dim,
        description=description,
    )


def norm_fingerprint(diffusion_model: nn.Module, family: Family) -> str:
    """A 64-number sketch of the q and k norm weights, with the dtype they were stored in.

    A count sketch with random signs (Charikar et al. 2002): it keeps distances between weight
    vectors, so that rounding can be told from other weights, which a hash cannot.
    """
    parts: list[np.ndarray] = []
    coarsest = "f32"
    for module in dict.fromkeys(family.modules(diffusion_model)):
        for weight in family.norms(module):
            if weight.device.type == "meta":
                return _UNKNOWN
            stored = _DTYPE_NAMES.get(weight.dtype, "f8")
            coarsest = max(coarsest, stored, key=_ROUNDING.__getitem__)
            parts.append(weight.detach().to("cpu", torch.float32).flatten().numpy())
    if not parts:
        return _UNKNOWN
    values = np.concatenate(parts).astype(np.float64)
    signs = np.random.RandomState(20251001).randint(0, 2, values.size) * 2 - 1
    buckets = np.bincount(np.arange(values.size) % _BUCKETS, values * signs, minlength=_BUCKETS)
    # The norm of all weights turns a distance of sketches into a relative distance of weights.
    sketch = np.append(buckets, np.linalg.norm(values)).astype("<f4")
    return f"{coarsest}:{base64.b64encode(sketch.tobytes()).decode()}"


def weight_distance(a: str, b: str) -> float | None:
    """Relative distance of two fingerprints beyond what storage rounding explains.

    Returns:
        0 where the dtypes explain the difference, the relative distance otherwise, None where a
        fingerprint is not known.
    """
    read_a, read_b = _read(a), _read(b)
    if read_a is None or read_b is None:
        return None
    (dtype_a, x), (dtype_b, y) = read_a, read_b
    norm = max(x[-1], y[-1], 1e-12)
    distance = float(np.linalg.norm(x[:-1] - y[:-1])) / norm
    rounding = math.hypot(_ROUNDING[dtype_a], _ROUNDING[dtype_b])
    return 0.0 if distance <= 3 * rounding + 1e-5 else distance


def check_plan(plan: Plan, identity: ModelIdentity) -> list[str]:
    """Warnings about using this plan on this model; empty where they belong together.

    Raises:
        PlanMismatchError: another architecture.
    """
    planned = plan.identity
    warnings = plan.check_model(replace(identity, weights=planned.weights))
    distance = weight_distance(identity.weights, planned.weights)
    if distance:
        warnings.append(
            f"the plan was calibrated on other weights of {planned.description}: the attention "
            f"norms differ by {distance:.1%}. Another finetune, or the other Wan 2.2 expert? "
            "Calibrate this model for the best result"
        )
    return warnings


def _read(fingerprint: str) -> tuple[str, np.ndarray] | None:
    dtype, _, data = fingerprint.partition(":")
    try:
        sketch = np.frombuffer(base64.b64decode(data, validate=True), "<f4").astype(np.float64)
    except ValueError:
        return None
    if dtype not in _ROUNDING or sketch.size != _BUCKETS + 1:
        return None
    return dtype, sketch


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value
