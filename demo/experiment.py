"""The demo model under one attention or another: sampling, calibration and single model calls."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ..calibration import (
    ModelIdentity,
    Plan,
    PlanRuntime,
    Recorder,
    RuntimeOptions,
    TokenGrid,
)
from .pixel_packing import unpack
from .sampler import CFG, guided_velocity, sample, seeded_noise, shifted_sigmas
from .settings import Orders, Scale, Setting
from .vocabulary import BACKGROUNDS, CAMERAS, COLOURS, DIRECTIONS, SHAPES, encode
from .wan import AttentionHook, WanModel, describe

Log = Callable[[str], None]


def draw_prompts(count: int, seed: int) -> list[str]:
    """Return `count` different prompts, drawn from the demo model's vocabulary."""
    generator = random.Random(seed)
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        words = [generator.choice(g) for g in (COLOURS, SHAPES, DIRECTIONS, BACKGROUNDS, CAMERAS)]
        colour, shape, direction, background, camera = words
        prompts[f"a {colour} {shape} moving {direction} over {background}, camera {camera}"] = None
    return list(prompts)


@dataclass(frozen=True, slots=True)
class Sampled:
    """Videos of one setting.

    Attributes:
        latents: float32 [N, 16, F, H, W] in the model's space.
        states: latents before each step, where they were asked for.
        seconds: wall time of sampling all videos in one batch.
    """

    latents: Tensor
    seconds: float
    states: list[Tensor] = field(default_factory=list)

    def videos(self) -> Tensor:
        """float32 [N, F, H, W, 3] in 0..1, on the CPU."""
        return unpack(self.latents).cpu()


class Experiment:
    """The demo model, its test videos, and what attention runs inside it.

    Args:
        model: on the device to run on.
        scale: how much is sampled.
        attention_dtype: dtype of q, k and v inside attention, of full attention as of ours.
        seed: of the prompts and of all noise.
    """

    def __init__(
        self, model: WanModel, scale: Scale, attention_dtype: torch.dtype, seed: int = 0
    ) -> None:
        self.model = model
        self.scale = scale
        self.attention_dtype = attention_dtype
        self.device = next(model.parameters()).device
        self.grid = TokenGrid(*scale.grid)
        self.shape = (scale.grid[0], 2 * scale.grid[1], 2 * scale.grid[2])
        self.sigmas = shifted_sigmas(scale.steps)
        prompts = draw_prompts(scale.calibration_prompts + scale.videos, seed)
        self.calibration_prompts = prompts[: scale.calibration_prompts]
        self.prompts = prompts[scale.calibration_prompts :]
        # Seeds of the test videos and of calibration never meet.
        self.seeds = [1000 * (seed + 1) + index for index in range(scale.videos)]
        self.calibration_seeds = [
            1000 * (seed + 1) + 500 + index for index in range(scale.calibration_prompts)
        ]
        self.context = torch.cat([encode(prompt)[0] for prompt in self.prompts]).to(self.device)
        self.negative = encode("")[0].to(self.device)

    def dense(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Full attention: what every number of the report is compared with."""
        q, k, v = (x.to(self.attention_dtype) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)

    def hook(self, runtime: PlanRuntime | None, sigma: Callable[[], float]) -> AttentionHook:
        """Return the attention of a run: a plan's, or full attention where there is none."""

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if runtime is None or runtime.is_dense(layer, sigma()) is not None:
                return self.dense(q, k, v).to(q.dtype)
            dtype = self.attention_dtype
            out = runtime.attention(layer, sigma(), q.to(dtype), k.to(dtype), v.to(dtype))
            return out.to(q.dtype)

        return attend

    def runtime(self, plan: Plan, setting: Setting) -> PlanRuntime:
        """Return a plan made ready for this experiment's steps under a setting."""
        options = RuntimeOptions(
            density=setting.density,
            qk_bits=setting.qk_bits,
            pv_bits=setting.pv_bits,
            tail=setting.tail,
            budget=setting.budget,
            shares=setting.shares,
            warmup=setting.warmup,
        )
        runtime = PlanRuntime(plan, self.grid, options, self.device)
        runtime.begin_run(self.sigmas)
        return runtime

    def sample(self, runtime: PlanRuntime | None, keep_states: bool = False) -> Sampled:
        """Sample every test video in one batch."""
        noise = seeded_noise((self.model.config.channels, *self.shape), self.seeds)
        states = [noise.to(self.device)] if keep_states else []
        now = _Clock(self.sigmas)

        def on_step(step: int, sigma: float, velocity: Tensor) -> None:
            now.advance(step)
            if keep_states:
                states.append(states[-1] + (self.sigmas[step + 1] - sigma) * velocity)

        self._wait()
        begin = time.perf_counter()
        latents = sample(
            self.model,
            self.context,
            self.negative,
            self.shape,
            self.scale.steps,
            CFG,
            self.seeds,
            attention=self.hook(runtime, now.sigma),
            on_step=on_step,
        )
        self._wait()
        return Sampled(latents, time.perf_counter() - begin, states)

    def velocity(self, state: Tensor, step: int, attention: AttentionHook) -> Tensor:
        """Return the guided velocity of the first test videos, as many as the state holds."""
        return guided_velocity(
            self.model,
            state,
            self.sigmas[step],
            self.context[: len(state)],
            self.negative,
            CFG,
            attention,
        )

    def calibrate(self, kinds: Sequence[Orders], log: Log) -> tuple[dict[Orders, Plan], float]:
        """Return one plan per kind of order ("fhw", "axes", "tiles"), and the seconds it took.

        All kinds share one recording: one sampling run per calibration prompt.
        """
        config = self.model.config
        recorder = Recorder(
            self.grid,
            layers=config.layers,
            heads=config.heads,
            head_dim=config.dim // config.heads,
            schedule=self.sigmas,
            block=self.scale.block,
            orders=kinds,
            prompts=len(self.calibration_prompts),
            steps_per_band=self.scale.recorded_per_band,
        )
        begin = time.perf_counter()
        for index, prompt in enumerate(self.calibration_prompts):
            recorder.begin_prompt(index)
            now = _Clock(self.sigmas)

            def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, now=now) -> Tensor:
                if recorder.wants(layer, now.sigma()):
                    # The conditional half comes first in the batch.
                    first, second, third = (x[:1].to(self.attention_dtype) for x in (q, k, v))
                    recorder.record(layer, now.sigma(), first, second, third)
                return self.dense(q, k, v).to(q.dtype)

            sample(
                self.model,
                encode(prompt)[0].to(self.device),
                self.negative,
                self.shape,
                self.scale.steps,
                CFG,
                self.calibration_seeds[index],
                attention=attend,
                on_step=lambda step, sigma, velocity, now=now: now.advance(step),
            )
            log(f"calibration prompt {index + 1}/{len(self.calibration_prompts)}: {prompt}")
        identity = model_identity(self.model)
        plans: dict[Orders, Plan] = {kind: recorder.finish(identity, orders=kind) for kind in kinds}
        self._wait()
        return plans, time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class _Clock:
    """The noise level of the step that is running."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self._sigmas = sigmas
        self._step = 0

    def advance(self, finished: int) -> None:
        self._step = finished + 1

    def sigma(self) -> float:
        return self._sigmas[self._step]


def model_identity(model: WanModel) -> ModelIdentity:
    """Return what a plan remembers of the demo model when it runs without a host."""
    config = model.config
    norms = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if "norm" in name:
            norms.update(parameter.detach().float().cpu().numpy().tobytes())
    return ModelIdentity(
        architecture=hashlib.sha256(describe(config).encode()).hexdigest(),
        weights=norms.hexdigest(),
        layers=config.layers,
        heads=config.heads,
        head_dim=config.dim // config.heads,
        description="PARO demo model",
    )
