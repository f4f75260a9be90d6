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

METHOD = "each function in windows of its own, by lot"
# Seconds of a window, of which the second half counts.
LEAST_WINDOW = 0.04
# Launches that the host is ahead, so that the card does not wait for it; of long ones, one.
AHEAD = 4


def sustained_ms(
    functions: Mapping[str, Callable[[], object]], seconds: float, rounds: int = 5
) -> dict[str, float]:
    """Median milliseconds of each function in windows of its own.

    Every round gives each function a window, in an order by lot: it is launched again and again,
    and the second half of the launches is timed. Launched once each in turn, a function runs at the
    clocks that its neighbours leave: one order and another differed by up to 15 %, windows by
    about 5 % (benchmarks/results/kernel_log.md).

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
    """Median milliseconds from launch to launch in the second half of a window.

    A function that takes longer than the window is launched twice, and the second launch counts.
    """
    torch.cuda.synchronize()
    end = time.monotonic() + seconds
    events = [_recorded()]
    ahead = 0
    while time.monotonic() < end or len(events) < 3:
        function()
        events.append(_recorded())
        if ahead == 0:
            events[1].synchronize()
            short = events[0].elapsed_time(events[1]) * AHEAD < seconds * 1e3
            ahead = AHEAD if short else 1
        events[max(0, len(events) - 1 - ahead)].synchronize()
    torch.cuda.synchronize()
    launches = [a.elapsed_time(b) for a, b in pairwise(events)]
    return statistics.median(launches[len(launches) // 2 :])


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def machine(commit: str | None) -> dict[str, Any]:
    """GPU, versions, commit and timing of a report; ``commit`` is for copies without git."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
        "timing": METHOD,
        "commit": commit or _git_commit(),
    }


def _git_commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"
