"""Load PARO's own picture, for front ends that run no scripts and for clients of the API."""

from __future__ import annotations

import time

import numpy as np
import pytest
from made_plan import make_plan
from paro_attention.calibration import RuntimeOptions
from paro_attention.nodes import load_picture
from paro_attention.nodes.load_picture import draw_load_picture

MASK = (slice(144, 474), slice(378, 708))  # rows and columns of the reordered map


@pytest.fixture(scope="module")
def plan():
    return make_plan((4, 12, 16), 5, 7, (32, 32))


def coloured(picture: np.ndarray) -> float:
    """Share of the mask's pixels that are not grey."""
    red, blue = picture[0][MASK][..., 0], picture[0][MASK][..., 2]
    return float((np.abs(red - blue) > 0.02).mean())


def test_the_mask_grows_with_the_density(plan):
    shares = [coloured(draw_load_picture(plan, RuntimeOptions(density=d))) for d in (0.1, 0.4, 1.0)]
    assert shares[0] + 0.1 < shares[1] < shares[2]
    assert shares[2] > 0.99


def test_the_mask_is_that_of_the_density_of_its_head(plan):
    picture = draw_load_picture(plan, RuntimeOptions(density=0.3))
    runtime = load_picture.PlanRuntime(plan, plan.grid, RuntimeOptions(density=0.3), "cpu")
    wanted = runtime.head_densities(plan.bands.count // 2)[plan.layers // 2, 0]
    # A column of pixels may fall on a neighbour where blocks are no whole number of pixels.
    assert coloured(picture) == pytest.approx(wanted, abs=0.03)


def test_a_sparse_layer_is_shown_where_there_is_one(plan):
    options = [RuntimeOptions(density=0.2, dense_layers=layers) for layers in ((2,), range(5))]
    partly, wholly = (draw_load_picture(plan, option) for option in options)
    assert coloured(partly) < 0.5
    assert coloured(wholly) > 0.99


def test_it_is_square_and_takes_no_time_that_counts():
    plan = make_plan((21, 45, 80), 40, 40, (64, 128))
    draw_load_picture(plan, RuntimeOptions(density=0.3))  # imports fonts
    spent = []
    for _ in range(3):
        start = time.process_time()
        picture = draw_load_picture(plan, RuntimeOptions(density=0.3))
        spent.append(time.process_time() - start)
    assert picture.dtype == np.float32 and picture.shape[0] == 1 and picture.shape[3] == 3
    assert picture.shape[1] == picture.shape[2]
    assert picture.min() >= 0 and picture.max() <= 1
    assert min(spent) < 2, "loading Wan's plan of 720p, 40 layers of 40 heads"


@pytest.mark.comfy
def test_the_history_of_a_prompt_holds_it(host):
    host.plans.mkdir(parents=True, exist_ok=True)

    def graph(density: float, calibrate: bool) -> dict:
        demo = {"positive": ["demo", 3], "negative": ["demo", 4]}
        sampling = {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}

        def node(kind: str, **inputs: object) -> dict:
            return {"class_type": kind, "inputs": inputs}

        nodes = {
            "demo": node("ParoDemoModel", prompt="red circle right, grass, static", negative="",
                         width=32, height=32, frames=4),
            "load": node("ParoLoad", model=["demo", 0], plan="load-picture.safetensors",
                         density=density, qk_bits="8", pv_bits="8", warmup=0.0, dense_layers="",
                         min_tokens=0, on_unsupported="dense"),
            "sparse": node("KSampler", model=["load", 0], latent_image=["demo", 5], seed=1,
                           denoise=1.0, **demo, **sampling),
            "save": node("SaveLatent", samples=["sparse", 0], filename_prefix="load-picture"),
        }  # fmt: skip
        if calibrate:
            nodes["calibrate"] = node(
                "ParoCalibrate", model=["demo", 0], name="load-picture", latent=["demo", 5], seed=3,
                density=0.3, noise_bands=2, orders="axes", choice="output_error", start_at_step=0,
                end_at_step=10000, **demo, **sampling,
            )  # fmt: skip
            nodes["load"]["inputs"] |= {"plan": "none", "paro_plan": ["calibrate", 0]}
        return nodes

    for density, calibrate in ((0.3, True), (0.9, False)):
        run = host.run(graph(density, calibrate))
        assert run.error is None, run.message
        (shown,) = run.outputs["load"]["images"]
        assert shown["type"] == "temp"
        picture = np.asarray(host.image(shown).convert("RGB"), np.float32)[None] / 255
        assert picture.shape[1] == picture.shape[2] > 500
        if density == 0.3:
            low = coloured(picture)
        else:
            assert coloured(picture) > low

    folder = host.base / "temp"  # where no picture can be saved, the model is loaded all the same
    folder.rename(host.base / "away")
    folder.touch()
    mark = len(host.log_text())
    try:
        run = host.run(graph(0.5, calibrate=False))
    finally:
        folder.unlink()
        (host.base / "away").rename(folder)
    assert run.error is None, run.message
    assert "images" not in run.outputs.get("load", {})
    assert "PARO: no picture of the plan: " in host.log_text()[mark:]
    assert run.stats[-1]["handled"]
