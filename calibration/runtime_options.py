"""What the user sets for a run that follows a plan."""

from __future__ import annotations

from dataclasses import dataclass

from ..kernels.quantization import BITS
from .block_layout import checked_block

BUDGETS = ("global", "head")


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """What the user sets.

    Attributes:
        density: computed / all blocks, mean over the run's sparse steps, in (0, 1].
        qk_bits, pv_bits: 16, 8 or 4.
        tail: let pooled keys and values stand for skipped blocks.
        budget: "global" (heads share one budget, by output error with the tail on and by mass
            without) or "head" (each has the same density).
        shares: noisy bands take more of the density; False: all bands the same.
        warmup: fraction of the steps that run dense first, 0..1.
        dense_layers: layers that always run dense.
        implementation: as `sparse_attention`.
        block: (query, key) tokens of a block; the plan's when None.
    """

    density: float = 0.3
    qk_bits: int = 8
    pv_bits: int = 8
    tail: bool = True
    budget: str = "global"
    shares: bool = True
    warmup: float = 0.15
    dense_layers: tuple[int, ...] = ()
    implementation: str = "auto"
    block: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density}")
        for name in ("qk_bits", "pv_bits"):
            if getattr(self, name) not in BITS:
                raise ValueError(f"{name} must be one of {BITS}, got {getattr(self, name)!r}")
        if self.budget not in BUDGETS:
            raise ValueError(f"budget must be one of {BUDGETS}, got {self.budget!r}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must lie in 0..1, got {self.warmup}")
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in self.dense_layers):
            raise ValueError(f"dense_layers must be layer indices, got {self.dense_layers!r}")
        if self.block is not None:
            checked_block(self.block)
