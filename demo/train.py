"""Train the bundled demo model: ``python -m demo.train --seconds 600 --out FILE``.

Rectified flow on clips that are drawn on the training device as they are needed. The schedule is
driven by the clock, so that a run of any length warms up, anneals and ends in float8. Several GPUs:
``torchrun --nproc_per_node=N -m demo.train ...``. Run from the repository root.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from .optimizer import FlatTrainer, OptimizerSettings
from .pixel_packing import pack
from .sampler import SHIFT
from .scenes import render, sample_labels, word_ids
from .training_run import Clock, Workers, choose_attention, start_workers, use_attention
from .vocabulary import WORDS, context_table
from .wan import MODEL_FILE, WanConfig, WanModel, describe

Grid = tuple[int, int, int]
WORD_DROPOUT = 0.05
PROMPT_DROPOUT = 0.1
FLOAT8_FROM = 0.8  # part of the schedule after which the model sees rounded weights
WARM_UP_STEPS = 60
REPORT_SECONDS = 10.0
CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Stage:
    """Chances of each token grid up to a point of the schedule."""

    until: float
    chances: dict[Grid, float]


# Words, shapes and motion are learnt on small clips, where a step holds many; the large grid then
# gets most of the time.
LARGE, SMALL, SHORT = (8, 32, 32), (8, 16, 16), (4, 16, 16)
STAGES = (
    Stage(0.3, {LARGE: 0.1, SMALL: 0.8, SHORT: 0.1}),
    Stage(1.0, {LARGE: 0.84, SMALL: 0.09, SHORT: 0.07}),
)
TINY_STAGES = (Stage(1.0, {SMALL: 0.0, (4, 8, 8): 1.0}),)


def learning_factor(progress: float, step: int) -> float:
    """Warm-up over the first steps, then level to 35 % of the schedule, then straight down to 0."""
    return min(1.0, (step + 1) / WARM_UP_STEPS, max(0.0, (1 - progress) / 0.65))


def choose_grid(stages: Sequence[Stage], progress: float, step: int) -> Grid:
    """The grid of a step; the same on every worker."""
    stage = next((stage for stage in stages if progress < stage.until), stages[-1])
    grids, weights = zip(*stage.chances.items(), strict=True)
    return random.Random(step).choices(grids, weights)[0]


@dataclass(slots=True)
class Task:
    """Draws batches and computes the loss of a model on them."""

    model: WanModel
    table: Tensor
    device: torch.device
    dtype: torch.dtype

    def loss(self, grid: Grid, batch: int, seed: int) -> Tensor:
        """Mean squared error of the velocity on a fresh batch (a function of the seed)."""
        generator = torch.Generator(self.device).manual_seed(seed)
        with torch.no_grad():
            labels = sample_labels(batch, generator)
            ids = word_ids(labels, generator, WORD_DROPOUT, PROMPT_DROPOUT)
            x0 = pack(render(labels, grid[0], 4 * grid[1], generator))
            noise = torch.randn(x0.shape, generator=generator, device=self.device)
            # One time in each of `batch` equal intervals: less variance than independent draws.
            offset = torch.rand(batch, generator=generator, device=self.device)
            u = (torch.arange(batch, device=self.device) + offset) / batch
            sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
            x = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1, 1)).to(self.dtype)
        velocity = self.model(x, sigma * 1000, self.table[ids])
        return F.mse_loss(velocity.float(), noise - x0)


def validation_loss(task: Task, grid: Grid, batch: int) -> float:
    """Loss on two fixed batches; with gradients on, which reuses the compiled graphs."""
    losses = [task.loss(grid, batch, seed).detach() for seed in (10**9, 10**9 + 1)]
    return torch.stack(losses).mean().item()


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    defaults = OptimizerSettings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL_FILE, help="float8 file to write")
    parser.add_argument("--seconds", type=float, required=True,
                        help="length of the whole schedule, start-up included")  # fmt: skip
    parser.add_argument("--run-seconds", type=float, default=float("inf"),
                        help="stop this process after so long, with a checkpoint")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, help="file to save progress to")
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint")
    parser.add_argument("--batch", type=int, default=16, help="clips of the large grid per worker")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--muon-rate", type=float, default=defaults.muon_rate)
    parser.add_argument("--adam-rate", type=float, default=defaults.adam_rate)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="a small model and grid, to try it")
    options = parser.parse_args(arguments)
    if options.resume and options.checkpoint is None:
        parser.error("--resume needs --checkpoint")
    return options


def save_checkpoint(path: Path, trainer: FlatTrainer, clock: Clock) -> None:
    """Write progress, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    wall, trained = clock.wall(), clock.trained()
    state = {"trainer": trainer.state(), "step": clock.step, "wall": wall, "trained": trained}
    torch.save(state, temporary)
    os.replace(temporary, path)


def save_model(path: Path, trainer: FlatTrainer, source: Tensor, metadata: dict[str, str]) -> None:
    """Write the float8 file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    save_file(trainer.export(source), temporary, metadata=metadata)
    os.replace(temporary, path)


def warm_up(task: Task, grids: Sequence[tuple[Grid, int]], compiled: bool) -> None:
    """Run every grid once, so that compilation is over when training starts.

    The layers are compiled one by one: they share one graph per grid, which is quick to build.
    Where that fails, training goes on with plain layers and the oldest attention kernel.
    """
    modules = (*task.model.blocks, task.model.head)
    if compiled:
        for module in modules:
            module.compile(dynamic=False)
    try:
        for grid, batch in grids:
            started = time.monotonic()
            task.loss(grid, batch, seed=0).backward()
            if task.device.type == "cuda":
                torch.cuda.synchronize(task.device)
            seconds = time.monotonic() - started
            print(f"first step on {_name(grid)}, {batch} clips: {seconds:.1f} s", flush=True)
    except Exception as error:
        if not compiled or isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        print(f"going on without compilation: {str(error)[:2000]}", flush=True)
        for module in modules:
            module._compiled_call_impl = None
        use_attention("flash")
        warm_up(task, grids, compiled=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and write the file."""
    process_start = time.monotonic()
    options = parse_arguments(arguments)
    workers = start_workers(options.device)
    device, lead = workers.device, workers.rank == 0
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    stages = TINY_STAGES if options.tiny else STAGES
    config = WanConfig(dim=128, ffn_dim=256, layers=3) if options.tiny else WanConfig()
    tokens = 256 if options.tiny else 8192
    sizes = {
        grid: max(1, options.batch * tokens // (grid[0] * grid[1] * grid[2]))
        for stage in stages
        for grid, chance in stage.chances.items()
        if chance > 0
    }
    torch.manual_seed(options.seed)
    model = WanModel(config).to(device=device, dtype=dtype)
    settings = OptimizerSettings(muon_rate=options.muon_rate, adam_rate=options.adam_rate)
    trainer = FlatTrainer(model, settings)
    task = Task(model, context_table(device).to(dtype), device, dtype)
    if cuda and not options.tiny:
        report = choose_attention(device, config.heads, min(4, options.batch))
        if lead:
            print("attention:", report, flush=True)
    warm_up(task, list(sizes.items()), compiled=cuda and not options.no_compile)
    trainer.gradient.zero_()

    clock = Clock(options.seconds, options.run_seconds, process_start, time.monotonic())
    if options.resume and options.checkpoint.exists():
        saved = torch.load(options.checkpoint, map_location=device, weights_only=True)
        trainer.restore(saved["trainer"])
        clock.step, clock.wall_before = saved["step"], saved["wall"]
        clock.trained_before = saved["trained"]
    if lead:
        print(
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on "
            f"{workers.count} x {_device_name(device)}, batches {sizes}, start-up "
            f"{time.monotonic() - process_start:.1f} s, from step {clock.step} "
            f"({clock.trained_before:.0f} s trained)",
            flush=True,
        )
    clock.loop_start = time.monotonic()
    finished = train(options, workers, task, trainer, stages, sizes, clock)
    if lead and options.checkpoint is not None:
        save_checkpoint(options.checkpoint, trainer, clock)
    if lead and not finished:
        print(f"paused at step {clock.step}; go on with --resume", flush=True)
    if lead and finished:
        finish(options, workers, task, trainer, sizes, clock)
    if workers.count > 1:
        dist.barrier()
        dist.destroy_process_group()


def train(
    options: argparse.Namespace,
    workers: Workers,
    task: Task,
    trainer: FlatTrainer,
    stages: Sequence[Stage],
    sizes: dict[Grid, int],
    clock: Clock,
) -> bool:
    """The training loop; returns whether the schedule is through (else the process has to stop)."""
    device, lead = workers.device, workers.rank == 0
    last_report = last_save = time.monotonic()
    last_step, clips = clock.step, 0
    sums = {grid: torch.zeros(2, device=device) for grid in sizes}
    events: list[torch.cuda.Event] = []
    while True:
        # One process's clock decides for all, or they would disagree on grids and on the end.
        now = torch.tensor([clock.progress(), clock.finished(), clock.paused()])
        if workers.control is not None:
            dist.broadcast(now, 0, group=workers.control)
        progress, finished, paused = now.tolist()
        if finished or paused:
            return bool(finished)
        grid = choose_grid(stages, progress, clock.step)
        seed = (options.seed * 1_000_003 + clock.step) * 64 + workers.rank
        loss = task.loss(grid, sizes[grid], seed)
        loss.backward()
        if workers.count > 1:
            dist.all_reduce(trainer.gradient)
            trainer.gradient.div_(workers.count)
        factor = learning_factor(progress, clock.step)
        norm = trainer.step(factor, float8=progress >= FLOAT8_FROM)
        sums[grid][0] += loss.detach()
        sums[grid][1] += 1
        clock.step += 1
        clips += sizes[grid] * workers.count
        if device.type == "cuda":
            # Stay at most two steps ahead of the GPU, or the clock would run ahead of the work.
            event = torch.cuda.Event()
            event.record()
            events.append(event)
            if len(events) > 2:
                events.pop(0).synchronize()
        since = time.monotonic() - last_report
        if lead and since >= REPORT_SECONDS:
            losses = ", ".join(
                f"{_name(g)}: {(s[0] / s[1]).item():.4f}" for g, s in sums.items() if s[1].item()
            )
            print(
                f"{clock.wall():6.0f} s step {clock.step} ({(clock.step - last_step) / since:.2f}"
                f"/s, {clips / since:.0f} clips/s) progress {progress:.3f} loss {losses} "
                f"norm {norm.item():.3f}",
                flush=True,
            )
            for total in sums.values():
                total.zero_()
            last_report, last_step, clips = time.monotonic(), clock.step, 0
        if lead and options.checkpoint and time.monotonic() - last_save >= CHECKPOINT_SECONDS:
            save_checkpoint(options.checkpoint, trainer, clock)
            last_save = time.monotonic()


def finish(
    options: argparse.Namespace,
    workers: Workers,
    task: Task,
    trainer: FlatTrainer,
    sizes: dict[Grid, int],
    clock: Clock,
) -> None:
    """Validate the last weights and their average as float8, and write the better one."""
    candidates = {"last": trainer.master, "average": trainer.average}
    losses: dict[str, dict[str, float]] = {}
    for name, source in candidates.items():
        trainer.publish(float8=True, source=source)
        losses[name] = {
            _name(grid): round(validation_loss(task, grid, batch), 5)
            for grid, batch in sizes.items()
        }
    best = min(losses, key=lambda name: sum(losses[name].values()))
    training = {
        "device": f"{workers.count} x {_device_name(task.device)}",
        "torch": torch.__version__,
        "seconds": round(clock.trained(), 1),
        "steps": clock.step,
        "clips_per_step": {_name(grid): size * workers.count for grid, size in sizes.items()},
        "validation_loss": losses[best],
        "weights": best,
        "settings": asdict(trainer.settings),
        "seed": options.seed,
    }
    metadata = {
        "format": "pt",
        "paro_demo_config": describe(task.model.config),
        "paro_demo_words": " ".join(WORDS),
        "paro_demo_training": json.dumps(training),
    }
    save_model(options.out, trainer, candidates[best], metadata)
    print(f"validation loss as float8: {losses}", flush=True)
    size = options.out.stat().st_size / 1e6
    print(f"wrote {options.out} ({size:.1f} MB, {best} weights, step {clock.step})")


def _name(grid: Grid) -> str:
    return "x".join(map(str, grid))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


if __name__ == "__main__":
    sys.exit(main())
