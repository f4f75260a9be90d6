"""The cases of tests/families, as the tests list them; nothing of them is built here."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "families"))

import cases

CASES = [
    case
    for info in pkgutil.iter_modules(cases.__path__)
    for case in getattr(importlib.import_module(f"cases.{info.name}"), "CASES", ())
]
