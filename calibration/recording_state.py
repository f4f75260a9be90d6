"""Unfinished recordings on disk, so that a calibration can go on where it was stopped.

A file holds what the finished runs gave to a recorder: safetensors with one JSON metadata entry,
written beside its destination and renamed. A recorder that goes on from a file gives the same plan,
bit for bit, as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .recorder import Recorder
from .tensor_file import write_tensors
from .token_grid import TokenGrid

FORMAT = 1
METADATA_KEY = "paro_recording"
_STATE, _EXTRA = "state.", "extra."


class RecordingError(ValueError):
    """A recording file that cannot be gone on with."""


@dataclass(frozen=True, slots=True)
class SavedRecording:
    """What a recording file says about itself.

    Attributes:
        path: the file.
        runs: finished runs.
        grid: token grid of the runs.
        schedule: sigmas of the runs' steps.
        inputs: what the caller recorded from, by name; he compares them.
        recorder: the recorder's settings.
    """

    path: Path
    runs: int
    grid: TokenGrid
    schedule: tuple[float, ...]
    inputs: dict[str, str]
    recorder: dict[str, Any]


def save_recording(
    path: str | os.PathLike[str],
    recorder: Recorder,
    runs: int,
    inputs: Mapping[str, str],
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes what a recorder has seen; an existing file is replaced in one step.

    Args:
        path: the destination.
        recorder: between two runs, or behind the last.
        runs: finished runs.
        inputs: what was recorded from, by name.
        extra: tensors of the caller's own.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    tensors = {_STATE + name: tensor for name, tensor in recorder.snapshot().items()}
    tensors |= {_EXTRA + name: tensor for name, tensor in (extra or {}).items()}
    description = {
        "format": FORMAT,
        "runs": runs,
        "inputs": dict(inputs),
        "recorder": describe(recorder),
    }
    write_tensors(path, tensors, METADATA_KEY, description)


def read_recording(path: str | os.PathLike[str]) -> SavedRecording | None:
    """Reads the description of a recording file, None where there is no such file.

    Raises:
        RecordingError: the file is truncated or not a recording of this version.
    """
    if not Path(path).exists():
        return None
    with _named_errors(path), safe_open(os.fspath(path), framework="pt", device="cpu") as file:
        text = json.loads((file.metadata() or {})[METADATA_KEY])
        if text["format"] != FORMAT:
            raise RecordingError(f"its format is {text['format']!r}, not {FORMAT}")
        recorder, inputs = text["recorder"], text["inputs"]
        if not isinstance(text["runs"], int) or any(
            not isinstance(value, str) for value in inputs.values()
        ):
            raise TypeError("runs or inputs of another type")
        schedule = tuple(float(sigma) for sigma in recorder["schedule"])
        grid = TokenGrid(*recorder["grid"])
        return SavedRecording(Path(path), text["runs"], grid, schedule, inputs, recorder)


def resume_recording(
    saved: SavedRecording, recorder: Recorder, device: torch.device
) -> dict[str, Tensor]:
    """Puts the finished runs of a file into a new recorder.

    Args:
        saved: the file.
        recorder: a new one, of the same settings.
        device: where the recorder is to work if no further run is needed.

    Returns:
        The caller's own tensors, as he gave them to `save_recording`.

    Raises:
        RecordingError: a recorder of other settings, or a broken file.
    """
    expected = describe(recorder)
    different = [name for name, value in expected.items() if saved.recorder.get(name) != value]
    if different:
        raise RecordingError(
            f"{saved.path.name} was recorded with other settings: {', '.join(different)}"
        )
    path = saved.path
    with _named_errors(path):
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            # Copies: a mapped file could not be replaced on Windows after the next run.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        state = {
            name.removeprefix(_STATE): tensor
            for name, tensor in tensors.items()
            if name.startswith(_STATE)
        }
        recorder.restore(saved.runs, state, device)
    return {
        name.removeprefix(_EXTRA): tensor
        for name, tensor in tensors.items()
        if name.startswith(_EXTRA)
    }


def describe(recorder: Recorder) -> dict[str, Any]:
    """A recorder's settings in the types that JSON gives back."""
    settings = {
        "grid": recorder.grid.shape,
        "sizes": (recorder.layers, recorder.heads, recorder.head_dim),
        "schedule": recorder.schedule,
        "band_edges": recorder.bands.edges,
        "steps": recorder.steps,
        "block": recorder.block,
        "candidates": recorder.candidates,
        "choice": recorder.choice,
        "alpha": recorder.alpha,
        "density": recorder.density,
        "prompts": recorder.prompts,
        "pack version": _code(),
    }
    return json.loads(json.dumps(settings))


@cache
def _code() -> str:
    """Digest of the source that records: runs of two versions do not belong in one plan."""
    digest = hashlib.sha256()
    package = Path(__file__).parent.parent
    for folder in ("calibration", "kernels"):
        for source in sorted((package / folder).rglob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns whatever is wrong with a file into a RecordingError that names it."""
    name = Path(path).name
    try:
        yield
    except RecordingError as error:
        raise RecordingError(f"{name}: {error}") from None
    except (OSError, SafetensorError) as error:
        raise RecordingError(f"{name} is not a readable safetensors file: {error}") from error
    except (TypeError, ValueError, RecursionError, LookupError, AttributeError) as error:
        raise RecordingError(
            f"{name} is not a complete recording: {type(error).__name__}: {error}"
        ) from error
