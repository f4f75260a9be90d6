"""Kernels for sm_90 with barriers in shared memory: prints PTX and GPU IR as JSON, by name.

Run as a script, in a process without Triton's interpreter. Without the Gluon that the Hopper
kernels need, it prints an empty object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from compile_cases import Case, cases_for, launches_of
from compile_report import compiled
from paro_attention.kernels.triton.hopper_support import GLUON_SERVES

CAPABILITY = 90


def texts_of(kernel: Any) -> dict[str, str]:
    return {kind: kernel.asm[kind] for kind in ("ptx", "ttgir")}


def hopper_kernels() -> dict[str, dict[str, str]]:
    calls = {
        case: launch
        for case in cases_for(CAPABILITY, [64, 128])
        if isinstance(case, Case) and case.on_hopper_kernel and not case.portable
        # The kernel of 16-bit values leaves things out without a tail, and adds nothing.
        if case.tail or case.bits[1] == 8
        for launch in launches_of(case)
        if launch.kernel.__name__ in ("hopper_attention_kernel", "hopper_wide_kernel")
    }
    return {str(case): texts_of(compiled(launch, CAPABILITY)) for case, launch in calls.items()}


def spreading_kernels() -> dict[str, dict[str, str]]:
    """A wait and then a change of layout, which takes the barrier's bytes, for both ways."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile as compile_source
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon._runtime import GluonASTSource
    from triton.experimental.gluon.language.nvidia.hopper import mbarrier

    @gluon.jit
    def spread(numbers, INVALIDATE: gl.constexpr):
        full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
        mbarrier.init(full, count=1)
        mbarrier.arrive(full, count=1)
        mbarrier.wait(full, 0)
        if INVALIDATE:
            mbarrier.invalidate(full)
        ONE: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
        FOUR: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
        loaded = gl.load(numbers + gl.arange(0, 512, ONE))
        gl.store(numbers + gl.arange(0, 512, FOUR), gl.convert_layout(loaded, FOUR))

    signature = {"numbers": "*fp32", "INVALIDATE": "constexpr"}
    texts = {}
    for name, invalidate in (("invalidated", True), ("left valid", False)):
        source = GluonASTSource(spread, signature, {"INVALIDATE": invalidate}, {})
        target = GPUTarget("cuda", CAPABILITY, 32)
        texts[name] = texts_of(compile_source(source, target=target, options={"num_warps": 4}))
    return texts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(hopper_kernels() | spreading_kernels() if GLUON_SERVES else {}))
