"""A ComfyUI page in a real browser, used with a real mouse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
READY_MS = 90_000
RUN_MS = 600_000
OURS = ("/paro", "paro_", "paro-attention")

_IN_VIEW = """([type, scale]) => {
  const node = app.graph._nodes.find((n) => n.type === type);
  const { ds } = app.canvas;
  ds.scale = scale;
  ds.offset[0] = -node.pos[0] + 320 / scale;
  ds.offset[1] = -node.pos[1] + 95 / scale;
  app.canvas.setDirty(true, true);
}"""
_SLIDER = """() => {
  const node = app.graph._nodes.find((n) => n.type === "ParoLoad");
  const y = node.widgets.find((w) => w.name === "density").last_y;
  const { scale, offset } = app.canvas.ds;
  const box = app.canvas.canvas.getBoundingClientRect();
  const at = (x, y) => [box.x + (node.pos[0] + x + offset[0]) * scale,
                        box.y + (node.pos[1] + y + offset[1]) * scale];
  return [...at(15, y + 10), ...at(node.size[0] - 15, y + 10)];
}"""
_WATCH = """() => {
  const text = document.querySelector(".paro-recall");
  let moved = performance.now();
  window.paroDelays = [];
  window.addEventListener("pointermove", () => { moved = performance.now(); }, true);
  new MutationObserver(() => window.paroDelays.push(performance.now() - moved))
    .observe(text, { childList: true, characterData: true, subtree: true });
}"""
_PIXELS = """(name) => {
  const canvas = document.querySelector(name);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let coloured = 0;
  let hash = 0;
  for (let i = 0; i < data.length; i += 4) {
    coloured += data[i] !== data[i + 1] || data[i] !== data[i + 2];
    hash = (hash * 31 + data[i] * 65536 + data[i + 1] * 256 + data[i + 2]) | 0;
  }
  return { coloured: coloured / (data.length / 4), hash };
}"""


_NODE_BOX = """(type) => {
  const node = app.graph._nodes.find((n) => n.type === type);
  const { scale, offset } = app.canvas.ds;
  const box = app.canvas.canvas.getBoundingClientRect();
  const x = box.x + (node.pos[0] + offset[0]) * scale;
  const y = box.y + (node.pos[1] + offset[1]) * scale;
  return [x - 8, y - 30 * scale - 8, x + node.size[0] * scale + 8, y + node.size[1] * scale + 8];
}"""
_SERVER_PICTURES = """() => {
  const node = app.graph._nodes.find((n) => n.type === "ParoLoad");
  const previews = node.widgets.filter((w) => w.name === "$$canvas-image-preview");
  return {
    sent: app.nodeOutputs[node.id]?.images?.length ?? 0,
    drawn: (node.imgs ?? []).length + previews.length,
    mounted: document.querySelectorAll(`[data-node-id="${node.id}"] img`).length,
  };
}"""
_OVERFLOW = """() => [...document.querySelectorAll(".paro, .paro-side, .paro-steppers")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1)
  .map((e) => [e.className, e.scrollWidth, e.clientWidth, e.scrollHeight, e.clientHeight])"""


class ComfyPage:
    """One page of a ComfyUI, on the classic canvas or with Nodes 2.0."""

    def __init__(self, browser: Any, port: int, nodes2: bool):
        self.nodes2 = nodes2
        self.errors: list[str] = []
        self._url = f"http://127.0.0.1:{port}/"
        self.page = browser.new_page(viewport={"width": 1500, "height": 1000})
        self.page.on("pageerror", lambda error: self._note(str(error.stack or error)))
        self.page.on("console", lambda message: self._heard(message))
        self.open()

    def open(self) -> None:
        """Load the page anew."""
        self.page.goto(self._url)
        self.page.wait_for_function(
            "() => !!window.app?.graph && !!window.LiteGraph?.registered_node_types?.ParoLoad",
            timeout=READY_MS,
        )
        for name, value in (
            ("Comfy.TutorialCompleted", True),
            ("Comfy.Workflow.ConfirmDelete", False),
            ("Comfy.VueNodes.Enabled", self.nodes2),
        ):
            self.page.evaluate(
                "([name, value]) => app.extensionManager?.setting?.set?.(name, value)",
                [name, value],
            )
        self.page.wait_for_timeout(1000)
        self.page.keyboard.press("Escape")

    def frontend(self) -> tuple[int, ...]:
        """The frontend's version; empty where it does not say."""
        version = self.page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__ ?? ''")
        return tuple(int(part) for part in version.split("-")[0].split(".") if part.isdigit())

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow."""
        self.page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(1500)
        self.page.keyboard.press("Escape")

    def saved(self) -> dict[str, Any]:
        """The workflow as the page would save it."""
        return json.loads(self.page.evaluate("() => JSON.stringify(app.graph.serialize())"))

    def run(self) -> None:
        """Queue the workflow and wait for its end."""
        done = self.page.evaluate(
            """() => new Promise((resolve) => {
              const on = (name, act) => app.api.addEventListener(name, act);
              on("execution_success", () => resolve("done"));
              on("execution_error", (event) => resolve(event.detail.exception_message));
              app.queuePrompt(0);
            })"""
        )
        assert done == "done", done

    def speak(self, language: str) -> None:
        """Choose the language in the settings; the page loads its workflow anew."""
        self.page.evaluate(
            "(code) => app.extensionManager.setting.set('Comfy.Locale', code)", language
        )
        self.page.wait_for_timeout(4000)
        self.page.wait_for_selector(".paro-map", state="visible", timeout=30_000)
        self.page.wait_for_timeout(1000)

    def pretend(self, address: str, change: Callable[[Any], None]) -> None:
        """Change the server's answers to an address, until `page.unroute_all`."""

        def answer(route: Any) -> None:
            reply = route.fetch()
            told = reply.json()
            change(told)
            route.fulfill(response=reply, json=told)

        self.page.route(address, answer)

    def overflow(self) -> list[Any]:
        """Parts of the picture that are larger than their place."""
        return self.page.evaluate(_OVERFLOW)

    def show(self, scale: float = 1.0, node: str = "ParoLoad") -> None:
        """Bring a node into view at a zoom."""
        self.page.evaluate(_IN_VIEW, [node, scale])
        self.page.wait_for_timeout(600)

    def text(self, part: str) -> str:
        """What a part of the picture says."""
        return self.page.locator(f".paro-{part}").first.inner_text()

    def pixels(self, canvas: str = "map") -> dict[str, float]:
        """Share of the coloured pixels of a canvas of the picture, and a hash of all."""
        return self.page.evaluate(_PIXELS, f".paro-{canvas}")

    def node_box(self, node: str = "ParoLoad") -> tuple[int, int, int, int]:
        """Left, top, right and bottom pixel of a node on the classic canvas, with its title."""
        return tuple(round(side) for side in self.page.evaluate(_NODE_BOX, node))

    def server_pictures(self) -> dict[str, int]:
        """Pictures that the server sent for Load PARO, and where the page shows them."""
        return self.page.evaluate(_SERVER_PICTURES)

    def node_id(self) -> str:
        """The id of Load PARO."""
        return self.page.evaluate(
            '() => String(app.graph._nodes.find((n) => n.type === "ParoLoad").id)'
        )

    def density(self) -> float:
        """The slider's value."""
        return self.page.evaluate(
            """() => app.graph._nodes.find((n) => n.type === "ParoLoad")
                     .widgets.find((w) => w.name === "density").value"""
        )

    def set_density(self, value: float) -> None:
        """Set the slider as the page itself would."""
        self.set_widget("density", value)

    def set_widget(self, name: str, value: float | str) -> None:
        """Set an input of Load PARO as the page itself would."""
        self.page.evaluate(
            """([name, value]) => {
              const node = app.graph._nodes.find((n) => n.type === "ParoLoad");
              const widget = node.widgets.find((w) => w.name === name);
              widget.value = value;
              widget.callback?.(value);
            }""",
            [name, value],
        )
        self.page.wait_for_timeout(300)

    def drag_density(self, start: float, end: float, moves: int = 12) -> list[float]:
        """Drag the slider from one share of its length to another with the mouse.

        Returns:
            Milliseconds from each move of the mouse to the new text.
        """
        left, y, right, _ = self._slider()
        self.page.evaluate(_WATCH)
        self.page.mouse.move(left + (right - left) * start, y)
        self.page.mouse.down()
        for move in range(1, moves + 1):
            share = start + (end - start) * move / moves
            self.page.mouse.move(left + (right - left) * share, y)
            self.page.wait_for_timeout(60)
        self.page.mouse.up()
        self.page.wait_for_timeout(200)
        return self.page.evaluate("() => window.paroDelays")

    def press(self, label: str) -> None:
        """Click a button of the picture with the mouse."""
        box = self.page.locator(".paro").get_by_label(label, exact=True).first.bounding_box()
        assert box is not None, label
        self.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        self.page.wait_for_timeout(500)

    def close(self) -> None:
        self.page.close()

    def _slider(self) -> tuple[float, float, float, float]:
        if not self.nodes2:
            return tuple(self.page.evaluate(_SLIDER))
        node = f'[data-node-id="{self.node_id()}"]'
        box = self.page.locator(f'{node} [role="slider"]').first.locator("xpath=..")
        found = box.bounding_box()
        assert found is not None
        y = found["y"] + found["height"] / 2
        return found["x"], y, found["x"] + found["width"], y

    def _heard(self, message: Any) -> None:
        url = message.location.get("url", "")
        not_yet = "/paro/plan?" in url and "404" in message.text  # asked before it is calibrated
        if message.type == "error" and not not_yet:
            self._note(f"{message.text} {url}")

    def _note(self, text: str) -> None:
        if any(part in text.lower() for part in OURS):
            self.errors.append(text)


def demo_workflow(size: int, steps: int) -> dict[str, Any]:
    """The example workflow at a small size."""
    workflow = json.loads((ROOT / "example_workflows" / "paro_demo.json").read_text())
    for node in workflow["nodes"]:
        values = node.get("widgets_values")
        if node["type"] == "ParoDemoModel":
            values[2:4] = [size, size]
        elif node["type"] in ("ParoCalibrate", "KSampler"):
            values[2] = steps
    return workflow
