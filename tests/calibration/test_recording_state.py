"""Recordings that are stopped and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from paro_attention.calibration import save_plan
from paro_attention.calibration.recording_state import (
    METADATA_KEY,
    RecordingError,
    read_recording,
    resume_recording,
    save_recording,
)
from safetensors.torch import load_file, save_file

INPUTS = {"model": "a", "seed": "3"}
CPU = torch.device("cpu")


def run(model, recorder, first, last):
    """Samples some prompts of a recorder."""
    sigmas = recorder.schedule
    for prompt in range(first, last):
        recorder.begin_prompt(prompt)
        for sigma in sigmas:
            for layer, inputs in enumerate(model.attention(prompt)):
                if recorder.wants(layer, sigma):
                    recorder.record(layer, sigma, *inputs)
    return recorder


def contents(recorder, model, path):
    """The bytes of the plan that a recorder makes, but for the date."""
    plan = recorder.finish(model.identity)
    save_plan(replace(plan, origin=replace(plan.origin, created="")), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def options():
    return {"prompts": 4, "orders": "axes"}


@pytest.fixture(scope="module")
def uninterrupted(synthetic_model, options, tmp_path_factory):
    recorder = run(synthetic_model, synthetic_model.recorder(**options), 0, 4)
    return contents(recorder, synthetic_model, tmp_path_factory.mktemp("whole") / "plan")


@pytest.mark.parametrize("runs", [1, 2, 3, 4])
def test_a_resumed_recording_gives_the_same_plan_bit_for_bit(
    synthetic_model, options, uninterrupted, tmp_path, runs
):
    path = tmp_path / "x.partial"
    first = run(synthetic_model, synthetic_model.recorder(**options), 0, runs)
    save_recording(path, first, runs, INPUTS, {"latent": torch.arange(3.0)})
    if runs < 4:  # the run that is cut short must leave no trace
        first.begin_prompt(runs)
        first.record(0, first.steps[0], *synthetic_model.attention(99)[0])
    saved = read_recording(path)
    assert saved is not None and (saved.runs, saved.inputs) == (runs, INPUTS)
    assert saved.grid == synthetic_model.grid and saved.schedule == first.schedule
    second = synthetic_model.recorder(**options)
    extra = resume_recording(saved, second, CPU)
    assert extra["latent"].tolist() == [0, 1, 2]
    run(synthetic_model, second, runs, 4)
    assert contents(second, synthetic_model, tmp_path / "plan") == uninterrupted


def test_one_order_is_resumed_too(synthetic_model, tmp_path):
    options = {"prompts": 2, "orders": "fhw"}
    whole = run(synthetic_model, synthetic_model.recorder(**options), 0, 2)
    first = run(synthetic_model, synthetic_model.recorder(**options), 0, 1)
    save_recording(tmp_path / "x", first, 1, INPUTS)
    second = synthetic_model.recorder(**options)
    saved = read_recording(tmp_path / "x")
    assert saved is not None
    resume_recording(saved, second, CPU)
    run(synthetic_model, second, 1, 2)
    paths = tmp_path / "a", tmp_path / "b"
    assert contents(second, synthetic_model, paths[0]) == contents(whole, synthetic_model, paths[1])


@pytest.fixture
def saved_file(synthetic_model, options, tmp_path):
    path = tmp_path / "x.partial"
    save_recording(path, run(synthetic_model, synthetic_model.recorder(**options), 0, 3), 3, INPUTS)
    return path


def test_another_recorder_does_not_go_on(synthetic_model, saved_file, options):
    saved = read_recording(saved_file)
    assert saved is not None
    changes = {"density": 0.5, "prompts": 5, "orders": "tiles", "block": (64, 64)}
    for name, value in changes.items():
        named = "candidates" if name == "orders" else name
        with pytest.raises(RecordingError, match=f"other settings: .*{named}"):
            resume_recording(saved, synthetic_model.recorder(**(options | {name: value})), CPU)
    used = run(synthetic_model, synthetic_model.recorder(**options), 0, 1)
    with pytest.raises(RuntimeError, match="before begin_prompt"):
        resume_recording(saved, used, CPU)


def test_broken_files_are_named(synthetic_model, saved_file, options):
    assert read_recording(saved_file.with_name("missing")) is None
    whole = saved_file.read_bytes()
    for content in (b"", b"\x00" * 64, whole[:40], whole[: len(whole) // 2]):
        saved_file.write_bytes(content)
        with pytest.raises(RecordingError, match=r"x\.partial is not a readable"):
            read_recording(saved_file)
    save_file({"a": torch.zeros(1)}, saved_file)
    with pytest.raises(RecordingError, match="not a complete recording"):
        read_recording(saved_file)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("state.scores", None),
        ("state.mass.0", None),
        ("state.scores", lambda x: x[:1].clone()),
        ("state.mass.3", lambda x: x[:1].clone()),
        ("state.keys", lambda x: x + 100),
        ("state.maps", lambda x: x[1:].clone()),
    ],
)
def test_files_that_contradict_themselves_are_named(
    synthetic_model, saved_file, options, name, change
):
    saved = read_recording(saved_file)
    tensors = load_file(saved_file)
    assert saved is not None
    tensors |= {} if change is None else {name: change(tensors[name])}
    if change is None:
        del tensors[name]
    description = {"format": 1, "runs": 3, "inputs": INPUTS, "recorder": saved.recorder}
    save_file(tensors, saved_file, metadata={METADATA_KEY: json.dumps(description)})
    with pytest.raises(RecordingError, match=r"x\.partial is not a complete recording"):
        resume_recording(saved, synthetic_model.recorder(**options), CPU)


def test_a_file_of_another_format_is_refused(saved_file):
    metadata = {METADATA_KEY: json.dumps({"format": 2})}
    save_file({"a": torch.zeros(1)}, saved_file, metadata=metadata)
    with pytest.raises(RecordingError, match="its format is 2, not 1"):
        read_recording(saved_file)


def test_a_folder_that_cannot_be_written_is_an_os_error(synthetic_model, options, tmp_path):
    recorder = run(synthetic_model, synthetic_model.recorder(**options), 0, 1)
    with pytest.raises(OSError):
        save_recording(tmp_path / "missing" / "x", recorder, 1, INPUTS)
