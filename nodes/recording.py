"""What stands in front of the host's attention during calibration: it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..calibration import ModelIdentity, NoiseBands, Recorder, TokenGrid
from ..calibration.block_layout import default_block
from .attention_call import VisualCall
from .report_picture import HeadSample
from .run_stats import RunStats

RECORDED = "recorded"
PASSED_OVER = "step not recorded"


def recorder_for(
    identity: ModelIdentity,
    grid: TokenGrid,
    sigmas: Sequence[float],
    *,
    density: float,
    noise_bands: int,
    orders: str,
    choice: str,
    prompts: int,
) -> Recorder:
    """A recorder for a model's runs on a grid, with the block that suits the grid."""
    return Recorder(
        grid,
        layers=identity.layers,
        heads=identity.heads,
        head_dim=identity.head_dim,
        schedule=sigmas,
        bands=NoiseBands.from_schedule(sigmas, count=noise_bands),
        block=default_block(grid.tokens),
        orders=orders,
        choice=choice,
        density=density,
        prompts=prompts,
    )


class RecordingHandler:
    """Hands q, k and v of the positive prompt's visual self-attention to a recorder.

    Every call is computed by the host's own attention, so that the samples are the ones that the
    user would get without this node.

    Args:
        node_id: of the calibrating node.
        make_recorder: makes the recorder for the grid of the first call that arrives.
        samples: (layer, head) pairs whose q and k are kept for the report picture.
        check_interrupt: raises where the user stopped the run. A recorded step of a large model
            takes minutes, and the host itself looks only between steps.
    """

    def __init__(
        self,
        node_id: str | None,
        make_recorder: Callable[[TokenGrid], Recorder],
        samples: list[tuple[int, int]],
        check_interrupt: Callable[[], None] = lambda: None,
    ):
        self._node_id = node_id
        self._make_recorder = make_recorder
        self._samples = samples
        self._check_interrupt = check_interrupt
        self._stats = RunStats(node=str(node_id), kind="calibrate")
        self._sample_below = 0.0
        self.recorder: Recorder | None = None
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
        rows = call.conditional_rows
        if rows == ():
            return PASSED_OVER
        if self.recorder is None:
            self.recorder = self._make_recorder(TokenGrid(*call.grid))
            self.recorder.begin_prompt(0)
        grid = self.recorder.grid
        if call.grid != grid.shape:
            raise ValueError(
                f"calibration began with a grid of {grid} tokens, the model was then called "
                f"with {'x'.join(map(str, call.grid))}; calibrate without context windows"
            )
        self._keep_samples(call)
        if not self.recorder.wants(call.layer, call.sigma):
            return PASSED_OVER
        q, k, v, bias = call.q, call.k, call.v, call.key_bias
        if rows is not None and len(rows) != q.shape[0]:
            if bias is not None and bias.shape[0] > 1:
                bias = bias[list(rows)]
            q, k, v = (x[list(rows)] for x in (q, k, v))
        self._check_interrupt()
        self.recorder.record(call.layer, call.sigma, q, k, v, dense_first=call.first, key_bias=bias)
        return RECORDED

    def recorded(self) -> Recorder:
        """The recorder.

        Raises:
            ValueError: no visual self-attention call has arrived.
        """
        if self.recorder is None:
            reasons = "; ".join(self._stats.dense) or "the model did not use ComfyUI's hook"
            raise ValueError(f"no visual self-attention call arrived to calibrate on: {reasons}")
        return self.recorder

    def declined(self, reason: str) -> None:
        """Count a call."""
        self._stats.count_dense(reason)

    def _keep_samples(self, call: VisualCall) -> None:
        if call.sigma > self._sample_below:
            return
        row = call.conditional_rows[0] if call.conditional_rows else 0
        grid = slice(call.first, call.first + call.tokens)
        for layer, head in self._samples:
            if layer == call.layer and (layer, head) not in self.kept:
                self.kept[layer, head] = HeadSample(
                    layer,
                    head,
                    call.sigma,
                    call.q[row, head, grid].to("cpu", torch.float16),
                    call.k[row, head, grid].to("cpu", torch.float16),
                )
