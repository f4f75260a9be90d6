"""Where the tests find real ComfyUIs."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def find_hosts() -> list[Path]:
    """ComfyUI checkouts: COMFYUI_PATH, the usual places, or the one this pack lies in."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        candidates = [Path(p) for p in named.split(os.pathsep) if p]
    else:
        home = Path.home() / "comfy"
        candidates = [home / "ComfyUI", home / "ComfyUI-0.3.64"]
        candidates += [p.parent for p in ROOT.parents if p.name == "custom_nodes"]
    return [p.resolve() for p in candidates if (p / "main.py").is_file() and (p / "comfy").is_dir()]


HOSTS = find_hosts()
