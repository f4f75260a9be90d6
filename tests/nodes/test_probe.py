"""PARO Probe: errors of what Load PARO does, beside a run with full attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from paro_attention.nodes.attention_call import VisualCall
from paro_attention.nodes.probing import LayerError, ProbeHandler, full_attention
from paro_attention.nodes.report_probe import draw_probe

GRID = (2, 4, 4)
SIGMAS = [1.0, 0.8, 0.6, 0.4]


class NoisySession:
    """Gives full attention with an error of known size in every head; layer 2 runs dense."""

    def __init__(self, error: list[float]):
        self.error = torch.tensor(error)

    def begin_run(self, sigmas: list[float], model: Any) -> None:
        pass

    def attend(self, call: VisualCall) -> torch.Tensor | str:
        if call.layer == 2:
            return "dense layer"
        return full_attention(call) * (1 + (call.layer + 1) * self.error[:, None, None])


def visual_call(layer: int, sigma: float, **changes: Any) -> VisualCall:
    q, k, v = torch.randn(3, 1, 2, 32, 64).unbind()
    return VisualCall(layer, sigma, GRID, q, k, v, None, **changes)


def probed(error: list[float], steps: int, layers: int = 3) -> ProbeHandler:
    handler = ProbeHandler(NoisySession(error), steps)  # type: ignore[arg-type]
    handler.begin_run(SIGMAS, None)
    for sigma in SIGMAS:
        for layer in range(layers):
            handler.declined(handler.attend(visual_call(layer, sigma * (1 + 1e-6))))
    handler.end_run(False)
    return handler


def test_errors_are_the_ones_that_were_made_worst_first():
    rows = probed([0.1, 0.3], steps=4).results()
    assert [row.layer for row in rows] == [1, 0]
    assert rows[0].worst_head == 1
    assert rows[0].worst_error == pytest.approx(0.6, abs=1e-3)
    assert rows[1].worst_error == pytest.approx(0.3, abs=1e-3)
    assert 0.1 < rows[1].error < 0.3 and 0.9 < rows[1].cosine < 1


def test_only_the_chosen_steps_are_computed_twice():
    handler = probed([0.1, 0.1], steps=2)
    assert [row.calls for row in handler.results()] == [2, 2]
    assert handler.dense == {"dense layer": 2}


def test_full_attention_counts_the_key_bias():
    bias = torch.zeros(1, 32)
    bias[:, -8:] = float("-inf")
    call = visual_call(0, 1.0, key_bias=bias)
    cut = [x[:, :, :24] for x in (call.k, call.v)]
    expected = torch.nn.functional.scaled_dot_product_attention(call.q, *cut)
    assert torch.allclose(full_attention(call), expected, atol=1e-5)


def test_table_of_many_layers_fits_in_columns():
    rows = [LayerError(n, 0.1 / (n + 1), 0.99, 0, 0.2, 4) for n in range(50)]
    picture = draw_probe(rows, "title", ["line"])
    assert picture.dtype == np.float32 and picture.shape[2] > picture.shape[1]
    assert draw_probe(rows[:3], "title", ["line"]).shape[1] < picture.shape[1]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


SAMPLING = {"seed": 1, "steps": 4, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple"}


def graph(density: float, bits: str) -> dict[str, Any]:
    demo = {"positive": ["demo", 3], "negative": ["demo", 4], "latent_image": ["demo", 5]}
    return {
        "demo": node("ParoDemoModel", prompt="red circle right, grass, static", negative="",
                     width=64, height=64, frames=2),
        "calibrate": node("ParoCalibrate", model=["demo", 0], name="probe", latent=["demo", 5],
                          density=0.3, noise_bands=2, orders="fhw", choice="output_error",
                          start_at_step=0, end_at_step=10000, positive=["demo", 3], prompts="",
                          **SAMPLING),
        "load": node("ParoLoad", model=["demo", 0], plan="none", paro_plan=["calibrate", 0],
                     density=density, qk_bits=bits, pv_bits=bits, warmup=0.0, dense_layers="3",
                     min_tokens=0, on_unsupported="error"),
        "probe": node("ParoProbe", model=["load", 0], probed_steps=2, **demo, **SAMPLING),
        "dense": node("KSampler", model=["demo", 0], denoise=1.0, **demo, **SAMPLING),
        "save_probe": node("SaveLatent", samples=["probe", 1], filename_prefix="probe"),
        "save_dense": node("SaveLatent", samples=["dense", 0], filename_prefix="dense"),
    }  # fmt: skip


@pytest.mark.comfy
def test_probe_samples_as_without_paro_and_lists_the_layers(host):
    run = host.run(graph(0.2, "8"))
    assert run.error is None, run.message
    assert torch.equal(host.latent(run, "save_probe"), host.latent(run, "save_dense"))
    lines = run.outputs["probe"]["text"][0].splitlines()
    assert lines[0].startswith("7 layers compared"), "the demo model's 8 without the dense one"
    errors = [float(line.split("output error ")[1].split(",")[0]) for line in lines[1:-1]]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0.01
    assert lines[-1].startswith("to try first: dense_layers = ")
    assert host.image(run.outputs["probe"]["images"][0]).width >= 1000
    assert all(stats["kind"] == "calibrate" for stats in run.stats), "no run of Load PARO's own"


@pytest.mark.comfy
def test_probe_finds_no_error_at_density_one(host):
    run = host.run(graph(1.0, "16"))
    assert run.error is None, run.message
    mean = run.outputs["probe"]["text"][0].splitlines()[0]
    assert float(mean.split("mean output error ")[1].split(";")[0]) < 1e-3


@pytest.mark.comfy
def test_probe_says_what_it_needs(host):
    without = graph(0.3, "8")
    without["probe"]["inputs"]["model"] = ["demo", 0]
    assert "connect a model that comes from Load PARO" in host.run(without).message
    nothing = graph(0.3, "8")
    nothing["load"]["inputs"]["min_tokens"] = 100_000
    assert "no attention call ran sparse" in host.run(nothing).message
