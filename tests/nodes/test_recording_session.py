"""The session behind Record PARO: what counts, what does not, and that no run is ever stopped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paro_attention.calibration import ModelIdentity, load_plan
from paro_attention.calibration.recording_state import read_recording
from paro_attention.nodes.attention_call import VisualCall
from paro_attention.nodes.recording_session import (
    NOT_RECORDED,
    RecordingSession,
    RecordingSettings,
)

GRID = (2, 8, 8)
LAYERS, HEADS, DIM = 2, 2, 32
SIGMAS = [1.0, 0.8, 0.6, 0.4]
MODEL = SimpleNamespace(load_device=torch.device("cpu"))
IDENTITY = ModelIdentity("a", "w", LAYERS, HEADS, DIM, "test")


class User:
    """Who samples with Record PARO, and reads what the node says."""

    def __init__(self, folder: Path, **changes: Any):
        self.path = folder / "plan.safetensors"
        self.partial = folder / "plan.partial"
        self.told: list[str] = []
        settings = {"runs": 2, "density": 0.3, "noise_bands": 2, "orders": "axes",
                    "choice": "output_error"}  # fmt: skip
        settings |= {key: changes.pop(key) for key in list(changes) if key in settings}
        model = changes.pop("model", "m")
        self.session = RecordingSession(
            self.path, changes.pop("identity", IDENTITY), {"model": model},
            RecordingSettings(**settings), node_id="5",
            tell=lambda text, level: self.told.append(text), **changes,
        )  # fmt: skip

    def sample(self, seed: int = 0, *, sigmas=SIGMAS, grid=GRID, layers=LAYERS, stop_at=None):
        """One run; returns what the calls were answered."""
        generator = torch.Generator().manual_seed(seed)
        tokens = grid[0] * grid[1] * grid[2]
        self.session.begin_run(sigmas, MODEL)
        answers = []
        for sigma in sigmas[:stop_at]:
            self.session.begin_forward()
            for layer in range(layers):
                q, k, v = torch.randn(3, 1, HEADS, tokens, DIM, generator=generator)
                answers.append(self.session.attend(VisualCall(layer, sigma, grid, q, k, v, (0,))))
                self.session.declined(answers[-1])
        self.session.end_run(failed=stop_at is not None)
        return answers

    @property
    def recorded(self) -> int:
        saved = read_recording(self.partial)
        return 0 if saved is None else saved.runs


@pytest.fixture
def user(tmp_path):
    return User(tmp_path)


def test_runs_add_up_to_a_plan_and_then_nothing_more_is_recorded(user):
    user.sample(0)
    assert user.told[-1] == "run 1 of 2 recorded"
    assert user.recorded == 1 and not user.path.exists()
    user.sample(1)
    assert "wrote plan.safetensors from 2 runs" in user.told[-1]
    assert not user.partial.exists()
    plan = load_plan(user.path)
    assert plan.origin.prompts == 2 and plan.grid.shape == GRID
    before = user.path.read_bytes()
    assert set(user.sample(2)) == {NOT_RECORDED}
    assert "plan.safetensors is complete" in user.told[-1]
    again = User(user.path.parent)  # after a restart
    again.sample(3)
    assert "is complete" in again.told[-1]
    assert user.path.read_bytes() == before and not user.partial.exists()


def test_a_plan_of_other_settings_or_another_model_is_recorded_anew(user):
    user.sample(0)
    user.sample(1)
    for changes in ({"density": 0.5}, {"model": "n"}, {"runs": 3}, {"resume": False}):
        other = User(user.path.parent, **changes)
        other.sample(0)
        assert other.told[-1].startswith("run 1 of "), changes
        other.partial.unlink()


def test_resume_off_starts_one_recording_anew_not_every_run(tmp_path):
    User(tmp_path).sample(0)
    fresh = User(tmp_path, resume=False, runs=2)
    fresh.sample(1)
    assert fresh.told[-1] == "run 1 of 2 recorded"
    fresh.sample(2)
    assert "wrote plan.safetensors from 2 runs" in fresh.told[-1]


def test_a_run_that_is_stopped_does_not_count(user):
    user.sample(0, stop_at=2)
    assert "does not count: 0 of 2 recorded" in user.told[-1] and user.recorded == 0
    user.sample(0)
    kept = user.partial.read_bytes()
    user.sample(1, stop_at=3)
    assert "does not count: 1 of 2 recorded" in user.told[-1]
    assert user.partial.read_bytes() == kept


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sigmas": [1.0, 0.5]}, "its 2 steps are not those of the recording"),
        ({"sigmas": [0.4, 0.8]}, "noise levels must be in descending order"),
        ({"grid": (2, 4, 8)}, "its grid of 2x4x8 tokens is not the 2x8x8 of the recording"),
        ({"layers": 1}, "only 2 of 4 layers and noise bands were seen"),
    ],
)
def test_a_run_that_does_not_fit_is_said_and_not_counted(user, changes, words):
    user.sample(0)
    kept = user.partial.read_bytes()
    user.sample(1, **changes)
    assert user.told[-1].startswith("not recorded: ") and words in user.told[-1]
    assert user.partial.read_bytes() == kept
    user.sample(1)
    assert "wrote" in user.told[-1]


def test_a_recorder_that_fails_leaves_the_run_alone(user, monkeypatch):
    def fails(*_args, **_kwargs):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr("paro_attention.calibration.recorder.Recorder.record", fails)
    assert set(user.sample(0)) <= {NOT_RECORDED, "step not recorded"}
    assert "OutOfMemoryError: out of memory; 0 of 2 runs" in user.told[-1]
    monkeypatch.undo()
    user.sample(0)
    assert user.told[-1] == "run 1 of 2 recorded"


def test_an_interrupt_passes_through(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        User(tmp_path, check_interrupt=interrupt).sample(0)


def test_a_plan_that_cannot_be_written_is_made_by_the_next_run_from_what_was_kept(user):
    user.sample(0)
    user.path.mkdir()  # in the way
    (user.path / "file").touch()
    user.sample(1)
    assert user.told[-1].startswith("not recorded: ") and user.recorded == 2
    (user.path / "file").unlink()
    user.path.rmdir()
    assert set(user.sample(2)) == {NOT_RECORDED}
    assert "wrote plan.safetensors from 2 runs" in user.told[-1]
    assert load_plan(user.path).origin.prompts == 2


def test_a_broken_file_starts_over_and_says_so(user):
    user.sample(0)
    user.partial.write_bytes(user.partial.read_bytes()[:100])
    user.sample(1)
    assert any(text.startswith("starts over: plan.partial is not a readable") for text in user.told)
    assert user.told[-1] == "run 1 of 2 recorded"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("not enough memory"), KeyError("x")])
def test_what_was_kept_and_cannot_be_read_now_neither_stops_a_run_nor_is_lost(
    user, monkeypatch, error
):
    def fails(*_args, **_kwargs):
        raise error

    user.sample(0)
    kept = user.partial.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("paro_attention.nodes.recording_session.go_on", fails)
        assert set(user.sample(1)) == {NOT_RECORDED}
    assert user.told[-1].startswith(f"not recorded: {type(error).__name__}")
    assert user.told[-1].endswith("; 1 of 2 runs recorded so far")
    assert user.partial.read_bytes() == kept
    user.sample(1)
    assert "wrote plan.safetensors from 2 runs" in user.told[-1]


def test_a_fit_that_fails_in_any_way_leaves_the_result_of_the_run(user, monkeypatch):
    def fails(*_args, **_kwargs):
        raise MemoryError

    user.sample(0)
    with monkeypatch.context() as patch:
        patch.setattr("paro_attention.calibration.recorder.Recorder.finish", fails)
        user.sample(1)
    assert user.told[-1] == "not recorded: MemoryError" and user.recorded == 2
    user.sample(2)
    assert "wrote plan.safetensors from 2 runs" in user.told[-1]
