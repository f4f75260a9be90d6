"""Every example workflow fits the nodes of every ComfyUI: only names of files may be missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent.parent / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
PAGE_ONLY = {"MarkdownNote", "Note"}
# Combos that list the user's own files.
FILES = {"unet_name", "clip_name", "clip_name1", "clip_name2", "vae_name", "ckpt_name", "image"}
# Families that not every ComfyUI has, known by a choice of Load CLIP.
FAMILY = {"paro_cogvideox": "cogvideox"}
RUNS_ANYWHERE = {
    "paro_demo", "paro_calibrate", "paro_record", "paro_report", "paro_compare"
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def specs(info: dict[str, Any], kind: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """(type, options) by input name, in the page's order."""
    declared = info[kind]["input"]
    both = {**declared.get("required", {}), **declared.get("optional", {})}
    return {name: (spec[0], spec[1] if len(spec) > 1 else {}) for name, spec in both.items()}


def widget_values(info: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Widget values by input name; fails where their number is not the node's."""
    values = iter(node.get("widgets_values", []))
    found = {}
    for name, (kind, options) in specs(info, node["type"]).items():
        if isinstance(kind, list) or kind in WIDGETS:
            found[name] = next(values)
            if options.get("control_after_generate", name in ("seed", "noise_seed")):
                assert next(values) in ("fixed", "increment", "decrement", "randomize")
    rest = list(values)
    if rest and node["type"] == "LoadImage":
        rest.remove("image")  # the page's upload button
    assert not rest, f"{node['type']} has {len(rest)} values too many"
    return found


def wrong_value(kind: Any, options: dict[str, Any], value: Any) -> str:
    """What is wrong with a widget's value, empty if nothing is."""
    if isinstance(kind, list) or kind == "COMBO":
        choices = kind if isinstance(kind, list) else options["options"]
        return "" if value in choices else f"{value!r} is none of {choices}"
    types: Any = {"INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}[kind]
    if not isinstance(value, types) or (kind in ("INT", "FLOAT") and isinstance(value, bool)):
        return f"{value!r} is no {kind}"
    if kind in ("INT", "FLOAT"):
        low, high = options.get("min", value), options.get("max", value)
        return "" if low <= value <= high else f"{value} is not in {low}..{high}"
    return ""


def family_missing(info: dict[str, Any], name: str) -> bool:
    wanted = FAMILY.get(name)
    return wanted is not None and wanted not in info["CLIPLoader"]["input"]["required"]["type"][0]


@pytest.fixture(scope="session")
def info(host) -> dict[str, Any]:
    return host.get("/object_info")


@pytest.mark.comfy
@pytest.mark.parametrize("name", NAMES)
def test_widgets_hold_values_that_the_host_takes(info, name):
    wrong = []
    for node in load(name)["nodes"]:
        if node["type"] in PAGE_ONLY:
            continue
        assert node["type"] in info, f"missing node {node['type']}"
        known = specs(info, node["type"])
        for widget, value in widget_values(info, node).items():
            message = wrong_value(*known[widget], value)
            if message and widget not in FILES:
                wrong.append((node["type"], widget, message))
    if family_missing(info, name):
        assert [w[:2] for w in wrong] == [("CLIPLoader", "type")]
        pytest.skip(f"this ComfyUI has no {FAMILY[name]}")
    assert wrong == []


@pytest.mark.comfy
@pytest.mark.parametrize("name", NAMES)
def test_links_join_sockets_of_one_type(info, name):
    workflow = load(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    for number, source, output, target, place, kind in workflow["links"]:
        origin, end = nodes[source], nodes[target]
        assert info[origin["type"]]["output"][output] == kind
        slot = end["inputs"][place]
        assert slot["link"] == number
        assert number in origin["outputs"][output]["links"]
        assert specs(info, end["type"])[slot["name"]][0] == kind, (name, end["type"], slot["name"])
    for node in workflow["nodes"]:
        if node["type"] in PAGE_ONLY:
            continue
        linked = {slot["name"] for slot in node["inputs"] if slot["link"] is not None}
        sockets = {
            n for n, spec in info[node["type"]]["input"].get("required", {}).items()
            if not isinstance(spec[0], list) and spec[0] not in WIDGETS
        }  # fmt: skip
        assert sockets <= linked, f"{node['type']} {node['id']} lacks {sockets - linked}"


@pytest.mark.comfy
@pytest.mark.parametrize("name", sorted(set(NAMES) - RUNS_ANYWHERE))
def test_the_host_itself_misses_nothing_but_files(host, info, name):
    if family_missing(info, name):
        pytest.skip(f"this ComfyUI has no {FAMILY[name]}")
    graph = host.example(f"{name}.json")
    with pytest.raises(ValueError, match="HTTP 400") as refusal:
        host.submit(graph)
    reply = json.loads(str(refusal.value).split(": ", 1)[1])
    for node in reply["node_errors"].values():
        for error in node["errors"]:
            assert error["extra_info"]["input_name"] in FILES, error
            assert error["type"] in ("value_not_in_list", "custom_validation_failed"), error


@pytest.mark.comfy
@pytest.mark.parametrize("name", ["paro_calibrate", "paro_record", "paro_report", "paro_compare"])
def test_workflows_of_the_demo_model_run(host, name):
    """As the page would send them, with fewer steps and a smaller video."""
    graph = host.example(f"{name}.json")
    smaller = {"steps": 2, "width": 32, "height": 32, "frames": 2}
    for entry in graph.values():
        entry["inputs"] |= {k: v for k, v in smaller.items() if k in entry["inputs"]}
    run = host.run(graph)
    assert run.error is None, run.message
    kinds = {graph[node]["class_type"]: shown for node, shown in run.outputs.items()}
    if name == "paro_report":
        shown = kinds["ParoReport"]
        sizes = [host.image(image).size for image in shown["images"]]
        assert len(sizes) == 4 and min(width for width, _ in sizes) > 1000
        assert "keep" in shown["text"][0] and "of the attention" in shown["text"][0]
    if name == "paro_compare":
        assert run.stats[-1]["kind"] == "load" and run.stats[-1]["handled"] > 0
        assert "PSNR" in kinds["ParoCompare"]["text"][0]


@pytest.mark.comfy
def test_template_browser_lists_every_workflow_with_its_picture(host):
    templates = host.get("/api/workflow_templates")
    assert sorted(templates["paro-attention"]) == NAMES
    for name in NAMES:
        address = f"/api/workflow_templates/paro-attention/{name}"
        assert json.loads(host.get_text(f"{address}.json"))["nodes"]


@pytest.mark.parametrize("name", NAMES)
def test_every_workflow_has_a_thumbnail_and_a_name_of_this_pack(name):
    assert name.startswith("paro_")
    with Image.open(FOLDER / f"{name}.jpg") as picture:
        assert picture.format == "JPEG" and picture.width >= 640
    assert (FOLDER / f"{name}.jpg").stat().st_size < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_first_run_calibrates_and_a_muted_calibration_leaves_the_file(name):
    """Load PARO is linked to Calibrate PARO and falls back to a plan file when that is muted."""
    nodes = load(name)["nodes"]
    loads = [node for node in nodes if node["type"] == "ParoLoad"]
    calibrations = [node for node in nodes if node["type"] == "ParoCalibrate"]
    names = [node["widgets_values"][0] for node in calibrations]
    assert len(set(names)) == len(names), "two experts write two plans"
    for node in loads:
        (link,) = [slot["link"] for slot in node["inputs"] if slot["name"] == "paro_plan"]
        assert link is not None
        if name not in RUNS_ANYWHERE:
            assert node["widgets_values"][0] == "auto"
