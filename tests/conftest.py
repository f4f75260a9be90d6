"""What every test needs: the pack under its import name, and Triton's interpreter without a GPU."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
HAS_GPU = torch.cuda.is_available()
# A busy machine is no failure: tests have no clock.
hypothesis.settings.register_profile("paro", deadline=None)
hypothesis.settings.load_profile("paro")

if not HAS_GPU:
    # Triton reads this when it is imported, so it must be set before anything imports the kernels.
    os.environ["TRITON_INTERPRET"] = "1"

if importlib.util.find_spec("paro_attention") is None:
    # The checkout may have any folder name; load it by path, as ComfyUI does.
    _spec = importlib.util.spec_from_file_location(
        "paro_attention", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert _spec is not None and _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    sys.modules["paro_attention"] = _module
    _spec.loader.exec_module(_module)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where there is no GPU."""
    if HAS_GPU:
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, torch sees none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Leave cores to hosts that tests start and to other workers; keep sums reproducible."""
    if not HAS_GPU or "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(min(2, torch.get_num_threads()))
