"""Masks in host memory and the two slots that they take turns in, without a GPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from made_plan import make_plan
from made_streams import MadeStream, MadeStreams
from paro_attention.calibration import PlanRuntime, RuntimeOptions, mask_slots, mask_store
from paro_attention.calibration.block_selection import least_selected, most_selected
from paro_attention.calibration.mask_slots import HostMask, MaskSlots, Slot
from paro_attention.calibration.mask_store import HostMasks, MaskStore
from paro_attention.kernels import BlockMask

CPU = torch.device("cpu")
TOKENS = 70 * 32 - 5


def same(got: BlockMask, want: BlockMask) -> bool:
    """True where the masks agree; what lies behind the lists means nothing."""
    total = int(want.row_offsets[-1])
    return (
        torch.equal(got.row_offsets, want.row_offsets)
        and torch.equal(got.kv_indices[:total], want.kv_indices[:total])
        and torch.equal(got.computed_bits, want.computed_bits)
        and (got.block, got.tokens) == (want.block, want.tokens)
    )


def some_mask(layer: int, band: int = 0) -> BlockMask:
    """The same layer and band give the same mask; some are fuller than others."""
    random = torch.Generator().manual_seed(10 * layer + band)
    dense = torch.rand(3, 70, 70, generator=random) < 0.1 + 0.05 * layer
    dense[0, 0] = False
    dense[1, 2] = True
    return BlockMask.from_dense(dense, (32, 32), TOKENS)


class Watch:
    """Checks every write to a slot and every read of it against the streams' order."""

    def __init__(self, streams: MadeStreams, monkeypatch: pytest.MonkeyPatch) -> None:
        self.streams = streams
        self.reads: dict[int, list[tuple[MadeStream, int]]] = {}
        self.writes: dict[int, int] = {}
        unwatched = mask_slots.write_lists

        def write_lists(bits, offsets, lists):
            stream = streams.current()
            assert stream is streams.side
            for reader, time in self.reads.get(lists.data_ptr(), []):
                assert stream.knows(reader, time), "written before the last reader was through"
            self.writes[lists.data_ptr()] = stream.work()
            unwatched(bits, offsets, lists)

        monkeypatch.setattr(mask_slots, "write_lists", write_lists)

    def read(self, mask: BlockMask) -> None:
        """A kernel on the current stream that reads the mask."""
        place, stream = mask.kv_indices.data_ptr(), self.streams.current()
        if place in self.writes:
            assert stream.knows(self.streams.side, self.writes[place]), "read before it is written"
        self.reads.setdefault(place, []).append((stream, stream.work()))


@pytest.fixture
def streams():
    return MadeStreams()


@pytest.fixture
def watch(streams, monkeypatch):
    return Watch(streams, monkeypatch)


@pytest.fixture
def store(streams, monkeypatch):
    """A store that keeps nothing on the device but the slots."""
    monkeypatch.setattr(mask_store, "RESIDENT_BYTES", 0)
    return MaskStore(CPU, streams)


def sample(store, watch, layers, band=0):
    """One step: every layer's attention, each followed by the prefetch of the next."""
    places = []
    for layer in range(layers):
        with store.lend(layer, band, some_mask) as mask:
            assert same(mask, some_mask(layer, band))
            watch.read(mask)
            places.append(mask.kv_indices.data_ptr())
        store.prefetch((layer + 1) % layers, band)
    return places


def test_two_slots_take_turns_and_stay(store, watch):
    sample(store, watch, 5)  # builds
    assert store.slot_bytes > 0  # the first layer's mask is on its way
    steps = [sample(store, watch, 5) for _ in range(3)]
    flat = [place for step in steps for place in step]
    assert len(set(flat)) == 2 and all(a != b for a, b in pairwise(flat))
    largest = max(some_mask(layer).kv_indices.numel() for layer in range(5))
    bits, offsets = some_mask(0).computed_bits.numel(), 3 * 70 + 1
    assert store.slot_bytes == 2 * (2 * largest + 4 * bits + 4 * offsets)


def test_slots_grow_for_larger_masks_and_only_then(store, watch):
    for layer in (0, 1):
        store.get(layer, 0, some_mask)
    sample(store, watch, 2)
    small = store.slot_bytes
    for layer in (7, 8):
        store.get(layer, 0, some_mask)
    sample(store, watch, 2)
    assert store.slot_bytes == small
    for _ in range(2):
        for layer in (7, 8, 0):
            with store.lend(layer, 0, some_mask) as mask:
                assert same(mask, some_mask(layer))
                watch.read(mask)
    assert store.slot_bytes > small


def test_a_band_that_was_not_prefetched_arrives_in_time(store, watch):
    for band in (0, 1):
        sample(store, watch, 3, band)
    for _ in range(2):
        for band in (1, 0):  # the last prefetch of each step is of the other band
            sample(store, watch, 3, band)


def test_layers_that_are_left_out_do_no_harm(store, watch):
    sample(store, watch, 4)
    for layer in (0, 2, 3, 1, 0):
        with store.lend(layer, 0, some_mask) as mask:
            assert same(mask, some_mask(layer))
            watch.read(mask)
        store.prefetch((layer + 1) % 4, 0)
    store.prefetch(9, 0)  # never built
    store.prefetch(2, 0)
    store.prefetch(2, 0)
    assert len(set(sample(store, watch, 4))) == 2


def test_a_third_reader_at_once_gets_lists_of_its_own(store, watch):
    sample(store, watch, 3)
    with store.lend(0, 0, some_mask) as first, store.lend(1, 0, some_mask) as second:
        with store.lend(2, 0, some_mask) as third:
            store.prefetch(2, 0)  # nowhere to go
            masks = (first, second, third)
            assert all(same(mask, some_mask(layer)) for layer, mask in enumerate(masks))
            assert len({mask.kv_indices.data_ptr() for mask in masks}) == 3
        with store.lend(1, 0, some_mask) as again:
            assert again is second
        store.prefetch(2, 0)
        assert same(second, some_mask(1))


def test_readers_on_two_streams_are_both_waited_for(store, watch, streams):
    for _ in range(2):
        sample(store, watch, 3)
    other = MadeStream("other")
    for layer, stream in ((0, streams.main), (0, other), (1, other)):
        with streams.on(stream), store.lend(layer, 0, some_mask) as mask:
            watch.read(mask)
    assert (mask.kv_indices.data_ptr(), "other") in streams.shared
    store.prefetch(2, 0)  # in layer 0's slot: the watch looks at both readers


def test_a_mask_to_keep_is_no_slot(store, watch):
    sample(store, watch, 3)
    kept = store.get(1, 0, some_mask)
    for _ in range(2):
        sample(store, watch, 3)
    assert same(kept, some_mask(1))


def test_slots_are_freed_between_runs(store, watch):
    for _ in range(2):
        sample(store, watch, 3)
    store.rest()
    assert store.slot_bytes == 0
    sample(store, watch, 3)
    assert store.slot_bytes > 0
    store.clear()
    assert store.slot_bytes == 0 and store.get(0, 0, lambda *_: some_mask(8)).density() > 0.4


def test_a_slot_that_nobody_holds_is_named():
    with pytest.raises(KeyError), MaskSlots(CPU, MadeStreams()).lend((0, 0)):
        pass


@pytest.mark.parametrize(("density", "limit"), [(0.5, 32e6), (0.2, 15e6)])
def test_a_slot_of_the_largest_video_takes_32_mb(density, limit):
    tokens, heads, block = 75_600, 40, (64, 128)
    blocks = 1182 * 591
    entries = most_selected(
        [round(density * blocks)] * heads, least_selected(tokens, block), blocks
    )
    slot = Slot(heads, block, tokens, entries, torch.device("meta"))
    assert slot.mask.computed_bits.shape == (heads, 1182, 19)
    assert density * heads * blocks - heads < entries < (density + 0.001) * heads * blocks
    assert slot.bytes == 2 * entries + 4 * heads * 1182 * 19 + 4 * (heads * 1182 + 1)
    assert slot.bytes <= limit


def test_runs_share_a_limit_of_host_memory(monkeypatch):
    monkeypatch.setattr(mask_store, "HOST_BYTES", 10 * 4 * 100)
    words, offsets = (torch.zeros(n, dtype=torch.int32) for n in (95, 5))
    mask = HostMask(words.view(1, 5, 19), offsets, 1, (64, 64), 256)
    first, second = HostMasks(), HostMasks()
    for layer in range(8):
        first.add((layer, 0), mask)
    assert first.bytes == 8 * 400 and first.get((0, 0)) is mask
    for layer in range(5):
        second.add((layer, 0), replace(mask, entries=layer))
    assert (first.entries, second.entries) == (1, 4)
    # Three had to go: the oldest of the first run but the one just used.
    gone = [layer for layer in range(8) if first.get((layer, 0)) is None]
    assert gone == [1, 2, 3] and second.bytes == 5 * 400
    first.clear()
    assert first.bytes == 0 and first.get((0, 0)) is None
    del first, second  # nothing else holds them, so that their masks are freed at once
    assert not [run for run in HostMasks._all if run.bytes]


def test_masks_that_had_to_go_are_built_again(store, watch, monkeypatch):
    one = some_mask(0)
    size = 4 * (one.computed_bits.numel() + one.row_offsets.numel())
    monkeypatch.setattr(mask_store, "HOST_BYTES", 3 * size)
    built: list[int] = []

    def build(layer, band):
        built.append(layer)
        return some_mask(layer, band)

    for _ in range(3):
        for layer in range(5):
            with store.lend(layer, 0, build) as mask:
                assert same(mask, some_mask(layer))
                watch.read(mask)
            store.prefetch((layer + 1) % 5, 0)
    assert built[:5] == [0, 1, 2, 3, 4] and len(built) > 5
    assert sum(run.bytes for run in HostMasks._all) <= 3 * size


def test_small_models_stay_on_the_device(streams, watch):
    store = MaskStore(CPU, streams)
    first = [store.get(layer, 0, some_mask) for layer in range(3)]
    sample(store, watch, 3)
    for layer in range(3):
        with store.lend(layer, 0, some_mask) as mask:
            assert mask is first[layer]
    assert store.slot_bytes == 0


def test_a_runtime_with_slots_gives_the_same_attention(streams, watch, monkeypatch):
    plan = make_plan((3, 8, 12), layers=3, heads=2, block=(32, 32))
    options = RuntimeOptions(density=0.3, warmup=0.0, qk_bits=16, pv_bits=16)
    resident, slotted = (PlanRuntime(plan, plan.grid, options, "cpu") for _ in range(2))
    monkeypatch.setattr(mask_store, "RESIDENT_BYTES", 0)
    slotted._masks = MaskStore(CPU, streams)
    inputs = torch.randn(3, 1, 2, plan.grid.tokens, 64)
    for sigma in (0.95, 0.9, 0.5, 0.45, 0.4):
        for layer in range(3):
            got, want = (run.attention(layer, sigma, *inputs) for run in (slotted, resident))
            assert torch.equal(got, want)
            assert same(slotted.mask(layer, sigma), resident.mask(layer, sigma))
    assert slotted._masks.slot_bytes > 0
    slotted.end_run()
    assert slotted._masks.slot_bytes == 0
