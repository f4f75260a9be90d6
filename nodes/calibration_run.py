"""One calibration: real sampling runs of the user's model, watched by a recorder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
from PIL import Image
from torch import Tensor

from ..calibration import ModelIdentity, Plan, Recorder, TokenGrid
from ..calibration.recording_state import save_recording
from . import attention_hook
from .calibration_progress import CalibrationProgress
from .calibration_sampling import CalibrationSettings, RunSampler, recorded_sigmas
from .conditioning import Conditioning, zero_negative
from .input_digest import digest
from .model_identity import identify
from .preview import MAX_SIDE, preview_picture
from .recording import RecordingHandler, recorder_for
from .report_picture import HeadSample
from .unfinished import (
    earlier_inputs,
    model_inputs,
    read_result,
    result_tensors,
    resumed_or_none,
)

logger = logging.getLogger("paro_attention")


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """What a calibration gives.

    Attributes:
        plan: the plan, not yet written.
        latent: the last run's samples.
        grid: token grid of the runs.
        samples: q and k of a few heads at mid-noise, for the report.
        seconds: duration of the runs made now and of the fit.
        runs: sampling runs.
        resumed: how many of them an interrupted calibration had left.
    """

    plan: Plan
    latent: Tensor
    grid: TokenGrid
    samples: list[HeadSample]
    seconds: float
    runs: int
    resumed: int = 0


def calibrate(
    model: Any,
    prompts: list[Conditioning],
    negative: Conditioning | None,
    latent: dict[str, Any],
    settings: CalibrationSettings,
    *,
    earlier_model: Any | None = None,
    node_id: str | None = None,
    tell: Callable[[str], None] = logger.info,
    labels: list[str] | None = None,
    show_progress: Callable[[str], None] = logger.debug,
    partial: Path | None = None,
    resume: bool = True,
) -> CalibrationResult:
    """Sample every prompt with dense attention and fit a plan to what was recorded.

    Args:
        model: ComfyUI ModelPatcher of a served family.
        prompts: one conditioning per prompt, at least one; each is sampled with its own seed.
        negative: for all runs; zeros where None.
        latent: ComfyUI LATENT to start from.
        settings: see there.
        earlier_model: samples the steps before `settings.start_step` (the other Wan 2.2 expert);
            the model itself where None.
        node_id: for the counters.
        tell: shows a line of text to the user.
        labels: what to call each prompt; numbered where None.
        show_progress: shows a line of text after every step.
        partial: file that keeps the finished runs; the caller removes it once the plan is written.
        resume: go on with the runs of that file, if they were made from the same inputs.

    Returns:
        The plan and what belongs to it. No plan is written.

    Raises:
        ValueError: no prompt, no steps, or a model that is not served.
        Exception: an interrupt or an error of the sampler passes through.
    """
    if not prompts:
        raise ValueError("calibration needs at least one prompt, got none")
    started = time.monotonic()
    identity = identify(model)
    clean = attention_hook.uninstall(model)
    image = comfy.sample.fix_empty_latent_channels(clean, latent["samples"])
    sigmas = recorded_sigmas(clean, settings)
    check_interrupt = comfy.model_management.throw_exception_if_processing_interrupted

    def make_recorder(grid: TokenGrid) -> Recorder:
        return recorder_for(
            identity, grid, sigmas, density=settings.density, noise_bands=settings.noise_bands,
            orders=settings.orders, choice=settings.choice, prompts=len(prompts),
        )  # fmt: skip

    inputs = {
        **model_inputs(clean, identity),
        **earlier_inputs(earlier_model),
        "prompts": digest(prompts),
        "negative": digest(negative),
        "latent": digest(latent),
        **{name: str(value) for name, value in asdict(settings).items()},
    }
    found = None
    if partial is not None and resume:
        found = resumed_or_none(partial, inputs, make_recorder, clean.load_device, tell)
    handler = RecordingHandler(node_id, make_recorder, _report_heads(identity), check_interrupt)
    sampler = RunSampler(
        attention_hook.install(clean, handler), earlier_model or clean, latent, image, settings
    )
    # The recorder, made in the first run, knows better: where there is no choice one run is enough.
    runs = max(2, len(prompts))
    run = resumed = 0
    samples, kept = image, []
    if found is not None:
        handler.recorder = found.recorder
        runs, run = found.recorder.runs_needed, found.runs
        resumed = run
        if run == runs:
            samples, kept = read_result(found.extra)
        else:
            found.recorder.begin_prompt(run)
        tell(f"goes on after run {run} of {runs}, left by a calibration that was stopped")
    steps_per_run = len(sigmas) + settings.start_step
    progress = comfy.utils.ProgressBar(runs * steps_per_run)
    names = labels or [f"prompt {n + 1} of {len(prompts)}" for n in range(len(prompts))]
    words = CalibrationProgress(steps_per_run, names, runs_before=resumed)

    def planned_runs() -> int:
        return runs if handler.recorder is None else handler.recorder.runs_needed

    try:
        while run < runs:
            index = run % len(prompts)
            tell(words.line(run, runs, 0))

            def show(step: int, x0: Tensor, run: int = run) -> None:
                check_interrupt()
                picture = _picture(clean, x0)
                preview = None if picture is None else ("JPEG", picture, MAX_SIDE)
                done, total = run * steps_per_run + step, planned_runs() * steps_per_run
                progress.update_absolute(done, total, preview)
                show_progress(words.line(run, planned_runs(), step))

            samples = sampler.sample(
                run, prompts[index], negative or zero_negative(prompts[index]), show
            )
            recorder = handler.recorded()
            runs = recorder.runs_needed
            run += 1
            if run < runs:
                recorder.begin_prompt(run)
            else:
                kept = [handler.kept[key] for key in sorted(handler.kept)]
            if partial is not None:
                result = result_tensors(samples, kept) if run == runs else {}
                _keep(partial, recorder, run, inputs, result, tell)
        check_interrupt()
        tell("calibrating: choosing token orders and fitting tails")
        recorder = handler.recorded()
        plan = recorder.finish(identity, note=_note(settings, len(prompts)))
        check_interrupt()
    except comfy.model_management.InterruptProcessingException:
        if run and partial is not None and partial.exists():
            tell(
                f"stopped after run {run} of {runs}; with the same inputs it will go on from there"
            )
        raise
    seconds = time.monotonic() - started
    return CalibrationResult(plan, samples, recorder.grid, kept, seconds, runs, resumed)


def _keep(
    partial: Path,
    recorder: Recorder,
    runs: int,
    inputs: dict[str, str],
    result: dict[str, Tensor],
    tell: Callable[[str], None],
) -> None:
    """A full disk must never stop a calibration."""
    try:
        save_recording(partial, recorder, runs, inputs, result)
    except OSError as error:
        tell(f"the finished runs cannot be kept for a restart: {error}")


def _report_heads(identity: ModelIdentity) -> list[tuple[int, int]]:
    """Four heads spread over the depth of the model, different ones as far as there are."""
    layers = sorted({round(identity.layers * part) for part in (0.1, 0.35, 0.6, 0.85)})
    layers = [min(layer, identity.layers - 1) for layer in layers]
    pairs = [(layer, (2 * i + 1) % identity.heads) for i, layer in enumerate(layers)]
    return sorted(set(pairs))


def _picture(model: Any, x0: Tensor) -> Image.Image | None:
    """A preview must never stop a calibration."""
    try:
        return preview_picture(model, x0)
    except (RuntimeError, ValueError, TypeError):
        logger.debug("no preview", exc_info=True)
        return None


def _note(settings: CalibrationSettings, prompts: int) -> str:
    return (
        f"{prompts} prompts, {settings.steps} steps of {settings.sampler_name}/"
        f"{settings.scheduler}, cfg {settings.cfg:g}, seed {settings.seed}"
    )
