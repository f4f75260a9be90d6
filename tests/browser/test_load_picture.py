"""The picture in Load PARO, looked at and used in real ComfyUI pages."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_page import ComfyPage, demo_workflow
from PIL import Image

pytestmark = [pytest.mark.browser, pytest.mark.comfy]
ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs"
HELP_PICTURE = ROOT / "web" / "docs" / "images" / "load.webp"
SIZE, STEPS = 64, 3
NODES_2 = (1, 33)
H100 = "cuda:0 NVIDIA H100 80GB HBM3 : cudaMallocAsync"


@pytest.fixture(scope="module", params=["classic", "nodes-2"])
def canvas(request: pytest.FixtureRequest, browser: Any, host: Any) -> Iterator[ComfyPage]:
    """The demo workflow, run once from the page."""
    page = ComfyPage(browser, host.port, nodes2=request.param == "nodes-2")
    if page.nodes2 and page.frontend() < NODES_2:
        page.close()
        pytest.skip("before Nodes 2.0: this frontend's first Vue nodes show no DOM widgets")
    page.load(demo_workflow(SIZE, STEPS))
    page.show()
    page.run()
    page.page.wait_for_selector(".paro-map", state="visible", timeout=30_000)
    page.page.wait_for_timeout(1000)
    yield page
    page.close()


def test_shows_the_plan_that_calibration_wrote(canvas):
    assert canvas.text("recall").startswith("Keeps ")
    assert 0.05 < canvas.pixels()["coloured"] < 0.95
    assert "not measured on this card" in canvas.page.locator(".paro").inner_text()


def test_says_what_the_last_run_did(canvas):
    status = canvas.text("status")
    assert "attention calls sparse" in status
    assert "reference on CPU" in status and "mean density" in status


def test_shows_no_second_picture_from_the_server(canvas):
    canvas.set_density(0.35)  # or a host that remembers the last run of the node sends nothing
    canvas.run()
    canvas.page.wait_for_timeout(1500)
    assert canvas.server_pictures() == {"sent": 1, "drawn": 0, "mounted": 0}
    canvas.set_density(0.3)


def test_the_servers_picture_is_shown_where_the_live_one_is_not(browser, host):
    page = ComfyPage(browser, host.port, nodes2=True)
    try:
        if page.frontend() >= NODES_2:
            pytest.skip("this frontend's Nodes 2.0 shows the live picture")
        workflow = demo_workflow(SIZE, 1)
        load = next(node for node in workflow["nodes"] if node["type"] == "ParoLoad")
        load["widgets_values"][1] = 0.45
        page.load(workflow)
        page.show()
        page.run()
        page.page.wait_for_timeout(2000)
        assert page.server_pictures()["mounted"] == 1
        assert page.page.locator(".paro").count() == 0
        assert page.errors == []
    finally:
        page.page.evaluate(
            "() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)"
        )
        page.close()


def test_mask_and_recall_follow_the_slider(canvas):
    canvas.drag_density(0.5, 0.1)
    low, few, said = canvas.density(), canvas.pixels(), canvas.text("recall")
    delays = canvas.drag_density(0.1, 0.6)
    high, many = canvas.density(), canvas.pixels()
    assert high > low + 0.3
    assert many["coloured"] > 1.5 * few["coloured"]
    assert canvas.text("recall") != said
    assert len(delays) >= 4
    assert statistics.median(delays) < 100, delays


def test_switches_layer_head_and_noise_band(canvas):
    seen = [canvas.pixels()["hash"]]
    for label in ("next layer", "next head", "previous noise band"):
        before = canvas.page.locator(".paro-steppers").inner_text()
        canvas.press(label)
        assert canvas.page.locator(".paro-steppers").inner_text() != before
        seen.append(canvas.pixels()["hash"])
    assert len(set(seen)) == len(seen)


def test_keys_move_through_heads(canvas):
    canvas.page.locator(".paro-map").focus()
    before = canvas.page.locator(".paro-steppers").inner_text()
    canvas.page.keyboard.press("ArrowRight")
    canvas.page.wait_for_timeout(300)
    assert canvas.page.locator(".paro-steppers").inner_text() != before
    canvas.page.keyboard.press("ArrowLeft")
    canvas.page.wait_for_timeout(300)
    assert canvas.page.locator(".paro-steppers").inner_text() == before


def test_shows_the_order_before_and_all_heads(canvas):
    buttons = canvas.page.locator(".paro-toggles button")
    after = canvas.pixels()["hash"]
    buttons.nth(0).click()
    canvas.page.wait_for_timeout(500)
    assert canvas.text("recall").startswith("Not reordered, ")
    assert canvas.pixels()["hash"] != after
    buttons.nth(1).click()
    canvas.page.wait_for_timeout(500)
    assert canvas.pixels()["hash"] == after
    buttons.nth(2).click()
    canvas.page.wait_for_timeout(500)
    assert canvas.pixels()["hash"] != after
    box = canvas.page.locator(".paro-map").bounding_box()
    canvas.page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25)
    canvas.page.wait_for_timeout(500)
    assert "Head 1/" in canvas.page.locator(".paro-steppers").inner_text()
    assert buttons.nth(2).get_attribute("aria-pressed") == "false"


def test_screenshots(canvas, host):
    newest = host.checkout.name == "ComfyUI"
    canvas.set_density(0.3)  # as in the last run
    for scale in (1.0, 0.5):
        canvas.show(scale)
        assert "attention calls sparse in" not in canvas.page.inner_text("body")  # said once
        canvas.page.mouse.move(740, 985)  # away from what has a tooltip
        canvas.page.wait_for_timeout(500)
        box = canvas.page.locator(".paro").bounding_box()
        assert box is not None and box["width"] > 250 * scale
        assert canvas.overflow() == []
        if newest:
            mode = "nodes-2" if canvas.nodes2 else "classic"
            path = DOCS / f"load-paro-{mode}-{scale * 100:.0f}.png"
            canvas.page.screenshot(path=path)
            if (mode, scale) == ("classic", 1.0):
                with Image.open(path) as page:
                    page.convert("RGB").crop(canvas.node_box()).save(HELP_PICTURE, quality=90)
    canvas.show()


@pytest.mark.parametrize(
    ("card", "tokens", "bits", "said"),
    [
        ("cuda:0 NVIDIA GeForce RTX 4090 : cudaMallocAsync", 32768, "8", "not measured on this"),
        (H100, 32768, "4", "x as long as dense here: no gain (measured on this card at 32,768"),
        (H100, 32768, "8", "x as fast as dense in sparse steps (measured on this card at 32,768"),
        (H100, 700, "8", "not measured at this size"),
    ],
)
def test_shows_the_speed_of_this_card_alone(canvas, card, tokens, bits, said):
    """Of a card and a plan that the server only claims to have."""
    for name in ("qk_bits", "pv_bits"):
        canvas.set_widget(name, bits)
    canvas.pretend("**/system_stats", lambda stats: stats["devices"][0].update(name=card))
    canvas.pretend(
        "**/paro/plan?*", lambda plan: plan.update(tokens=tokens, head_dim=128, block=[64, 128])
    )
    workflow = canvas.saved()
    canvas.open()
    canvas.load(workflow)
    canvas.page.wait_for_selector(".paro-map", state="visible", timeout=30_000)
    canvas.page.wait_for_timeout(1000)
    text = canvas.page.locator(".paro").inner_text()
    canvas.page.unroute_all()
    assert said in text
    assert ("RTX 4090" in text) == ("4090" in card)


def test_speaks_the_chosen_language(canvas):
    try:
        canvas.speak("zh")
        assert canvas.text("recall").endswith("的注意力")
        assert canvas.text("status").startswith("上次运行：")
        assert canvas.page.locator(".paro-toggles").inner_text().split() == [
            "重排前",
            "重排后",
            "所有头",
        ]
        assert not canvas.overflow()
    finally:
        canvas.speak("en")
    assert canvas.text("recall").startswith("Keeps ")


def test_saves_and_reloads_with_its_values(canvas):
    before = canvas.saved()
    canvas.open()
    canvas.load(before)
    after = canvas.saved()
    load = [next(n for n in w["nodes"] if n["type"] == "ParoLoad") for w in (before, after)]
    assert load[0]["widgets_values"] == load[1]["widgets_values"]
    assert len([v for v in load[1]["widgets_values"] if v is not None]) == 8
    assert load[0]["size"] == pytest.approx(load[1]["size"], abs=2)
    canvas.page.wait_for_selector(".paro-map", state="visible", timeout=30_000)
    assert canvas.text("status").startswith("Last run: ")
    prompt = canvas.page.evaluate(
        "async (id) => (await app.graphToPrompt()).output[id].inputs", canvas.node_id()
    )
    assert "paro_picture" not in prompt
    assert prompt["density"] == load[0]["widgets_values"][1]


def test_no_error_from_our_files(canvas):
    assert canvas.errors == []
