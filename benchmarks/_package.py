"""Makes ``import paro_attention`` work from a checkout of any name, installed or not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load_package() -> None:
    """Loads this checkout as ``paro_attention``, the way ComfyUI loads a pack: by path."""
    if "paro_attention" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "paro_attention", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["paro_attention"] = module
    spec.loader.exec_module(module)
