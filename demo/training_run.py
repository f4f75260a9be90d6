"""What the demo model's training runs on: its processes, its clock and its attention kernel."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

FINISH_SECONDS = 6.0  # kept for the last validation and writing the file


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among those that train together."""

    rank: int
    count: int
    device: torch.device
    control: Any  # process group that carries the clock, off the GPU's queue; None = alone


@dataclass(slots=True)
class Clock:
    """Where a schedule that is driven by time stands, over one or more processes.

    Attributes:
        seconds: length of the whole schedule, start-up and the final validation included.
        run_seconds: length of this process.
        process_start: ``time.monotonic()`` when this process started.
        loop_start: the same when its training loop started.
        wall_before, trained_before: seconds of earlier processes, in all and in their loops.
        step: steps taken.
    """

    seconds: float
    run_seconds: float
    process_start: float
    loop_start: float
    wall_before: float = 0.0
    trained_before: float = 0.0
    step: int = 0

    def wall(self) -> float:
        """Seconds of all processes."""
        return self.wall_before + time.monotonic() - self.process_start

    def trained(self) -> float:
        """Seconds of all training loops."""
        return self.trained_before + time.monotonic() - self.loop_start

    def progress(self) -> float:
        """0..1 through the schedule; start-up time is not part of it."""
        lost = self.wall() - self.trained()
        return min(1.0, self.trained() / max(1.0, self.seconds - FINISH_SECONDS - lost))

    def finished(self) -> bool:
        """Whether the schedule is through."""
        return self.wall() >= self.seconds - FINISH_SECONDS

    def paused(self) -> bool:
        """Whether this process has to stop."""
        return time.monotonic() - self.process_start >= self.run_seconds - FINISH_SECONDS


def start_workers(device_name: str) -> Workers:
    """Join the processes that torchrun started, or stand alone."""
    rank, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device(f"cuda:{local}" if device_name == "cuda" else device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if count == 1:
        return Workers(0, 1, device, None)
    if device.type == "cuda":
        dist.init_process_group("nccl", device_id=device)
        return Workers(rank, count, device, dist.new_group(backend="gloo"))
    dist.init_process_group("gloo")
    return Workers(rank, count, device, dist.group.WORLD)


def use_attention(name: str) -> None:
    """Let torch's scaled_dot_product_attention run on one kernel: "flash" or "cudnn"."""
    torch.backends.cuda.enable_flash_sdp(name == "flash")
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")
    torch.backends.cuda.enable_mem_efficient_sdp(False)


def choose_attention(device: torch.device, heads: int, batch: int) -> str:
    """Time both kernels on the large grid, keep the faster one on, and say what was seen."""
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, slope = (
        torch.randn(batch, 8192, heads, 128, device=device, generator=generator).bfloat16()
        for _ in range(4)
    )

    def run(name: str) -> tuple[float, Tensor]:
        use_attention(name)
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        results: list[Tensor] = []
        for turn in range(4):
            if turn == 1:
                start.record()
            query, key, value = (x.transpose(1, 2) for x in inputs)
            out = F.scaled_dot_product_attention(query, key, value)
            out = out.transpose(1, 2).flatten(2)
            results = [out, *torch.autograd.grad(out, inputs, slope.flatten(2))]
        end.record()
        end.synchronize()
        flat = torch.cat(
            [x.detach().float().flatten() / x.detach().float().norm() for x in results]
        )
        return start.elapsed_time(end) / 3, flat

    flash_ms, expected = run("flash")
    try:
        cudnn_ms, got = run("cudnn")
    except RuntimeError as error:
        use_attention("flash")
        return f"flash {flash_ms:.1f} ms (cudnn: {str(error)[:80]})"
    difference = (got - expected).norm().item()
    name = "cudnn" if difference < 0.05 and cudnn_ms < flash_ms else "flash"
    use_attention(name)
    return f"{name} (flash {flash_ms:.1f} ms, cudnn {cudnn_ms:.1f} ms, apart {difference:.4f})"
