"""Digests of what a calibration is made from, the same in every process: needs no ComfyUI."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_WHOLE = 1 << 16
_MAX_DEPTH = 12
_PLAIN = (str, int, float, bool, bytes, type(None))


def digest(*values: Any) -> str:
    """16 hex digits of the content of values.

    Tensors count by shape, dtype and content, functions by their names, other objects by their
    class and by the tensors, numbers and texts that are their attributes: nothing depends on where
    an object lies in memory.
    """
    state = hashlib.sha256()
    _add(state, values, 0)
    return state.hexdigest()[:16]


def model_digest(model: Any) -> str:
    """What a ComfyUI ModelPatcher adds to its weights: LoRAs, patches, options and dtype.

    The weights themselves are in its identity (model_identity.py). ComfyUI's own id of the patches
    is a random one, and says nothing after a restart.
    """
    dtype = getattr(model.get_model_object("diffusion_model"), "dtype", None)
    return digest(
        str(dtype),
        model.patches,
        getattr(model, "object_patches", {}),
        getattr(model, "weight_wrapper_patches", {}),
        model.model_options,
    )


def _add(state: Any, value: Any, depth: int) -> None:
    state.update(f"{type(value).__name__}(".encode())
    if depth > _MAX_DEPTH:
        pass
    elif isinstance(value, _PLAIN):
        state.update(repr(value).encode())
    elif isinstance(value, Tensor):
        _add_tensor(state, value)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=digest):  # some keys cannot be compared
            state.update(digest(key).encode())
            _add(state, value[key], depth + 1)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(state, item, depth + 1)
    elif isinstance(value, (set, frozenset)):
        state.update("".join(sorted(map(digest, value))).encode())
    elif callable(value) and hasattr(value, "__qualname__"):
        state.update(f"{value.__module__}.{value.__qualname__}".encode())
    elif isinstance(value, (torch.dtype, torch.device)):
        state.update(str(value).encode())
    elif not isinstance(value, nn.Module):
        attributes = getattr(value, "__dict__", {})
        for name in sorted(attributes):
            if _is_data(attributes[name]):
                _add(state, name, depth + 1)
                _add(state, attributes[name], depth + 1)
    state.update(b")")


def _is_data(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_data(item) for item in value)
    return isinstance(value, (*_PLAIN, Tensor))


def _add_tensor(state: Any, value: Tensor) -> None:
    """All of a small tensor, an even sample of a large one."""
    state.update(f"{list(value.shape)}{value.dtype}".encode())
    try:
        flat = value.detach().reshape(-1)
        if flat.numel() > _WHOLE:
            flat = flat[:: flat.numel() // _WHOLE]
        state.update(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    except (RuntimeError, TypeError):
        state.update(b"?")  # quantised in a way of its own, or not there yet
