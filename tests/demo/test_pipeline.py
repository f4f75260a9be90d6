"""The demo's main job on a tiny untrained model: the report's form, and what must hold for it."""

from __future__ import annotations

import json
import math

import pytest
import torch
from paro_attention.calibration.metrics import relative_error
from paro_attention.demo.experiment import Experiment, draw_prompts
from paro_attention.demo.measure import picture_scores, probe
from paro_attention.demo.pipeline import main, make_demo
from paro_attention.demo.settings import Scale, plain, recipe
from paro_attention.demo.wan import WanConfig, WanModel
from safetensors.torch import save_file

SCALE = Scale((4, 8, 8), (32, 32), 4, 2, 1, 2, 4, 2, 1)
SETTINGS = (
    plain(1.0, orders="tiles"),
    plain(0.5),
    recipe(0.5, qk_bits=8, pv_bits=8, warmup=0.2),
    plain(0.5, orders="axes"),
)
RUN_FIELDS = {
    "density": float,
    "block": list,
    "qk_bits": int,
    "pv_bits": int,
    "orders": str,
    "tail": bool,
    "budget": str,
    "shares": bool,
    "warmup": float,
    "psnr_db": (float, type(None)),
    "ssim": float,
    "cossim": float,
    "recall": float,
    "layer_error": float,
    "step_error": float,
    "seconds": float,
}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    model = WanModel(WanConfig(dim=128, ffn_dim=128, layers=2))
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_file({key: value.detach().contiguous() for key, value in model.state_dict().items()}, path)
    return path


@pytest.fixture(scope="module")
def demo(model_file):
    lines: list[str] = []
    device = torch.device("cpu")
    report, page, picture = make_demo(device, SCALE, SETTINGS, model_file, 0, lines.append)
    return report, page, picture, lines


def test_report_has_the_agreed_form(demo):
    report, _, _, _ = demo
    assert json.loads(json.dumps(report)) == report
    assert report["device"] == "cpu" and report["grid"] == [4, 8, 8]
    assert report["calibration"]["prompts"] == 2 and report["calibration"]["seconds"] > 0
    assert len(report["runs"]) == len(SETTINGS)
    for run in report["runs"]:
        for name, kind in RUN_FIELDS.items():
            assert isinstance(run[name], kind), name


def test_every_block_in_16_bits_equals_full_attention(demo):
    run = demo[0]["runs"][0]
    assert run["recall"] == pytest.approx(1, abs=1e-5)
    assert run["layer_error"] < 1e-4 and run["step_error"] < 1e-4
    assert run["psnr_db"] is None or run["psnr_db"] > 50


def test_density_is_that_of_the_executed_masks(demo):
    for run in demo[0]["runs"]:
        assert run["measured_density"] == pytest.approx(run["density"], abs=0.02)


def test_skipping_blocks_has_an_error_and_loses_recall(demo):
    for run in demo[0]["runs"][1:]:
        assert 0 < run["step_error"] < 1 and 0 < run["layer_error"] < 1
        assert run["density"] < run["recall"] < 1


def test_prompts_of_test_and_calibration_differ(demo):
    report = demo[0]
    assert not set(report["test_prompts"]) & set(report["calibration_prompts"])


def test_page_and_picture_are_made(demo):
    _, page, picture, lines = demo
    assert "data:image/webp" in page and "Why the order matters" in page
    assert picture[:4] == b"RIFF"
    assert any("calibrated on 2 prompts" in line for line in lines)


def test_prompts_repeat_and_are_all_different():
    assert draw_prompts(12, 3) == draw_prompts(12, 3)
    assert len(set(draw_prompts(40, 0))) == 40


def test_probe_stays_on_the_full_attention_trajectory(model_file):
    from paro_attention.demo.wan import load_demo_model

    experiment = Experiment(load_demo_model("cpu", path=model_file), SCALE, torch.float32, 1)
    dense = experiment.sample(None, keep_states=True)
    assert torch.equal(dense.states[-1], dense.latents)
    for at in probe(experiment, dense.states):
        assert len(at.state) == SCALE.velocity_videos
        following = at.state + (experiment.sigmas[at.step + 1] - at.sigma) * at.velocity
        assert relative_error(following, dense.states[at.step + 1]) < 1e-6
        assert len(at.inputs) == len(at.outputs) == 2


def test_picture_scores_average_over_videos():
    expected = torch.full((2, 1, 12, 12, 3), 0.5)
    videos = expected.clone()
    assert picture_scores(videos, expected)["psnr_db"] is None
    videos[1] += 0.1
    scores = picture_scores(videos, expected)
    assert scores["psnr_db"] == pytest.approx(20, abs=1e-3)
    assert scores["ssim"] < 1 and math.isfinite(scores["cossim"])


def test_command_line_refuses_two_sizes(capsys):
    with pytest.raises(SystemExit):
        main(["--quick", "--full"])
    assert "not allowed with" in capsys.readouterr().err
