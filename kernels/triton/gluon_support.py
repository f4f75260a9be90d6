"""Whether this Triton's Gluon has what a kernel needs; other versions name things differently."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence

GLUON = "triton.experimental.gluon"
# What each kernel takes, by module.
INT4_NEEDS = {
    GLUON: ("jit", "constexpr_function"),
    f"{GLUON}.language": ("DistributedLinearLayout", "NVMMADistributedLayout"),
    f"{GLUON}.language.nvidia.ampere": ("async_copy", "mma_v2"),
    f"{GLUON}.language.nvidia.ampere.async_copy": (
        "async_copy_global_to_shared", "commit_group", "wait_group",
    ),
}  # fmt: skip
# The Hopper kernel takes its barrier from the INT4 kernel's file.
HOPPER_NEEDS = INT4_NEEDS | {
    f"{GLUON}.language": (
        "DistributedLinearLayout", "DotOperandLayout", "NVMMADistributedLayout",
        "NVMMASharedLayout",
    ),
    f"{GLUON}.language.nvidia.hopper": (
        "fence_async_shared", "mbarrier", "tma", "warpgroup_mma", "warpgroup_mma_wait",
    ),
    f"{GLUON}.language.nvidia.hopper.mbarrier": ("expect", "init", "invalidate", "wait"),
    f"{GLUON}.language.nvidia.hopper.tma": ("async_copy_global_to_shared",),
    f"{GLUON}.nvidia.hopper": ("TensorDescriptor",),
}  # fmt: skip


# Hopper's kernel of 16-bit values, whose warps do different things, takes these besides.
PARTITION_NEEDS = {
    f"{GLUON}.language": ("inline_asm_elementwise", "multiple_of", "warp_specialize"),
    f"{GLUON}.language.nvidia.hopper.mbarrier": ("arrive",),
}


def gluon_has_partitions() -> bool:
    """Whether ``warp_specialize`` takes what each partition runs as one list, as of Triton 3.6."""
    if not gluon_has(PARTITION_NEEDS):
        return False
    language = importlib.import_module(f"{GLUON}.language")
    return "functions_and_args" in inspect.signature(language.warp_specialize).parameters


def gluon_has(needs: Mapping[str, Sequence[str]]) -> bool:
    """Whether Triton can be asked for these names, by module."""
    try:
        return all(
            hasattr(importlib.import_module(module), name)
            for module, names in needs.items()
            for name in names
        )
    except Exception:  # a broken or foreign Triton is one without the kernel, whatever it raises
        return False
