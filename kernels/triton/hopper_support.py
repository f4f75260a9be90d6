"""Whether a call is the Hopper kernel's."""

from __future__ import annotations

from ..hopper_launch import hopper_serves
from ..packed_layout import padded_head_dim
from .gluon_support import HOPPER_NEEDS, gluon_has

GLUON_SERVES = gluon_has(HOPPER_NEEDS)


def hopper_available(
    capability: tuple[int, int],
    head_dim: int,
    block: tuple[int, int],
    qk_bits: int,
    pv_bits: int,
    fp8: bool,
    tail: bool,
) -> bool:
    """Whether a call is the Hopper kernel's and Triton builds it; ``head_dim`` of the inputs."""
    width = padded_head_dim(head_dim)
    return GLUON_SERVES and hopper_serves(capability, width, block, qk_bits, pv_bits, fp8, tail)
