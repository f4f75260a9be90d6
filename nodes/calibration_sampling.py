"""The sampling runs of a calibration: as ComfyUI's KSampler would make them, one or two experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
from torch import Tensor

from .conditioning import Conditioning


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
class RunSampler:
    """Samples one prompt after the other from the same latent.

    Attributes:
        watched: the model with the recording handler.
        earlier: samples the steps before `settings.start_step`, unrecorded.
        latent: ComfyUI LATENT.
        image: its samples, with the channels of the model.
        settings: see there.
    """

    watched: Any
    earlier: Any
    latent: dict[str, Any]
    image: Tensor
    settings: CalibrationSettings

    def sample(
        self,
        run: int,
        positive: Conditioning,
        negative: Conditioning,
        show: Callable[[int, Tensor], None],
    ) -> Tensor:
        """The samples of one run.

        Args:
            run: counts on the seed.
            positive, negative: of this run.
            show: called behind each step with the number of steps done and the denoised latent.
        """
        seed = self.settings.seed + run
        noise = comfy.sample.prepare_noise(self.image, seed, self.latent.get("batch_index"))
        first, start = self.settings.start_step, self.image
        conditions = (positive, negative)
        if first:
            start = self._stage(self.earlier, conditions, noise, start, seed, show, 0, first)
            noise = noise * 0.0  # a nested latent, video and sound, has no zeros_like
        return self._stage(
            self.watched, conditions, noise, start, seed, show, first, self.settings.end_step
        )

    def _stage(
        self,
        model: Any,
        conditions: tuple[Conditioning, Conditioning],
        noise: Tensor,
        start: Tensor,
        seed: int,
        show: Callable[[int, Tensor], None],
        first: int,
        last: int,
    ) -> Tensor:
        def callback(step: int, x0: Tensor, _x: Tensor, _total: int) -> None:
            show(first + step + 1, x0)

        settings = self.settings
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
            disable_noise=first > 0,
            start_step=first,
            last_step=last,
            force_full_denoise=False,
            noise_mask=self.latent.get("noise_mask"),
            callback=callback,
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )


def recorded_sigmas(model: Any, settings: CalibrationSettings) -> list[float]:
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
