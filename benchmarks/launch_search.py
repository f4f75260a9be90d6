"""Times launches of the attention kernel and writes the best into kernels/launch_table.py.

    python benchmarks/launch_search.py --rows 8/8:64x128,8/16:64x128

For each row (bits, block, head dimension) the launches near the present one run on the card, the
kernel without its pre-pass, at four densities. What fails against float32 rows, or does not fit the
card, is listed and left out. The fastest launch becomes the row, one for each range of densities
where another is faster by more than the noise; its figures stand beside it. Rows of the table for
other cards and calls stay.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _package import ROOT
from attention import BLOCKS
from bench_cases import Shape, random_inputs, random_mask, relative_error
from compile_ahead import Variant, compile_ahead
from gated_functions import ERROR_BUDGET
from kernel_parts import call, parts, with_launch
from paro_attention.kernels.launch import select_launch
from paro_attention.kernels.launch_table import FULL, SEARCHED, LaunchConfig, LaunchRow
from report_rows import write
from timing import machine, sustained_ms

TABLE = ROOT / "kernels" / "launch_table.py"
DENSITIES = (1.0, 0.5, 0.2, 0.1)
NOISE = 0.02  # a launch must win by more than this to take a range of densities for itself


@dataclass(frozen=True, slots=True)
class Key:
    """The calls that a search is for."""

    bits: tuple[int, int]
    block: tuple[int, int]
    head_dim: int = 128

    def __str__(self) -> str:
        return (
            f"{self.bits[0]}/{self.bits[1]}:{self.block[0]}x{self.block[1]}"
            + f":{self.head_dim}" * (self.head_dim != 128)
        )

    @classmethod
    def parse(cls, text: str) -> Key:
        """From "8/8:64x128", or "8/8:64x128:64" with the head dimension."""
        bits, block, *rest = text.split(":")
        first, second = (tuple(map(int, part)) for part in (bits.split("/"), block.split("x")))
        return cls((first[0], first[1]), (second[0], second[1]), int(rest[0]) if rest else 128)


MAIN = (
    *(Key((8, 8), block) for block in BLOCKS),
    Key((8, 16), (64, 128)),
    Key((16, 16), (64, 128)),
    Key((8, 8), (64, 128), 64),
)


def candidates(key: Key, capability: tuple[int, int]) -> list[LaunchConfig]:
    """Launches near the present one, which comes first.

    128 query rows take four or eight warps, 64 take four; two or three stages; with and without a
    cap of registers that lets three programs of four warps share a multiprocessor; with and without
    the copy engine where there is one.
    """
    present = select_launch(key.block, key.head_dim, *key.bits, capability)
    shapes = [(64, 4), (128, 4), (128, 8)]
    tiles = [(rows, warps) for rows, warps in shapes if key.block[0] % rows == 0]
    low_bits = key.bits[1] < 16
    key_tiles = [key.block[1]] if low_bits else sorted({min(key.block[1], n) for n in (64, 128)})
    found = [present]
    for (rows, warps), keys, stages, cap in product(tiles, key_tiles, (2, 3), (168, None)):
        if cap is None or warps == 4:
            found.append(
                replace(
                    present,
                    query_tile=rows,
                    key_tile=keys,
                    num_warps=warps,
                    num_stages=stages,
                    max_registers=cap,
                )
            )
    if present.paired:
        found.append(replace(present, paired=False))
    if present.tma:
        # Two blocks a step need the copy engine.
        found.append(replace(present, tma=False, paired=False))
    return list(dict.fromkeys(found))


Times = dict[LaunchConfig, dict[float, float]]  # milliseconds by density


def timed(key: Key, launches: Sequence[LaunchConfig], seconds: float) -> tuple[Times, list[dict]]:
    """Milliseconds of each launch's kernel alone by density, and what could not be timed."""
    shape = Shape(12 if key.head_dim == 128 else 24, 32768, key.head_dim)
    inputs = random_inputs(shape, "cuda")
    masks = {d: random_mask(shape.heads, shape.tokens, key.block, d) for d in DENSITIES}
    functions: dict[str, Callable[[], object]] = {}
    problems = []
    for number, launch in enumerate(launches):
        try:
            for density, mask in masks.items():
                with with_launch(launch):
                    taken = parts(call(inputs, mask, key.bits))
                error = relative_error(
                    taken.out, inputs.q, inputs.k, inputs.v, mask, inputs.permutation, True
                )
                if not error <= ERROR_BUDGET[key.bits] * 1.3:
                    raise ValueError(f"relative error {error:.4f} at density {density}")
                functions[f"{number} {density}"] = taken.attend
        except Exception as problem:
            reason = f"{type(problem).__name__}: {problem}".splitlines()[0][:160]
            print(f"{key} {launch}: {reason}", flush=True)
            problems.append({"row": str(key), "launch": str(launch), "reason": reason})
            functions = {n: f for n, f in functions.items() if n.split()[0] != str(number)}
    ms = sustained_ms(functions, seconds) if functions else {}
    times: Times = {}
    for name, value in ms.items():
        number, density = name.split()
        times.setdefault(launches[int(number)], {})[float(density)] = value
    return times, problems


def chosen(times: Mapping[LaunchConfig, Mapping[float, float]]) -> dict[float, LaunchConfig]:
    """The launch for each density: the best over all, except where another wins clearly."""
    best = {d: min(ms[d] for ms in times.values()) for d in next(iter(times.values()))}
    overall = min(times, key=lambda launch: sum(times[launch][d] / best[d] for d in best))
    return {
        d: overall
        if times[overall][d] <= best[d] * (1 + NOISE)
        else min(times, key=lambda launch: times[launch][d])
        for d in best
    }


def table_rows(
    key: Key, times: Mapping[LaunchConfig, Mapping[float, float]], architecture: int, flops: float
) -> list[LaunchRow]:
    """Rows of the table: neighbouring densities with one launch share a row."""
    launch_at = chosen(times)
    ranked = sorted(launch_at)
    rows: list[LaunchRow] = []
    start = 0
    for index, density in enumerate(ranked):
        last = index + 1 == len(ranked)
        if not last and launch_at[ranked[index + 1]] == launch_at[density]:
            continue
        launch, inside = launch_at[density], ranked[start : index + 1]
        low = FULL[0] if start == 0 else rows[-1].densities[1]
        high = FULL[1] if last else round(math.sqrt(density * ranked[index + 1]), 3)
        measured = tuple((d, round(flops * d / times[launch][d] / 1e9)) for d in reversed(inside))
        rows.append(
            LaunchRow(
                (architecture,),
                (key.head_dim,),
                (key.bits[0],),
                (key.bits[1],),
                (key.block[0],),
                (key.block[1],),
                (low, high),
                launch,
                measured,
            )
        )
        start = index + 1
    return rows


def merged(present: Sequence[LaunchRow], found: Sequence[LaunchRow]) -> list[LaunchRow]:
    """The rows found, and those of other calls that were there before."""

    def calls(row: LaunchRow) -> tuple:
        return tuple(getattr(row, field.name) for field in fields(row)[:6])

    new = {calls(row) for row in found}
    return [*found, *(row for row in present if calls(row) not in new)]


def rewritten(text: str, name: str, kind: str, rows: Sequence[Any]) -> str:
    """The table's source with the rows between the markers ``begin`` and ``end`` NAME replaced."""
    lines = [f"{name}: tuple[{kind}, ...] = ("]
    for row in rows:
        lines += [f"    {kind}(", *(f"        {part}," for part in _arguments(row)), "    ),"]
    body = "\n".join([*lines, ")"]) if rows else lines[0] + ")"
    before, rest = text.split(f"# begin {name}\n")
    _, behind = rest.split(f"\n# end {name}")
    return f"{before}# begin {name}\n{body}\n# end {name}{behind}"


def _arguments(row: Any) -> list[str]:
    """``name=value`` of the fields that are not at their defaults."""
    return [
        f"{field.name}={_literal(getattr(row, field.name))}"
        for field in fields(row)
        if field.default is MISSING or getattr(row, field.name) != field.default
    ]


def _literal(value: Any) -> str:
    """A value as the table has it: of a launch, the fields without defaults by place."""
    if not isinstance(value, LaunchConfig):
        return repr(value)
    placed = [repr(getattr(value, f.name)) for f in fields(value) if f.default is MISSING]
    named = _arguments(value)[len(placed) :]
    return f"LaunchConfig({', '.join([*placed, *named])})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", help=f"such as {MAIN[0]}; default: {','.join(map(str, MAIN))}")
    parser.add_argument("--table", type=Path, default=TABLE, help="where the table is written")
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "bench" / "launch-search.json")
    parser.add_argument("--seconds", type=float, default=2.0, help="least timed seconds per row")
    parser.add_argument("--workers", type=int, default=14, help="processes that compile ahead")
    parser.add_argument("--commit", default=None, help="commit to record where there is no git")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/launch_search.py needs a CUDA GPU; this machine has none")
    begin = time.monotonic()
    torch.manual_seed(0)
    keys = [Key.parse(text) for text in given.rows.split(",")] if given.rows else list(MAIN)
    capability = torch.cuda.get_device_capability()
    todo = {key: candidates(key, capability) for key in keys}
    compile_ahead(
        (
            Variant(key.head_dim, key.block, *key.bits, launch=launch)
            for key, launches in todo.items()
            for launch in launches
        ),
        given.workers,
    )
    print(f"compiled after {time.monotonic() - begin:.0f} s", flush=True)
    found: list[LaunchRow] = []
    report: dict[str, Any] = machine(given.commit) | {"rows": [], "not_run": []}
    for key, launches in todo.items():
        times, problems = timed(key, launches, given.seconds)
        report["not_run"] += problems
        if not times:
            continue
        heads = 12 if key.head_dim == 128 else 24
        flops = Shape(heads, 32768, key.head_dim).flops
        rows = table_rows(key, times, capability[0] * 10 + capability[1], flops)
        found += rows
        for launch, ms in times.items():
            tflops = {d: round(flops * d / value / 1e9, 1) for d, value in ms.items()}
            settings = {f.name: getattr(launch, f.name) for f in fields(launch)}
            report["rows"].append({"row": str(key), "launch": settings, "tflops": tflops})
            mark = "*" if launch in chosen(times).values() else " "
            print(f"{mark} {key} {settings} {tflops}", flush=True)
        print(f"{key} after {time.monotonic() - begin:.0f} s", flush=True)
    write(given.json, report)
    rows = merged(SEARCHED, found)
    given.table.write_text(rewritten(TABLE.read_text(), "SEARCHED", "LaunchRow", rows))
    print(f"wrote {given.table} and {given.json}")


if __name__ == "__main__":
    main()
