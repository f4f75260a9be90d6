"""A calibration that is stopped goes on where it was, in a real ComfyUI."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paro_attention.nodes import unfinished
from paro_attention.nodes.calibration_progress import CalibrationProgress
from plan_contents import plan_contents

PROMPTS = (
    "red circle right, grass, static\nblue star up, sand, pan-left\n"
    "yellow square left, wood, zoom-in\npurple circle down, stone, static"
)


def graph(name: str, **changes: Any) -> dict[str, Any]:
    demo = {"prompt": "", "negative": "", "width": 32, "height": 32, "frames": 2}
    inputs = {
        "model": ["demo", 0], "clip": ["demo", 1], "latent": ["demo", 5], "name": name, "seed": 1,
        "steps": 8, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "density": 0.3,
        "noise_bands": 1, "orders": "axes", "choice": "output_error", "start_at_step": 0,
        "end_at_step": 10000, "prompts": PROMPTS,
    } | changes  # fmt: skip
    return {
        "demo": {"class_type": "ParoDemoModel", "inputs": demo},
        "calibrate": {"class_type": "ParoCalibrate", "inputs": inputs},
        "save": {
            "class_type": "SaveLatent",
            "inputs": {"samples": ["calibrate", 1], "filename_prefix": "resume"},
        },
    }


def stop_in_run(host: Any, run: int, prompt: dict[str, Any]) -> None:
    """Queue a calibration and interrupt it in one of its runs."""
    mark = len(host.log_text())
    number = host.submit(prompt)
    deadline = time.monotonic() + 60
    while f"calibrating, run {run} of 4, step 0" not in host.log_text()[mark:]:
        assert time.monotonic() < deadline, host.log_text()[mark:]
        time.sleep(0.02)
    host.post("/interrupt")
    assert host.wait(number).interrupted
    log = host.log_text()[mark:]
    assert f"stopped after run {run - 1} of 4; with the same inputs it will go on" in log


@pytest.fixture(scope="module")
def whole(host):
    """The host, the plan file of a calibration that nobody stopped, and its last latent."""
    run = host.run(graph("whole"))
    assert run.error is None, run.message
    assert not (host.plans / "whole.partial").exists()
    return host, host.plans / "whole.safetensors", host.latent(run)


@pytest.mark.comfy
def test_the_plan_is_the_same_bit_for_bit_after_a_restart(whole):
    host, path, latent = whole
    stop_in_run(host, 3, graph("cut"))
    partial = host.plans / "cut.partial"
    assert partial.is_file() and not (host.plans / "cut.safetensors").exists()
    lists = json.dumps(host.get("/object_info/ParoLoad")) + json.dumps(host.get("/models/paro"))
    assert "whole.safetensors" in lists and "cut" not in lists
    host.stop()
    host.start()
    run = host.run(graph("cut"))
    assert run.error is None, run.message
    assert "goes on after run 2 of 4" in host.log_text()
    assert "4 runs (2 of them made before a stop)" in run.outputs["calibrate"]["text"][0]
    assert [stats["kind"] for stats in run.stats] == ["calibrate"] * 2
    assert not partial.exists()
    description, tensors = plan_contents(path)
    same_description, same = plan_contents(host.plans / "cut.safetensors")
    assert same_description == description
    assert same.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(same[name], tensor), name
    assert torch.equal(host.latent(run), latent)


@pytest.mark.comfy
def test_other_inputs_and_broken_files_start_over_and_say_so(whole):
    host, path, latent = whole
    partial = host.plans / "other.partial"
    stop_in_run(host, 2, graph("other"))
    kept = partial.read_bytes()
    cases = {
        "recorded with other inputs: seed": (kept, {"seed": 5}),
        "recorded with other inputs: steps, density": (kept, {"steps": 4, "density": 0.5}),
        "recorded with other inputs: prompts": (kept, {"prompts": PROMPTS.replace("red", "blue")}),
        "not a readable safetensors file": (kept[: len(kept) // 2], {}),
        "": (kept, {"resume": False}),
    }
    for words, (content, changes) in cases.items():
        partial.write_bytes(content)
        mark = len(host.log_text())
        run = host.run(graph("other", **changes))
        assert run.error is None, run.message
        assert len(run.stats) == 4, "from the first run on"
        log = host.log_text()[mark:]
        assert words in log and ("starts over: other.partial" in log) == bool(words), log
        assert not partial.exists()
    assert (
        plan_contents(host.plans / "other.safetensors")[1].keys() == plan_contents(path)[1].keys()
    )
    assert torch.equal(host.latent(run), latent)


@pytest.mark.comfy
def test_all_runs_made_and_no_plan_written_leaves_only_the_fit(whole):
    host, path, latent = whole
    folder = host.plans / "full.safetensors"
    folder.mkdir()  # the plan cannot be written there
    (folder / "file").write_text("in the way")
    assert host.run(graph("full")).error is not None
    assert (host.plans / "full.partial").is_file()
    (folder / "file").unlink()
    folder.rmdir()
    run = host.run(graph("full"))
    assert run.error is None, run.message
    assert run.stats == [], "nothing was sampled"
    assert "4 runs (4 of them made before a stop)" in run.outputs["calibrate"]["text"][0]
    assert torch.equal(host.latent(run), latent)
    description, tensors = plan_contents(host.plans / "full.safetensors")
    assert description == plan_contents(path)[0]
    for name, tensor in plan_contents(path)[1].items():
        assert torch.equal(tensors[name], tensor), name
    assert host.image(run.outputs["calibrate"]["images"][0]).width > 600


def test_runs_from_before_take_no_time():
    now = [0.0]
    words = CalibrationProgress(10, ["x"], lambda: now[0], runs_before=2)
    assert words.line(2, 4, 0) == "calibrating, run 3 of 4, step 0 of 10 · x"
    now[0] = 50
    assert "about 2 min 30 s left" in words.line(2, 4, 5)


def test_another_model_of_the_earlier_steps_is_another_input(monkeypatch):
    def model(weights: str = "w", shift: float = 1.0, strength: float = 1.0) -> SimpleNamespace:
        objects = {
            "diffusion_model": SimpleNamespace(dtype=torch.float16, weights=weights),
            "model_sampling": SimpleNamespace(sigmas=torch.linspace(0, 1, 5) * shift),
        }
        return SimpleNamespace(
            get_model_object=objects.get, patches={"q": [(strength, torch.ones(3))]},
            model_options={},
        )  # fmt: skip

    monkeypatch.setattr(unfinished, "find_family", lambda inner: inner.weights or None)
    monkeypatch.setattr(unfinished, "identify", lambda model: model.get_model_object(
        "diffusion_model"))  # fmt: skip
    others = [None, model("v"), model(""), model(shift=2.0), model(strength=0.5)]
    same = unfinished.earlier_inputs(model())
    assert unfinished.earlier_inputs(model()) == same
    for other in others:
        assert unfinished.earlier_inputs(other) != same
