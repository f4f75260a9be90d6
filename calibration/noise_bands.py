"""Noise bands: intervals of sigma that share one mask.

Masks are keyed by sigma, not by step number, so that sampler, step count, shift and few-step LoRAs
may change after calibration.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def checked_schedule(sigmas: Sequence[float], name: str = "sigmas") -> tuple[float, ...]:
    """The sigmas of the steps as Python floats, without the final 0.

    Args:
        sigmas: noise levels in descending order; a final 0 (the clean end) is dropped.
        name: what the caller calls them, for the message.

    Raises:
        ValueError: no step, a value that is not finite and positive, or an ascending pair.
    """
    values = [float(sigma) for sigma in sigmas]
    while values and values[-1] == 0.0:
        values.pop()
    if not values:
        raise ValueError(f"{name} must hold at least one positive sigma, got {list(sigmas)!r}")
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"{name} must be finite and positive, got {values}")
    if any(after > before for before, after in pairwise(values)):
        raise ValueError(f"{name} must be in descending order, got {values}")
    return tuple(values)


@dataclass(frozen=True, slots=True)
class NoiseBands:
    """Intervals of sigma, noisiest first.

    Attributes:
        edges: the sigmas between neighbouring bands, strictly descending; empty means one band.
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(math.isfinite(edge) and edge > 0 for edge in self.edges):
            raise ValueError(f"edges must be finite and positive, got {self.edges}")
        if any(b >= a for a, b in pairwise(self.edges)):
            raise ValueError(f"edges must be strictly descending, got {self.edges}")

    @classmethod
    def from_schedule(cls, sigmas: Sequence[float], count: int = 4) -> NoiseBands:
        """Bands that each hold an equal share of the steps.

        Args:
            sigmas: the steps' sigmas, descending; a final 0 is ignored.
            count: number of bands; fewer come out when there are fewer distinct steps.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count must be an integer of at least 1, got {count!r}")
        steps = sorted(set(checked_schedule(sigmas)), reverse=True)
        count = min(count, len(steps))
        starts = [round(band * len(steps) / count) for band in range(1, count)]
        return cls(tuple((steps[start - 1] + steps[start]) / 2 for start in starts))

    @property
    def count(self) -> int:
        """Number of bands."""
        return len(self.edges) + 1

    def band_of(self, sigma: float) -> int:
        """Index of the band that sigma falls into; 0 is the noisiest."""
        return sum(sigma < edge for edge in self.edges)

    def sampled_steps(self, sigmas: Sequence[float], per_band: int) -> tuple[float, ...]:
        """Evenly spaced steps of a schedule, at most `per_band` of each band.

        Raises:
            ValueError: a band that holds no step.
        """
        sampled = []
        for band, steps in enumerate(self.steps_in(sorted(set(sigmas), reverse=True))):
            if not steps:
                raise ValueError(
                    f"every noise band must hold a step of the schedule, band {band} of edges "
                    f"{self.edges} holds none"
                )
            count = min(per_band, len(steps))
            sampled += [steps[int((i + 0.5) * len(steps) / count)] for i in range(count)]
        return tuple(sampled)

    def steps_in(self, sigmas: Sequence[float]) -> list[list[float]]:
        """The given sigmas sorted into the bands."""
        steps: list[list[float]] = [[] for _ in range(self.count)]
        for sigma in sigmas:
            steps[self.band_of(sigma)].append(sigma)
        return steps
