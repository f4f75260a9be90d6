"""Writes the measured figures into README.md from benchmarks/results: ``make readme``.

Each section of the README between ``<!-- figures:NAME -->`` and ``<!-- /figures -->`` is replaced
by what the result file of that name says. ``--check`` changes nothing and fails where they differ.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report_rows import (
    ALL_DENSITIES,
    DENSITIES,
    dense_ms,
    listed_density,
    measured_on,
    read,
    shape_of,
)

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
SECTION = re.compile(r"(<!-- figures:(\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)


def attention_table(results: Path) -> str | None:
    """Whole-call speed-up over SDPA by bits, masks and density, from attention-h100.json."""
    report = read(results / "attention-h100.json")
    if report is None:
        return None
    rows = [row for row in report["rows"] if row["whole_call"]]
    dense = dense_ms(rows)
    groups: dict[tuple, dict[float, dict]] = {}
    for row in rows:
        if row["ours"] and row.get("tail", True):
            bits = f"{row['qk_bits']}/{row['pv_bits']}"
            if row.get("masks") == "demo":
                bits += ", demo masks"
            key = (shape_of(row), bits, tuple(row["block"]))
            if (density := listed_density(row)) is not None:
                groups.setdefault(key, {})[density] = row
    lines = [
        "| tokens, heads x dim | bits | block | SDPA | density 0.5 | 0.3 | 0.2 | 0.1 | error |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (shape, bits, block), by_density in groups.items():
        _, heads, tokens, extra, head_dim = shape
        speeds = [
            f"{dense[shape] / by_density[d]['ms']:.2f}x" if d in by_density else ""
            for d in DENSITIES
        ]
        error = f"{by_density[1.0]['rel_err']:.3f}" if 1.0 in by_density else ""
        length = f"{tokens:,}" + (f" ({extra} text)" if extra else "")
        cells = [f"{length}, {heads} x {head_dim}", bits, f"{block[0]}x{block[1]}"]
        cells += [f"{dense[shape]:.2f} ms", *speeds, error]
        lines.append(f"| {' | '.join(cells)} |")
    uneven = (
        " Demo masks: those of the demo model's heads, evaluated on a grid of that many tokens."
        if any("demo masks" in bits for _, bits, _ in groups)
        else ""
    )
    lines += [
        "",
        f"{measured_on(report, rows)}. Speed-up of the whole attention call (reorder, quantise, "
        "attend with the pooled tail, restore; bf16 in and out) over torch's default SDPA. Error: "
        f"at density 1, relative to float32 attention on random normal data.{uneven}",
    ]
    return "\n".join(lines)


def peer_table(results: Path) -> str | None:
    """Other packages beside ours, at the shape where most of them ran."""
    report = _report_with(results, "peers")
    if report is None:
        return None
    pure = [row for row in report["rows"] if row.get("extra_tokens") == 0]
    pure = pure or report["rows"]
    names: dict[tuple, set[str]] = {shape_of(row): set() for row in pure}
    for row in pure:
        names[shape_of(row)].add(row["name"])
    first = max(names, key=lambda shape: (len(names[shape]), shape[1] * shape[2]))
    rows = [row for row in pure if shape_of(row) == first]
    ours = [
        row for row in rows
        if row["ours"] and row["whole_call"] and row["tail"] and row["masks"] == "random"
        and row["block"] == [64, 128] and (row["qk_bits"], row["pv_bits"]) == (8, 8)
    ]  # fmt: skip
    groups: dict[str, dict[float, dict]] = {}
    for row in [row for row in rows if not row["ours"]] + ours:
        name = "**PARO 8/8, 64x128**" if row["ours"] else row["name"].split(", density")[0]
        if (density := listed_density(row)) is not None:
            groups.setdefault(name, {})[density] = row
    lines = [
        "| ms of a call at density | 1 | 0.5 | 0.3 | 0.2 | 0.1 | error | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, by_density in groups.items():
        cells = [f"{by_density[d]['ms']:.2f}" if d in by_density else "" for d in ALL_DENSITIES]
        row = next(iter(by_density.values()))
        error = "" if row["rel_err"] is None or row.get("own_blocks") else f"{row['rel_err']:.3f}"
        lines.append(f"| {' | '.join([name, *cells, error, row.get('note', '')])} |")
    ran = {row.get("peer") for row in rows}
    absent = [
        f"{peer['name']} ({peer['reason']})"
        for peer in report["peers"]
        if peer["reason"] and peer["key"] not in ran
    ]
    _, heads, tokens, _, head_dim = first
    lines += ["", f"{tokens:,} tokens, {heads} x {head_dim}; {measured_on(report, rows)}."]
    if absent:
        lines[-1] += f" Not run: {'; '.join(absent)}."
    return "\n".join(lines)


def kernel_table(results: Path) -> str | None:
    """The kernel without its pre-pass, and what the pre-pass costs."""
    report = _report_with(results, "overhead")
    if report is None:
        return None
    groups: dict[tuple, dict[float, dict]] = {}
    for row in report["rows"]:
        if row["ours"] and not row["whole_call"] and (density := listed_density(row)) is not None:
            bits = f"{row['qk_bits']}/{row['pv_bits']}"
            groups.setdefault((shape_of(row), bits, tuple(row["block"])), {})[density] = row
    lines = []
    if groups:
        lines += [
            "| kernel alone, TFLOP/s at density | block | 1 | 0.5 | 0.3 | 0.2 | 0.1 |",
            "|---|---|---|---|---|---|---|",
        ]
    for (shape, bits, block), by_density in groups.items():
        cells = [f"{by_density[d]['tflops']:.0f}" if d in by_density else "" for d in ALL_DENSITIES]
        size = f"{shape[2]:,} tokens, {bits}"
        lines.append(f"| {' | '.join([size, f'{block[0]}x{block[1]}', *cells])} |")
    lines += [
        *([""] if groups else []),
        "| of dense SDPA's time | pre-pass and epilogue | reorder in the call | reorder alone |",
        "|---|---|---|---|",
    ]
    for row in report["overhead"]:
        shares = ("prepass_and_epilogue_share", "reorder_in_call_share", "reorder_alone_share")
        size = f"{row['tokens']:,}, {row['heads']} x {row['head_dim']}"
        lines.append(f"| {size} | {' | '.join(f'{row[name]:.1%}' for name in shares)} |")
    lines += [
        "",
        f"{measured_on(report, report['overhead'])}. TFLOP/s count the whole map times the "
        "density. Reorder in the call: pre-pass and kernel with each head's order against the "
        "model's. Reorder alone: rows of q, k and v gathered, against copied.",
    ]
    return "\n".join(lines)


def _report_with(results: Path, part: str) -> dict[str, Any] | None:
    """The report of attention.py where it has the part, which older ones lack."""
    report = read(results / "attention-h100.json")
    return report if report and report.get(part) else None


def curve_table(results: Path) -> str | None:
    """Time of a call at equal error of attention's output, from error-curve-h100.json."""
    report = read(results / "error-curve-h100.json")
    if report is None:
        return None
    families = list(dict.fromkeys(point["family"] for point in report["points"]))
    lines = [
        f"| error | {' | '.join(families)} |",
        "|---|" + "---|" * len(families),
    ]
    for row in report["equal_error"]:
        cells = []
        for family in families:
            ms = row["ms"][family]
            text = "" if ms is None else f"{ms:.2f} ms"
            cells.append(f"**{text}**" if family == row["best"] else text)
        lines.append(f"| {row['error']:.2f} | {' | '.join(cells)} |")
    absent = [f"{peer['name']} ({peer['reason']})" for peer in report["not_run"]]
    lines += [
        "",
        f"Dense SDPA: {report['sdpa_ms']:.2f} ms at {report['tokens']:,} tokens. Error: of the "
        "demo model's attention, mean over heads, layers and steps, 8/8 bits, tail on. Empty: not "
        "reached at any density that was run. "
        f"{measured_on(report, made_by='benchmarks/error_curve.py')}."
        + (
            f" PARO's times are those of commit `{report['retimed']}` with random masks, as shares "
            "of SDPA's."
            if "retimed" in report
            else ""
        )
        + (f" Not run: {'; '.join(absent)}." if absent else ""),
    ]
    return "\n".join(lines)


def demo_table(results: Path) -> str | None:
    """What the demo model's videos keep, from demo-h100.json."""
    report = read(results / "demo-h100.json")
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
    "peers": peer_table,
    "kernel": kernel_table,
    "curve": curve_table,
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
