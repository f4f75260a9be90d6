"""Times of GPU functions at sustained clocks, and what a report says of the machine."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from _package import ROOT

# Seconds in which a card finds the clocks of a function.
LEAST_WINDOW = 0.04
# Launches that the host is ahead, so that the card never waits for it where it need not.
QUEUED = 4


def sustained_ms(
    functions: Mapping[str, Callable[[], object]], seconds: float, rounds: int = 5
) -> dict[str, float]:
    """Median milliseconds of each function at the clocks that it settles to by itself.

    Every round gives each function a window, in an order by lot: it is launched again and again,
    and the second half of the launches is timed. Launched once each in turn, a function would run
    at the clocks that its neighbours leave: up to a tenth faster behind one that needs little
    power, and torch's SDPA, which needs the most, faster than a model ever runs it.

    Args:
        functions: by name.
        seconds: timed in all, where that gives a window LEAST_WINDOW or more.
        rounds: windows of each function, whose median is taken.
    """
    window = max(LEAST_WINDOW, seconds / (rounds * max(len(functions), 1)))
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    order, lot = list(functions.items()), random.Random(0)
    for _ in range(rounds):
        lot.shuffle(order)
        for name, function in order:
            times[name].append(_window_ms(function, window))
    return {name: statistics.median(of_rounds) for name, of_rounds in times.items()}


def _window_ms(function: Callable[[], object], seconds: float) -> float:
    """Median milliseconds from launch to launch in the second half of a window, or of two."""
    events = [torch.cuda.Event(enable_timing=True)]
    events[0].record()
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(events) < 3:
        function()
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
        if len(events) > QUEUED:
            events[-QUEUED].synchronize()
    torch.cuda.synchronize()
    launches = [a.elapsed_time(b) for a, b in pairwise(events)]
    return statistics.median(launches[len(launches) // 2 :])


def machine(commit: str | None) -> dict[str, Any]:
    """GPU, versions and commit of a report; ``commit`` is for copies without git."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
        "commit": commit or _git_commit(),
    }


def _git_commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"
