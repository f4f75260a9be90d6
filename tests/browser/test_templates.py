"""Every example workflow in the real page: it opens whole, nothing overlaps, muting works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from comfy_page import ComfyPage

pytestmark = [pytest.mark.browser, pytest.mark.comfy]

FOLDER = Path(__file__).resolve().parent.parent.parent / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
PROMPT = "async () => (await app.graphToPrompt()).output"
BOXES = """() => app.graph._nodes.map((n) => ({
  type: n.type, known: !!LiteGraph.registered_node_types[n.type],
  x: n.pos[0], y: n.pos[1] - 30, w: n.size[0], h: n.size[1] + 30}))"""
MUTE = "() => { for (const n of app.graph._nodes) if (n.type === 'ParoCalibrate') n.mode = 2; }"


@pytest.fixture(scope="module")
def page(host: Any, browser: Any) -> Iterator[ComfyPage]:
    page = ComfyPage(browser, host.port, nodes2=False)
    yield page
    page.close()


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_page_sends_what_the_file_says(page, host, name):
    page.load(load(name))
    sent = page.page.evaluate(PROMPT)
    expected = host.example(f"{name}.json")
    assert sent.keys() == expected.keys()
    for number, node in expected.items():
        assert sent[number]["class_type"] == node["class_type"]
        assert sent[number]["inputs"].items() >= node["inputs"].items(), node["class_type"]
    assert page.errors == []


@pytest.mark.parametrize("name", NAMES)
def test_nodes_are_known_and_do_not_overlap(page, name):
    page.load(load(name))
    boxes = page.page.evaluate(BOXES)
    assert all(box["known"] for box in boxes), [b["type"] for b in boxes if not b["known"]]
    for a, b in combinations(boxes, 2):
        apart = (
            a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        )  # fmt: skip
        assert apart, f"{a['type']} and {b['type']} overlap: {a} {b}"


@pytest.mark.parametrize("name", ["paro_wan21_t2v", "paro_wan22_i2v"])
def test_a_muted_calibration_leaves_load_paro_to_the_file(page, name):
    page.load(load(name))
    page.page.evaluate(MUTE)
    sent = page.page.evaluate(PROMPT).values()
    assert not any(node["class_type"] == "ParoCalibrate" for node in sent)
    loads = [node["inputs"] for node in sent if node["class_type"] == "ParoLoad"]
    assert loads
    for inputs in loads:
        assert "paro_plan" not in inputs and inputs["plan"] == "auto"
