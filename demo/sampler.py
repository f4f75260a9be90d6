"""Euler sampling of the demo model with classifier-free guidance, without a host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .wan import AttentionHook, WanModel

SHIFT = 3.0
STEPS = 20
CFG = 2.5


def shifted_sigmas(steps: int, shift: float = SHIFT) -> list[float]:
    """The noise levels of a run: ``steps + 1`` values from 1 down to 0.

    The time shift of flow models (Esser et al., "Scaling Rectified Flow Transformers",
    arXiv 2403.03206, eq. 23) applied to evenly spaced times.

    Raises:
        ValueError: ``steps`` is below 1 or ``shift`` is not positive.
    """
    if steps < 1 or shift <= 0:
        raise ValueError(f"steps and shift must be positive, got {steps} and {shift}")
    times = [1 - step / steps for step in range(steps + 1)]
    return [shift * time / (1 + (shift - 1) * time) for time in times]


def seeded_noise(shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """One float32 noise latent per seed, drawn on the CPU so that every device gets the same.

    Args:
        shape: channels, frames, height, width of one latent.
        seeds: one per sample.

    Returns:
        ``[len(seeds), *shape]``.
    """
    return torch.stack(
        [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(s)) for s in seeds]
    )


@torch.no_grad()
def guided_velocity(
    model: WanModel,
    x: Tensor,
    sigma: float,
    context: Tensor,
    negative: Tensor,
    cfg: float,
    attention: AttentionHook | None = None,
) -> Tensor:
    """The velocity that a sampling step follows, from one batched call of the model.

    Args:
        model: the demo model.
        x: float32 latents ``[B, 16, F, H, W]`` at noise level ``sigma``.
        sigma: noise level in (0, 1].
        context: ``[B or 1, L, 4096]``; the conditional half comes first in the model's batch.
        negative: ``[B or 1, L, 4096]``.
        cfg: guidance; 1 runs the conditional half alone.
        attention: passed on to the model.

    Returns:
        float32 ``[B, 16, F, H, W]``.
    """
    dtype = next(model.parameters()).dtype
    b = x.shape[0]
    context = context.to(x.device).expand(b, -1, -1)
    if cfg == 1:
        t = torch.full((b,), sigma * 1000, device=x.device)
        return model(x.to(dtype), t, context, attention).float()
    both = torch.cat([context, negative.to(x.device).expand(b, -1, -1)])
    t = torch.full((2 * b,), sigma * 1000, device=x.device)
    conditional, unconditional = model(x.to(dtype).repeat(2, 1, 1, 1, 1), t, both, attention).chunk(
        2
    )
    return unconditional.float() + cfg * (conditional.float() - unconditional.float())


@torch.no_grad()
def sample(
    model: WanModel,
    context: Tensor,
    negative: Tensor,
    shape: Sequence[int],
    steps: int = STEPS,
    cfg: float = CFG,
    seeds: int | Sequence[int] = 0,
    shift: float = SHIFT,
    attention: AttentionHook | None = None,
    on_step: Callable[[int, float, Tensor], None] | None = None,
) -> Tensor:
    """Sample latents with Euler steps from noise to data.

    Args:
        model: the demo model, on the device to sample on.
        context: ``[B or 1, L, 4096]``, B the number of seeds.
        negative: ``[B or 1, L, 4096]``, what guidance moves away from (zeros: no words).
        shape: (frames, height, width) of the latent, or with the 16 channels in front.
        steps: Euler steps.
        cfg: guidance scale.
        seeds: one seed per sample.
        shift: time shift of the schedule.
        attention: replaces visual self-attention, see ``WanModel.forward``.
        on_step: called as ``on_step(step, sigma, velocity)`` after each model call.

    Returns:
        float32 latents ``[B, 16, F, H, W]`` in the model's space.

    Raises:
        ValueError: ``shape`` or the number of contexts does not fit.
    """
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    if len(shape) == 3:
        shape = (model.config.channels, *shape)
    if len(shape) != 4:
        raise ValueError(f"shape must be (frames, height, width), got {tuple(shape)}")
    for name, rows in (("context", context), ("negative", negative)):
        if rows.shape[0] not in (1, len(seeds)):
            raise ValueError(f"{name} must have 1 or {len(seeds)} rows, got {rows.shape[0]}")
    x = seeded_noise(shape, seeds).to(next(model.parameters()).device)
    sigmas = shifted_sigmas(steps, shift)
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        velocity = guided_velocity(model, x, sigma, context, negative, cfg, attention)
        x = x + (following - sigma) * velocity
        if on_step is not None:
            on_step(step, sigma, velocity)
    return x
