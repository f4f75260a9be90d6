"""The finished runs of a calibration that has no plan yet: a file beside the plan's.

Its name ends in .partial, so that no list of plans shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..calibration import ModelIdentity, Recorder, TokenGrid
from ..calibration.recording_state import (
    RecordingError,
    SavedRecording,
    read_recording,
    resume_recording,
)
from .families import find_family
from .input_digest import digest, model_digest
from .model_identity import identify, weight_distance
from .report_picture import HeadSample

EXTENSION = ".partial"
_WEIGHTS = "weights"


@dataclass(frozen=True, slots=True)
class Resumed:
    """A recorder that holds the runs of a file.

    Attributes:
        recorder: it goes on with run number `runs`.
        runs: finished runs.
        extra: tensors that were kept beside them.
    """

    recorder: Recorder
    runs: int
    extra: dict[str, Tensor]


def partial_path(plan: Path) -> Path:
    """Where the finished runs for a plan are kept."""
    return plan.with_suffix(EXTENSION)


def model_inputs(model: Any, identity: ModelIdentity) -> dict[str, str]:
    """What of a model decides about what is recorded, by name."""
    from comfyui_version import __version__ as host

    sizes = (identity.architecture, identity.layers, identity.heads, identity.head_dim)
    return {
        "model": digest(sizes, model_digest(model)),
        _WEIGHTS: identity.weights,
        "ComfyUI version": host,
    }


def earlier_inputs(model: Any | None) -> dict[str, str]:
    """What of the model of the steps before decides about what is recorded, by name."""
    if model is None:
        return {"earlier_model": digest(None)}
    diffusion_model = model.get_model_object("diffusion_model")
    weights = identify(model).weights if find_family(diffusion_model) is not None else ""
    sigmas = getattr(model.get_model_object("model_sampling"), "sigmas", None)  # its shift
    return {"earlier_model": digest(model_digest(model), weights, sigmas)}


def find_unfinished(path: Path, inputs: Mapping[str, str]) -> SavedRecording | None:
    """The recording in a file, if it was made from the same inputs; None without a file.

    Raises:
        RecordingError: a broken file, or other inputs.
    """
    saved = read_recording(path)
    if saved is None:
        return None
    names = [*inputs, *(name for name in saved.inputs if name not in inputs)]
    different = [
        name for name in names if not _same(name, inputs.get(name), saved.inputs.get(name))
    ]
    if different:
        runs = f"{saved.runs} run" + "s" * (saved.runs != 1)
        raise RecordingError(
            f"{saved.path.name} ({runs}) was recorded with other inputs: {', '.join(different)}"
        )
    return saved


def go_on(
    saved: SavedRecording, make_recorder: Callable[[TokenGrid], Recorder], device: torch.device
) -> tuple[Recorder, dict[str, Tensor]]:
    """A recorder with the runs of a file, and the tensors that were kept beside them.

    Raises:
        RecordingError: a broken file, or one of another version of this pack.
    """
    recorder = make_recorder(saved.grid)
    return recorder, resume_recording(saved, recorder, device)


def resumed_or_none(
    path: Path,
    inputs: Mapping[str, str],
    make_recorder: Callable[[TokenGrid], Recorder],
    device: torch.device,
    tell: Callable[[str], None],
) -> Resumed | None:
    """`find_unfinished` and `go_on`; says why a file that is there cannot be gone on with."""
    try:
        saved = find_unfinished(path, inputs)
        if saved is None:
            return None
        recorder, extra = go_on(saved, make_recorder, device)
        if saved.runs == recorder.runs_needed:
            read_result(extra)
    except RecordingError as error:
        tell(f"starts over: {error}")
        return None
    return Resumed(recorder, saved.runs, extra)


def result_tensors(latent: Tensor, samples: Sequence[HeadSample]) -> dict[str, Tensor]:
    """What a calibration gives beside the plan, as tensors: see `read_result`."""
    parts = latent.unbind() if latent.is_nested else [latent]
    kind = "nested" if latent.is_nested else "latent"
    tensors = {f"{kind}.{index}": part.cpu().clone() for index, part in enumerate(parts)}
    for sample in samples:
        name = f"sample.{sample.layer}.{sample.head}"
        tensors |= {f"{name}.q": sample.q.clone(), f"{name}.k": sample.k.clone()}
        tensors[f"{name}.sigma"] = torch.tensor(sample.sigma, dtype=torch.float64)
    return tensors


def read_result(tensors: Mapping[str, Tensor]) -> tuple[Any, list[HeadSample]]:
    """The latent and the samples of `result_tensors`.

    Raises:
        RecordingError: there is no latent among them.
    """
    nested = [tensors[name] for name in sorted(tensors) if name.startswith("nested.")]
    if nested:
        from comfy.nested_tensor import NestedTensor

        latent: Any = NestedTensor(nested)
    elif "latent.0" in tensors:
        latent = tensors["latent.0"]
    else:
        raise RecordingError("the latent of the last run was not kept")
    samples = []
    for name in sorted(name for name in tensors if name.endswith(".sigma")):
        _, layer, head, _ = name.split(".")
        q, k = (tensors[f"sample.{layer}.{head}.{part}"] for part in "qk")
        samples.append(HeadSample(int(layer), int(head), float(tensors[name]), q, k))
    return latent, sorted(samples, key=lambda sample: (sample.layer, sample.head))


def _same(name: str, ours: str | None, theirs: str | None) -> bool:
    if name == _WEIGHTS and ours and theirs:
        return not weight_distance(ours, theirs)
    return ours == theirs
