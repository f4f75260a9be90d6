"""What a sampling run did, call by call: counted here, logged, shown, and served at /paro/stats."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from .attention_call import CROSS_ATTENTION
from .step_timer import StepTime

KEPT_RUNS = 50
recent_runs: deque[dict[str, Any]] = deque(maxlen=KEPT_RUNS)
"""Summaries of the last runs, oldest first."""
_numbers = count(1)


@dataclass(slots=True)
class RunStats:
    """Counters of one sampling run.

    Attributes:
        node: id of the node that installed the handler.
        kind: "load" or "calibrate".
        forwards: calls of the transformer.
        handled: visual self-attention calls that ran our path.
        dense: visual self-attention calls that ran dense, by reason.
        other: calls that are not visual self-attention.
        density_sum: sum of the executed density of the handled calls.
        kernel: what executed them.
        plan: name of the plan file that was followed, empty where there was none.
        time: of an average step, None where it is not known.
    """

    node: str
    kind: str
    forwards: int = 0
    handled: int = 0
    dense: Counter[str] = field(default_factory=Counter)
    other: int = 0
    density_sum: float = 0.0
    kernel: str = ""
    details: str = ""
    plan: str = ""
    time: StepTime | None = None

    def count_dense(self, reason: str) -> None:
        """Count a call that ran the host's own attention."""
        if reason == CROSS_ATTENTION:
            self.other += 1
        else:
            self.dense[reason] += 1

    @property
    def calls(self) -> int:
        """Visual self-attention calls."""
        return self.handled + self.dense.total()

    @property
    def mean_density(self) -> float:
        """Mean density over all visual self-attention calls; a dense call counts as 1."""
        return (self.density_sum + self.dense.total()) / self.calls if self.calls else 1.0

    def line(self) -> str:
        """One line for the log and the node."""
        text = (
            f"{self.handled} of {self.calls} attention calls sparse in {self.forwards} forwards, "
            f"mean density {self.mean_density:.3f}"
        )
        if self.kernel:
            text += f", {self.kernel}"
        if self.dense:
            reasons = ", ".join(f"{n} {reason}" for reason, n in self.dense.most_common())
            text += f"; dense: {reasons}"
        if self.time is not None:
            text += f"; {self.time.line()}"
        return text

    def publish(self, failed: bool) -> None:
        """Add this run to the ones that /paro/stats serves."""
        recent_runs.append(
            {
                "number": next(_numbers),
                "node": self.node,
                "kind": self.kind,
                "failed": failed,
                "forwards": self.forwards,
                "calls": self.calls,
                "handled": self.handled,
                "dense": dict(self.dense),
                "other": self.other,
                "mean_density": self.mean_density,
                "kernel": self.kernel,
                "details": self.details,
                "plan": self.plan,
                "attention_seconds": self.time.attention if self.time else None,
                "step_seconds": self.time.step if self.time else None,
            }
        )
