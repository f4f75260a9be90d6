"""Each ComfyUI found, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from comfy_hosts import HOSTS
from family_hosts import Worker


@pytest.fixture(
    scope="session",
    params=HOSTS or [None],
    ids=lambda path: path.name if path else "no-ComfyUI",
)
def worker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A process that runs cases in this ComfyUI, on the GPU where there is one."""
    if request.param is None:
        pytest.skip("no ComfyUI found; set COMFYUI_PATH to one or more checkouts")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    running = Worker(request.param, device, tmp_path_factory.mktemp("family") / "host.log")
    yield running
    running.stop()
