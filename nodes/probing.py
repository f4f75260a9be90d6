"""Compares Load PARO's attention with full attention, call by call, while a model samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attention_call import VisualCall
from .sparse_session import SparseSession

PROBED = "probed"
PASSED_OVER = "step not probed"


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far one layer's attention output is from full attention, over all probed calls.

    Attributes:
        layer: index.
        error: relative error of the output, all heads together.
        cosine: cosine similarity of the outputs.
        worst_head: the head with the greatest relative error.
        worst_error: its error.
        calls: number of calls that were compared.
    """

    layer: int
    error: float
    cosine: float
    worst_head: int
    worst_error: float
    calls: int


class ProbeHandler:
    """Computes every visual call of some steps twice; the sampling follows full attention.

    Errors of one layer then do not add to those of the next, and every step starts from the state
    that full attention would have given it.

    Args:
        session: Load PARO's, with its plan and settings; it is used for the sparse results alone.
        steps: number of steps to compare at, evenly spaced.
        check_interrupt: raises where the user stopped the run.
    """

    def __init__(
        self,
        session: SparseSession,
        steps: int,
        check_interrupt: Callable[[], None] = lambda: None,
    ):
        self._session = session
        self._steps = steps
        self._check_interrupt = check_interrupt
        self._sigmas: list[float] = []
        self._chosen: set[int] = set()
        # Per layer: squared error, energy of both outputs, their product, [4, H] each.
        self._sums: dict[int, Tensor] = {}
        self._calls: Counter[int] = Counter()
        self.dense: Counter[str] = Counter()

    def begin_run(self, sigmas: list[float], model: Any) -> None:
        """Choose the steps to compare at."""
        self._session.begin_run(sigmas, model)
        self._sigmas = sigmas
        count = min(self._steps, len(sigmas))
        self._chosen = {int((i + 0.5) * len(sigmas) / count) for i in range(count)}

    def end_run(self, failed: bool) -> None:
        """Nothing is published: this run was not sampled with PARO."""

    def begin_forward(self) -> None:
        """Nothing to count."""

    def cannot_serve(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """As Load PARO."""
        return self._session.cannot_serve(device, dtype, head_dim)

    def attend(self, call: VisualCall) -> str:
        """Compare, where this step is one to compare at; the call always runs dense."""
        distances = [abs(sigma - call.sigma) for sigma in self._sigmas]
        if distances and distances.index(min(distances)) not in self._chosen:
            return PASSED_OVER
        self._check_interrupt()
        sparse = self._session.attend(call)
        if isinstance(sparse, str):
            return sparse
        sums = _sums(sparse, full_attention(call))
        before = self._sums.get(call.layer)
        self._sums[call.layer] = sums if before is None else before + sums
        self._calls[call.layer] += 1
        return PROBED

    def declined(self, reason: str) -> None:
        """Count a call that was not compared."""
        if reason not in (PROBED, PASSED_OVER):
            self.dense[reason] += 1

    def results(self) -> list[LayerError]:
        """The layers that were compared, greatest error first."""
        found = []
        for layer, sums in self._sums.items():
            error, energy, other, product = sums.double().cpu()
            heads = (error / energy.clamp_min(1e-30)).sqrt()
            total = (error.sum() / energy.sum().clamp_min(1e-30)).sqrt()
            norms = (energy.sum() * other.sum()).sqrt().clamp_min(1e-30)
            worst = int(heads.argmax())
            found.append(
                LayerError(
                    layer=layer,
                    error=float(total),
                    cosine=float(product.sum() / norms),
                    worst_head=worst,
                    worst_error=float(heads[worst]),
                    calls=self._calls[layer],
                )
            )
        return sorted(found, key=lambda row: -row.error)


def full_attention(call: VisualCall) -> Tensor:
    """Full attention of a call with its key bias, [B, H, S, D]."""
    bias = call.key_bias
    mask = None if bias is None else bias[:, None, None, :].to(call.q.dtype)
    return torch.nn.functional.scaled_dot_product_attention(call.q, call.k, call.v, mask)


def _sums(sparse: Tensor, dense: Tensor) -> Tensor:
    """float32 [4, H] on the device: squared error, energy of dense and sparse, their product."""
    sparse, dense = sparse.float(), dense.float()
    parts = ((sparse - dense).square(), dense.square(), sparse.square(), sparse * dense)
    return torch.stack([part.sum((0, 2, 3)) for part in parts])
