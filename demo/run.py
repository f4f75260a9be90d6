"""Command line of the demo: `python demo/run.py --help`.

Runs from a plain checkout: the repository root is the package, under whatever folder name, so it is
loaded by path as ComfyUI loads it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path


def load_package() -> None:
    """Make `paro_attention` importable, from this checkout."""
    root = Path(__file__).resolve().parent.parent
    # Python put this script's folder first; its modules must not shadow others of the same name.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != root / "demo"]
    spec = importlib.util.spec_from_file_location(
        "paro_attention", root / "__init__.py", submodule_search_locations=[str(root)]
    )
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{root} must hold the package's __init__.py; run from a full checkout")
    module = importlib.util.module_from_spec(spec)
    sys.modules["paro_attention"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    # Threads that wait for each other must not spin: on a busy machine that made the demo three
    # times slower. Read when torch is imported, so it comes first.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    load_package()
    from paro_attention.demo.pipeline import main  # pyright: ignore[reportMissingImports]

    main()
