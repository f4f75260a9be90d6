"""Every model class of every ComfyUI is served, or named with the reason why it runs dense."""

from __future__ import annotations

from typing import Any

import pytest
from family_cases import CASES
from family_hosts import Worker

pytestmark = pytest.mark.comfy

NO_REASON = "MadeUpDiT is a model that PARO does not know"


@pytest.fixture(scope="module")
def classes(worker: Worker) -> dict[str, dict[str, Any]]:
    """What the pack says of each class of this ComfyUI's `supported_models.models`."""
    return worker.run("all", kind="classes")


def test_every_class_has_a_family_or_a_reason(classes):
    assert len(classes) > 50
    in_neither = [name for name, seen in classes.items() if not seen["family"] + seen["reason"]]
    assert in_neither == []
    assert all(not (seen["family"] and seen["reason"]) for seen in classes.values())


def test_every_served_diffusion_model_has_a_case(classes):
    by_name = {case.name: case for case in CASES}
    untested = {
        name: seen["family"]
        for name, seen in classes.items()
        if seen["family"]
        and not any(
            # without a family: a variant that this ComfyUI keeps from its attention hook
            by_name[case].family == seen["family"] or not by_name[case].family
            for case in seen["cases"]
        )
    }
    assert untested == {}


def test_an_unknown_model_runs_dense_and_is_named(worker: Worker):
    seen = worker.run("unknown", kind="unknown")
    assert seen["finite"]
    assert seen["equal"]
    assert seen["logged"] == [f"PARO: runs dense: {NO_REASON}"]
    assert seen["shown"] == [["7", f"runs dense: {NO_REASON}"]]
    assert seen["strict"] == f"PARO cannot run here: {NO_REASON}"
    assert seen["calibrated"] == f"Calibrate PARO cannot serve this: {NO_REASON}"
