"""Reports in benchmarks/results, and what is made of them asks of their rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DENSITIES = (0.5, 0.3, 0.2, 0.1)
ALL_DENSITIES = (1.0, *DENSITIES)
SHOWN_DENSITY = 0.02  # how far a random mask's density may lie from the one it is listed under


def write(path: Path, report: dict[str, Any]) -> None:
    """Writes a report under another name and renames it: an interrupt leaves the earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def dense_ms(rows: list[dict[str, Any]]) -> dict[tuple[int, ...], float]:
    """Milliseconds of torch's default SDPA by shape."""
    return {shape_of(row): row["ms"] for row in rows if row.get("baseline", not row["ours"])}


def listed_density(row: dict[str, Any]) -> float | None:
    """The density that a row is listed under; None where it lies under none."""
    near = [d for d in ALL_DENSITIES if abs(row["density"] - d) < SHOWN_DENSITY]
    return near[0] if near else None


def measured_on(
    report: dict[str, Any], rows: Sequence[dict[str, Any]] = (), made_by: str = "make bench"
) -> str:
    """Card, versions, commit and timing, and commit and timing of rows that are another run's."""
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    own = {row["tokens"] for row in rows if "commit" not in row}
    kept: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        if "commit" in row:
            name = f"{row['tokens']:,}"
            if row["tokens"] in own:
                name += f" ({row['heads']} x {row['head_dim']})"
            kept.setdefault(_origin(row), {})[name] = row["tokens"]
    others = "".join(
        f"; {', '.join(sorted(sizes, key=lambda name: sizes[name]))} tokens: commit `{commit}`, "
        f"{timing}"
        for (commit, timing), sizes in kept.items()
    )
    commit, timing = _origin(report)
    return f"{report['gpu']}, {versions}, `{made_by}`, commit `{commit}`, {timing}{others}"


def _origin(part: dict[str, Any]) -> tuple[str, str]:
    """Commit and timing of a report or of a row; before there were words for it, in turn."""
    return part["commit"], part.get("timing", "one launch of each in turn")


def shape_of(row: dict[str, Any]) -> tuple[int, int, int, int, int]:
    """(batch, heads, tokens, extra tokens among them, head_dim); early rows have no extra ones."""
    extra_tokens = row.get("extra_tokens", 0)
    return row["batch"], row["heads"], row["tokens"], extra_tokens, row["head_dim"]
