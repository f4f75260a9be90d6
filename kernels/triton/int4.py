"""The INT4 kernel, where Triton can build it: it is written in Gluon, as Triton 3.6 has it."""

from __future__ import annotations

import importlib

from ..int4_launch import int4_serves

# What the kernel takes from Gluon, by module; another Triton may name it differently.
GLUON = "triton.experimental.gluon"
NEEDS = {
    GLUON: ("jit", "constexpr_function"),
    f"{GLUON}.language": ("DistributedLinearLayout", "NVMMADistributedLayout"),
    f"{GLUON}.language.nvidia.ampere": ("async_copy", "mma_v2"),
    f"{GLUON}.language.nvidia.ampere.async_copy": (
        "async_copy_global_to_shared", "commit_group", "wait_group",
    ),
}  # fmt: skip


def _gluon_has_it() -> bool:
    try:
        return all(
            hasattr(importlib.import_module(module), name)
            for module, names in NEEDS.items()
            for name in names
        )
    except Exception:  # a broken or foreign Triton is one without the kernel, whatever it raises
        return False


GLUON_SERVES = _gluon_has_it()

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
