"""Runs every case on every ComfyUI found and writes what was seen: ``make support``.

Writes docs/support.json and the section of README.md between ``<!-- support -->`` and
``<!-- /support -->``. A case that does not do what the tests ask of it is named, and nothing is
written then.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "docs" / "support.json"
README = ROOT / "README.md"
SECTION = re.compile(r"(<!-- support -->\n).*?(<!-- /support -->)", re.DOTALL)
EXACT = 1e-3

Row = dict[str, Any]


@dataclass
class Host:
    """What one ComfyUI showed.

    Attributes:
        version: of this ComfyUI.
        seen: answers by case; a case that it cannot run is not in there.
        classes: what the pack says of each of its classes of models.
        wrong: what a case did that it must not.
    """

    version: str
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: dict[str, dict[str, Any]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def visit(checkout: Path, cases: Iterable[Any], folder: Path) -> Host:
    """Run all cases in one ComfyUI, on the CPU."""
    from family_hosts import Worker

    source = (checkout / "comfyui_version.py").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "([^"]+)"', source)
    host = Host(version.group(1) if version else checkout.name)
    worker = Worker(checkout, "cpu", folder / f"{checkout.name}.log")
    try:
        host.classes = worker.ask("all", kind="classes")
        for case in cases:
            answer = worker.ask(case.name)
            if "skip" in answer:
                continue
            host.seen[case.name] = answer
            wrong = fault(case, answer)
            print(f"ComfyUI {host.version}, {case.name}: {wrong or 'as it should be'}", flush=True)
            if wrong:
                host.wrong.append(f"ComfyUI {host.version}, {case.name}: {wrong}")
    finally:
        worker.stop()
    return host


def fault(case: Any, answer: dict[str, Any]) -> str:
    """What is wrong with an answer; the tests look closer."""
    if "error" in answer:
        return answer["error"].strip().splitlines()[-1]
    if not case.family:
        right = answer["dense"] and case.reason in answer["reason"]
        right = right and answer.get("calls", case.calls) == case.calls
        return "" if right else f"is not dense for the reason {case.reason}"
    runs = [value for key, value in answer.items() if key.startswith(("exact", "cfg"))]
    if max(run["error"] for run in runs) >= EXACT:
        return "differs from the host"
    if case.reason:
        return ""
    if any(run["dense"] for run in runs):
        return f"has dense calls: {runs[0]['dense']}"
    visual = case.layers + case.repeats
    for run in runs:
        if run["handled"] != visual * run["forwards"]:
            return f"{run['handled']} calls in {run['forwards']} forwards, not {visual} in each"
    return "; ".join(answer["misplaced"])


def served_rows(names: Iterable[str], cases: list[Any], hosts: list[Host]) -> list[Row]:
    """One row a family; calls are those of a forward of the family's first case."""
    rows = []
    for name in names:
        own = [case for case in cases if case.family == name]
        plain = [case for case in own if not case.reason]
        answers = [host.seen[c.name] for host in hosts for c in plain if c.name in host.seen]
        first = _first(plain, hosts)
        runs = [answer[run] for answer in answers for run in ("exact_cfg_1", "exact_cfg_3")]
        rows.append(
            {
                "family": name,
                "classes": _classes(hosts, "family", name),
                "versions": [h.version for h in hosts if any(c.name in h.seen for c in plain)],
                "head_dim": sorted({answer["head_dim"] for answer in answers}),
                "sparse_calls": first["exact_cfg_1"]["handled"] // first["exact_cfg_1"]["forwards"],
                "calls": int(first["calls"]),
                "max_rel_err": float(f"{max(run['error'] for run in runs):.0e}"),
                "note": "; ".join(dict.fromkeys(case.note for case in own if case.note)),
            }
        )
    return rows


def dense_rows(cases: list[Any], hosts: list[Host]) -> list[Row]:
    """One row a reason; a variant that only some versions keep from the hook has its own."""
    found: dict[str, Row] = {}

    def add(reason: str, model_class: str, version: str) -> None:
        row = found.setdefault(
            reason,
            {
                "family": "", "classes": [], "versions": [], "head_dim": [], "sparse_calls": 0,
                "calls": 0, "max_rel_err": None, "note": reason,
            },
        )  # fmt: skip
        for key, value in (("classes", model_class), ("versions", version)):
            if value not in row[key]:
                row[key].append(value)

    for host in hosts:
        for name, seen in host.classes.items():
            if seen["reason"]:
                add(seen["reason"], name, host.version)
        for case in cases:
            if not case.family and case.name in host.seen:
                _, _, reason = host.seen[case.name]["reason"].partition(": ")
                add(reason, case.model_class, host.version)
    return list(found.values())


def _first(cases: list[Any], hosts: list[Host]) -> dict[str, Any]:
    return next(host.seen[case.name] for case in cases for host in hosts if case.name in host.seen)


def _classes(hosts: list[Host], key: str, value: str) -> list[str]:
    names = [n for host in hosts for n, seen in host.classes.items() if seen[key] == value]
    return list(dict.fromkeys(names))


def section(rows: list[Row]) -> str:
    """The README's section."""
    served = [row for row in rows if row["family"]]
    dense = [row for row in rows if not row["family"]]
    worst = max(row["max_rel_err"] for row in served)
    versions = sorted({v for row in served for v in row["versions"]}, key=_order)
    lines = [
        "| family | ComfyUI | its model classes | head dim | sparse calls | note |",
        "|---|---|---|---|---|---|",
    ]
    for row in served:
        cells = [
            row["family"],
            ", ".join(row["versions"]),
            ", ".join(row["classes"]),
            ", ".join(str(dim) for dim in row["head_dim"]),
            f"{row['sparse_calls']} / {row['calls']}",
            row["note"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"Seen in ComfyUI {' and '.join(versions)} with tiny models of random weights on a CPU "
        "(`make support`), not with the real checkpoints. Sparse calls: the attention calls of one "
        "forward of the tiny model that PARO takes, of all that go through ComfyUI's attention "
        "hook; the others are cross-attention, text alone, sound and the like. With density 1 "
        "and 16 bits the sampled latents differed from ComfyUI's own by at most "
        f"{worst:.0e} of their norm.".replace("e-0", "e-"),
        "",
        "These run dense, as without PARO, and the node says why:",
        "",
        "| model classes | ComfyUI | why |",
        "|---|---|---|",
    ]
    for row in dense:
        cells = [", ".join(row["classes"]), ", ".join(row["versions"]), row["note"]]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("| any other | | PARO does not know it |")
    return "\n".join(lines) + "\n"


def filled(text: str, rows: list[Row]) -> str:
    """The README with its section as these rows say."""
    new, count = SECTION.subn(lambda found: found[1] + section(rows) + found[2], text)
    if count != 1:
        raise ValueError(f"README.md must have one <!-- support --> section, got {count}")
    return new


def _order(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def main() -> int:
    sys.path[:0] = [str(ROOT / "tests" / "helpers"), str(Path(__file__).parent)]
    from comfy_hosts import HOSTS
    from family_cases import CASES
    from worker import load_pack

    load_pack()
    from paro_attention.nodes.families import FAMILIES

    if not HOSTS:
        print("no ComfyUI found; set COMFYUI_PATH to one or more checkouts", file=sys.stderr)
        return 1
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(HOSTS)) as pool:
        visits = pool.map(lambda checkout: visit(checkout, CASES, Path(folder)), HOSTS)
        hosts = sorted(visits, key=lambda host: _order(host.version))
    wrong = [line for host in hosts for line in host.wrong]
    names = list(dict.fromkeys(family.name for family in FAMILIES))
    tested = {c.family for host in hosts for c in CASES if c.name in host.seen and not c.reason}
    wrong += [f"{name}: no case ran" for name in names if name not in tested]
    for host in hosts:
        neither = [n for n, seen in host.classes.items() if not seen["family"] + seen["reason"]]
        wrong += [f"ComfyUI {host.version}, {n}: neither served nor named" for n in neither]
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
        return 1
    rows = served_rows(names, CASES, hosts) + dense_rows(CASES, hosts)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    README.write_text(filled(README.read_text(encoding="utf-8"), rows), encoding="utf-8")
    cases = sum(len(host.seen) for host in hosts)
    print(f"{len(names)} families, {cases} cases, {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
