"""What Calibrate PARO says while it works."""

from __future__ import annotations

import json
import struct

import pytest
from paro_attention.nodes.calibration_progress import CalibrationProgress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1 s"), (0.4, "1 s"), (59, "59 s"), (61, "1 min"), (75, "1 min 20 s"),
        (594, "9 min 50 s"), (599, "10 min"), (1800, "30 min"), (3590, "1 h"),
        (7500, "2 h 5 min"),
    ],
)  # fmt: skip
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_says_prompt_step_and_rest():
    now = [100.0]
    words = CalibrationProgress(10, ["a red\n fox", "x" * 200], lambda: now[0])
    assert words.line(0, 2, 0) == "calibrating, run 1 of 2, step 0 of 10 · a red fox"
    now[0] += 20
    assert words.line(0, 2, 5) == (
        "calibrating, run 1 of 2, step 5 of 10 · about 1 min left · a red fox"
    )
    now[0] += 60
    line = words.line(1, 2, 10)
    assert line.startswith("calibrating, run 2 of 2, step 10 of 10 · xxx")
    assert len(line) < 110 and line.endswith("…")


@pytest.mark.comfy
def test_a_calibration_tells_each_step(host):
    """Text messages, steps and previews arrive at the page that started the run."""
    graph = {
        "demo": {
            "class_type": "ParoDemoModel",
            "inputs": {"prompt": "red circle right, grass, static", "negative": "", "width": 32,
                       "height": 32, "frames": 8},
        },
        "calibrate": {
            "class_type": "ParoCalibrate",
            "inputs": {
                "model": ["demo", 0], "clip": ["demo", 1], "latent": ["demo", 5],
                "name": "progress", "seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler",
                "scheduler": "simple", "density": 0.3, "noise_bands": 1, "orders": "axes",
                "choice": "output_error", "start_at_step": 0, "end_at_step": 10000,
                "prompts": "blue star up, sand, pan-left\nyellow square left, wood, zoom-in",
            },
        },
    }  # fmt: skip
    socket = host.listen("watcher")
    try:
        prompt = host.submit(graph, "watcher")
        texts, pictures, done = [], 0, False
        while not done:
            message = socket.message()
            if isinstance(message, bytes):
                kind = struct.unpack_from(">I", message)[0]
                texts += [message] if kind == 3 else []
                pictures += kind in (1, 4)
            elif message["type"] == "executing" and message["data"]["node"] is None:
                done = message["data"].get("prompt_id") == prompt
            else:
                assert message["type"] != "execution_error", json.dumps(message)
    finally:
        socket.close()
    said = [text.decode(errors="replace") for text in texts]
    for words in ("run 1 of 2, step 1 of 2", "run 2 of 2, step 2 of 2", " left", "blue star up"):
        assert any(words in text for text in said), (words, said)
    assert pictures >= 4
    assert host.wait(prompt).error is None
