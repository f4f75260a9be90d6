"""Whether a call is one of the Hopper kernels'."""

from __future__ import annotations

from ..hopper_launch import hopper_serves
from ..hopper_wide_launch import wide_serves
from ..packed_layout import padded_head_dim
from .gluon_support import HOPPER_NEEDS, gluon_has, gluon_has_partitions

GLUON_SERVES = gluon_has(HOPPER_NEEDS)
GLUON_SERVES_WIDE = GLUON_SERVES and gluon_has_partitions()


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


def wide_available(
    capability: tuple[int, int], head_dim: int, block: tuple[int, int], qk_bits: int, pv_bits: int
) -> bool:
    """Whether a call is the kernel of 16-bit values' and Triton builds it."""
    width = padded_head_dim(head_dim)
    return GLUON_SERVES_WIDE and wide_serves(capability, width, block, qk_bits, pv_bits)
