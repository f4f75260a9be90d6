"""Masks on a GPU: built, kept and brought back without the host ever waiting for the device."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import pairwise

import pytest
import torch
from made_plan import make_plan
from paro_attention.calibration import PlanRuntime, RuntimeOptions, mask_store
from paro_attention.calibration.block_selection import (
    forced_blocks,
    least_selected,
    most_selected,
    select_blocks,
)
from paro_attention.calibration.mask_store import MaskStore
from paro_attention.kernels import BlockMask
from torch.profiler import ProfilerActivity, profile, record_function

pytestmark = pytest.mark.gpu

LAYERS, HEADS, TOKENS, BLOCK = 5, 6, 10_000, (64, 128)
BLOCKS = (157, 79)
# Host calls that wait for the device, and those that may.
WAITING = (
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "cudaMemcpy2D",
    "cudaMemset",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
    "cuEventSynchronize",
)
ALLOCATING = ("cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost", "cudaMallocHost")
SIGMAS = (0.95, 0.9, 0.7, 0.45, 0.4, 0.1)


@contextmanager
def no_waiting():
    """An operation of torch that waits for the device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def nothing_resident(monkeypatch):
    monkeypatch.setattr(mask_store, "RESIDENT_BYTES", 0)


def counts_of(layer):
    return [
        round((0.1 + 0.08 * layer + 0.02 * head) * BLOCKS[0] * BLOCKS[1]) for head in range(HEADS)
    ]


def masses():
    """float32 [LAYERS, H, Qb, KVb], all different, so that no two selections can differ."""
    size = HEADS * BLOCKS[0] * BLOCKS[1]
    return torch.stack([torch.randperm(size).float().view(HEADS, *BLOCKS) for _ in range(LAYERS)])


def build_of(mass, device):
    """A `build` as the run time has it, from given block mass."""
    forced = forced_blocks(TOKENS, BLOCK, device)
    least, blocks = least_selected(TOKENS, BLOCK), BLOCKS[0] * BLOCKS[1]

    def build(layer, band):
        counts = counts_of(layer)
        selected = select_blocks(mass[layer], counts, forced)
        return BlockMask.from_dense(selected, BLOCK, TOKENS, most_selected(counts, least, blocks))

    return build


def assert_same(offsets, lists, bits, want):
    total = int(want.row_offsets[-1])
    assert torch.equal(offsets.cpu(), want.row_offsets)
    assert torch.equal(lists[:total].cpu(), want.kv_indices[:total])
    assert torch.equal(bits.cpu(), want.computed_bits)


def test_masks_are_the_cpus_and_nobody_waits(nothing_resident):
    mass = masses()
    build, on_cpu = build_of(mass.cuda(), "cuda"), build_of(mass, "cpu")
    wanted = [on_cpu(layer, 0) for layer in range(LAYERS)]
    longest = max(mask.kv_indices.shape[0] for mask in wanted)
    steps = 4
    # What a kernel reads late: every layer's attention is a long sleep and a copy of its mask.
    seen = [
        [
            torch.zeros(wanted[0].row_offsets.shape, dtype=torch.int32, device="cuda"),
            torch.zeros(longest, dtype=torch.int16, device="cuda"),
            torch.zeros(wanted[0].computed_bits.shape, dtype=torch.int32, device="cuda"),
        ]
        for _ in range(steps * LAYERS)
    ]
    store = MaskStore(torch.device("cuda"))
    places, sizes = [], []
    torch.cuda.synchronize()
    with no_waiting():
        for step in range(steps):
            for layer in range(LAYERS):
                with store.lend(layer, 0, build) as mask:
                    torch.cuda._sleep(3_000_000)  # cycles, about 2 ms
                    copies = seen[step * LAYERS + layer]
                    copies[0].copy_(mask.row_offsets)
                    copies[1][: mask.kv_indices.shape[0]].copy_(mask.kv_indices)
                    copies[2].copy_(mask.computed_bits)
                    places.append(mask.kv_indices.data_ptr())
                store.prefetch((layer + 1) % LAYERS, 0)
            sizes.append(store.slot_bytes)
    for index, copies in enumerate(seen):
        assert_same(*copies, wanted[index % LAYERS])
    steady = places[LAYERS:]
    assert len(set(steady)) == 2 and all(a != b for a, b in pairwise(steady))
    assert sizes[0] > 0 and sizes[1:] == [sizes[1]] * (steps - 1)


def test_masks_come_round_without_allocating(nothing_resident):
    build, store = build_of(masses().cuda(), "cuda"), MaskStore(torch.device("cuda"))

    def sample():
        for layer in range(LAYERS):
            with store.lend(layer, 0, build):
                pass
            store.prefetch((layer + 1) % LAYERS, 0)

    for _ in range(2):
        sample()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    with no_waiting():
        for _ in range(3):
            sample()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before


@pytest.fixture(scope="module")
def plan():
    return make_plan((8, 24, 24), layers=4, heads=6)


@pytest.fixture
def run(plan, nothing_resident):
    """A runtime on the GPU, with inputs, whose kernels are compiled."""
    options = RuntimeOptions(density=0.3, warmup=0.0, qk_bits=8, pv_bits=8)
    inputs = torch.randn(3, 1, 6, plan.grid.tokens + 77, 64, device="cuda", dtype=torch.bfloat16)

    def start():
        runtime = PlanRuntime(plan, plan.grid, options, "cuda")
        return runtime, lambda: [
            runtime.attention(layer, sigma, *inputs, dense_first=77)
            for sigma in SIGMAS
            for layer in range(plan.layers)
        ]

    start()[1]()
    torch.cuda.synchronize()
    return start


def test_a_runs_masks_are_built_without_waiting(plan, run):
    with no_waiting():
        runtime, sample = run()
        sample()
    again = sample()
    assert all(torch.isfinite(out).all() for out in again)
    host = PlanRuntime(plan, plan.grid, runtime.options, "cpu")
    for sigma in SIGMAS:
        for layer in range(plan.layers):
            got, want = runtime.mask(layer, sigma), host.mask(layer, sigma)
            packed = BlockMask.from_dense(got.to_dense().cpu(), got.block, got.tokens)
            assert_same(got.row_offsets, got.kv_indices, got.computed_bits, packed)
            # The device rounds the mass its own way: at the edge of the selection another block of
            # as good as the same mass may be kept, and nothing else.
            assert torch.equal(got.kv_num_blocks.sum(1).cpu(), want.kv_num_blocks.sum(1))
            mass = host._predictor(layer, plan.bands.band_of(sigma))
            kept, wanted = ((mass * x.to_dense().cpu()).sum((1, 2)) for x in (got, want))
            torch.testing.assert_close(kept, wanted, rtol=1e-5, atol=0)


def test_the_profile_of_a_run_shows_no_waiting(run):
    _, sample = run()
    for _ in range(2):
        sample()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        with record_function("sampling"):
            sample()
        torch.cuda.synchronize()
    events = list(seen.events())
    (whole,) = [
        event for event in events
        if event.name == "sampling" and event.device_type == torch.autograd.DeviceType.CPU
    ]  # fmt: skip
    start, end = whole.time_range.start, whole.time_range.end
    names = [e.name for e in events if start <= e.time_range.start and e.time_range.end <= end]
    # The profile does see the host's calls: masks arrive, and the wait behind the run is there.
    assert names.count("cudaMemcpyAsync") >= len(SIGMAS)
    assert "cudaDeviceSynchronize" in {event.name for event in events}
    assert not [name for name in names if name in WAITING]
    assert not [name for name in names if name in ALLOCATING]
