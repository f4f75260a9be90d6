"""Writes web/js/paro_speed_table.js, the measured attention times that Load PARO shows.

    python benchmarks/speed_table.py

Only whole calls with the tail on and random masks are taken, as shares of the time of torch's own
attention.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from report_rows import dense_ms, shape_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ("attention-h100.json",)
MODULE = ROOT / "web" / "js" / "paro_speed_table.js"


def measured(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry per shape, block and bits: [density, time / dense time], ascending."""
    entries: dict[tuple[Any, ...], list[list[float]]] = {}
    dense = dense_ms(report["rows"])
    for row in report["rows"]:
        if not row["ours"] or not row["tail"] or not row["whole_call"]:
            continue
        if row.get("masks", "random") != "random":
            continue
        key = (row["tokens"], row["head_dim"], *row["block"], row["qk_bits"], row["pv_bits"])
        point = [round(row["density"], 4), round(row["ms"] / dense[shape_of(row)], 4)]
        entries.setdefault(key, []).append(point)
    names = ("tokens", "head_dim", "query_block", "key_block", "qk_bits", "pv_bits")
    return [
        {**dict(zip(names, key, strict=True)), "times": sorted(points)}
        for key, points in sorted(entries.items())
        if len(points) > 1
    ]


def module_text() -> str:
    """The JavaScript module for all results."""
    cards = []
    for name in RESULTS:
        report = json.loads((ROOT / "benchmarks" / "results" / name).read_text())
        rows = ",\n".join(f"    {json.dumps(row)}" for row in measured(report))
        cards.append(f"  {json.dumps(report['gpu'])}: [\n{rows},\n  ],\n")
    return (
        "// Written by benchmarks/speed_table.py from benchmarks/results; do not edit.\n"
        "// times: [density, time as a share of dense attention] of whole calls, tail on.\n"
        f"export const MEASURED = {{\n{''.join(cards)}}};\n"
    )


if __name__ == "__main__":
    MODULE.write_text(module_text())
    print(f"wrote {MODULE.relative_to(ROOT)}")
