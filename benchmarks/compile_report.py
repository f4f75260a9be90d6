"""Compiles every launch that a call makes, for every architecture, and reads its machine code.

    make compile-report

No GPU is needed: the calls are made on CPU tensors with recorders in place of the kernels
(``compile_cases.py``), and what was recorded is compiled for each architecture. For each launch:
registers, spilled bytes (stack), shared memory and matrix instructions by name. Prints a table and
writes benchmarks/results/compile_report.json; ``--kernel NAME`` and ``--capability CC`` take a
part, which goes to ``--out``. A spill is an error, and so are more shared memory than the card has
and another instruction than INT4's own in the INT4 kernel; those of ``KNOWN`` are only said. Never
known is a uniform register that is read before it is written (``sass_flow.py``), a barrier that is
stored over while it may be valid (``ptx_barriers.py``), and one that nobody waits for
(``idle_barriers.py``): such a row alone has ``undefined``, ``reused`` and ``idle``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from _package import ROOT
from compile_cases import HEAD_DIMS, Launch, cases_for, is_gluon, launches_of
from idle_barriers import idle_barriers
from ptx_barriers import reused_barriers
from sass_flow import undefined_uniforms
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

RESULT = ROOT / "benchmarks" / "results" / "compile_report.json"
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Shared memory of one program, KiB (CUDA programming guide, table of compute capabilities).
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
MATRIX = re.compile(r"\b((?:[HIQ]G?MMA|UTC\w*MMA|OMMA)\S*)")
NATIVE_INT4 = "IMMA.16864"
NATIVE_FP4 = "OMMA.SF.16864.F32.E2M1.E2M1.UE4M3.4X"

# Problems that are known, by architecture, kernel and a part of the launch. Keys in 16 bits and
# values in fewer take a whole block at once, which at 256 channels and 128 keys does not fit into
# 99 KiB. What avoids the spills halves the tile or the programs.
KNOWN = (
    ("sm_86", "attention_kernel", r"head_dim 256, bits 16/[84], blocks 64x128, grid"),
    ("sm_89", "attention_kernel", r"head_dim 256, bits 16/[84], blocks 64x128, grid"),
    ("sm_120", "attention_kernel", r"head_dim 256, bits 16/[84], blocks 64x128, grid"),
    ("sm_86", "profile_kernel", ""),
    ("sm_89", "profile_kernel", ""),
    ("sm_90", "attention_kernel", r"head_dim 128, bits (16|4)/8, blocks 64x128, joint"),
    ("sm_90", "attention_kernel", r"head_dim 256, bits (16|8|4)/8, blocks 64x128"),
    ("sm_90", "attention_kernel", r"head_dim 64, bits 8/8, blocks 64x128, grid"),
    ("sm_90", "attention_kernel", r"bits 8/8, blocks 64x64, joint"),
    ("sm_90", "hopper_attention_kernel", r"head_dim (64|96|128), "),
    ("sm_90", "hopper_wide_kernel", r"head_dim (64|96|128), bits (8|16)/16, .*joint"),
    ("sm_90", "hopper_wide_kernel", r"head_dim (96|128), bits (8|16)/16, .*grid"),
)
MOST_KNOWN_BYTES = 100
NEVER_KNOWN = {"undefined", "reused", "idle"}


def compiled(launch: Launch, capability: int) -> Any:
    """The kernel of a launch, as Triton's compiler gives it."""
    kind = ASTSource
    if is_gluon(launch.kernel):
        from triton.experimental.gluon._runtime import GluonASTSource as kind
    attributes = {(place,): [["tt.divisibility", 16]] for place in launch.aligned}
    source = kind(launch.kernel, dict(launch.signature), dict(launch.constants), attributes)
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options=dict(launch.options))


def read_machine_code(kernel: Any) -> dict[str, Any]:
    """Registers, spilled bytes, shared memory and matrix instructions of a compiled kernel.

    ``undefined`` besides, if some path reads a uniform register that it does not write: where;
    ``reused``, if barriers may be valid where they are stored over: which; and ``idle``, if
    barriers are initialised and not used: which.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    shared = int(kernel.metadata.shared)
    mma = matrix_instructions(code)
    row = {"registers": registers, "spill_bytes": stack, "shared": shared, "mma": mma}
    never = {
        "undefined": undefined_uniforms(code),
        "reused": reused_barriers(kernel.asm["ptx"]),
        "idle": idle_barriers(kernel.asm["ttgir"]),
    }
    return row | {name: found for name, found in never.items() if found}


def matrix_instructions(code: str) -> dict[str, int]:
    """Matrix instructions of a disassembly by full name, with their number."""
    return dict(Counter(MATRIX.findall(code)).most_common())


def new_problems(rows: list[dict[str, Any]]) -> list[str]:
    """Problems of launches that are not known, spill more than those, or are never known."""
    return [
        problem
        for row in rows
        if row["spill_bytes"] > MOST_KNOWN_BYTES or row.keys() & NEVER_KNOWN or not is_known(row)
        for problem in problems_of(row)
    ]


def is_known(row: dict[str, Any]) -> bool:
    return any(
        (arch, kernel) == (row["arch"], row["kernel"]) and re.search(launch, row["launch"])
        for arch, kernel, launch in KNOWN
    )


def problems_of(row: dict[str, Any]) -> list[str]:
    """What a shipped launch must not have."""
    found = []
    if row["shared"] > SHARED_KIB[int(row["arch"][3:])] * 1024:
        found.append(f"{row['shared']} bytes of shared memory, more than the card has")
    if row["spill_bytes"]:
        found.append(f"{row['spill_bytes']} bytes spilled")
    if reads := row.get("undefined"):
        found.append(f"{len(reads)} reads of undefined uniform registers, first {reads[0]}")
    if barriers := row.get("reused"):
        found.append(f"{len(barriers)} barriers stored over while valid, first {barriers[0]}")
    if barriers := row.get("idle"):
        found.append(f"barriers that are initialised and not used: {', '.join(barriers)}")
    integer = [name for name in row["mma"] if name.startswith("IMMA")]
    if row["kernel"] == "int4_attention_kernel" and not (
        {name.split(".", 2)[2] for name in integer} == {"S4.S4", "U4.U4"}
        and all(name.startswith(NATIVE_INT4) for name in integer)
    ):
        found.append(f"not INT4's own instructions: {', '.join(integer)}")
    if "attention" in row["kernel"] and not row["mma"]:
        found.append("no matrix instructions")
    found += fp4_problems(row)
    return [f"{row['arch']} {row['kernel']} ({row['launch']}): {what}" for what in found]


def fp4_problems(row: dict[str, Any]) -> list[str]:
    """What a launch of the FP4 kernel must not have; in 16 bits it multiplies the means."""
    if row["kernel"] != "fp4_attention_kernel":
        return []
    found = []
    own = {name for name in row["mma"] if not name.startswith("HMMA")}
    if own != {NATIVE_FP4}:
        found.append(f"not FP4's own instructions: {', '.join(row['mma'])}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", "--json", type=Path, default=RESULT)
    parser.add_argument("--capability", type=int, nargs="*", default=list(SHARED_KIB))
    parser.add_argument("--head-dim", type=int, nargs="*", default=list(HEAD_DIMS))
    parser.add_argument("--kernel", default="", help="only kernels with this in their names")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for capability in given.capability:
        seen: set[Launch] = set()
        for case in cases_for(capability, given.head_dim):
            for launch in launches_of(case):
                name = launch.kernel.__name__
                if launch in seen or given.kernel not in name:
                    continue
                seen.add(launch)
                row = {"kernel": name, "arch": f"sm_{capability}", "launch": str(case)}
                row |= read_machine_code(compiled(launch, capability))
                rows.append(row)
                mma = " ".join(f"{n}x{k}" for n, k in row["mma"].items())
                print(
                    f"{row['arch']:7} {name:24} {row['launch']:46} regs {row['registers']:3d} "
                    f"spill {row['spill_bytes']:4d} shared {row['shared'] / 1024:5.1f} KiB {mma}",
                    flush=True,
                )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    given.out.write_text(f"[\n{lines}\n]\n")
    print(f"triton {triton.__version__}: wrote {given.out}")
    print(*(problem for row in rows for problem in problems_of(row)), sep="\n")
    problems = new_problems(rows)
    if problems:
        sys.exit("\n".join(["not known before:", *problems]))


if __name__ == "__main__":
    main()
