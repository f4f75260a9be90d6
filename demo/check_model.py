"""Check that the demo model is good enough to judge a method on: ``python -m demo.check_model``.

Three figures: a probe trained on rendered clips names object and direction of motion in samples;
samples move as much as training clips; and, given a plan of the model, its heads chose different
token orders. Writes a JSON report and a contact sheet, and exits with 1 if a figure is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .pixel_packing import unpack
from .probe import judge, train_probe
from .sampler import CFG, STEPS, sample
from .scenes import SceneLabels, render, sample_labels
from .vocabulary import BACKGROUNDS, CAMERAS, COLOURS, DIRECTIONS, SHAPES, encode
from .wan import MODEL_FILE, WanModel, load_demo_model, read_metadata

LEAST_ACCURACY = 0.8
FRAME_DIFFERENCE_TOLERANCE = 0.2
LEAST_ORDERS = 4
LARGEST_ORDER_SHARE = 0.6
HELD_OUT = 512
DRAWS = 4  # rendered clips per prompt behind the frame difference


def test_labels(seeds: int, device: torch.device) -> SceneLabels:
    """Every shape with every direction, ``seeds`` times, the other words varied."""
    pairs = [(s, d) for s in range(len(SHAPES)) for d in range(len(DIRECTIONS))] * seeds
    index = torch.arange(len(pairs), device=device)
    shape, direction = torch.tensor(pairs, device=device).unbind(1)
    turn = index // (len(SHAPES) * len(DIRECTIONS))
    return SceneLabels(
        shape,
        (index + shape + turn) % len(COLOURS),
        direction,
        (index + turn) % len(BACKGROUNDS),
        (index * 3 + turn) % len(CAMERAS),
    )


def frame_difference(videos: Tensor) -> float:
    """Mean absolute difference between successive frames of ``[N, F, H, W, 3]``."""
    return (videos[:, 1:] - videos[:, :-1]).abs().mean().item()


def sample_videos(
    model: WanModel, labels: SceneLabels, grid: Sequence[int], batch: int, steps: int, cfg: float
) -> Tensor:
    """One sample per label, seeds 1000, 1001, ...: ``[N, F, 4h, 4w, 3]``."""
    contexts = torch.cat([encode(prompt)[0] for prompt in labels.prompts()])
    shape = (grid[0], 2 * grid[1], 2 * grid[2])
    parts = []
    for start in range(0, len(labels), batch):
        context = contexts[start : start + batch]
        seeds = range(1000 + start, 1000 + start + len(context))
        negative = torch.zeros_like(context[:1])
        parts.append(unpack(sample(model, context, negative, shape, steps, cfg, list(seeds))))
    return torch.cat(parts)


def contact_sheet(videos: Tensor, captions: Sequence[str], path: Path) -> None:
    """Write the clips as rows of frames with their prompts above them."""
    count, frames, height, width, _ = videos.shape
    line = 14
    sheet = Image.new("RGB", (frames * width, count * (height + line)), "white")
    pen = ImageDraw.Draw(sheet)
    pixels = (videos.float().cpu() * 255).round().byte().numpy()
    for row, caption in zip(range(count), captions, strict=True):
        top = row * (height + line)
        pen.text((2, top + 1), caption, fill="black")
        for column in range(frames):
            sheet.paste(Image.fromarray(pixels[row, column]), (column * width, top + line))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def order_shares(path: Path) -> dict[str, float]:
    """Share of the heads that chose each token order in a plan of the model."""
    from .run import load_package

    load_package()
    plan = importlib.import_module("paro_attention.calibration").load_plan(path)
    names = [name for layer in plan.orders for name in layer]
    return {name: count / len(names) for name, count in Counter(names).most_common()}


def missed_figures(report: dict) -> list[str]:
    """The figures of a report that are not good enough, in words."""
    missed = []
    for name in ("shape", "direction", "joint"):
        value = report["samples"]["accuracy"][name]
        if value < LEAST_ACCURACY:
            missed.append(f"{name} accuracy of samples is {value:.3f}, wanted {LEAST_ACCURACY}")
    ratio = report["frame_difference"]["ratio"]
    if abs(ratio - 1) > FRAME_DIFFERENCE_TOLERANCE:
        missed.append(f"samples move {ratio:.2f} times as much as clips, wanted 0.8 to 1.2")
    shares = report.get("orders")
    if shares is not None:
        if len(shares) < LEAST_ORDERS:
            missed.append(f"heads chose {len(shares)} orders, wanted {LEAST_ORDERS}")
        if max(shares.values()) > LARGEST_ORDER_SHARE:
            missed.append(f"one order has {max(shares.values()):.2f} of the heads, wanted 0.6")
    return missed


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    cuda = torch.cuda.is_available()
    parser.add_argument("--model", type=Path, default=MODEL_FILE)
    parser.add_argument("--plan", type=Path, help="plan of the model whose orders to count")
    parser.add_argument("--out", type=Path, default=Path("out/demo-model"), help="folder")
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--grid", default="8,32,32" if cuda else "8,16,16", help="token grid")
    parser.add_argument("--seeds", type=int, default=4 if cuda else 1, help="samples per prompt")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--cfg", type=float, default=CFG)
    parser.add_argument("--batch", type=int, default=20 if cuda else 4)
    parser.add_argument("--probe-seconds", type=float, default=40 if cuda else 180)
    parser.add_argument("--probe-batch", type=int, default=64 if cuda else 32)
    parser.add_argument("--probe-width", type=int, default=64 if cuda else 32)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; 0 if every figure is good."""
    options = parse_arguments(arguments)
    device = torch.device(options.device)
    grid = [int(part) for part in options.grid.split(",")]
    frames, size = grid[0], 4 * grid[1]
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_demo_model(device, dtype, options.model)
    labels = test_labels(options.seeds, device)
    started = time.monotonic()
    videos = sample_videos(model, labels, grid, options.batch, options.steps, options.cfg)
    seconds = time.monotonic() - started
    print(f"{len(labels)} samples in {seconds:.1f} s", flush=True)
    prompts = labels.prompts()
    shown = min(len(prompts), len(SHAPES) * len(DIRECTIONS))
    contact_sheet(videos[:shown], prompts[:shown], options.out / "samples.png")

    generator = torch.Generator(device).manual_seed(7)
    clips = torch.cat([render(labels, frames, size, generator) for _ in range(DRAWS)])
    contact_sheet(clips[:shown], prompts[:shown], options.out / "clips.png")
    moving, expected = frame_difference(videos), frame_difference(clips)

    probe = train_probe(
        frames, size, options.probe_seconds, options.probe_batch, device, options.probe_width
    )
    held_out = sample_labels(HELD_OUT, generator)
    drawn = torch.cat(
        [
            render(
                SceneLabels(*(getattr(held_out, f.name)[i : i + 64] for f in fields(held_out))),
                frames,
                size,
                generator,
            )
            for i in range(0, HELD_OUT, 64)
        ]
    )

    def accuracy(clips: Tensor, named: SceneLabels) -> dict[str, float]:
        return {
            name: round(right.float().mean().item(), 4)
            for name, right in judge(probe, clips, named).items()
        }

    report = {
        "model": options.model.name,
        "training": json.loads(read_metadata(options.model).get("paro_demo_training", "{}")),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "grid": grid,
        "sampling": {"steps": options.steps, "cfg": options.cfg, "seconds": round(seconds, 2)},
        "probe": {"seconds": options.probe_seconds, "held_out": accuracy(drawn, held_out)},
        "samples": {"count": len(labels), "accuracy": accuracy(videos, labels)},
        "frame_difference": {
            "samples": round(moving, 5),
            "clips": round(expected, 5),
            "ratio": round(moving / expected, 4),
        },
    }
    if options.plan is not None:
        report["orders"] = order_shares(options.plan)
    report["missed"] = missed_figures(report)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2)
    (options.out / "check.json").write_text(text + "\n")
    print(text)
    return 1 if report["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
