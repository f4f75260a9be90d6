"""Times attention against torch's SDPA and other packages: ``python benchmarks/attention.py``.

A call is what a user pays for: gather by each head's own permutation, statistics, quantisation,
attention over the block lists with the pooled tail, rows restored. Every head has its own
permutation and its own mask: random, with row counts that vary by +-50 %, or those of a head of the
demo model (demo_masks.py). A density is that of the grid, extra tokens are dense beside it. Each
function passes a correctness gate against float32 attention before it is timed: one of ours that
fails ends the run, a peer that fails is listed with its error and not timed. All functions of a
shape take turns by lot, each in windows of its own (timing.py); medians are reported.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from _package import ROOT
from bench_cases import Shape, random_inputs, random_mask
from compile_ahead import Variant, compile_ahead
from demo_masks import DemoHeads, record
from gated_functions import Bench, Setting
from kept_shapes import earlier_report, with_kept
from overhead import overhead_functions, overhead_row
from peers import PEERS, SOME, selected
from report_rows import write
from timing import machine

DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1)
SPARSE = DENSITIES[1:]
# Of Q.K and P.V: values in 16 bits.
OF_16_BITS = ((8, 16), (16, 16))
BLOCKS = ((64, 128), (128, 128), (64, 64), (128, 64))
SHAPES: dict[str, tuple[Shape, ...]] = {
    "main": (Shape(12, 32768, 128, grid=(8, 64, 64), peers="all"),),
    "sizes": (
        Shape(12, 32760, 128, grid=(21, 30, 52)),
        Shape(48, 17776, 64, grid=(11, 16, 101), peers="some"),
        Shape(40, 75600, 128, grid=(21, 45, 80), peers="some"),
        Shape(24, 118800, 128, grid=(33, 45, 80), peers="some"),
    ),
    # Joint sequences, the extra tokens (text) counted: an image of 1024 x 1024, a video; and heads
    # that the kernels store wider than they are.
    "joint": (
        Shape(24, 4096 + 512, 128, 512, grid=(1, 64, 64), peers="some"),
        Shape(12, 32760 + 256, 128, 256),
        Shape(24, 4096 + 512, 96, 512),
        Shape(16, 4096 + 512, 256, 512),
    ),
}


def settings_of(shape: Shape, group: str, masks: tuple[str, ...], quick: bool) -> list[Setting]:
    """What of ours is timed at a shape; the main shape has every block and every pair of bits."""
    if group != "main" or quick:
        chosen = [Setting(d, alone=quick) for d in DENSITIES]
    else:
        chosen = [Setting(d, block, alone=True) for block in BLOCKS for d in DENSITIES]
        chosen += [Setting(d, tail=False) for d in (0.5, 0.2)]
        chosen += [Setting(d, bits=bits, alone=True) for bits in OF_16_BITS for d in DENSITIES]
        chosen += [Setting(d, bits=(4, 4)) for d in (1.0, 0.5, 0.2)]
    if "random" not in masks:
        chosen = [setting for setting in chosen if setting.density == 1.0]
    if "demo" in masks and shape.grid is not None:
        chosen += [Setting(d, masks="demo") for d in SPARSE]
        if group == "main" and not quick:
            chosen += [Setting(d, bits=bits, masks="demo") for bits in OF_16_BITS for d in SPARSE]
    return chosen


def todo_of(wanted: str, masks: tuple[str, ...], quick: bool) -> list[tuple[Shape, list[Setting]]]:
    """Shapes and their settings, of groups and of numbers of tokens, separated by commas.

    Raises:
        ValueError: one of them is neither.
    """
    names = wanted.split(",")
    sizes = {str(shape.tokens) for shapes in SHAPES.values() for shape in shapes}
    unknown = [name for name in names if name not in {*SHAPES, *sizes}]
    if unknown:
        raise ValueError(
            f"--shapes takes all, {', '.join(SHAPES)} or numbers of tokens, got {unknown[0]!r}"
        )
    return [
        (shape, settings_of(shape, group, masks, quick))
        for group, shapes in SHAPES.items()
        for shape in shapes
        if group in names or str(shape.tokens) in names
    ]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Options; with ``todo``, what is to be timed, and ``earlier``, the report to keep or None."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench" / "attention.json")
    parser.add_argument("--quick", action="store_true", help="main shape, 64x128 blocks, 8/8 bits")
    parser.add_argument(
        "--shapes", default="all", help=f"all, or out of {', '.join(SHAPES)} and numbers of tokens"
    )
    parser.add_argument(
        "--keep", type=Path, help="an earlier report, whose shapes are kept that this run lacks"
    )
    parser.add_argument(
        "--peers", default=None,
        help=f"all, some ({', '.join(SOME)}), none, or keys; default: by shape",
    )  # fmt: skip
    parser.add_argument("--masks", default=None, help="random, demo or both: random,demo (default)")
    parser.add_argument("--seconds", type=float, default=2.0, help="least timed seconds per shape")
    parser.add_argument("--budget", type=float, help="begin no shape after this many seconds")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile ahead")
    parser.add_argument("--commit", default=None, help="commit to record where there is no git")
    given = parser.parse_args(arguments)
    if given.shapes == "all":
        given.shapes = "main" if given.quick else ",".join(SHAPES)
    given.masks = given.masks or ("random" if given.quick else "random,demo")
    masks = tuple(given.masks.split(","))
    unknown = [name for name in masks if name not in ("random", "demo")]
    if unknown:
        parser.error(f"--masks takes random, demo or both, got {unknown[0]!r}")
    try:
        selected(given.peers or "all")
        given.todo = todo_of(given.shapes, masks, given.quick)
        given.earlier = earlier_report(given.keep) if given.keep else None
    except ValueError as error:
        parser.error(str(error))
    return given


def main() -> None:
    given = parse()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/attention.py needs a CUDA GPU; this machine has none")
    begin = time.monotonic()
    torch.manual_seed(0)
    report: dict[str, Any] = machine(given.commit) | {"rows": [], "overhead": [], "not_run": []}
    if given.earlier:
        with_kept(report, given.earlier)  # refuses another card's before anything is timed
    todo: list[tuple[Shape, list[Setting]]] = given.todo
    compile_ahead(
        (
            Variant(shape.head_dim, s.block, *s.bits, s.tail, shape.extra_tokens > 0)
            for shape, settings in todo
            for s in settings
        ),
        given.workers,
    )
    print(f"compiled after {time.monotonic() - begin:.0f} s", flush=True)
    demo = DemoHeads(record(torch.device("cuda"), (64, 128))) if "demo" in given.masks else None
    capability = torch.cuda.get_device_capability()
    report["peers"] = [
        {"key": peer.key, "name": peer.name, "reason": peer.available(capability, 128)}
        for peer in PEERS
    ]
    for shape, settings in todo:
        passed = time.monotonic() - begin
        if given.budget is not None and passed > given.budget:
            reason = f"the budget of {given.budget:.0f} s was spent"
            print(f"{shape}: not run, {reason}", flush=True)
            report["not_run"].append({"name": "all", "shape": str(shape), "reason": reason})
        else:
            bench_shape(shape, settings, given, demo, report)
        report["seconds"] = round(time.monotonic() - begin, 1)
        write(given.out, with_kept(report, given.earlier) if given.earlier else report)
        print(f"after {report['seconds']:.0f} s: {shape}, wrote {given.out}", flush=True)


def bench_shape(
    shape: Shape,
    settings: list[Setting],
    given: argparse.Namespace,
    demo: DemoHeads | None,
    report: dict[str, Any],
) -> None:
    """Times one shape and adds to the report."""
    inputs = random_inputs(shape, "cuda")
    bench = Bench(inputs, torch.cuda.get_device_capability())
    for peer in selected(given.peers or shape.peers):
        bench.add_peer(peer, SPARSE)
    for setting in settings:
        bench.add(setting, demo)
    measured = shape.peers == "all" or shape.extra_tokens == 0
    if measured:
        mask = random_mask(shape.heads, shape.grid_tokens, (64, 128), 0.3)
        bench.functions |= overhead_functions(inputs, mask)
    rows, extra = bench.timed(given.seconds)
    report["rows"] += rows
    report["not_run"] += bench.not_run
    if measured:
        ms = next(row["ms"] for row in rows if row["baseline"])
        row = asdict(shape) | {"density": 0.3, "block": [64, 128], "bits": [8, 8]}
        report["overhead"].append(row | overhead_row(extra, ms))
        shares = report["overhead"][-1]
        print(
            f"pre-pass {shares['prepass_ms']:.3f} ms; of dense SDPA: pre-pass and epilogue "
            f"{shares['prepass_and_epilogue_share']:.2%}, reorder in the call "
            f"{shares['reorder_in_call_share']:.2%}, reorder alone "
            f"{shares['reorder_alone_share']:.2%}",
            flush=True,
        )
    del bench
    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
