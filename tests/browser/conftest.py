"""A real browser and real ComfyUIs; without one of them the tests say so and are skipped."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_hosts import HOSTS

ROOT = Path(__file__).resolve().parent.parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def _comfy_host() -> Any:
    """The class of tests/nodes/conftest.py, which pytest does not import for other folders."""
    name = "paro_tests_nodes_conftest"
    if name not in sys.modules:
        path = ROOT / "tests" / "nodes" / "conftest.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name].ComfyHost


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="needs Playwright: pip install playwright"
    )
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"needs a browser, one of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--font-render-hinting=none"],
        )
        yield running
        running.close()


@pytest.fixture(
    scope="session", params=HOSTS or [None], ids=lambda p: p.name if p else "no-ComfyUI"
)
def host(
    request: pytest.FixtureRequest, browser: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Each ComfyUI found, running."""
    if request.param is None:
        pytest.skip("no ComfyUI found; set COMFYUI_PATH to one or more checkouts")
    running = _comfy_host()(request.param, tmp_path_factory.mktemp("base"))
    running.start()
    yield running
    running.stop()
