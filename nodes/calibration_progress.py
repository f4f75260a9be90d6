"""What Calibrate PARO says while it works: prompt, step and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_LABEL = 60


class CalibrationProgress:
    """Counts the steps of a calibration's runs and estimates the rest from those done.

    Args:
        steps_per_run: sampling steps of each run.
        labels: what to call each prompt, at least one; runs go through them in turn.
        clock: seconds, monotonic.
        runs_before: runs that were complete already; they took no time now.
    """

    def __init__(
        self,
        steps_per_run: int,
        labels: list[str],
        clock: Callable[[], float] = time.monotonic,
        runs_before: int = 0,
    ):
        self._steps = steps_per_run
        self._before = runs_before * steps_per_run
        self._labels = labels
        self._clock = clock
        self._started = clock()

    def line(self, run: int, runs: int, step: int) -> str:
        """One line for the node.

        Args:
            run: runs that are complete.
            runs: runs that are planned now.
            step: steps of the current run that are complete.
        """
        done = run * self._steps + step
        left = runs * self._steps - done
        parts = [f"run {run + 1} of {runs}, step {step} of {self._steps}"]
        made = done - self._before
        if made and left:
            seconds = (self._clock() - self._started) / made * left
            parts.append(f"about {duration(seconds)} left")
        label = " ".join(self._labels[run % len(self._labels)].split())
        if len(label) > MAX_LABEL:
            label = label[: MAX_LABEL - 1].rstrip() + "…"
        return "calibrating, " + " · ".join([*parts, *([label] if label else [])])


def duration(seconds: float) -> str:
    """ "40 s", "3 min 20 s" or "2 h 5 min", rounded to what matters."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    if seconds < 600:
        minutes, rest = divmod(round(seconds / 10) * 10, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    if seconds < 3570:
        return f"{round(seconds / 60)} min"
    hours, minutes = divmod(round(seconds / 300) * 5, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
