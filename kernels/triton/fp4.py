"""The FP4 kernel, where Triton multiplies block-scaled FP4 natively: sm_120, from Triton 3.6 on."""

from __future__ import annotations

import triton

from ..fp4_launch import fp4_serves
from .fp4_attention import fp4_attention

__all__ = ["fp4_attention", "fp4_available"]
MIN_TRITON = (3, 6)


def triton_serves(version: str) -> bool:
    """Whether this Triton has ``tl.dot_scaled`` with e4m3 scales for sm_120."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    return numbers >= MIN_TRITON


def fp4_available(
    capability: tuple[int, int], head_dim: int, block: tuple[int, int] = (64, 64)
) -> bool:
    """Whether 4-bit attention runs on FP4 units: the card has them and Triton builds the kernel.

    ``head_dim`` is that of the inputs; ``block`` the (query, key) tokens of the mask.
    """
    return triton_serves(triton.__version__) and fp4_serves(capability, head_dim, block)
