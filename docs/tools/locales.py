"""Writes locales/en/nodeDefs.json from the nodes of a running ComfyUI with this pack.

    python docs/tools/locales.py http://127.0.0.1:8188

The nodes are the source of the English texts. The other languages are written by hand;
tests/nodes/test_locales.py says what they lack.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parent.parent.parent / "locales" / "en" / "nodeDefs.json"
HIDDEN = ("hidden",)


def english(info: dict[str, Any]) -> dict[str, Any]:
    """The texts of this pack's nodes in the form that ComfyUI's page reads.

    Args:
        info: a host's /object_info.
    """
    texts: dict[str, Any] = {}
    for name in sorted(kind for kind in info if kind.startswith("Paro")):
        node = info[name]
        inputs: dict[str, Any] = {}
        for section, specs in node["input"].items():
            if section in HIDDEN:
                continue
            for key, spec in specs.items():
                options = spec[1] if len(spec) > 1 else {}
                inputs[key] = {"name": key, "tooltip": options["tooltip"]}
        texts[name] = {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": inputs,
            "outputs": {
                str(place): {"name": label, "tooltip": tooltip}
                for place, (label, tooltip) in enumerate(
                    zip(node["output_name"], node["output_tooltips"], strict=True)
                )
            },
        }
    return texts


if __name__ == "__main__":
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188"
    with urllib.request.urlopen(f"{address}/object_info", timeout=60) as reply:
        found = english(json.load(reply))
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
