"""Scripts of benchmarks/, which import each other by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@contextmanager
def importable() -> Iterator[None]:
    """Inside, the scripts can be imported."""
    folder = str(FOLDER)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def benchmark_script(name: str) -> ModuleType:
    with importable():
        return importlib.import_module(name)
