"""What masks cost while sampling, at 75,600 tokens x 40 heads: ``python benchmarks/masks.py``.

For each density: the lists of a layer written from its bits (kernel alone), a layer's mask brought
from pinned host memory to its slot, the slot's bytes, and the host's time for handing out one mask
and asking for the next. Then the first use of a mask: predicted block mass, selection and packing.
Writes out/bench/masks.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _package import ROOT, load_package

load_package()

from bench_cases import random_mask  # noqa: E402
from calibration_memory import synthetic_plan  # noqa: E402
from paro_attention.calibration import TokenGrid, mask_store  # noqa: E402
from paro_attention.calibration.block_selection import (  # noqa: E402
    forced_blocks,
    least_selected,
    most_selected,
    select_blocks,
)
from paro_attention.calibration.mask_store import MaskStore  # noqa: E402
from paro_attention.calibration.predicted_mass import MassPredictor  # noqa: E402
from paro_attention.kernels import BlockMask  # noqa: E402
from paro_attention.kernels.block_lists import write_lists  # noqa: E402
from report_rows import write  # noqa: E402
from timing import machine, sustained_ms  # noqa: E402

GRID, HEADS, BLOCK = (21, 45, 80), 40, (64, 128)
DENSITIES = (0.5, 0.3, 0.2, 0.1)
LAYERS = 3  # more than there are slots: every mask has to be brought
HOST_ROUNDS = 50


def sampling(density: float, seconds: float) -> dict[str, Any]:
    """The row of one density."""
    tokens = TokenGrid(*GRID).tokens
    masks = [random_mask(HEADS, tokens, BLOCK, density) for _ in range(LAYERS)]
    mask = masks[0]
    lists = torch.empty_like(mask.kv_indices)
    store = MaskStore(torch.device("cuda"))
    place = 0

    def unknown(layer: int, band: int) -> BlockMask:
        return masks[layer]

    def bring() -> None:
        nonlocal place
        place = (place + 1) % LAYERS
        with store.lend(place, 0, unknown):
            pass

    def hand_out() -> None:
        nonlocal place
        place = (place + 1) % LAYERS
        with store.lend(place, 0, unknown):
            pass
        store.prefetch((place + 1) % LAYERS, 0)

    for _ in range(2 * LAYERS):
        hand_out()
    write_lists(mask.computed_bits, mask.row_offsets, lists)
    total = int(mask.row_offsets[-1])
    assert torch.equal(lists[:total], mask.kv_indices[:total])
    milliseconds = sustained_ms(
        {
            "write_lists": lambda: write_lists(mask.computed_bits, mask.row_offsets, lists),
            "bring": bring,
        },
        seconds,
    )
    return {
        "density": density,
        "measured_density": mask.density(),
        "slot_bytes": store.slot_bytes // 2,
        **{f"{name}_ms": value for name, value in milliseconds.items()},
        "host_us_per_layer": _host_us(hand_out),
    }


def first_use(density: float, seconds: float) -> dict[str, Any]:
    """Milliseconds of a layer's mask from the plan's profiles, as its first use makes it."""
    device = torch.device("cuda")
    grid = TokenGrid(*GRID)
    plan = synthetic_plan(grid, BLOCK, 2, HEADS)
    predictor = MassPredictor(plan, grid, BLOCK, device)
    forced, least = forced_blocks(grid.tokens, BLOCK, device), least_selected(grid.tokens, BLOCK)
    counts = [round(density * forced.numel())] * HEADS
    entries = most_selected(counts, least, forced.numel())
    mass = predictor(0, 0)
    selected = select_blocks(mass, counts, forced)
    milliseconds = sustained_ms(
        {
            "predict": lambda: predictor(0, 0),
            "select": lambda: select_blocks(mass, counts, forced),
            "pack": lambda: BlockMask.from_dense(selected, BLOCK, grid.tokens, entries),
        },
        seconds,
        rounds=2,
    )
    return {"density": density} | {f"{name}_ms": value for name, value in milliseconds.items()}


def _host_us(function: Callable[[], object]) -> float:
    """Host microseconds of a call that waits for nothing, while the device has time to keep up."""
    torch.cuda.synchronize()
    spent = 0.0
    for _ in range(HOST_ROUNDS):
        begin = time.perf_counter()
        function()
        spent += time.perf_counter() - begin
        torch.cuda.synchronize()
    return spent / HOST_ROUNDS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=ROOT / "out" / "bench" / "masks.json")
    parser.add_argument("--seconds", type=float, default=2.0, help="of every measurement, at least")
    parser.add_argument("--commit", help="to write into the report, where there is no git")
    given = parser.parse_args()
    mask_store.RESIDENT_BYTES = 0
    report = machine(given.commit) | {
        "grid": GRID,
        "heads": HEADS,
        "block": BLOCK,
        "sampling": [sampling(density, given.seconds) for density in DENSITIES],
        "first_use": first_use(0.3, given.seconds),
    }
    print(json.dumps(report, indent=1))
    write(given.json, report)


if __name__ == "__main__":
    main()
