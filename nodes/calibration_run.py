"""One calibration: real sampling runs of the user's model, watched by a recorder."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
from PIL import Image
from torch import Tensor

from ..calibration import ModelIdentity, NoiseBands, Plan, Recorder, TokenGrid
from ..calibration.block_layout import default_block
from . import attention_hook
from .calibration_progress import CalibrationProgress
from .conditioning import Conditioning, zero_negative
from .model_identity import identify
from .preview import MAX_SIDE, preview_picture
from .recording import RecordingHandler
from .report_picture import HeadSample

logger = logging.getLogger("paro_attention")


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How to sample and what to record.

    Attributes:
        seed, steps, cfg, sampler_name, scheduler: as in ComfyUI's KSampler.
        start_step, end_step: the steps that are recorded; earlier ones are sampled by
            `earlier_model`, later ones are not sampled.
        density: at which orders are chosen and tails are fitted.
        noise_bands: number of bands over the recorded steps.
        orders: "tiles", "axes" or "fhw".
        choice: how the order of a head is chosen.
    """

    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    start_step: int
    end_step: int
    density: float
    noise_bands: int
    orders: str
    choice: str


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """What a calibration gives.

    Attributes:
        plan: the plan, not yet written.
        latent: the last run's samples.
        grid: token grid of the runs.
        samples: q and k of a few heads at mid-noise, for the report.
        seconds: duration of the runs and the fit.
        runs: sampling runs.
    """

    plan: Plan
    latent: Tensor
    grid: TokenGrid
    samples: list[HeadSample]
    seconds: float
    runs: int


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

    Returns:
        The plan and what belongs to it. Nothing is written.

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
    sigmas = _recorded_sigmas(clean, settings)
    check_interrupt = comfy.model_management.throw_exception_if_processing_interrupted

    def make_recorder(grid: TokenGrid) -> Recorder:
        recorder = Recorder(
            grid,
            layers=identity.layers,
            heads=identity.heads,
            head_dim=identity.head_dim,
            schedule=sigmas,
            bands=NoiseBands.from_schedule(sigmas, count=settings.noise_bands),
            block=default_block(grid.tokens),
            orders=settings.orders,
            choice=settings.choice,
            density=settings.density,
            prompts=len(prompts),
        )
        recorder.begin_prompt(0)
        return recorder

    handler = RecordingHandler(node_id, make_recorder, _report_heads(identity), check_interrupt)
    watched = attention_hook.install(clean, handler)
    # The recorder, made in the first run, knows better: where there is no choice one run is enough.
    runs = max(2, len(prompts))
    first_stage = settings.start_step > 0
    steps_per_run = len(sigmas) + settings.start_step
    progress = comfy.utils.ProgressBar(runs * steps_per_run)
    names = labels or [f"prompt {n + 1} of {len(prompts)}" for n in range(len(prompts))]
    words = CalibrationProgress(steps_per_run, names)
    samples = image
    run = 0

    def planned_runs() -> int:
        return runs if handler.recorder is None else handler.recorder.runs_needed

    while run < runs:
        index = run % len(prompts)
        tell(words.line(run, runs, 0))

        def show(step: int, x0: Tensor, _x: Tensor, _total: int, run: int = run) -> None:
            check_interrupt()
            picture = _picture(clean, x0)
            preview = None if picture is None else ("JPEG", picture, MAX_SIDE)
            done = run * steps_per_run + step + 1
            progress.update_absolute(done, planned_runs() * steps_per_run, preview)
            show_progress(words.line(run, planned_runs(), step + 1))

        def show_second(step: int, x0: Tensor, x: Tensor, total: int, show: Any = show) -> None:
            show(step + settings.start_step, x0, x, total)

        conditions = (prompts[index], negative or zero_negative(prompts[index]))
        seed = settings.seed + run
        noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
        start = image
        if first_stage:
            start = _sample(
                earlier_model or clean, settings, conditions, noise, start, seed, show, latent,
                last_step=settings.start_step,
            )  # fmt: skip
            noise = noise * 0.0  # a nested latent, video and sound, has no zeros_like
        samples = _sample(
            watched, settings, conditions, noise, start, seed,
            show_second if first_stage else show, latent,
            start_step=settings.start_step, last_step=settings.end_step,
            disable_noise=first_stage,
        )  # fmt: skip
        recorder, _ = handler.recorded()
        runs = recorder.runs_needed
        run += 1
        if run < runs:
            recorder.begin_prompt(run)
    check_interrupt()
    tell("calibrating: choosing token orders and fitting tails")
    recorder, grid = handler.recorded()
    plan = recorder.finish(identity, note=_note(settings, len(prompts)))
    check_interrupt()
    kept = [handler.kept[key] for key in sorted(handler.kept)]
    return CalibrationResult(plan, samples, grid, kept, time.monotonic() - started, runs)


def _sample(
    model: Any,
    settings: CalibrationSettings,
    conditions: tuple[Conditioning, Conditioning],
    noise: Tensor,
    start: Tensor,
    seed: int,
    callback: Callable,
    latent: dict[str, Any],
    *,
    start_step: int | None = None,
    last_step: int | None = None,
    disable_noise: bool = False,
) -> Tensor:
    positive, negative = conditions
    return comfy.sample.sample(
        model,
        noise,
        settings.steps,
        settings.cfg,
        settings.sampler_name,
        settings.scheduler,
        positive,
        negative,
        start,
        denoise=1.0,
        disable_noise=disable_noise,
        start_step=start_step,
        last_step=last_step,
        force_full_denoise=False,
        noise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )


def _recorded_sigmas(model: Any, settings: CalibrationSettings) -> list[float]:
    """The noise levels of the recorded steps, without the one they end at."""
    sampler = comfy.samplers.KSampler(
        model,
        steps=settings.steps,
        device=model.load_device,
        sampler=settings.sampler_name,
        scheduler=settings.scheduler,
        denoise=1.0,
        model_options=model.model_options,
    )
    sigmas = [float(s) for s in sampler.sigmas]
    recorded = sigmas[settings.start_step : min(settings.end_step, len(sigmas) - 1)]
    if not recorded:
        raise ValueError(
            f"start_at_step must lie before end_at_step and before the last of {len(sigmas) - 1} "
            f"steps, got {settings.start_step} and {settings.end_step}"
        )
    return recorded


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
