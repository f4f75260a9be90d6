"""Memory and time of calibration at full size: ``python benchmarks/calibration_memory.py``.

Measures, for one layer of 40 heads on a 21x45x80 grid (75,600 tokens, the 720p grid of Wan 2.1):
the extra memory of streaming its block mass and of scoring candidate orders, the time to evaluate a
plan's masks, and size and load time of a whole plan file (40 layers, 40 heads, four noise bands).
On a GPU the peak is the allocator's; on the CPU it is the growth of the process' peak resident set.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _package import load_package

load_package()

from paro_attention.calibration import (  # noqa: E402
    ModelIdentity,
    NoiseBands,
    Origin,
    Plan,
    TokenGrid,
    load_plan,
    save_plan,
)
from paro_attention.calibration.block_mass import block_mass  # noqa: E402
from paro_attention.calibration.block_selection import forced_blocks, select_blocks  # noqa: E402
from paro_attention.calibration.extra_keys import RecordedCall  # noqa: E402
from paro_attention.calibration.grid_orders import GridOrders  # noqa: E402
from paro_attention.calibration.joint_sequence import JointLayout  # noqa: E402
from paro_attention.calibration.metrics import RECALL_DENSITIES  # noqa: E402
from paro_attention.calibration.offset_profile import OffsetBins  # noqa: E402
from paro_attention.calibration.order_scores import ERROR_DENSITIES, order_scores  # noqa: E402
from paro_attention.calibration.predicted_mass import MassPredictor  # noqa: E402
from paro_attention.calibration.profile_geometry import ProfileGeometry  # noqa: E402
from paro_attention.calibration.sampled_maps import (  # noqa: E402
    maps_are_served,
    scores_of_heads,
)
from paro_attention.calibration.token_order import (  # noqa: E402
    candidate_orders,
    grid_permutation,
)

MIB = 1 << 20


def measured(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds and extra peak memory of some work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = _peak_resident()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _peak_resident()
    return {"seconds": round(seconds, 3), "extra_peak_mib": round((peak - before) / MIB, 1)}


def _peak_resident() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def inputs(grid: TokenGrid, heads: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v [1, H, S, 128] in bfloat16, as a model hands them over."""
    shape = (1, grid.tokens, heads * 128)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(3))
    q, k, v = (x.view(1, grid.tokens, heads, 128).transpose(1, 2) for x in (q, k, v))
    return q, k, v


def synthetic_plan(grid: TokenGrid, block: tuple[int, int], layers: int, heads: int) -> Plan:
    """A plan of full size with made-up profiles; one head in eight has each kind of correction."""
    bins = OffsetBins.for_grid(grid)
    orders = candidate_orders(grid, block, "tiles")
    bands, schedule = 4, tuple(1 - step / 30 for step in range(30))
    per_head = (layers, bands, heads)
    distance = sum(
        (torch.tensor(axis).float() / 8).square().view([-1 if a == b else 1 for b in range(3)])
        for a, axis in enumerate(bins.axes)
    )
    assert isinstance(distance, Tensor)
    profile = (255 - 24 * distance).clamp(1, 255).to(torch.uint8)
    noise = torch.randint(0, 9, (*per_head, *bins.shape), dtype=torch.uint8)
    curve = torch.tensor(RECALL_DENSITIES).sqrt().expand(*per_head, -1).contiguous()
    kinds = torch.tensor([0, 0, 0, 1, 0, 0, 0, 2]).repeat(layers * bands * heads // 8).byte()
    return Plan(
        identity=ModelIdentity("synthetic", "synthetic", layers, heads, 128, "synthetic"),
        grid=grid,
        block=block,
        bands=NoiseBands.from_schedule(schedule, bands),
        shares=(2.0, 1.0, 1.0, 1.0),
        schedule=schedule,
        orders=orders,
        candidates=orders,
        bins=bins,
        origin=Origin(4, schedule[:4], "tiles", "output_error", 0.5, 0.3, "benchmark", "", ""),
        order_of_head=(torch.arange(layers * heads) % len(orders)).view(layers, heads).byte(),
        candidate_error=torch.rand(layers, heads, len(orders)),
        tail_bias=torch.zeros(layers, heads),
        profile=profile - noise.minimum(profile),
        profile_top=torch.zeros(per_head),
        correction=kinds.view(per_head),
        popularity=torch.full((layers * bands * heads // 8, 256), 128, dtype=torch.uint8),
        coarse=torch.full((layers * bands * heads // 8, 64, 64), 128, dtype=torch.uint8),
        recall_true=curve,
        recall_profile=curve.clone(),
        error=(1 - torch.tensor(ERROR_DENSITIES)).expand(*per_head, -1).contiguous(),
    )


def stream_mass(q: Tensor, k: Tensor, permutation: Tensor, block: tuple[int, int]) -> None:
    for _ in block_mass(q, k, permutation, block):
        pass


def score_layer(
    q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, block: tuple[int, int]
) -> dict[str, float]:
    """All candidate orders of all heads, as the recorder scores them on a GPU."""
    orders, device = GridOrders(grid, block), q.device
    names = candidate_orders(grid, block, "tiles")
    stacked = torch.stack([orders.permutation(name, device) for name in names]).int()
    geometries = [orders.geometry(name, device, sampled=True) for name in names]
    call = RecordedCall(q, k, v, JointLayout.of(grid.tokens, grid, 0), None)
    found = measured(
        lambda: scores_of_heads(call, stacked, geometries.__getitem__, block, 0.3, 128**-0.5),
        device,
    )
    return {"orders": len(names), **found}


def plan_file(plan: Plan) -> dict[str, float]:
    """Size of the file and the best of three load times."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.safetensors"
        begin = time.perf_counter()
        save_plan(plan, path)
        saved = time.perf_counter() - begin
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            load_plan(path)
            times.append(time.perf_counter() - begin)
        size = path.stat().st_size
    return {
        "megabytes": round(size / 1e6, 1),
        "save_seconds": round(saved, 3),
        "load_seconds": round(min(times), 3),
        "first_load_seconds": round(times[0], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grid", type=int, nargs=3, default=(21, 45, 80))
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--busy-heads", type=int, help="heads worked on; all on a GPU, else 1")
    parser.add_argument("--block", type=int, nargs=2, default=(64, 64))
    parser.add_argument("--mask-block", type=int, nargs=2, default=(64, 128))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--skip-attention", action="store_true", help="only the plan")
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args()
    device = torch.device(given.device)
    grid = TokenGrid(*given.grid)
    block, mask_block = tuple(given.block), tuple(given.mask_block)
    busy = given.busy_heads or (given.heads if device.type == "cuda" else 1)
    result: dict[str, object] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "grid": list(grid.shape),
        "tokens": grid.tokens,
        "layers": given.layers,
        "heads": given.heads,
        "block": list(block),
    }
    if not given.skip_attention:
        q, k, v = inputs(grid, given.heads, device)
        order = grid_permutation("4x4x4", grid).to(device)
        stream_mass(q[:, :, :256], k[:, :, :256], torch.arange(256, device=device)[None], block)
        result["block_mass"] = {
            "heads": busy,
            **measured(lambda: stream_mass(q[:, :busy], k[:, :busy], order[None], block), device),
        }
        orders = [grid_permutation(name, grid).to(device) for name in ("FHW", "4x4x4", "21x2x2")]
        result["order_scores"] = {
            "heads": 1,
            "orders": len(orders),
            **measured(
                lambda: order_scores(
                    q[0, 0], k[0, 0], v[0, 0], orders, block, 0.3, 128**-0.5, False
                ),
                device,
            ),
        }
        if maps_are_served(q):
            result["order_scores_of_all_heads"] = {
                "heads": busy,
                **score_layer(q[:, :busy], k[:, :busy], v[:, :busy], grid, block),
            }
        del q, k, v
        geometry = ProfileGeometry(OffsetBins.for_grid(grid), grid, "4x4x4", block, device)
        mass = torch.rand(1, geometry.query_blocks, geometry.key_blocks, device=device)
        mass /= mass.sum(-1, keepdim=True)
        result["profile_fit"] = {"heads": 1, **measured(lambda: geometry.fit(mass), device)}
        del mass
    plan = synthetic_plan(grid, block, given.layers, given.heads)
    result["plan_file"] = plan_file(plan)
    if device.type == "cuda" or given.busy_heads:
        predictor = MassPredictor(plan, grid, mask_block, device)
        predictor(0, 0)
        forced = forced_blocks(grid.tokens, mask_block, device=device)
        predicted = predictor(0, 0)
        counts = [round(0.3 * forced.numel())] * given.heads
        result["masks_of_a_layer"] = {
            "block": list(mask_block),
            "predict": measured(lambda: predictor(0, 0), device),
            "select": measured(lambda: select_blocks(predicted, counts, forced), device),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
