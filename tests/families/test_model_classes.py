"""Every model class of every ComfyUI is served, or named with the reason why it runs dense."""

from __future__ import annotations

import pytest
from family_hosts import Worker

pytestmark = pytest.mark.comfy


def test_every_class_is_known(worker: Worker):
    classes = worker.run("all", kind="classes")
    assert len(classes) > 50
    unknown = {name: seen for name, seen in classes.items() if not seen["known"]}
    assert unknown == {}
