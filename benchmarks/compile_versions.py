"""Compiles the kernels with other Tritons than the installed one, without a GPU.

    make compile-versions

Installs each Triton into a folder of its own under the temporary directory, puts that folder in
front of the installed packages and compiles there, in a process of its own, the launches of a few
calls for a card with INT4 units, for Hopper and for sm_120: plain Triton, and what that Triton's
Gluon can build. Writes benchmarks/results/compile_versions.json, a row per version and kernel; what
does not compile is an error.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _package import ROOT

RESULT = ROOT / "benchmarks" / "results" / "compile_versions.json"
VERSIONS = ("3.3.1", "3.6.0", "newest")
CAPABILITIES = (86, 90, 120)
HEAD_DIM = 128
BLOCK = (64, 128)


def compile_here(capabilities: list[int]) -> list[dict[str, Any]]:
    """What this process's Triton makes of the launches: a row per architecture and kernel."""
    import triton
    from compile_cases import USUAL_BITS, Case, cases_for, is_gluon, launches_of
    from compile_report import compiled

    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for capability in capabilities:
        seen = set()
        for case in cases_for(capability, [HEAD_DIM]):
            if case.block != BLOCK or (isinstance(case, Case) and case.bits not in USUAL_BITS):
                continue
            for launch in launches_of(case):
                if launch in seen:
                    continue
                seen.add(launch)
                name = launch.kernel.__name__
                row = rows.setdefault(
                    (capability, name),
                    {"triton": triton.__version__, "arch": f"sm_{capability}", "kernel": name}
                    | {"gluon": is_gluon(launch.kernel), "launches": 0, "failed": {}},
                )
                try:
                    assert compiled(launch, capability).asm["cubin"]
                    row["launches"] += 1
                except Exception as problem:  # whatever a compiler raises, it is the finding
                    text = f"{type(problem).__name__}: {problem}".strip().splitlines()
                    row["failed"][str(case)] = " ".join(text)[:200]
    return list(rows.values())


def compile_with(version: str, folder: Path, capabilities: list[int]) -> list[dict[str, Any]]:
    """The rows of another Triton; ``newest`` is what pip finds."""
    wanted = "triton" if version == "newest" else f"triton=={version}"
    target = folder / version
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--target", str(target), wanted], check=True)
    out = folder / f"{version}.json"
    environment = os.environ | {
        "PYTHONPATH": str(target),
        "TRITON_CACHE_DIR": str(folder / "cache"),
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, __file__, "--inside", str(out), "--capability"]
    subprocess.run([*command, *map(str, capabilities)], check=True, env=environment)
    return json.loads(out.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triton", nargs="*", default=list(VERSIONS))
    parser.add_argument("--capability", type=int, nargs="*", default=list(CAPABILITIES))
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--inside", type=Path, help="compile with the Triton that is imported")
    given = parser.parse_args()
    if given.inside:
        given.inside.write_text(json.dumps(compile_here(given.capability)))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for version in given.triton:
            found = compile_with(version, Path(folder), given.capability)
            rows += found
            for row in found:
                failed = "; ".join(f"{case}: {why}" for case, why in row["failed"].items())
                print(*(row[name] for name in ("triton", "arch", "kernel", "launches")), failed)
    given.json.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    if any(row["failed"] for row in rows):
        sys.exit("not everything compiled")


if __name__ == "__main__":
    main()
