"""Compiles the attention kernel for every architecture and reads its machine code: no GPU needed.

    make compile-report

For each architecture, head dimension and pair of bits: registers, stack (spilled bytes), shared
memory against what the architecture has, the matrix instructions by name, and the length of the
main loop. Writes out/bench/compile.json and prints a table; a kernel that does not fit is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _package import ROOT, load_package

load_package()

import triton  # noqa: E402
from paro_attention.kernels.key_packing import HIDING_BIAS  # noqa: E402
from paro_attention.kernels.launch import select_launch  # noqa: E402
from paro_attention.kernels.packed_layout import padded_head_dim  # noqa: E402
from paro_attention.kernels.triton.attention import attention_kernel  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Shared memory of one program, KiB (CUDA programming guide, table of compute capabilities).
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
BITS = ((8, 8), (8, 16), (16, 16), (4, 4))
HEAD_DIMS = (64, 96, 128, 256)
BLOCK = (64, 128)
MATRIX = re.compile(r"\b((?:[HIQ]G?MMA|UTC\w*MMA|OMMA)\S*)")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);")


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel: compute capability, head dimension, bits, and whether there are extra tokens."""

    capability: int
    head_dim: int
    qk_bits: int
    pv_bits: int
    extra: bool

    def __str__(self) -> str:
        tokens = "joint" if self.extra else "grid"
        bits = f"{self.qk_bits}/{self.pv_bits}"
        return f"sm_{self.capability:<4}{self.head_dim:>4} {bits:>6} {tokens:>6}"


def compiled(variant: Variant) -> Any:
    """The kernel of a variant, as Triton's compiler gives it."""
    capability = divmod(variant.capability, 10)
    width = padded_head_dim(variant.head_dim)
    launch = select_launch(BLOCK, width, variant.qk_bits, variant.pv_bits, capability)
    fp8 = variant.pv_bits == 8 and capability >= (8, 9)
    tma = launch.tma and variant.qk_bits == variant.pv_bits == 8
    low_v = "fp8e4nv" if fp8 else "i8"
    kinds = dict.fromkeys(("Q", "K", "V", "Out", "pooled_k", "pooled_v"), "*bf16")
    kinds |= dict.fromkeys(("permutation", "order_of_head", "row_offsets", "computed_bits"), "*i32")
    kinds |= dict.fromkeys(
        ("tail_bias", "key_bias", "q_scale", "k_scale", "v_scale", "v_low", "pooled_k_scale"),
        "*fp32",
    )
    kinds |= {"kv_indices": "*i16", "q8": "*i8", "k8": "*i8", "pooled_k8": "*i8"}
    kinds |= {"v8": f"*{low_v}", "pooled_v8": f"*{low_v}", "scale_log2": "fp32"}
    if tma:
        keys = f"tensordesc<i8[{launch.key_tile}, {width}]>"
        values = f"tensordesc<{low_v}[{width}, {launch.key_tile}]>"
        kinds |= {"k8": keys, "pooled_k8": keys, "v8": values, "pooled_v8": values}
    constants = {
        "HEAD_DIM": variant.head_dim, "D": width, "ALIGNMENT": 1,
        "QUERY_BLOCK": BLOCK[0], "KEY_BLOCK": BLOCK[1],
        "BM": launch.query_tile, "BN": launch.key_tile,
        "QK_BITS": variant.qk_bits, "PV_BITS": variant.pv_bits, "FP8": fp8, "TAIL": True,
        "TMA": tma, "EXTRA": variant.extra, "BIASED": variant.extra, "HIDING": HIDING_BIAS,
    }  # fmt: skip
    names = attention_kernel.arg_names
    signature = {n: "constexpr" if n in constants else kinds.get(n, "i32") for n in names}
    aligned = {n for n in names if signature[n].startswith("*") and n != "key_bias"}
    aligned |= {n for n in names if "_stride_" in n}
    attributes = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in aligned
    }
    source = ASTSource(attention_kernel, signature, constants, attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    options["maxnreg"] = launch.max_registers
    target = GPUTarget("cuda", variant.capability, 32)
    return triton.compile(source, target=target, options=options)


def read_machine_code(kernel: Any) -> dict[str, Any]:
    """Registers, stack, shared memory, matrix instructions and main loop of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([CUOBJDUMP, flag, file.name], capture_output=True, text=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0])
    return {
        "registers": registers,
        "stack_bytes": stack,
        "shared_bytes": int(kernel.metadata.shared),
        "matrix_instructions": matrix_instructions(code),
        "main_loop": main_loop_length(code),
    }


def matrix_instructions(code: str) -> dict[str, int]:
    """Matrix instructions of a disassembly by full name, with their number."""
    return dict(Counter(MATRIX.findall(code)).most_common())


def main_loop_length(code: str) -> int:
    """Instructions of the shortest loop that holds matrix instructions; 0 where there is none.

    The main loop is the tightest of them: the tail's and the ragged blocks' loops do more.
    """
    lines = [(int(address, 16), text) for address, text in INSTRUCTION.findall(code)]
    place = {address: index for index, (address, _) in enumerate(lines)}
    lengths = []
    for end, (address, text) in enumerate(lines):
        jump = re.search(r"\bBRA\S* (?:\S+, )?`?\(?(?:\.L\S+|0x([0-9a-f]+))", text)
        if jump is None or jump.group(1) is None or int(jump.group(1), 16) >= address:
            continue
        begin = place.get(int(jump.group(1), 16))
        if begin is not None and any(MATRIX.search(body) for _, body in lines[begin:end]):
            lengths.append(end - begin + 1)
    return min(lengths, default=0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench" / "compile.json")
    parser.add_argument("--capability", type=int, nargs="*", default=list(SHARED_KIB))
    parser.add_argument("--head-dim", type=int, nargs="*", default=list(HEAD_DIMS))
    given = parser.parse_args()
    rows, problems = [], []
    for capability in given.capability:
        for head_dim in given.head_dim:
            for qk_bits, pv_bits in BITS:
                for extra in (False, True):
                    variant = Variant(capability, head_dim, qk_bits, pv_bits, extra)
                    seen = read_machine_code(compiled(variant))
                    rows.append(asdict(variant) | seen)
                    names = " ".join(f"{n}x{k}" for k, n in seen["matrix_instructions"].items())
                    print(
                        f"{variant} regs {seen['registers']:3d} stack {seen['stack_bytes']:4d} "
                        f"shared {seen['shared_bytes'] / 1024:5.1f} KiB "
                        f"loop {seen['main_loop']:4d} {names}",
                        flush=True,
                    )
                    if seen["shared_bytes"] > SHARED_KIB[capability] * 1024:
                        problems.append(f"{variant}: more shared memory than the card has")
                    if not seen["matrix_instructions"]:
                        problems.append(f"{variant}: no matrix instructions")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"triton": triton.__version__, "block": BLOCK, "rows": rows}
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {given.out}")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
