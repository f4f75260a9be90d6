"""Makes the pictures of the help pages: what the nodes show on a run of the bundled model.

    python docs/tools/help_pictures.py http://127.0.0.1:8188

The address is that of a running ComfyUI with this pack. A few minutes on a CPU.
"""

from __future__ import annotations

import io
import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent.parent / "web" / "docs" / "images"
SAMPLING = {"steps": 10, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple"}
PROMPTS = "blue square up, stone, zoom-in\nyellow star left, wood, pan-right"
# Node of the graph: names of the pictures that it shows, in order.
SHOWN = {
    "calibrate": ["calibrate"],
    "report": ["report-maps", "report-masks", "report-curves", "report-table"],
    "compare": ["compare"],
}


def graph(side: int) -> dict[str, Any]:
    """Calibrate, report, sample dense and with PARO, compare; a video of side x side pixels."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    demo = {"positive": ["demo", 3], "negative": ["demo", 4], "latent_image": ["demo", 5]}
    sample = {**demo, **SAMPLING, "seed": 1, "denoise": 1.0}
    return {
        "demo": node("ParoDemoModel", prompt="red circle right, grass, static", negative="",
                     width=side, height=side, frames=8),
        "calibrate": node("ParoCalibrate", model=["demo", 0], name="help-pictures",
                          latent=["demo", 5], seed=3, density=0.3, noise_bands=4, orders="tiles",
                          choice="output_error", start_at_step=0, end_at_step=10000,
                          negative=["demo", 4], clip=["demo", 1], prompts=PROMPTS, **SAMPLING),
        "report": node("ParoReport", plan="newest", paro_plan=["calibrate", 0], density=0.3,
                       noise_band=1, layer=-1, head=-1),
        "load": node("ParoLoad", model=["demo", 0], plan="none", paro_plan=["calibrate", 0],
                     density=0.3, qk_bits="8", pv_bits="8", warmup=0.15, dense_layers="",
                     min_tokens=0, on_unsupported="dense"),
        "dense": node("KSampler", model=["demo", 0], **sample),
        "sparse": node("KSampler", model=["load", 0], **sample),
        "dense_images": node("VAEDecode", samples=["dense", 0], vae=["demo", 2]),
        "sparse_images": node("VAEDecode", samples=["sparse", 0], vae=["demo", 2]),
        "compare": node("ParoCompare", images_a=["dense_images", 0],
                        images_b=["sparse_images", 0], gain=4.0),
    }  # fmt: skip


def run(address: str, prompt: dict[str, Any]) -> dict[str, Any]:
    """What the nodes of a prompt showed, by node."""
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(
        f"{address}/prompt", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        number = json.load(reply)["prompt_id"]
    while True:
        with urllib.request.urlopen(f"{address}/history/{number}", timeout=60) as reply:
            entry = json.load(reply).get(number)
        if entry is not None:
            if entry["status"]["status_str"] != "success":
                raise RuntimeError(entry["status"]["messages"][-1])
            return entry["outputs"]
        time.sleep(2)


def main(address: str, side: int = 96) -> None:
    """Run the graph and write the pictures."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    outputs = run(address, graph(side))
    for node, names in SHOWN.items():
        for name, shown in zip(names, outputs[node]["images"], strict=True):
            query = urllib.parse.urlencode(shown)
            with urllib.request.urlopen(f"{address}/view?{query}", timeout=60) as reply:
                picture = Image.open(io.BytesIO(reply.read())).convert("RGB")
            picture.save(FOLDER / f"{name}.webp", quality=82, method=6)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188")
