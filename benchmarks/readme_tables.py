"""Writes the measured figures into README.md from benchmarks/results: ``make readme``.

Each section of the README between ``<!-- figures:NAME -->`` and ``<!-- /figures -->`` is replaced
by what the result file of that name says. ``--check`` changes nothing and fails where they differ.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
SECTION = re.compile(r"(<!-- figures:(\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
DENSITIES = (0.5, 0.3, 0.2, 0.1)
SHOWN_DENSITY = 0.02  # how far a random mask's density may lie from the one it is listed under


def attention_table(results: Path) -> str | None:
    """Whole-call speed-up over SDPA by bits and density, from attention-h100.json."""
    report = _read(results / "attention-h100.json")
    if report is None:
        return None
    rows = [row for row in report["rows"] if row["whole_call"]]
    dense = {_shape(row): row["ms"] for row in rows if not row["ours"]}
    groups: dict[tuple, dict[float, dict]] = {}
    for row in rows:
        if row["ours"] and row.get("tail", True):
            key = (_shape(row), f"{row['qk_bits']}/{row['pv_bits']}", tuple(row["block"]))
            for density in (1.0, *DENSITIES):
                if abs(row["density"] - density) < SHOWN_DENSITY:
                    groups.setdefault(key, {})[density] = row
    lines = [
        "| tokens, heads x dim | bits | block | SDPA | density 0.5 | 0.3 | 0.2 | 0.1 | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (shape, bits, block), by_density in groups.items():
        _, heads, tokens, head_dim = shape
        speeds = [
            f"{dense[shape] / by_density[d]['ms']:.2f}x" if d in by_density else ""
            for d in DENSITIES
        ]
        error = f"{by_density[1.0]['rel_err']:.3f}" if 1.0 in by_density else ""
        cells = [f"{tokens:,}, {heads} x {head_dim}", bits, f"{block[0]}x{block[1]}"]
        cells += [f"{dense[shape]:.2f} ms", *speeds, error]
        lines.append(f"| {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    lines += [
        "",
        f"{report['gpu']}, {versions}, commit `{report['commit']}`, `make bench`. Speed-up of the "
        "whole attention call (reorder, quantise, attend with the pooled tail, restore; bf16 in "
        "and out) over torch's default SDPA, launched in turn at sustained clocks. Error: at "
        "density 1, relative to float32 attention on random normal data.",
    ]
    return "\n".join(lines)


def demo_table(results: Path) -> str | None:
    """What the demo model's videos keep, from demo-h100.json."""
    report = _read(results / "demo-h100.json")
    if report is None:
        return None
    plain = {"orders": "fhw", "tail": False, "budget": "head", "shares": False, "warmup": 0}
    ours = {"orders": "tiles", "tail": True, "budget": "global", "shares": True, "warmup": 0}
    methods = [
        ("model's own order, blocks dropped", plain, 16),
        ("reordered, blocks dropped", plain | {"orders": "tiles"}, 16),
        ("reordered, pooled tail", plain | {"orders": "tiles", "tail": True}, 16),
        ("whole recipe", ours, 16),
        ("whole recipe, 8/8 bits", ours, 8),
        ("whole recipe, 4/4 bits", ours, 4),
    ]
    lines = [
        "| step error (PSNR) | " + " | ".join(f"density {d}" for d in DENSITIES) + " |",
        "|---|" + "---|" * len(DENSITIES),
    ]
    for name, fields, bits in methods:
        wanted = fields | {"qk_bits": bits, "pv_bits": bits}
        cells = [_demo_cell(report, wanted | {"density": d}) for d in DENSITIES]
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    frames, height, width = report["grid"]
    videos = report["runs"][0].get("videos")
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    lines += [
        "",
        f"Demo model, {frames}x{height}x{width} tokens, {report['steps']} steps, {videos} videos "
        f"of prompts and seeds that were not calibrated on, no dense warm-up; {report['device']}, "
        f"{versions}. Step error: relative error of the guided velocity on full attention's own "
        "trajectory. All rows: `benchmarks/results/demo-h100.json`, made by `make demo` on a GPU.",
    ]
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[Path], str | None]] = {
    "attention": attention_table,
    "demo": demo_table,
}


def filled(text: str, results: Path = RESULTS) -> str:
    """Return the README's text with every section made anew from the result files.

    A section whose result file is missing becomes empty.

    Raises:
        ValueError: a section has a name that no table goes by.
    """

    def section(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        if name not in SECTIONS:
            raise ValueError(f"figures must be one of {', '.join(SECTIONS)}, got {name}")
        table = SECTIONS[name](results)
        return begin + (f"{table}\n" if table else "") + end

    return SECTION.sub(section, text)


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _shape(row: dict[str, Any]) -> tuple[int, int, int, int]:
    return row["batch"], row["heads"], row["tokens"], row["head_dim"]


def _demo_cell(report: dict[str, Any], wanted: dict[str, Any]) -> str:
    for run in report["runs"]:
        if all(run[name] == value for name, value in wanted.items()):
            psnr = "identical" if run["psnr_db"] is None else f"{run['psnr_db']:.1f} dB"
            return f"{run['step_error']:.3f} ({psnr})"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where the README differs")
    check = parser.parse_args().check
    before = README.read_text(encoding="utf-8")
    after = filled(before)
    if check and before != after:
        sys.exit("README.md differs from benchmarks/results: run make readme")
    if not check:
        README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
