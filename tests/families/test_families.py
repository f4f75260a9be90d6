"""Every family on every ComfyUI that has it: our path equals the host's, on exactly its calls."""

from __future__ import annotations

import pytest
from family_cases import CASES
from family_hosts import Worker

pytestmark = pytest.mark.comfy
EXACT = 1e-3
ON_GPU = 0.03

SERVED = [case for case in CASES if case.family and not case.reason]
DECLINED = [case for case in CASES if case.family and case.reason]
DENSE = [case for case in CASES if not case.family]


@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_served(case, worker: Worker):
    seen = worker.run(case.name)
    tolerance = ON_GPU if worker.device == "cuda" else EXACT
    layers, visual = list(range(case.layers)), case.layers + case.repeats
    assert seen["family"] == case.family
    assert seen["calls"] == case.calls
    assert seen["plan_layers"] == case.layers
    assert tuple(seen["plan_grid"]) == case.grid
    assert seen["warnings"] == []
    assert seen["finite"]
    assert seen["misplaced"] == []
    for run in ("exact_cfg_1", "exact_cfg_3"):
        stats = seen[run]
        assert stats["dense"] == {}
        assert stats["layers"] == layers
        assert stats["handled"] == visual * stats["forwards"]
        assert stats["other"] == (case.calls - visual) * stats["forwards"]
        assert stats["mean_density"] == 1
        assert stats["error"] < tolerance
    sparse = seen["sparse"]
    assert sparse["dense"] == {}
    assert sparse["layers"] == layers
    assert sparse["handled"] == visual * sparse["forwards"]
    assert sparse["differs"] and sparse["finite"]
    assert seen["removed_is_equal"]


@pytest.mark.parametrize("case", DECLINED, ids=lambda case: case.name)
def test_declined_with_a_reason(case, worker: Worker):
    seen = worker.run(case.name)
    tolerance = ON_GPU if worker.device == "cuda" else EXACT
    alone, both = seen["cfg_1"], seen["cfg_3"]
    assert alone["dense"] == {case.reason: case.calls * alone["forwards"]}
    assert alone["handled"] == 0
    assert alone["error"] == 0
    assert both["dense"] == {case.reason: case.calls * both["forwards"] // 2}
    assert both["handled"] == case.layers * both["forwards"] // 2
    assert both["error"] < tolerance


@pytest.mark.parametrize("case", DENSE, ids=lambda case: case.name)
def test_dense_with_a_reason(case, worker: Worker):
    seen = worker.run(case.name)
    assert seen["dense"]
    assert case.reason in seen["reason"]
    if case.sampled:
        assert seen["finite"]
        assert seen["calls"] == case.calls
