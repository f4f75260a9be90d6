"""Times the whole attention call against torch's SDPA: ``python benchmarks/attention.py``.

A call is what a user pays for: gather by each head's own permutation, statistics, quantisation,
attention over the block lists with the pooled tail, rows restored. Every head has its own random
permutation and its own random mask whose row counts vary by +-50 %; a density is that of the grid,
extra tokens are dense beside it. Each row passes a correctness
gate against float32 attention before it is timed. All functions of a shape run in turn, one launch
each, after a warm-up that brings the card to its sustained clocks; medians are reported.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from _package import load_package  # noqa: E402

load_package()

from paro_attention.kernels import BlockMask, sparse_attention  # noqa: E402

MAIN_SHAPE = (1, 12, 32768, 128)
OTHER_SHAPES = ((1, 12, 32760, 128), (1, 48, 17776, 64), (1, 40, 75600, 128))
# Joint sequences, the extra tokens (text) counted: an image of 1024 x 1024, a video; and heads that
# the kernels store wider than they are.
JOINT_SHAPES = (
    ((1, 24, 4096 + 512, 128), 512),
    ((1, 24, 32760 + 256, 128), 256),
    ((1, 24, 4096 + 512, 96), 512),
    ((1, 16, 4096 + 512, 256), 512),
)
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1)
ERROR_BUDGET = {
    (16, 16): 0.006,
    (8, 16): 0.016,
    (8, 8): 0.045,
    (16, 8): 0.045,
    (4, 4): 0.35,
    (4, 8): 0.3,
}


def random_mask(heads: int, tokens: int, block: tuple[int, int], density: float) -> BlockMask:
    """Random blocks per head; a row keeps density * uniform(0.5, 1.5) of them, at least one."""
    query_blocks, key_blocks = (math.ceil(tokens / side) for side in block)
    share = torch.rand(heads, query_blocks, 1, device="cuda") + 0.5
    counts = (share * density * key_blocks).round().clamp(1, key_blocks)
    if density == 1.0:
        counts = torch.full_like(counts, key_blocks)
    rank = torch.rand(heads, query_blocks, key_blocks, device="cuda").argsort(-1).argsort(-1)
    return BlockMask.from_dense(rank < counts, block, tokens)


def exact_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: BlockMask,
    permutation: Tensor,
    head: int,
    query_block: int,
    tail: bool,
) -> tuple[Tensor, Tensor]:
    """Float32 attention of one query block in the head's order, and the tokens of its rows.

    The query block behind the grid's last stands for the first extra tokens.
    """
    order = permutation[head].long()
    side, key_side = mask.block
    of_grid = query_block < mask.num_query_blocks
    first = query_block * side if of_grid else mask.tokens
    rows = order[first : min(first + side, mask.tokens if of_grid else len(order))]
    queries, keys, values = (x[0, head].float() for x in (q, k, v))
    queries, keys, values = queries[rows], keys[order], values[order]
    scale = q.shape[-1] ** -0.5
    computed = mask.to_dense()[head, min(query_block, mask.num_query_blocks - 1)]
    if not of_grid:
        computed = torch.ones_like(computed)
    kept = computed.repeat_interleave(key_side)[: mask.tokens]
    kept = F.pad(kept, (0, len(order) - mask.tokens), value=True)
    logits = (queries @ keys.T * scale).masked_fill(~kept, -math.inf)
    if tail and not bool(computed.all()):
        block_of = torch.arange(mask.tokens, device=q.device) // key_side
        sizes = torch.bincount(block_of).float()
        pooled = [
            torch.zeros(len(sizes), q.shape[-1], device=q.device).index_add_(0, block_of, x)
            / sizes[:, None]
            for x in (keys[: mask.tokens], values[: mask.tokens])
        ]
        extra = (queries @ pooled[0].T * scale + sizes.log()).masked_fill(computed, -math.inf)
        logits, values = torch.cat((logits, extra), -1), torch.cat((values, pooled[1]))
    return torch.softmax(logits, -1) @ values, rows


def relative_error(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, permutation: Tensor, tail: bool
) -> float:
    """Largest relative error over a few query blocks, the ragged last one and extra tokens too."""
    heads, last = q.shape[1], mask.num_query_blocks - 1
    errors = []
    checked = [(0, 0), (heads // 2, last // 2), (heads - 1, last)]
    if mask.tokens < q.shape[2]:
        checked.append((heads - 1, last + 1))
    for head, query_block in checked:
        want, rows = exact_rows(q, k, v, mask, permutation, head, query_block, tail)
        got = out[0, head, rows].float()
        errors.append(float((got - want).norm() / want.norm()))
    return max(errors)


def sustained_ms(functions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each function, launched in turn at sustained clocks."""
    for function in functions.values():
        function()
    torch.cuda.synchronize()
    end_of_warm_up = time.monotonic() + seconds / 2
    while time.monotonic() < end_of_warm_up:
        for function in functions.values():
            function()
        torch.cuda.synchronize()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {
        name: [] for name in functions
    }
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(next(iter(events.values()))) < 5:
        for name, function in functions.items():
            pair = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            pair[0].record()
            function()
            pair[1].record()
            events[name].append(pair)
        torch.cuda.synchronize()
    return {
        name: statistics.median(a.elapsed_time(b) for a, b in pairs)
        for name, pairs in events.items()
    }


def bench_shape(
    shape: tuple[int, int, int, int], settings: list[tuple], seconds: float, extra_tokens: int = 0
) -> list[dict]:
    """Rows of one shape; ``settings`` are (density, block, qk_bits, pv_bits, tail).

    The last ``extra_tokens`` of the shape's tokens lie behind the grid that the mask covers.
    """
    batch, heads, tokens, head_dim = shape
    q, k, v = (
        torch.randn(batch, tokens, heads * head_dim, device="cuda", dtype=torch.bfloat16)
        .view(batch, tokens, heads, head_dim)
        .transpose(1, 2)
        for _ in range(3)
    )
    grid_tokens = tokens - extra_tokens
    behind = torch.arange(grid_tokens, tokens, device="cuda")
    orders = [torch.randperm(grid_tokens, device="cuda") for _ in range(heads)]
    permutation = torch.stack([torch.cat((order, behind)) for order in orders]).int()
    functions: dict[str, Callable[[], object]] = {
        "torch SDPA (default)": lambda: F.scaled_dot_product_attention(q, k, v)
    }
    details: dict[str, dict] = {
        "torch SDPA (default)": {
            "ours": False, "block": None, "density": 1.0, "qk_bits": 16, "pv_bits": 16,
            "rel_err": None,
        }
    }  # fmt: skip
    for density, block, qk_bits, pv_bits, tail in settings:
        mask = random_mask(heads, grid_tokens, block, density)
        name = f"PARO {qk_bits}/{pv_bits}, {block[0]}x{block[1]}, density {density}" + (
            "" if tail else ", no tail"
        )

        def call(mask=mask, qk_bits=qk_bits, pv_bits=pv_bits, tail=tail) -> Tensor:
            return sparse_attention(
                q,
                k,
                v,
                mask,
                permutation,
                qk_bits=qk_bits,
                pv_bits=pv_bits,
                tail=tail,
                implementation="triton",
            )

        error = relative_error(call(), q, k, v, mask, permutation, tail)
        budget = ERROR_BUDGET[qk_bits, pv_bits] * (1.0 if density == 1.0 else 1.3)
        if not error <= budget:
            raise SystemExit(
                f"{name} on {shape}: relative error {error:.4f} over its budget {budget:.4f}"
            )
        functions[name] = call
        details[name] = {
            "ours": True, "block": list(block), "density": mask.density(), "qk_bits": qk_bits,
            "pv_bits": pv_bits, "rel_err": error, "tail": tail,
        }  # fmt: skip
    whole_map = 4.0 * batch * heads * tokens * tokens * head_dim
    share_of_grid = (grid_tokens / tokens) ** 2
    rows = []
    timings = sustained_ms(functions, seconds)
    base = timings["torch SDPA (default)"]
    for name, ms in timings.items():
        row = {
            "name": name,
            "whole_call": True,
            "batch": batch,
            "heads": heads,
            "tokens": tokens,
            "extra_tokens": extra_tokens,
            "head_dim": head_dim,
        }
        row |= details[name] | {"ms": ms, "speed_up": base / ms}
        done = 1.0 - share_of_grid * (1.0 - row["density"])
        row["tflops"] = whole_map * done / ms / 1e9
        rows.append(row)
        error = "" if row["rel_err"] is None else f"  error {row['rel_err']:.4f}"
        print(
            f"{name:45s} S={tokens:6d} E={extra_tokens:4d} D={head_dim:3d} {ms:8.3f} ms "
            f"{row['tflops']:6.0f} TFLOP/s {base / ms:6.2f}x{error}",
            flush=True,
        )
    return rows


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "bench" / "attention.json")
    parser.add_argument("--quick", action="store_true", help="the main shape only, fewer settings")
    parser.add_argument("--seconds", type=float, default=2.0, help="timed seconds per shape")
    parser.add_argument("--commit", default=None, help="commit to record where there is no git")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/attention.py needs a CUDA GPU; this machine has none")
    import triton

    torch.manual_seed(0)
    full = [(d, (64, 128), 8, 8, True) for d in DENSITIES]
    full += [(d, (128, 128), 8, 8, True) for d in DENSITIES] + [
        (d, (64, 64), 8, 8, True) for d in DENSITIES
    ]
    full += [(d, (64, 128), 8, 8, False) for d in (0.5, 0.2)]
    full += [(d, (64, 128), 8, 16, True) for d in (1.0, 0.5, 0.2)]
    full += [(d, (64, 128), 16, 16, True) for d in (1.0, 0.5, 0.2)]
    full += [(d, (64, 128), 4, 4, True) for d in (1.0, 0.5, 0.2)]
    rows = bench_shape(MAIN_SHAPE, full, arguments.seconds)
    if not arguments.quick:
        for shape in OTHER_SHAPES:
            rows += bench_shape(
                shape, [(d, (64, 128), 8, 8, True) for d in DENSITIES], arguments.seconds
            )
            torch.cuda.empty_cache()
        for shape, extra_tokens in JOINT_SHAPES:
            rows += bench_shape(
                shape, [(d, (64, 128), 8, 8, True) for d in DENSITIES], arguments.seconds,
                extra_tokens,
            )  # fmt: skip
    report = {
        "gpu": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "cuda": torch.version.cuda,
        },
        "commit": arguments.commit or commit(),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
