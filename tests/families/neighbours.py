"""The pack beside its neighbours, inside a ComfyUI: what the neighbours do is in the files beside.

A scenario is a function that returns what was seen; `tests/families/test_neighbours.py` judges it.
The model is a tiny Wan (2 layers, each one visual call and one cross-attention) unless said.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from worker import Sampler, find_cases, session_on

EXACT = {"density": 1.0, "qk_bits": 16, "pv_bits": 16}
SPARSE = {"density": 0.3, "qk_bits": 8, "pv_bits": 8}
MODULES = ("sampling", "attention", "weights", "compile", "blocks", "failures")

Scenario = Callable[[], dict[str, Any]]
_scenarios: dict[str, Scenario] = {}


def scenario(function: Scenario) -> Scenario:
    """Make a function answer to its name."""
    assert function.__name__ not in _scenarios, function.__name__
    _scenarios[function.__name__] = function
    return function


def run_scenario(name: str) -> dict[str, Any]:
    """What the scenario saw; {"skip": why} where this ComfyUI lacks the neighbour."""
    if not _scenarios:
        for module in MODULES:
            importlib.import_module(f"neighbours_{module}")
    return _scenarios[name]()


@functools.cache
def case(name: str = "wan-t2v") -> Any:
    """One of the cases of tests/families/cases."""
    return find_cases()[name]


@functools.cache
def planned(name: str = "wan-t2v") -> tuple[Any, Any]:
    """(model, plan) of a case; calibrated once."""
    model = case(name).build()
    return model, make_plan(model, name)


def make_plan(model: Any, name: str = "wan-t2v") -> Any:
    """A plan of the model as it is."""
    from paro_attention.nodes.calibration_run import CalibrationSettings, calibrate

    settings = CalibrationSettings(
        seed=1, steps=3, cfg=3.0, sampler_name="euler", scheduler="simple", start_step=0,
        end_step=10_000, density=0.3, noise_bands=2, orders="fhw", choice="output_error",
    )  # fmt: skip
    prompts = [case(name).positive()]
    latent = {"samples": case(name).latent()}
    return calibrate(model, prompts, case(name).negative(), latent, settings).plan


def sampler(name: str = "wan-t2v") -> Sampler:
    """Samples a case from a fixed noise."""
    return Sampler(case(name))


def load_paro(model: Any, plan: Any = None, **options: Any) -> Any:
    """Load PARO: a clone of the model that follows the plan."""
    patched, _ = session_on(plan or planned()[1], model, **(EXACT | options))
    return patched


def last_run() -> dict[str, Any]:
    """Counters of the last sampling run."""
    from paro_attention.nodes import run_stats

    kept = ("failed", "forwards", "handled", "dense", "other")
    return {key: run_stats.recent_runs[-1][key] for key in kept}


def forget_runs() -> None:
    """Counters start anew, so that the runs of what follows can be counted."""
    from paro_attention.nodes import run_stats

    run_stats.recent_runs.clear()


def runs() -> int:
    """Sampling runs that were counted since they were forgotten."""
    from paro_attention.nodes import run_stats

    return len(run_stats.recent_runs)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a == b).all())


def both_orders(
    neighbour: Callable[[Any], Any],
    sample: Callable[[Any], torch.Tensor] | None = None,
    expected: torch.Tensor | None = None,
    model: Any = None,
    plan: Any = None,
) -> dict[str, Any]:
    """Load PARO after and before a node that maps a model to a patched clone.

    Args:
        neighbour: the other node.
        sample: model -> latent; the case's sampling with CFG 3 if not given.
        expected: the right result of both together; that of the neighbour alone if not given.
        model, plan: other than the case's.
    """
    model = planned()[0] if model is None else model
    take = functools.partial(sampler(), cfg=3.0) if sample is None else sample
    plain = take(model)
    alone = take(neighbour(model))
    expected = alone if expected is None else expected
    seen: dict[str, Any] = {"acts": not equal(plain, alone)}
    for order in ("after", "before"):

        def both(options: dict[str, Any], order: str = order) -> Any:
            if order == "after":
                return load_paro(neighbour(model), plan, **options)
            return neighbour(load_paro(model, plan, **options))

        forget_runs()
        result = take(both({}))
        seen[order] = last_run() | {"error": relative(result, expected), "runs": runs()}
        sparse = take(both(SPARSE))
        handled = last_run()["handled"]
        seen[order] |= {
            "sparse_handled": handled,
            "sparse_differs": not equal(sparse, expected) and bool(sparse.isfinite().all()),
            "declining_is_equal": equal(take(both({"dense_layers": (0, 1)})), alone),
        }
    seen["bypassed_is_equal"] = equal(take(neighbour(model)), alone)
    seen["removed_is_equal"] = equal(take(model), plain)
    return seen
