"""The demo's main job: calibrate, sample every setting, measure, and write the report and page."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..calibration import Plan, PlanRuntime
from .experiment import Experiment, Log, Sampled
from .gallery import clip_strips, comparison_picture, head_strips
from .measure import (
    Probe,
    TestMass,
    mean_layer_error,
    mean_recall,
    mean_step_error,
    measured_density,
    picture_scores,
    probe,
)
from .page import Gallery, render
from .sampler import CFG, SHIFT
from .settings import (
    EVERY_ORDERS,
    FULL_SCALE,
    QUICK_SCALE,
    Orders,
    Scale,
    Setting,
    full_table,
    plain,
    quick_table,
    recipe,
)
from .wan import MODEL_FILE, load_demo_model

ROOT = Path(__file__).resolve().parent.parent
# Shown side by side on the page, where the table has them.
SHOWN = (
    ("whole recipe, 50 %, 4 bits", recipe(0.5, qk_bits=4, pv_bits=4)),
    ("whole recipe, 30 %, 8 bits", recipe(0.3, qk_bits=8, pv_bits=8)),
    ("whole recipe, 10 %", recipe(0.1)),
    ("plain skipping, 30 %", plain(0.3)),
    ("plain skipping, 10 %", plain(0.1)),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo from command-line arguments."""
    options = _parser().parse_args(arguments)
    device = torch.device(_device(options.device))
    full = options.full or (device.type == "cuda" and not options.quick)
    scale, settings = (FULL_SCALE, full_table()) if full else (QUICK_SCALE, quick_table())
    if options.block:
        scale = replace(scale, block=options.block)
    out = Path(options.out)
    begin = time.perf_counter()

    def log(text: str) -> None:
        print(f"[{time.perf_counter() - begin:6.1f} s] {text}", flush=True)

    report, page, picture = make_demo(
        device, scale, settings, options.model, options.seed, log, options.commit
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "index.html").write_text(page, encoding="utf-8")
    (out / "comparison.webp").write_bytes(picture)
    log(f"done: open {out / 'index.html'} in a browser; the numbers are in {out / 'report.json'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Sample the demo model with full attention and with PARO, and compare."
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--out", default="out/demo", help="folder of the results")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="small grid, few settings (CPU's choice)"
    )
    size.add_argument("--full", action="store_true", help="whole grid and table (GPU's choice)")
    parser.add_argument(
        "--block", type=_block, help="query x key tokens of a block, such as 64x128"
    )
    parser.add_argument("--seed", type=int, default=0, help="of prompts and noise (default: 0)")
    parser.add_argument("--model", default=str(MODEL_FILE), help="another model of the same kind")
    parser.add_argument("--commit", help="recorded in the report where git cannot tell")
    return parser


def _block(text: str) -> tuple[int, int]:
    query, _, key = text.partition("x")
    return int(query), int(key)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def make_demo(
    device: torch.device,
    scale: Scale,
    settings: Sequence[Setting],
    model_file: str | Path,
    seed: int,
    log: Log,
    commit: str | None = None,
) -> tuple[dict[str, Any], str, bytes]:
    """Return the report, the page and the comparison picture of all settings at one scale."""
    # Linear layers are float32 in TF32, the same function in every run: what differs is attention
    # alone; attention itself reads float16 on a GPU, the full attention as well as ours.
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    model = load_demo_model(device, torch.float32, model_file)
    experiment = Experiment(model, scale, dtype, seed)
    frames, height, width = scale.grid
    log(
        f"{_device_name(device)}, {frames}x{height}x{width} tokens, {scale.steps} steps, "
        f"{_count(scale.videos, 'video')}, {len(settings)} settings"
    )
    # The page shows "fhw" and "tiles" whatever the settings.
    used: set[Orders] = {"fhw", "tiles", *(setting.orders for setting in settings)}
    kinds: list[Orders] = [kind for kind in EVERY_ORDERS if kind in used]
    plans, calibration_seconds = experiment.calibrate(kinds, log)
    log(f"calibrated on {scale.calibration_prompts} prompts in {calibration_seconds:.1f} s")

    if device.type == "cuda":
        experiment.sample(None)  # the first run on a GPU also sets up its libraries
    dense = experiment.sample(None, keep_states=True)
    log(f"full attention: {dense.seconds:.2f} s for {_count(scale.videos, 'video')}")
    probes = probe(experiment, dense.states)
    reference = {kind: experiment.runtime(plans[kind], plain(0.3, orders=kind)) for kind in kinds}
    mass = TestMass(probes, reference)

    expected = dense.videos()
    runs, shown = [], {}
    for index, setting in enumerate(settings):
        run, sampled = run_setting(experiment, plans, setting, probes, mass, expected)
        runs.append(run)
        shown |= {title: sampled for title, wanted in SHOWN if wanted == setting}
        log(f"{index + 1}/{len(settings)} {_line(run)}")

    report = {
        "device": _device_name(device),
        "grid": list(scale.grid),
        "calibration": {
            "prompts": scale.calibration_prompts,
            "seconds": round(calibration_seconds, 2),
        },
        "runs": runs,
        "dense_seconds": round(dense.seconds, 3),
        "steps": scale.steps,
        "cfg": CFG,
        "shift": SHIFT,
        "seed": seed,
        "test_prompts": experiment.prompts,
        "calibration_prompts": experiment.calibration_prompts,
        "orders": {kind: _order_counts(experiment, reference[kind]) for kind in kinds},
        "attention_dtype": str(dtype).removeprefix("torch."),
        "versions": _versions(device, commit),
        "notes": _notes(scale, dtype, device),
    }
    gallery = Gallery(
        clip_strips(experiment, expected, shown, runs, SHOWN),
        head_strips(probes, reference["tiles"], plans["tiles"], experiment, mass),
        report["orders"]["tiles"],
    )
    return report, render(report, gallery), comparison_picture(expected, shown)


def run_setting(
    experiment: Experiment,
    plans: dict[Orders, Plan],
    setting: Setting,
    probes: Sequence[Probe],
    mass: TestMass,
    expected: torch.Tensor,
) -> tuple[dict[str, Any], Sampled]:
    """Return a setting's row of the report, and its videos."""
    runtime = experiment.runtime(plans[setting.orders], setting)
    # Errors come before sampling, so that no kernel is compiled inside the time that is reported.
    layer_error = mean_layer_error(probes, runtime)
    step_error = mean_step_error(experiment, probes, runtime)
    kept = mean_recall(probes, runtime, setting.orders, mass)
    runtime.begin_run(experiment.sigmas)
    sampled = experiment.sample(runtime)
    run = {
        "density": setting.density,
        "block": list(experiment.scale.block),
        "qk_bits": setting.qk_bits,
        "pv_bits": setting.pv_bits,
        "orders": setting.orders,
        "tail": setting.tail,
        "budget": setting.budget,
        "shares": setting.shares,
        "warmup": setting.warmup,
        **picture_scores(sampled.videos(), expected),
        "recall": kept,
        "layer_error": layer_error,
        "step_error": step_error,
        "seconds": round(sampled.seconds, 3),
        "measured_density": measured_density(experiment, runtime),
        "videos": len(expected),
    }
    rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in run.items()}
    return rounded, sampled


def _line(run: dict[str, Any]) -> str:
    psnr = "identical" if run["psnr_db"] is None else f"{run['psnr_db']:.1f} dB"
    parts = [name for name, on in (("tail", run["tail"]), ("shares", run["shares"])) if on]
    parts += ["global"] if run["budget"] == "global" else []
    parts += [f"warm-up {run['warmup']}"] if run["warmup"] else []
    return (
        f"density {run['density']} ({run['measured_density']:.3f}) {run['orders']} "
        f"{run['qk_bits']}/{run['pv_bits']} {'+'.join(parts) or 'plain'}: step error "
        f"{run['step_error']:.4f}, recall {run['recall']:.3f}, {psnr}, {run['seconds']:.2f} s"
    )


def _order_counts(experiment: Experiment, runtime: PlanRuntime) -> dict[str, int]:
    layers = range(experiment.model.config.layers)
    return dict(Counter(name for layer in layers for name in runtime.orders(layer)).most_common())


def _notes(scale: Scale, dtype: torch.dtype, device: torch.device) -> list[str]:
    name = str(dtype).removeprefix("torch.")
    notes = [
        f"{_count(scale.videos, 'video')} per setting, each with its own prompt and seed, sampled "
        f"as one batch: {scale.steps} "
        f"Euler steps, guidance {CFG}, shift {SHIFT}. Seconds are the wall time of that batch.",
        f"Linear layers run in float32 (TF32 on a GPU); attention reads {name} inputs in full "
        "attention and in PARO alike.",
        f"Errors and recall are means over the {scale.probe_steps} steps "
        f"{', '.join(map(str, scale.probed))} of full attention's run: step error over "
        f"{_count(scale.velocity_videos, 'video')}, layer error and recall over the conditional "
        f"half of {_count(scale.attention_videos, 'video')}.",
        "Steps of a dense warm-up count with error 0 and recall 1; the density is that of the "
        "other steps.",
        f"Blocks are {scale.block[0]} x {scale.block[1]} tokens. Reordering, quantisation and "
        "restoring the order are inside every time.",
    ]
    if device.type == "cpu":
        notes.append("On a processor the PyTorch reference runs: its seconds are not a speed.")
    return notes


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _versions(device: torch.device, commit: str | None) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if device.type == "cuda":
        versions["cuda"] = str(torch.version.cuda)
        versions["triton"] = importlib.metadata.version("triton")
    if commit or (commit := _git_commit()):
        versions["commit"] = commit
    return versions


def _git_commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "rev-parse", "--short=12", "HEAD"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
