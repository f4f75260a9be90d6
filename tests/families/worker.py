"""Runs cases inside a ComfyUI, without its server; started with that ComfyUI's Python.

    <host python> worker.py <ComfyUI checkout> [--cpu]

Reads one JSON object a line, {"case": name} or {"neighbour": name}, and answers each with one
line: what was seen, or {"skip": why} or {"error": traceback}. Two ComfyUIs cannot share a process,
so each has its own.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STEPS = 3


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what ComfyUI prints must not mix with the answers
    checkout, *options = sys.argv[1:]
    sys.argv = ["main.py", *options]
    sys.path[:0] = [checkout, str(HERE)]
    import comfy.options

    comfy.options.enable_args_parsing()
    load_pack()
    cases = find_cases()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = respond(request, cases)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def respond(request: dict[str, Any], cases: dict[str, Any]) -> dict[str, Any]:
    if "neighbour" in request:
        return neighbour(request)
    if "classes" in request:
        from model_classes import model_classes

        return model_classes(cases)
    if "unknown" in request:
        sys.modules.setdefault("worker", sys.modules["__main__"])
        from unknown_model import run_unknown

        return run_unknown()
    return run(cases[request["case"]])


def load_pack() -> None:
    sys.path.append(str(ROOT / "benchmarks"))
    from _package import load_package

    load_package()


def neighbour(request: dict[str, Any]) -> dict[str, Any]:
    sys.modules.setdefault("worker", sys.modules["__main__"])  # neighbours.py uses what is here
    from neighbours import run_scenario

    return run_scenario(request["neighbour"])


def find_cases() -> dict[str, Any]:
    import cases

    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(cases.__path__):
        module = importlib.import_module(f"cases.{info.name}")
        for case in getattr(module, "CASES", ()):
            assert case.name not in found, f"two cases are called {case.name}"
            found[case.name] = case
    return found


class Sampler:
    """Samples one case again and again from the same noise."""

    def __init__(self, case: Any):
        self.case = case
        self.latent = case.latent()
        self.mask = case.noise_mask() if case.noise_mask else None

    def __call__(self, model: Any, cfg: float = 1.0) -> Any:
        import comfy.sample
        import torch

        latent = comfy.sample.fix_empty_latent_channels(model, self.latent)
        noise = comfy.sample.prepare_noise(latent, 7)
        with torch.inference_mode():
            sampled = comfy.sample.sample(
                model, noise, STEPS, cfg, "euler", "simple", self.case.positive(),
                self.case.negative(), latent, noise_mask=self.mask, disable_pbar=True, seed=7,
            )  # fmt: skip
        if sampled.is_nested:  # video and sound
            return torch.cat([part.float().flatten() for part in sampled.unbind()])
        return sampled.float()

    def given(self) -> dict[str, Any]:
        """What is sampled, as ComfyUI's LATENT."""
        mask = {} if self.mask is None else {"noise_mask": self.mask}
        return {"samples": self.latent} | mask


def run(case: Any) -> dict[str, Any]:
    import comfy.supported_models

    if not hasattr(comfy.supported_models, case.model_class):
        return {"skip": f"this ComfyUI has no {case.model_class}"}
    if not case.exists():
        return {"skip": f"this ComfyUI has not what {case.name} is about"}
    model = case.build()
    if not case.family:
        return run_dense(case, model)
    return run_declined(case, model) if case.reason else run_served(case, model)


def run_dense(case: Any, model: Any) -> dict[str, Any]:
    """What is said of a model that is not served."""
    from paro_attention.nodes.families import find_family, unserved_class

    inner = model.get_model_object("diffusion_model")
    seen = {"dense": find_family(inner) is None, "reason": unserved_class(inner)}
    if case.sampled:
        counted, calls = count_calls(model)
        forwards = count_forwards(counted)
        seen["finite"] = bool(Sampler(case)(counted).isfinite().all())
        seen["calls"] = len(calls) / forwards[0]
    return seen


def run_declined(case: Any, model: Any) -> dict[str, Any]:
    """A prompt whose visual calls are not served, with a plan made on one whose calls are."""
    from paro_attention.nodes.calibration_run import calibrate

    sample = Sampler(case)
    negative = case.negative()
    plan = calibrate(model, [negative], negative, {"samples": sample.latent}, settings()).plan
    dense = {cfg: sample(model, cfg) for cfg in (1.0, 3.0)}
    seen: dict[str, Any] = {}
    for cfg in (1.0, 3.0):
        out, stats = sample_with(plan, model, sample, cfg, density=1.0, qk_bits=16, pv_bits=16)
        error = (out - dense[cfg]).norm() / dense[cfg].norm()
        seen[f"cfg_{cfg:g}"] = stats | {"error": float(error)}
    return seen


def run_served(case: Any, model: Any) -> dict[str, Any]:
    """Calibrates, saves, loads and samples; see the keys."""
    from layout_probe import misplaced
    from paro_attention.calibration import load_plan, save_plan
    from paro_attention.nodes import attention_hook
    from paro_attention.nodes.calibration_run import calibrate
    from paro_attention.nodes.families import find_family
    from paro_attention.nodes.model_identity import check_plan, identify

    family = find_family(model.get_model_object("diffusion_model"))
    sample = Sampler(case)
    counted, calls = count_calls(model)
    forwards = count_forwards(counted)
    dense = {cfg: sample(counted if cfg == 1.0 else model, cfg) for cfg in (1.0, 3.0)}
    result = calibrate(model, [case.positive()], case.negative(), sample.given(), settings())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.safetensors"
        save_plan(result.plan, path)
        plan = load_plan(path)
    seen: dict[str, Any] = {
        "family": family.name if family else "",
        "calls": len(calls) / max(1, forwards[0]),
        "head_dim": identify(model).head_dim,
        "plan_grid": list(plan.grid.shape),
        "plan_layers": plan.layers,
        "warnings": check_plan(plan, identify(model)),
        "finite": bool(dense[1.0].isfinite().all()),
        "misplaced": misplaced(case, model),
    }
    for cfg in (1.0, 3.0):
        exact, stats = sample_with(plan, model, sample, cfg, density=1.0, qk_bits=16, pv_bits=16)
        error = (exact - dense[cfg]).norm() / dense[cfg].norm()
        seen[f"exact_cfg_{cfg:g}"] = stats | {"error": float(error)}
    sparse, stats = sample_with(plan, model, sample, 3.0, density=0.3, qk_bits=8, pv_bits=8)
    seen["sparse"] = stats | {
        "differs": not bool((sparse == dense[3.0]).all()),
        "finite": bool(sparse.isfinite().all()),
    }
    patched, _ = session_on(plan, model, density=0.3, qk_bits=8, pv_bits=8)
    removed = sample(attention_hook.uninstall(patched), 3.0)
    seen["removed_is_equal"] = bool((removed == dense[3.0]).all())
    return seen


def settings() -> Any:
    """How every case is calibrated."""
    from paro_attention.nodes.calibration_sampling import CalibrationSettings

    return CalibrationSettings(
        seed=1, steps=STEPS, cfg=3.0, sampler_name="euler", scheduler="simple", start_step=0,
        end_step=10_000, density=0.3, noise_bands=2, orders="tiles", choice="output_error",
    )  # fmt: skip


def count_calls(model: Any) -> tuple[Any, list[int]]:
    """A clone whose attention calls are counted."""
    calls: list[int] = []

    def override(func: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return func(*args, **kwargs)

    clone = model.clone()
    options = dict(clone.model_options.get("transformer_options", {}))
    clone.model_options["transformer_options"] = options | {
        "optimized_attention_override": override
    }
    return clone, calls


def count_forwards(model: Any) -> list[int]:
    from comfy.patcher_extension import WrappersMP

    count = [0]

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", wrapper)
    return count


def session_on(plan: Any, model: Any, **options: Any) -> tuple[Any, Any]:
    from paro_attention.calibration import RuntimeOptions
    from paro_attention.nodes import attention_hook
    from paro_attention.nodes.sparse_session import SparseSession

    session = SparseSession(
        plan, RuntimeOptions(warmup=0.0, **options), min_tokens=0, on_unsupported="error"
    )
    return attention_hook.install(model, session), session


def sample_with(
    plan: Any, model: Any, sample: Sampler, cfg: float, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Samples with a plan; also what its counters say."""
    from paro_attention.nodes import run_stats

    patched, session = session_on(plan, model, **options)
    out = sample(patched, cfg)
    stats = run_stats.recent_runs[-1]
    layers = sorted({layer for _, layer, _ in session._handled})
    kept = ("forwards", "handled", "other", "dense", "mean_density")
    return out, {key: stats[key] for key in kept} | {"layers": layers}


if __name__ == "__main__":
    main()
