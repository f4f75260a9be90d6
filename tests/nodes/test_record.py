"""Record PARO in a real ComfyUI: ordinary runs make the plan that a calibration would make."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plan_contents import plan_contents

PROMPTS = [
    "red circle right, grass, static", "blue star up, sand, pan-left",
    "yellow square left, wood, zoom-in",
]  # fmt: skip
SAMPLING = {"steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
MAKING = {"density": 0.3, "noise_bands": 1, "orders": "axes", "choice": "output_error"}
GRAPH = dict[str, Any]


def node(kind: str, **inputs: Any) -> GRAPH:
    return {"class_type": kind, "inputs": inputs}


def demo(side: int = 32) -> GRAPH:
    return node("ParoDemoModel", prompt="", negative="", width=side, height=side, frames=2)


def sampling(index: int, *, name: str = "", side: int = 32, **changes: Any) -> GRAPH:
    """The run of one prompt; with a name, through Record PARO."""
    record = {"model": ["demo", 0], "name": name, "runs": 3, **MAKING}
    record |= {key: changes.pop(key) for key in list(changes) if key in ("runs", "resume")}
    graph = {
        "demo": demo(side),
        "text": node("CLIPTextEncode", clip=["demo", 1], text=PROMPTS[index]),
        "zero": node("ConditioningZeroOut", conditioning=["text", 0]),
        "sample": node(
            "KSampler", model=["record", 0] if name else ["demo", 0], positive=["text", 0],
            negative=["zero", 0], latent_image=["demo", 5], denoise=1.0,
            **({**SAMPLING, "seed": 1 + index} | changes),
        ),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="record"),
    }  # fmt: skip
    return graph | ({"record": node("ParoRecord", **record)} if name else {})


@pytest.fixture(scope="module")
def calibrated(host):
    """The host, and the plan that Calibrate PARO makes of the same runs."""
    graph = {
        "demo": demo(),
        "calibrate": node(
            "ParoCalibrate", model=["demo", 0], clip=["demo", 1], latent=["demo", 5], seed=1,
            name="calibrated", start_at_step=0, end_at_step=10000, prompts="\n".join(PROMPTS),
            **SAMPLING, **MAKING,
        ),
    }  # fmt: skip
    run = host.run(graph)
    assert run.error is None, run.message
    return host, host.plans / "calibrated.safetensors"


def said(host: Any, graph: GRAPH) -> tuple[Any, str]:
    """A run, and what stands in the log of it."""
    mark = len(host.log_text())
    run = host.run(graph)
    assert run.error is None, run.message
    return run, host.log_text()[mark:]


@pytest.mark.comfy
def test_ordinary_runs_make_the_plan_of_a_calibration(calibrated):
    host, expected = calibrated
    plan, partial = host.plans / "ordinary.safetensors", host.plans / "ordinary.partial"
    for index in range(3):
        run, log = said(host, sampling(index, name="ordinary"))
        recorded = host.latent(run)
        assert torch.equal(recorded, host.latent(host.run(sampling(index))))
        if index < 2:
            assert f"run {index + 1} of 3 recorded" in log
            assert partial.is_file() and not plan.exists()
        if index == 0:
            assert "record" not in host.run(sampling(1)).outputs
            host.stop()  # the recording goes on after a restart
            host.start()
    assert "wrote ordinary.safetensors from 3 runs" in log
    assert not partial.exists()
    (description, tensors), (same_description, same) = map(plan_contents, (expected, plan))
    assert "3 ordinary runs" in same_description["made_from"].pop("note")
    del description["made_from"]["note"]
    assert same_description == description
    assert same.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(same[name], tensor), name
    before = plan.read_bytes()
    _, log = said(host, sampling(0, name="ordinary", seed=50))
    assert "ordinary.safetensors is complete" in log and plan.read_bytes() == before
    _, log = said(host, sampling(0, name="ordinary", seed=51, resume=False))
    assert "run 1 of 3 recorded" in log and plan.read_bytes() == before
    partial.unlink()


@pytest.mark.comfy
def test_one_node_counts_on_while_it_stays_in_the_cache(host):
    for index in range(2):
        run, log = said(host, sampling(0, name="cached", seed=90 + index))
        assert ("record" in run.cached) == (index > 0)
        assert f"run {index + 1} of 3 recorded" in log


@pytest.mark.comfy
def test_runs_that_do_not_fit_are_said_and_the_picture_is_theirs(host):
    assert "run 1 of 3 recorded" in said(host, sampling(0, name="other"))[1]
    kept = (host.plans / "other.partial").read_bytes()
    cases = {
        "its 5 steps are not those of the recording": {"steps": 5},
        "tokens is not the 2x8x8 of the recording": {"side": 48},
    }
    for words, changes in cases.items():
        run, log = said(host, sampling(1, name="other", **changes))
        assert words in log and "1 of 3 runs recorded so far" in log
        assert torch.equal(host.latent(run), host.latent(host.run(sampling(1, **changes))))
        assert (host.plans / "other.partial").read_bytes() == kept
    _, log = said(host, sampling(1, name="other", runs=2))
    assert "starts over: other.partial (1 run) was recorded with other inputs: runs" in log


@pytest.mark.comfy
def test_an_interrupted_run_does_not_count(host):
    mark = len(host.log_text())
    number = host.submit(sampling(0, name="stopped", steps=1000))
    while "records run 1 of 3" not in host.log_text()[mark:]:
        assert not host.get(f"/history/{number}"), host.log_text()[mark:]
    host.post("/interrupt")
    assert host.wait(number).interrupted
    assert "a run that is stopped does not count: 0 of 3 recorded" in host.log_text()[mark:]
    assert not (host.plans / "stopped.partial").exists()


@pytest.mark.comfy
def test_a_plan_that_was_recorded_is_followed(host):
    for index in range(3):
        _, log = said(host, sampling(index, name="followed"))
    assert "wrote followed.safetensors from 3 runs" in log
    graph = sampling(0)
    graph["load"] = node(
        "ParoLoad", model=["demo", 0], plan="followed.safetensors", density=0.5, qk_bits="8",
        pv_bits="8", warmup=0.0, dense_layers="", min_tokens=0, on_unsupported="error",
    )  # fmt: skip
    graph["sample"]["inputs"]["model"] = ["load", 0]
    run = host.run(graph)
    assert run.error is None, run.message
    assert run.stats[-1]["handled"] > 0 and not run.stats[-1]["dense"]


@pytest.mark.comfy
def test_a_model_that_is_not_served_is_named(host):
    graph = {
        "other": node("TestOtherDiT"),
        "record": node("ParoRecord", model=["other", 0], name="x", runs=4, **MAKING),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="x"),
        "latent": node("TestLatent", channels=4, frames=4, height=8, width=8),
        "text": node("TestConditioning", seed=1, clip_vision=False, reference=False),
        "sample": node(
            "KSampler", model=["record", 0], positive=["text", 0], negative=["text", 0],
            latent_image=["latent", 0], denoise=1.0, seed=1, **SAMPLING,
        ),
    }  # fmt: skip
    assert "Record PARO cannot serve this" in host.run(graph).message
