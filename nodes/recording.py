"""What stands in front of the host's attention during calibration: it changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..calibration import Recorder, TokenGrid
from .attention_call import VisualCall
from .report_picture import HeadSample
from .run_stats import RunStats

RECORDED = "recorded"
PASSED_OVER = "step not recorded"


class RecordingHandler:
    """Hands q, k and v of the positive prompt's visual self-attention to a recorder.

    Every call is computed by the host's own attention, so that the samples are the ones that the
    user would get without this node.

    Args:
        node_id: of the calibrating node.
        samples: (layer, head) pairs whose q and k are kept for the report picture.
        check_interrupt: raises where the user stopped the run. A recorded step of a large model
            takes minutes, and the host itself looks only between steps.
    """

    def __init__(
        self,
        node_id: str | None,
        samples: list[tuple[int, int]],
        check_interrupt: Callable[[], None] = lambda: None,
    ):
        self._node_id = node_id
        self._samples = samples
        self._check_interrupt = check_interrupt
        self._stats = RunStats(node=str(node_id), kind="calibrate")
        self._sample_below = 0.0
        self.recorder: Recorder | None = None
        self.grid: TokenGrid | None = None
        self.kept: dict[tuple[int, int], HeadSample] = {}

    def begin_run(self, sigmas: list[float], model: Any) -> None:
        """Forget the report's samples of the run before; keep those of the middle of this one."""
        self.kept.clear()
        self._stats = RunStats(node=str(self._node_id), kind="calibrate")
        self._sample_below = sigmas[len(sigmas) // 2] if sigmas else 0.0

    def end_run(self, failed: bool) -> None:
        """Publish the counters."""
        self._stats.publish(failed)

    def begin_forward(self) -> None:
        """Count a forward."""
        self._stats.forwards += 1

    def cannot_serve(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Everything can be recorded."""
        return None

    def attend(self, call: VisualCall) -> str:
        """Record the call; it always runs dense."""
        recorder = self.recorder
        rows = call.conditional_rows
        if recorder is None or rows == ():
            return PASSED_OVER
        if self.grid is None or call.grid != self.grid.shape:
            raise ValueError(
                f"calibration was set up for a grid of {self.grid} tokens, the model was called "
                f"with {'x'.join(map(str, call.grid))}; calibrate without context windows"
            )
        self._keep_samples(call)
        if not recorder.wants(call.layer, call.sigma):
            return PASSED_OVER
        q, k, v = call.q, call.k, call.v
        if rows is not None and len(rows) != q.shape[0]:
            q, k, v = (x[list(rows)] for x in (q, k, v))
        self._check_interrupt()
        recorder.record(call.layer, call.sigma, q, k, v)
        return RECORDED

    def declined(self, reason: str) -> None:
        """Count a call."""
        self._stats.count_dense(reason)

    def _keep_samples(self, call: VisualCall) -> None:
        if call.sigma > self._sample_below:
            return
        row = call.conditional_rows[0] if call.conditional_rows else 0
        for layer, head in self._samples:
            if layer == call.layer and (layer, head) not in self.kept:
                self.kept[layer, head] = HeadSample(
                    layer,
                    head,
                    call.sigma,
                    call.q[row, head].to("cpu", torch.float16),
                    call.k[row, head].to("cpu", torch.float16),
                )
