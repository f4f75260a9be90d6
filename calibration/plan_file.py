"""Plan files: safetensors with one JSON metadata entry.

Nothing is unpickled and nothing is evaluated. Whatever is wrong with a file comes out as PlanError;
a file is written beside its destination and renamed, so that an interruption leaves no broken plan.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .metrics import RECALL_DENSITIES
from .noise_bands import NoiseBands
from .offset_profile import OffsetBins
from .order_scores import ERROR_DENSITIES
from .plan import ModelIdentity, Origin, Plan, PlanError
from .tensor_file import write_tensors
from .token_grid import TokenGrid

SCHEMA = 1
METADATA_KEY = "paro_plan"
TENSORS = (
    "order_of_head", "candidate_error", "tail_bias", "profile", "profile_top", "correction",
    "popularity", "coarse", "recall_true", "recall_profile", "error",
)  # fmt: skip


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Writes a plan; an existing file of that name is replaced in one step.

    Raises:
        OSError: the folder cannot be written.
    """
    write_tensors(path, plan.tensors(), METADATA_KEY, _description(plan))


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Reads a plan file and checks all of it.

    Raises:
        PlanError: the file is missing, truncated, not a plan, of another schema, or contradicts
            itself; the message says what was expected and what was found.
    """
    with _named_errors(path):
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            description = _checked_metadata(file.metadata())
            names = set(file.keys())
            if names != set(TENSORS):
                raise PlanError(
                    f"expected the tensors {', '.join(sorted(TENSORS))}; found "
                    f"{', '.join(sorted(names)) or 'none'}"
                )
            # Copies: a mapped file could not be replaced on Windows by the next calibration.
            tensors = {name: file.get_tensor(name).clone() for name in TENSORS}
        return Plan(**_parsed(description), **tensors)


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The plan's JSON description without its tensors, for lists of plans.

    Raises:
        PlanError: as `load_plan`.
    """
    with (
        _named_errors(path),
        safe_open(os.fspath(path), framework="pt", device="cpu") as file,
    ):
        return _checked_metadata(file.metadata())


@contextlib.contextmanager
def _named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns whatever is wrong with a file into a PlanError that names it."""
    name = Path(path).name
    try:
        yield
    except PlanError as error:
        raise PlanError(f"plan file {name}: {error}") from None
    except (OSError, SafetensorError) as error:
        raise PlanError(
            f"plan file {name}: expected a readable safetensors file, found: {error}"
        ) from error
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, IndexError) as error:
        raise PlanError(
            f"plan file {name}: expected a complete description of a plan, found "
            f"{type(error).__name__}: {error}"
        ) from error


def _description(plan: Plan) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "identity": asdict(plan.identity),
        "grid": plan.grid.shape,
        "block": plan.block,
        "band_edges": plan.bands.edges,
        "band_shares": plan.shares,
        "schedule": plan.schedule,
        "orders": plan.orders,
        "orders_by_layer": [plan.order_names(layer) for layer in range(plan.layers)],
        "candidates": plan.candidates,
        "offset_bins": plan.bins.axes,
        "recall_densities": RECALL_DENSITIES,
        "error_densities": ERROR_DENSITIES,
        "made_from": asdict(plan.origin),
    }


def _checked_metadata(metadata: dict[str, str] | None) -> dict[str, Any]:
    text = (metadata or {}).get(METADATA_KEY)
    if text is None:
        raise PlanError(
            f"expected the metadata entry {METADATA_KEY!r}, found "
            f"{', '.join(sorted(metadata or {})) or 'no metadata'}; this is not a PARO plan"
        )
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"expected JSON in {METADATA_KEY!r}, found: {error}") from None
    schema = description.get("schema") if isinstance(description, dict) else None
    if schema is True or schema != SCHEMA:  # JSON's true equals 1
        raise PlanError(
            f"expected plan schema {SCHEMA}, found {schema!r}; calibrate again or use the version "
            "of PARO Attention that wrote the plan"
        )
    return description


def _parsed(text: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments of Plan; a malformed value raises ValueError, TypeError or KeyError."""
    identity = {name: text["identity"][name] for name in ModelIdentity.__dataclass_fields__}
    origin = {name: text["made_from"][name] for name in Origin.__dataclass_fields__}
    origin["steps"] = _floats(origin["steps"])
    for name, expected in (("recall", RECALL_DENSITIES), ("error", ERROR_DENSITIES)):
        found = _floats(text[f"{name}_densities"])
        if len(found) != len(expected) or any(
            abs(a - b) > 1e-6 for a, b in zip(found, expected, strict=True)
        ):
            raise ValueError(f"{name} densities must be those of schema {SCHEMA}, got {found}")
    frames, height, width = (_integers(axis) for axis in text["offset_bins"])
    return {
        "identity": ModelIdentity(**identity),
        "grid": TokenGrid(*text["grid"]),
        "block": _integers(text["block"]),
        "bands": NoiseBands(_floats(text["band_edges"])),
        "shares": _floats(text["band_shares"]),
        "schedule": _floats(text["schedule"]),
        "orders": _names(text["orders"]),
        "candidates": _names(text["candidates"]),
        "bins": OffsetBins(frames, height, width),
        "origin": Origin(**origin),
    }


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in _list(values))


def _integers(values: Any) -> tuple[int, ...]:
    if any(isinstance(value, bool) or not isinstance(value, int) for value in _list(values)):
        raise TypeError(f"expected integers, got {values!r}")
    return tuple(values)


def _names(values: Any) -> tuple[str, ...]:
    if not _list(values) or any(not isinstance(value, str) for value in values):
        raise TypeError(f"expected names, got {values!r}")
    return tuple(values)


def _list(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"expected a list, got {type(values).__name__}")
    return values
