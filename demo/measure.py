"""The numbers of one run: recall and errors on full attention's own trajectory, picture metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..calibration import PlanRuntime
from ..calibration.block_layout import valid_tokens
from ..calibration.block_mass import block_mass
from ..calibration.metrics import recall, relative_error
from ..calibration.picture_metrics import cosine_similarity, psnr_db, ssim
from ..calibration.token_order import grid_permutation
from .experiment import Experiment


@dataclass(frozen=True, slots=True)
class Probe:
    """One step of the full-attention trajectory.

    Attributes:
        step: its index in the run.
        sigma: its noise level.
        state: [N, 16, F, H, W], latents of N test videos before the step.
        velocity: [N, 16, F, H, W], full attention's guided velocity there.
        inputs: q, k, v of each layer, [B, H, S, D] of the conditional half of B test videos.
        outputs: full attention's output of each layer, like q.
    """

    step: int
    sigma: float
    state: Tensor
    velocity: Tensor
    inputs: Sequence[tuple[Tensor, Tensor, Tensor]]
    outputs: Sequence[Tensor]


def probe(experiment: Experiment, states: Sequence[Tensor]) -> list[Probe]:
    """Record full attention at the probed steps of its own trajectory."""
    videos = experiment.scale.attention_videos
    probes = []
    for step in experiment.scale.probed:
        inputs: list[tuple[Tensor, Tensor, Tensor]] = []
        outputs: list[Tensor] = []

        def attend(
            layer: int, q: Tensor, k: Tensor, v: Tensor, inputs=inputs, outputs=outputs
        ) -> Tensor:
            out = experiment.dense(q, k, v)
            dtype = experiment.attention_dtype
            kept = [x[:videos].to(dtype, copy=True) for x in (q, k, v)]
            inputs.append((kept[0], kept[1], kept[2]))
            outputs.append(out[:videos].clone())
            return out.to(q.dtype)

        state = states[step][: experiment.scale.velocity_videos]
        velocity = experiment.velocity(state, step, attend)
        probes.append(Probe(step, experiment.sigmas[step], state, velocity, inputs, outputs))
    return probes


class TestMass:
    """Block mass of the test videos' own attention, in the orders of several plans.

    Args:
        probes: what was recorded.
        runtimes: one runtime per plan, whose orders and block are used.
    """

    __test__ = False  # pytest: not a test case

    def __init__(self, probes: Sequence[Probe], runtimes: Mapping[str, PlanRuntime]) -> None:
        self._mass: dict[tuple[str, int, int], Tensor] = {}
        for at in probes:
            for layer, (q, k, _) in enumerate(at.inputs):
                self._add(at.step, layer, q, k, runtimes, at.sigma)

    def _add(
        self,
        step: int,
        layer: int,
        q: Tensor,
        k: Tensor,
        runtimes: Mapping[str, PlanRuntime],
        sigma: float,
    ) -> None:
        orders = {kind: runtime.orders(layer) for kind, runtime in runtimes.items()}
        block = next(iter(runtimes.values())).mask(layer, sigma).block
        grid = next(iter(runtimes.values())).grid
        per_head = [
            torch.stack([grid_permutation(names[head], grid) for names in orders.values()])
            for head in range(q.shape[1])
        ]
        heads = torch.stack([mass for _, mass in block_mass(q, k, per_head, block)])
        for index, kind in enumerate(orders):
            self._mass[kind, step, layer] = heads[:, index]

    def __getitem__(self, key: tuple[str, int, int]) -> Tensor:
        """float32 [H, Qb, KVb] of (kind of orders, step, layer)."""
        return self._mass[key]


def mean_recall(probes: Sequence[Probe], runtime: PlanRuntime, kind: str, mass: TestMass) -> float:
    """Block mass kept by a run's masks: mean over probed steps, layers and heads (dense: 1)."""
    values = []
    for at in probes:
        for layer, (q, _, _) in enumerate(at.inputs):
            if runtime.is_dense(layer, at.sigma) is not None:
                values.append(torch.ones(q.shape[1], device=q.device))
                continue
            mask = runtime.mask(layer, at.sigma)
            rows = valid_tokens(mask.tokens, mask.block[0], q.device)
            kept = mask.to(q.device).to_dense()
            values.append(recall(mass[kind, at.step, layer], kept, rows))
    return float(torch.stack(values).mean())


def mean_layer_error(probes: Sequence[Probe], runtime: PlanRuntime) -> float:
    """Relative error of attention's output: mean over probed steps, layers, heads and videos."""
    values = []
    for at in probes:
        for layer, (inputs, expected) in enumerate(zip(at.inputs, at.outputs, strict=True)):
            if runtime.is_dense(layer, at.sigma) is not None:
                values.append(torch.zeros(expected.shape[:2], device=expected.device))
                continue
            output = runtime.attention(layer, at.sigma, *inputs)
            values.append(relative_error(output, expected, dims=(2, 3)))
    return float(torch.stack(values).mean())


def mean_step_error(experiment: Experiment, probes: Sequence[Probe], runtime: PlanRuntime) -> float:
    """Relative error of the guided velocity in full attention's states: mean over steps, videos.

    A step that runs dense as a whole (warm-up) has no error and is not computed.
    """
    values = []
    for at in probes:
        layers = range(len(at.inputs))
        if all(runtime.is_dense(layer, at.sigma) is not None for layer in layers):
            values.append(torch.zeros(len(at.state), device=at.state.device))
            continue
        attention = experiment.hook(runtime, lambda at=at: at.sigma)
        velocity = experiment.velocity(at.state, at.step, attention)
        values.append(relative_error(velocity, at.velocity, dims=(1, 2, 3, 4)))
    return float(torch.stack(values).mean())


def measured_density(experiment: Experiment, runtime: PlanRuntime) -> float:
    """Computed / all blocks: mean over layers and over the steps that are not dense."""
    known: dict[tuple[int, int], float] = {}  # steps of one noise band share their masks
    values = []
    for sigma in experiment.sigmas[:-1]:
        for layer in range(experiment.model.config.layers):
            if runtime.is_dense(layer, sigma) is None:
                key = layer, runtime.plan.bands.band_of(sigma)
                if key not in known:
                    known[key] = runtime.mask(layer, sigma).density()
                values.append(known[key])
    return sum(values) / len(values) if values else 1.0


def picture_scores(videos: Tensor, expected: Tensor) -> dict[str, Any]:
    """PSNR, SSIM and cosine similarity to full attention's videos, mean over the videos.

    Args:
        videos, expected: [N, F, H, W, 3] in 0..1.

    Returns:
        "psnr_db" is None where all videos are identical; an identical one among others does not
        enter its mean.
    """
    pairs = list(zip(videos, expected, strict=True))
    decibels = [value for a, b in pairs if (value := psnr_db(a, b)) is not None]
    return {
        "psnr_db": sum(decibels) / len(decibels) if decibels else None,
        "ssim": sum(ssim(a, b) for a, b in pairs) / len(pairs),
        "cossim": sum(cosine_similarity(a, b) for a, b in pairs) / len(pairs),
    }
