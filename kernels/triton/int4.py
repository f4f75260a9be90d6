"""The INT4 kernel, where Triton can build it: it is written in Gluon, as Triton 3.6 has it."""

from __future__ import annotations

from ..int4_launch import int4_serves
from .gluon_support import INT4_NEEDS, gluon_has

GLUON_SERVES = gluon_has(INT4_NEEDS)

if GLUON_SERVES:
    from .int4_attention import int4_attention
else:
    int4_attention = None


def int4_available(
    capability: tuple[int, int], head_dim: int, block: tuple[int, int] = (64, 64)
) -> bool:
    """Whether 4-bit attention runs on INT4 units: the card has them and Triton builds the kernel.

    ``head_dim`` is that of the inputs; ``block`` the (query, key) tokens of the mask.
    """
    return int4_attention is not None and int4_serves(capability, head_dim, block)
