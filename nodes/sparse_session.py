"""What stands in front of the host's attention after Load PARO: the plan at work."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..calibration import Plan, PlanRuntime, RuntimeOptions, TokenGrid
from ..kernels import runs_on_fp4_units, runs_on_int4_units, unavailable_reason
from .attention_call import CROSS_ATTENTION, VisualCall
from .run_stats import RunStats
from .step_timer import StepTimer

logger = logging.getLogger("paro_attention")

KEPT_RUNTIMES = 3
"""Grids and devices whose masks are kept; context windows use several in one run."""
CONTINUED_BELOW = 0.97
"""A run that starts below this share of sigma_max continues an earlier one (Wan 2.2's second
expert, a partial denoise): the picture is laid out already, so that it needs no warm-up."""
# A kernel that fails in this many layers fails in all: no further warnings and attempts.
FAILURES_TO_GIVE_UP = 3

_WANTED = {CROSS_ATTENTION, "warm-up", "dense layer"}
_compiled: set[tuple[Any, ...]] = set()


class SparseSession:
    """Runs the calls that the plan covers, and says why the others run dense.

    Args:
        plan: matches the model (checked before).
        options: what the user asked for.
        min_tokens: grids with fewer visual tokens run dense.
        on_unsupported: "dense" or "error", for what the kernels cannot serve.
        node_id: for the counters.
        plan_name: the plan's file, for the counters.
        tell: (text, logging level) -> shows a line of text to the user.
    """

    def __init__(
        self,
        plan: Plan,
        options: RuntimeOptions,
        *,
        min_tokens: int,
        on_unsupported: str,
        node_id: str | None = None,
        plan_name: str = "",
        tell: Callable[[str, int], None] = lambda text, level: logger.log(level, "PARO: %s", text),
    ):
        self._plan = plan
        self._asked = options
        self._options = options
        self._min_tokens = min_tokens
        self._on_unsupported = on_unsupported
        self._node_id = node_id
        self._plan_name = plan_name
        self._runtimes: OrderedDict[tuple[Any, ...], PlanRuntime] = OrderedDict()
        self._tell = tell
        self._handled: Counter[tuple[tuple[Any, ...], int, float]] = Counter()
        self._failed_layers: set[int] = set()
        self._sigmas: list[float] = []
        self._announced: set[str] = set()
        self._stats: RunStats | None = None
        self._timer = StepTimer()

    def copy(self) -> SparseSession:
        """The same plan and settings at work apart from this session, telling nobody."""
        return SparseSession(
            self._plan,
            self._asked,
            min_tokens=self._min_tokens,
            on_unsupported=self._on_unsupported,
            node_id=self._node_id,
            plan_name=self._plan_name,
            tell=lambda text, level: logger.debug("PARO: %s", text),
        )

    def begin_run(self, sigmas: list[float], model: Any) -> None:
        """Start counting, and read off the schedule how much of it is warm-up."""
        self._stats = self._new_stats()
        self._failed_layers.clear()
        # Samplers that add noise back go up; the bands only need to know which levels occur.
        self._sigmas = sorted((s for s in sigmas if s > 0), reverse=True)
        sigma_max = float(model.get_model_object("model_sampling").sigma_max)
        continued = bool(self._sigmas) and self._sigmas[0] < CONTINUED_BELOW * sigma_max
        self._options = replace(self._asked, warmup=0.0) if continued else self._asked
        for key, runtime in self._runtimes.items():
            if self._sigmas and key[-1] == self._options.warmup:
                runtime.begin_run(self._sigmas)
        self._handled.clear()
        self._timer.begin_run(round(len(set(self._sigmas)) * (1 - self._options.warmup)))

    def end_run(self, failed: bool) -> None:
        """Log and publish the summary of the run."""
        stats, self._stats = self._stats, None
        if stats is not None and not failed:
            stats.time = self._timer.end_run()
            stats.density_sum = self._density_sum()
        for runtime in self._runtimes.values():
            runtime.end_run()
        if stats is None:
            return
        stats.publish(failed)
        if stats.calls:
            self._tell(stats.line(), logging.INFO)
        elif stats.forwards:
            self._tell(
                f"no visual attention call arrived in {stats.forwards} forwards: this variant of "
                "the model, or another node, does not use ComfyUI's attention hook",
                logging.WARNING,
            )

    def begin_forward(self) -> None:
        """Count a forward; a sampler that bypasses ComfyUI's own run is counted from here."""
        if self._stats is None:
            self._stats = self._new_stats()
        self._stats.forwards += 1
        self._timer.begin_forward()

    def cannot_serve(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Why the kernels cannot run this; on a CPU the PyTorch reference serves everything."""
        if device.type == "cpu":
            return None
        reason = unavailable_reason(device, dtype, head_dim)
        if reason is not None and self._on_unsupported == "error":
            raise RuntimeError(f"PARO cannot run here: {reason}")
        return reason

    def attend(self, call: VisualCall) -> Tensor | str:
        """The sparse attention of this call, or why it runs dense."""
        if call.tokens < self._min_tokens:
            return f"fewer than {self._min_tokens} tokens"
        if call.layer in self._failed_layers or len(self._failed_layers) >= FAILURES_TO_GIVE_UP:
            return "the kernel failed"
        sigma = call.sigma
        key, runtime = self._runtime(call)
        reason = runtime.is_dense(call.layer, sigma)
        if reason is not None:
            return reason
        self._announce_compilation(call)
        try:
            with self._timer.attention(sigma, call.q.device):
                out = runtime.attention(
                    call.layer, sigma, call.q, call.k, call.v,
                    dense_first=call.first, key_bias=call.key_bias,
                )  # fmt: skip
        except torch.cuda.OutOfMemoryError:
            raise  # ComfyUI frees memory and tells the user
        except Exception as error:
            if self._on_unsupported == "error" or self._on_cpu(call.q.device):
                raise
            self._failed_layers.add(call.layer)
            self._tell(
                f"layer {call.layer} runs dense, its kernel failed on "
                f"{tuple(call.q.shape)} {call.q.dtype}: {error}",
                logging.WARNING,
            )
            logger.debug("the kernel's error", exc_info=True)
            return "the kernel failed"
        self._handled[key, call.layer, sigma] += 1
        stats = self._stats
        if stats is not None:
            stats.handled += 1
            stats.kernel = stats.kernel or self._kernel_name(call.q, runtime.block)
            stats.details = stats.details or runtime.describe()
        return out

    def declined(self, reason: str) -> None:
        """Count a call that ran dense, and log each reason once unless the user asked for it."""
        if self._stats is not None:
            self._stats.count_dense(reason)
        if reason not in self._announced and reason not in _WANTED:
            self._announced.add(reason)
            logger.info("PARO: runs dense: %s", reason)

    def _new_stats(self) -> RunStats:
        return RunStats(node=str(self._node_id), kind="load", plan=self._plan_name)

    def _runtime(self, call: VisualCall) -> tuple[tuple[Any, ...], PlanRuntime]:
        key = (call.grid, call.q.device, self._options.warmup)
        runtime = self._runtimes.get(key)
        if runtime is None:
            grid = TokenGrid(*call.grid)
            runtime = PlanRuntime(self._plan, grid, self._options, call.q.device)
            runtime.begin_run(self._sigmas or [call.sigma])
            self._runtimes[key] = runtime
            logger.info("PARO: %s", runtime.describe())
            while len(self._runtimes) > KEPT_RUNTIMES:
                self._runtimes.popitem(last=False)
        self._runtimes.move_to_end(key)
        return key, runtime

    def _density_sum(self) -> float:
        """Sum of the executed densities of all handled calls.

        Read after the run, not during it: it waits for the device, and fetching a mask between two
        layers would throw away the one that is being prefetched.
        """
        known: dict[tuple[Any, ...], float] = {}
        total = 0.0
        for (key, layer, sigma), calls in self._handled.items():
            runtime = self._runtimes.get(key)
            if runtime is None:  # more grids than are kept
                total += self._options.density * calls
                continue
            mask = (key, layer, self._plan.bands.band_of(sigma))
            if mask not in known:
                known[mask] = runtime.mask(layer, sigma).density()
            total += known[mask] * calls
        return total

    def _announce_compilation(self, call: VisualCall) -> None:
        kind = (
            call.q.device, call.q.dtype, call.q.shape[-1],
            self._options.qk_bits, self._options.pv_bits, self._options.tail,
        )  # fmt: skip
        if call.q.device.type != "cuda" or kind in _compiled:
            return
        _compiled.add(kind)
        self._tell(
            "the first run on this card compiles the kernels (under 20 seconds, kept on disk)",
            logging.INFO,
        )

    @staticmethod
    def _on_cpu(device: torch.device) -> bool:
        """On a CPU the reference runs, which has no excuse to fail."""
        return device.type == "cpu"

    def _kernel_name(self, q: torch.Tensor, block: tuple[int, int]) -> str:
        qk_bits, pv_bits = self._options.qk_bits, self._options.pv_bits
        where = "reference on CPU" if q.device.type == "cpu" else "Triton"
        if runs_on_int4_units(q.device, q.shape[-1], block, qk_bits, pv_bits):
            where = "Triton on INT4 units"
        elif runs_on_fp4_units(q.device, q.shape[-1], block, qk_bits, pv_bits):
            where = "Triton on FP4 units"
        return f"QK {qk_bits} bits, PV {pv_bits} bits, {where}"
