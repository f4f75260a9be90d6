"""Shapes that a report of benchmarks/attention.py keeps of an earlier one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench_cases import Shape

PARTS = ("gpu", "versions", "commit", "rows", "overhead", "not_run")


def earlier_report(path: Path) -> dict[str, Any]:
    """A report that shapes may be kept of.

    Raises:
        ValueError: the file cannot be read, or is not a report of benchmarks/attention.py.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--keep takes an earlier report, but {path}: {error}") from error
    lacking = [part for part in PARTS if not isinstance(report, dict) or part not in report]
    if lacking:
        raise ValueError(
            f"--keep takes a report of benchmarks/attention.py, but {path} has no {lacking[0]!r}"
        )
    return report


def with_kept(report: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """A report with the shapes of an earlier one that it lacks.

    Their rows name their commit and how they were timed, where the report does so.

    Raises:
        ValueError: the reports are of different cards or versions.
    """
    for part in ("gpu", "versions"):
        if report[part] != earlier[part]:
            raise ValueError(
                f"shapes can be kept of the same {part} only: this run has {report[part]}, the "
                f"earlier report {earlier[part]}; run without --keep"
            )
    here = {_shape_of(row) for row in report["rows"]}
    kept = {_shape_of(row) for row in earlier["rows"]} - here
    origin = {name: earlier[name] for name in ("commit", "timing") if name in earlier}

    def both(part: str) -> list[dict[str, Any]]:
        return report[part] + [origin | row for row in earlier[part] if _shape_of(row) in kept]

    run, left = {str(shape) for shape in here}, {str(shape) for shape in kept}
    not_run = [row for row in report["not_run"] if row["shape"] not in left]
    not_run += [row for row in earlier["not_run"] if row["shape"] not in run and row not in not_run]
    return report | {"rows": both("rows"), "overhead": both("overhead"), "not_run": not_run}


def _shape_of(row: dict[str, Any]) -> Shape:
    names = ("heads", "tokens", "head_dim", "extra_tokens", "batch")
    return Shape(**{name: row[name] for name in names})
