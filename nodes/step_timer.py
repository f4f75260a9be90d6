"""What share of a sampling step the sparse attention takes, measured at a few steps of a run.

On a GPU nothing waits for it: events are put into the stream, and read when the run is over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

logger = logging.getLogger("paro_attention")

MEASURED_STEPS = 3

_Mark = float | torch.cuda.Event


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of an average measured step.

    Attributes:
        attention: in the sparse attention, reordering and quantisation included.
        step: altogether, from its first forward to the next step's.
    """

    attention: float
    step: float

    def line(self) -> str:
        """ "sparse attention 41 % of the step, 1.23 s of 3 s"."""
        share = self.attention / self.step
        return (
            f"sparse attention {100 * share:.0f} % of the step, {self.attention:.3g} s of "
            f"{self.step:.3g} s"
        )


class StepTimer:
    """Measures some of the steps of one run after the other."""

    def __init__(self) -> None:
        self._device: torch.device | None = None
        self.begin_run(0)

    def begin_run(self, steps: int) -> None:
        """Choose what to measure: evenly spaced steps, not the first, which may compile kernels.

        Args:
            steps: steps that are expected to have sparse calls.
        """
        count = min(MEASURED_STEPS, max(0, steps - 1))
        self._chosen = {1 + int((i + 0.5) * (steps - 1) / count) for i in range(count)}
        self._seen = -1
        self._sigma: float | None = None
        self._start: _Mark | None = None
        self._measuring = False
        self._forwards: list[tuple[_Mark, _Mark]] = []
        self._calls: list[tuple[_Mark, _Mark]] = []
        self._steps: set[int] = set()

    def begin_forward(self) -> None:
        """A forward begins, and with it the one before is over."""
        mark = None if self._device is None else self._mark()
        if self._measuring and self._start is not None and mark is not None:
            self._forwards.append((self._start, mark))
        self._start, self._measuring = mark, False

    @contextmanager
    def attention(self, sigma: float, device: torch.device) -> Iterator[None]:
        """Around one sparse call at a noise level."""
        if sigma != self._sigma:
            self._sigma = sigma
            self._seen += 1
        if self._device is None:
            self._device = device
        if (
            self._seen not in self._chosen
            or self._start is None
            or device != self._device
            or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())
        ):
            yield
            return
        begin = self._mark()
        yield
        self._calls.append((begin, self._mark()))
        self._measuring = True
        self._steps.add(self._seen)

    def end_run(self) -> StepTime | None:
        """The average over the measured steps, None where none was; waits for the device."""
        self.begin_forward()
        steps = len(self._steps)
        if not steps or not self._forwards:
            return None
        last = self._forwards[-1][1]
        try:
            if isinstance(last, torch.cuda.Event):
                last.synchronize()
            attention, whole = (
                sum(_seconds(*pair) for pair in pairs) / steps
                for pairs in (self._calls, self._forwards)
            )
        except RuntimeError:  # an event of another stream that is not over, or of a captured graph
            logger.debug("steps not measured", exc_info=True)
            return None
        return StepTime(attention, whole) if 0 < attention <= whole else None

    def _mark(self) -> _Mark:
        if self._device is None or self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event


def _seconds(begin: _Mark, end: _Mark) -> float:
    if isinstance(begin, float) and isinstance(end, float):
        return end - begin
    assert isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event)
    return begin.elapsed_time(end) / 1000
