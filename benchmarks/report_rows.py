"""What the tables of the README ask of a report in benchmarks/results and of its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DENSITIES = (0.5, 0.3, 0.2, 0.1)
ALL_DENSITIES = (1.0, *DENSITIES)
SHOWN_DENSITY = 0.02  # how far a random mask's density may lie from the one it is listed under


def read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def dense_ms(rows: list[dict[str, Any]]) -> dict[tuple[int, int, int, int], float]:
    """Milliseconds of torch's default SDPA by shape."""
    return {shape_of(row): row["ms"] for row in rows if row.get("baseline", not row["ours"])}


def listed_density(row: dict[str, Any]) -> float | None:
    """The density that a row is listed under; None where it lies under none."""
    near = [d for d in ALL_DENSITIES if abs(row["density"] - d) < SHOWN_DENSITY]
    return near[0] if near else None


def measured_on(
    report: dict[str, Any], rows: Iterable[dict[str, Any]] = (), made_by: str = "make bench"
) -> str:
    """Card, versions and commit, and that of the sizes whose rows name another."""
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    kept: dict[str, set[str]] = {}
    for row in rows:
        if "commit" in row:
            kept.setdefault(row["commit"], set()).add(f"{row['tokens']:,}")
    others = "".join(
        f", {' and '.join(sorted(tokens))} tokens `{commit}`" for commit, tokens in kept.items()
    )
    return f"{report['gpu']}, {versions}, commit `{report['commit']}`{others}, `{made_by}`"


def shape_of(row: dict[str, Any]) -> tuple[int, int, int, int]:
    return row["batch"], row["heads"], row["tokens"], row["head_dim"]
