"""Time of a call against the error of attention's output: ``python benchmarks/error_curve.py``.

Errors are those of the demo model's own attention, recorded on full attention's trajectory: mean
over probed steps, layers, heads and videos of ||out - full|| / ||full||, 8/8 bits, tail on, heads
sharing one budget by output error, the same density at every step. Times are of whole calls at the
main shape of attention.py, with the masks of the same heads at the same density and block. Peers
that choose their own blocks run on the same tensors, in the model's order and, as their users may,
in tiles of 4x4x4 tokens; that order is not charged to their time.

``--retime REPORT`` runs nothing: it gives our points of an earlier run the times of a report of
attention.py, as shares of dense attention's, where only the kernels have changed since.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from _package import ROOT
from attention import BLOCKS, SHAPES
from bench_cases import random_inputs
from compile_ahead import Variant, compile_ahead
from demo_masks import TWO_PROMPTS, DemoHeads
from kernel_parts import call
from launch_search import TABLE, rewritten
from paro_attention.calibration import PlanRuntime
from paro_attention.calibration.metrics import relative_error
from paro_attention.calibration.token_order import grid_permutation, inverse_permutation
from paro_attention.demo.experiment import Experiment
from paro_attention.demo.measure import Probe, mean_layer_error, probe
from paro_attention.demo.settings import Scale, recipe
from paro_attention.demo.wan import WanModel, load_demo_model
from paro_attention.kernels.launch_table import BlockRow
from peers import BASELINE, PEERS, Peer
from report_rows import write
from timing import machine, sustained_ms
from torch import Tensor

DENSITIES = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1)
LEVELS = (0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16)
TILES = "4x4x4"
SCALE = replace(TWO_PROMPTS, videos=2, velocity_videos=1, attention_videos=2)


@dataclass(slots=True)
class Point:
    """One setting: its mean error on the demo model, and the time of a call at the main shape.

    ``density`` is the one asked for; ``kept`` what the masks of the demo's calls computed, and
    ``timed`` what that of the timed call did, where known.
    """

    family: str
    density: float
    error: float
    ms: float = math.nan
    block: tuple[int, int] | None = None
    kept: float | None = None
    timed: float | None = None


def our_point(
    experiment: Experiment, heads: DemoHeads, probes: Sequence[Probe], density: float
) -> Point:
    """Our error at a density, with the block that the plan was calibrated with."""
    setting = recipe(density, qk_bits=8, pv_bits=8, shares=False)
    runtime = experiment.runtime(heads.plan, setting)
    block = heads.plan.block
    error = mean_layer_error(probes, runtime)
    kept = _density(probes, runtime)
    return Point(f"PARO {block[0]}x{block[1]}", density, error, block=block, kept=kept)


def _density(probes: Sequence[Probe], runtime: PlanRuntime) -> float:
    kept = [
        runtime.mask(layer, at.sigma).density() for at in probes for layer in range(len(at.inputs))
    ]
    return sum(kept) / len(kept)


def peer_error(
    probes: Sequence[Probe],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    permutation: Tensor | None,
) -> float:
    """Mean error of a function over the recorded calls, with its tokens in another order."""
    values = []
    for at in probes:
        for inputs, expected in zip(at.inputs, at.outputs, strict=True):
            q, k, v = inputs
            if permutation is not None:
                q, k, v = (x[:, :, permutation] for x in (q, k, v))
            out = attend(q, k, v)
            if permutation is not None:
                out = out[:, :, inverse_permutation(permutation)]
            values.append(relative_error(out.to(expected.dtype), expected, dims=(2, 3)))
    return float(torch.stack(values).mean())


def peer_points(experiment: Experiment, peer: Peer, probes: Sequence[Probe]) -> list[Point]:
    """A peer's errors, its tokens in the model's order and in tiles."""
    tiles = grid_permutation(TILES, experiment.grid).to(experiment.device)
    points = []
    for family, permutation in ((peer.name, None), (f"{peer.name}, {TILES} tiles", tiles)):
        for density in DENSITIES:

            def attend(q: Tensor, k: Tensor, v: Tensor, density: float = density) -> Tensor:
                return peer.bind(q, k, v, None, density)()

            points.append(Point(family, density, peer_error(probes, attend, permutation)))
    return points


def time_at_error(points: Iterable[Point], error: float) -> float | None:
    """Milliseconds at which a family reaches an error, None where it reaches it at no density.

    Between measured settings: linear in the logarithm of the error. An error above all that were
    measured takes the fastest setting.
    """
    ranked = sorted(points, key=lambda point: point.ms)
    best: float | None = None
    for point in ranked:
        if point.error <= error:
            best = point.ms
            break
    for fast, slow in pairwise(ranked):
        if fast.error > error >= slow.error:
            share = math.log(fast.error / error) / math.log(fast.error / slow.error)
            between = fast.ms + share * (slow.ms - fast.ms)
            best = between if best is None else min(best, between)
    return best


def equal_error(points: Sequence[Point], levels: Sequence[float] = LEVELS) -> list[dict]:
    """For each error: every family's milliseconds, and the family with the least."""
    families = list(dict.fromkeys(point.family for point in points))
    rows = []
    for level in levels:
        ms = {f: time_at_error([p for p in points if p.family == f], level) for f in families}
        reached = {family: value for family, value in ms.items() if value is not None}
        best = min(reached, key=lambda family: reached[family]) if reached else None
        rows.append({"error": level, "best": best, "ms": ms})
    return rows


def block_rows(
    points: Sequence[Point], rows: Sequence[dict], sdpa_ms: float, architecture: int
) -> list[BlockRow]:
    """For each error: our fastest block, the density at which it has that error, and its time."""
    found = []
    for row in rows:
        ours = {p.family: p for p in points if p.block is not None}
        reached = {f: ms for f, ms in row["ms"].items() if f in ours and ms is not None}
        if not reached:
            continue
        family = min(reached, key=lambda name: reached[name])
        ms, block = reached[family], ours[family].block
        assert block is not None
        # Time falls with density: the density between those of the settings around that time.
        line = sorted((p.ms, p.density) for p in points if p.family == family)
        density = float(np.interp(ms, [at for at, _ in line], [d for _, d in line]))
        share = round(ms / sdpa_ms, 3)
        found.append(BlockRow(architecture, row["error"], block, round(density, 3), share))
    return found


def points_of(report: dict) -> list[Point]:
    """The points of a report; JSON has no tuples."""
    return [
        Point(**fields | {"block": fields["block"] and tuple(fields["block"])})
        for fields in report["points"]
    ]


def retimed(report: dict, attention: dict) -> dict:
    """The report with our points' times from a report of attention.py, peers as they were.

    Times are taken as shares of dense attention's in their own runs, with random masks of the
    point's block and density; a point that has none there is left out.

    Raises:
        ValueError: ``attention`` has no time of dense attention at the report's length, or the
            reports are of different cards.
    """
    if attention["gpu"] != report["gpu"]:
        raise ValueError(
            f"attention must be of the report's card, {report['gpu']}, got {attention['gpu']}; "
            "run benchmarks/attention.py there"
        )
    rows = [row for row in attention["rows"] if row["tokens"] == report["tokens"]]
    dense = next((row["ms"] for row in rows if row.get("baseline")), None)
    if dense is None:
        raise ValueError(
            f"attention must have dense attention at {report['tokens']} tokens, got "
            f"{sorted({row['tokens'] for row in attention['rows']})}; run it at that length"
        )
    times = {
        (tuple(row["block"]), round(row["density"], 2)): row["ms"] / dense
        for row in rows
        if row["ours"] and row["whole_call"] and row["tail"] and row["masks"] == "random"
        and (row["qk_bits"], row["pv_bits"]) == (8, 8)
    }  # fmt: skip
    points = []
    for point in points_of(report):
        if point.block is not None:
            share = times.get((point.block, round(point.density, 2)))
            if share is None:
                continue
            point.ms, point.timed = share * report["sdpa_ms"], None
        points.append(point)
    return report | {
        "points": [asdict(point) for point in points],
        "equal_error": equal_error(points),
        "retimed": attention["commit"],
    }


def recorded(
    model: WanModel, scale: Scale, dtype: torch.dtype
) -> tuple[list[Probe], Callable[[tuple[int, int]], tuple[Experiment, DemoHeads]]]:
    """The test videos' calls, and a function that calibrates with a block."""
    first = Experiment(model, scale, dtype)
    probes = probe(first, first.sample(None, keep_states=True).states)

    def calibrated(block: tuple[int, int]) -> tuple[Experiment, DemoHeads]:
        experiment = Experiment(model, replace(scale, block=block), dtype)
        plans, _ = experiment.calibrate(["tiles"], lambda _: None)
        return experiment, DemoHeads(plans["tiles"])

    return probes, calibrated


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench" / "error-curve.json")
    parser.add_argument("--table", type=Path, help=f"launch table to write BLOCKS into ({TABLE})")
    every = ",".join(f"{query}x{key}" for query, key in BLOCKS)
    parser.add_argument("--blocks", default=every, help="our blocks, out of the default's")
    parser.add_argument("--seconds", type=float, default=4.0, help="least timed seconds")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile ahead")
    parser.add_argument("--commit", default=None, help="commit to record where there is no git")
    parser.add_argument("--retime", type=Path, help="report of attention.py; rewrites --out")
    given = parser.parse_args()
    if given.retime is not None:
        report = retimed(json.loads(given.out.read_text()), json.loads(given.retime.read_text()))
        _finish(report, given.out, given.table)
        return
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/error_curve.py needs a CUDA GPU; this machine has none")
    chosen = [block for block in BLOCKS if f"{block[0]}x{block[1]}" in given.blocks.split(",")]
    if not chosen:
        parser.error(f"--blocks must be out of {every}, got {given.blocks}")
    begin = time.monotonic()
    torch.manual_seed(0)
    shape = SHAPES["main"][0]
    compile_ahead((Variant(shape.head_dim, block, 8, 8) for block in chosen), given.workers)
    device = torch.device("cuda")
    probes, calibrated = recorded(load_demo_model(device, torch.float32), SCALE, torch.float16)
    print(f"recorded after {time.monotonic() - begin:.0f} s", flush=True)
    inputs = random_inputs(shape, device)
    functions: dict[str, Callable[[], object]] = {}
    points: list[Point] = []
    first: Experiment | None = None
    for block in chosen:
        experiment, heads = calibrated(block)
        first = first or experiment
        own_orders = replace(inputs, permutation=heads.permutation(shape, device))
        for density in DENSITIES:
            point = our_point(experiment, heads, probes, density)
            mask = heads.mask(shape, block, density, device)
            point.timed = mask.density()
            points.append(point)
            functions[_name(point)] = call(own_orders, mask, (8, 8))
        print(f"{block[0]}x{block[1]} after {time.monotonic() - begin:.0f} s", flush=True)
    assert first is not None
    capability, not_run = torch.cuda.get_device_capability(), []
    for peer in PEERS:
        if peer.name == BASELINE:
            functions[BASELINE] = peer.bind(inputs.q, inputs.k, inputs.v, None, 1.0)
        if not peer.own_blocks:
            continue
        reason = peer.available(capability, shape.head_dim)
        if reason is not None:
            print(f"{peer.name} not run: {reason}", flush=True)
            not_run.append({"name": peer.name, "reason": reason})
            continue
        try:
            points += peer_points(first, peer, probes)
        except Exception as error:  # another package's limits must not cost the whole run
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            print(f"{peer.name} failed: {reason}", flush=True)
            not_run.append({"name": peer.name, "reason": reason})
            continue
        for density in DENSITIES:
            name = _name(Point(peer.name, density, 0.0))
            functions[name] = peer.bind(inputs.q, inputs.k, inputs.v, None, density)
    timings = sustained_ms(functions, given.seconds)
    for point in points:
        point.ms = timings[_name(point)]
    report = machine(given.commit) | {
        "architecture": capability[0] * 10 + capability[1],
        "grid": list(SCALE.grid),
        "tokens": shape.tokens,
        "sdpa_ms": timings[BASELINE],
        "points": [asdict(point) for point in points],
        "equal_error": equal_error(points),
        "not_run": not_run,
        "seconds": round(time.monotonic() - begin, 1),
    }
    _finish(report, given.out, given.table)
    print(f"wrote {given.out} after {report['seconds']:.0f} s")


def _finish(report: dict, out: Path, table: Path | None) -> None:
    """Writes the report, and the blocks that were fastest into the launch table."""
    write(out, report)
    print_report(report)
    if table is not None:
        rows = block_rows(
            points_of(report), report["equal_error"], report["sdpa_ms"], report["architecture"]
        )
        table.write_text(rewritten(table.read_text(), "BLOCKS", "BlockRow", rows))


def _name(point: Point) -> str:
    # A peer's order of tokens does not change its time.
    return f"{point.family.removesuffix(f', {TILES} tiles')}, {point.density:.2f}"


def print_report(report: dict) -> None:
    """Every point, then the time of each family at equal error."""
    for point in report["points"]:
        print(
            f"{point['family']:45s} density {point['density']:.2f} error {point['error']:.4f} "
            f"{point['ms']:7.3f} ms {report['sdpa_ms'] / point['ms']:6.2f}x"
        )
    print("\ntime at equal error (ms)")
    for row in report["equal_error"]:
        cells = [f"{family} {ms:.2f}" for family, ms in row["ms"].items() if ms is not None]
        print(f"error {row['error']:.2f}: {row['best']} is fastest; {', '.join(cells)}")


if __name__ == "__main__":
    main()
