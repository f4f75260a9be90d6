"""A small classifier of clips, trained on rendered ones, that judges the demo model's samples."""

from __future__ import annotations

import time
from dataclasses import fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .scenes import SceneLabels, render, sample_labels
from .vocabulary import BACKGROUNDS, CAMERAS, COLOURS, DIRECTIONS, SHAPES

GROUPS = {
    "shape": SHAPES,
    "colour": COLOURS,
    "direction": DIRECTIONS,
    "background": BACKGROUNDS,
    "camera": CAMERAS,
}
INPUT_SIZE = 64


class Probe(nn.Module):
    """Convolutions over all frames at once; one linear head per group of words."""

    def __init__(self, frames: int, width: int = 64) -> None:
        super().__init__()

        def stage(inputs: int, outputs: int, stride: int, kernel: int = 3) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2),
                nn.GroupNorm(8, outputs),
                nn.SiLU(),
            )

        self.body = nn.Sequential(
            stage(3 * frames, width, 2, 5),
            stage(width, width, 1),
            stage(width, 2 * width, 2),
            stage(2 * width, 2 * width, 1),
            stage(2 * width, 4 * width, 2),
            stage(4 * width, 4 * width, 1),
        )
        self.heads = nn.ModuleDict(
            {name: nn.Linear(8 * width, len(words)) for name, words in GROUPS.items()}
        )

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """``[B, F, H, W, 3]`` in 0..1, H = W a multiple of 64 -> logits per group of words."""
        pixels = video.permute(0, 1, 4, 2, 3).flatten(1, 2) * 2 - 1
        x = self.body(F.adaptive_avg_pool2d(pixels, INPUT_SIZE))
        x = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)
        return {name: head(x) for name, head in self.heads.items()}


def train_probe(
    frames: int, size: int, seconds: float, batch: int, device: torch.device, width: int = 64
) -> Probe:
    """Train a probe on fresh clips for a given time.

    Args:
        frames: frames of the clips it will see.
        size: height and width of the clips, a multiple of 64.
        seconds: how long to train.
        batch: clips per step.
        device: where.
        width: channels of the first stage, a multiple of 8.

    Returns:
        The probe in evaluation mode.
    """
    probe = Probe(frames, width).to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0.02)
    generator = torch.Generator(device).manual_seed(11)
    start = time.monotonic()
    step = 0
    while (elapsed := time.monotonic() - start) < seconds:
        progress = elapsed / seconds
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, 20 * progress + 0.01, (1 - progress) / 0.7)
        with torch.no_grad():
            labels = sample_labels(batch, generator)
            video = render(labels, frames, size, generator)
            # Samples are not pixel-perfect: noise keeps the probe from leaning on fine detail.
            amount = 0.08 * torch.rand(batch, 1, 1, 1, 1, generator=generator, device=device)
            noise = torch.randn(video.shape, generator=generator, device=device)
            video = (video + amount * noise).clamp(0, 1)
        logits = probe(video)
        loss = torch.stack(
            [F.cross_entropy(logits[f.name], getattr(labels, f.name)) for f in fields(labels)]
        ).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 10 == 0 and device.type == "cuda":
            torch.cuda.synchronize(device)  # the clock must not run ahead of the work
    print(f"probe: {step} steps of {batch} clips in {elapsed:.0f} s", flush=True)
    return probe.eval().requires_grad_(False)


@torch.no_grad()
def judge(probe: Probe, videos: Tensor, labels: SceneLabels) -> dict[str, Tensor]:
    """Which clips the probe names right: bool ``[N]`` per group of words, and "joint".

    "joint" is shape and direction both.
    """
    right: dict[str, Tensor] = {}
    for part in range(0, len(labels), 64):
        logits = probe(videos[part : part + 64])
        for name, values in logits.items():
            hit = values.argmax(dim=1) == getattr(labels, name)[part : part + 64]
            right[name] = torch.cat([right[name], hit]) if name in right else hit
    right["joint"] = right["shape"] & right["direction"]
    return right
