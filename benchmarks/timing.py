"""Times of GPU functions at sustained clocks, and what a report says of the machine."""

from __future__ import annotations

import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from _package import ROOT


def sustained_ms(
    functions: Mapping[str, Callable[[], object]], seconds: float, least_rounds: int = 5
) -> dict[str, float]:
    """Median milliseconds of each function, launched in turn at sustained clocks.

    All functions run once a round, in an order by lot, so that each meets the clocks and the heat
    that any of the others leave; half of ``seconds`` warms the card up, and at least
    ``least_rounds`` rounds are timed. A round begins with its first function once more, untimed:
    behind a synchronisation the card waits for the host.
    """
    end_of_warm_up = time.monotonic() + seconds / 2
    while True:
        for function in functions.values():
            function()
        torch.cuda.synchronize()
        if time.monotonic() >= end_of_warm_up:
            break
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {
        name: [] for name in functions
    }
    order, lot = list(functions.items()), random.Random(0)
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end or rounds < least_rounds:
        lot.shuffle(order)
        order[0][1]()
        for name, function in order:
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            function()
            pair[1].record()
            events[name].append(pair)
        torch.cuda.synchronize()
        rounds += 1
    return {
        name: statistics.median(a.elapsed_time(b) for a, b in pairs)
        for name, pairs in events.items()
    }


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
