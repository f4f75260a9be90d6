"""Where the packed masks of a run live.

On the CPU a mask is kept as it is. On a GPU one bit per block stays in pinned host memory, with
where each row's list starts; the lists of one layer at a time are unpacked on the device, those of
the next layer on a side stream while the current layer computes (mask_slots.py). Lists of the whole
run would take many gigabytes; bits take 1.1 GB for 40 layers of 40 heads, four noise bands and
75,600 tokens in blocks of 64 x 64. All runs together keep HOST_BYTES of them, the most recently
used. Masks of small models stay on the device altogether. The host never waits for the device.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor

from ..kernels import BlockMask
from ..kernels.block_lists import write_lists
from .mask_slots import CudaStreams, HostMask, Key, MaskSlots, Streams, tensor_bytes

RESIDENT_BYTES = 128 << 20
HOST_BYTES = 2 << 30

Build = Callable[[int, int], BlockMask]
"""Makes the mask of (layer, band) on the device."""


class HostMasks:
    """The masks of one run in host memory, under a limit that all runs share.

    Attributes:
        entries: length of the longest lists that were added.
    """

    _all: ClassVar[weakref.WeakSet[HostMasks]] = weakref.WeakSet()
    _clock = itertools.count()

    def __init__(self) -> None:
        self._masks: OrderedDict[Key, tuple[HostMask, int]] = OrderedDict()  # oldest use first
        self.entries = 0
        self._all.add(self)

    def add(self, key: Key, mask: HostMask) -> None:
        """Keeps a mask; the least recently used ones of any run make room."""
        self._masks[key] = (mask, next(self._clock))
        self._masks.move_to_end(key)
        self.entries = max(self.entries, mask.entries)
        runs = [run for run in self._all if run._masks]
        size = sum(run.bytes for run in runs)
        while size > HOST_BYTES and runs:
            oldest = min(runs, key=lambda run: run._last_use)
            size -= oldest._masks.popitem(last=False)[1][0].bytes
            runs = [run for run in runs if run._masks]

    def get(self, key: Key) -> HostMask | None:
        """The mask, marked as used."""
        if key not in self._masks:
            return None
        mask, _ = self._masks[key]
        self._masks[key] = (mask, next(self._clock))
        self._masks.move_to_end(key)
        return mask

    def clear(self) -> None:
        """Forgets this run's masks."""
        self._masks.clear()
        self.entries = 0

    @property
    def bytes(self) -> int:
        """Host memory in use for this run."""
        return sum(mask.bytes for mask, _ in self._masks.values())

    @property
    def _last_use(self) -> int:
        """When the mask that was not used for longest was used."""
        return next(iter(self._masks.values()))[1]


class MaskStore:
    """Builds masks on first use and hands them out on the device."""

    def __init__(self, device: torch.device, streams: Streams | None = None) -> None:
        """Prepares an empty store.

        Args:
            device: where masks are wanted.
            streams: the device's streams; None takes those of a GPU, and on a CPU keeps all masks.
        """
        if streams is None and device.type == "cuda":
            streams = CudaStreams(device)
        self._device, self._streams = device, streams
        self._resident: dict[Key, BlockMask] = {}
        self._resident_bytes = 0
        self._host = HostMasks()
        self._slots = None if streams is None else MaskSlots(device, streams)

    @property
    def slot_bytes(self) -> int:
        """Device memory of the lists that masks take turns in."""
        return 0 if self._slots is None else self._slots.bytes

    def clear(self) -> None:
        """Forgets all masks; the next use builds them again."""
        self._resident.clear()
        self._resident_bytes = 0
        self._host.clear()
        self.rest()

    def rest(self) -> None:
        """Frees the lists on the device until masks are wanted again."""
        if self._slots is not None:
            self._slots.clear()

    @contextmanager
    def lend(self, layer: int, band: int, build: Build) -> Iterator[BlockMask]:
        """The mask on the device, for kernels that are launched on the current stream meanwhile.

        Args:
            layer, band: which mask.
            build: makes it where it is not known. Not kept: it would hold the runtime that owns
                this store, and all masks, until a garbage collection.
        """
        key = (layer, band)
        if self._slots is not None and (self._slots.holds(key) or self._bring(key)):
            with self._slots.lend(key) as mask:
                yield mask
        else:
            yield self.get(layer, band, build)

    def get(self, layer: int, band: int, build: Build) -> BlockMask:
        """The mask on the device, the caller's to keep, valid on the current stream.

        Args:
            layer, band: which mask.
            build: as in `lend`.
        """
        key = (layer, band)
        if key in self._resident:
            return self._resident[key]
        host = self._host.get(key)
        if host is not None:
            return self._unpacked(host)
        mask = build(layer, band)
        self._keep(key, mask)
        return mask

    def prefetch(self, layer: int, band: int) -> None:
        """Starts bringing a mask that was built before to the device; returns at once."""
        self._bring((layer, band))

    def _bring(self, key: Key) -> bool:
        """Sees to it that a slot holds a mask. False where none can, or the mask is not known."""
        host = self._host.get(key)
        if host is None or self._slots is None:
            return False
        return self._slots.holds(key) or self._slots.bring(key, host, self._host.entries)

    def _keep(self, key: Key, mask: BlockMask) -> None:
        size = tensor_bytes(mask.row_offsets, mask.kv_indices, mask.computed_bits)
        if self._streams is None or self._resident_bytes + size <= RESIDENT_BYTES:
            self._resident[key] = mask
            self._resident_bytes += size
            return
        bits, offsets = (_in_host_memory(x) for x in (mask.computed_bits, mask.row_offsets))
        written = self._streams.event()
        written.record(self._streams.current())
        entries = mask.kv_indices.shape[0]
        self._host.add(key, HostMask(bits, offsets, entries, mask.block, mask.tokens, written))

    def _unpacked(self, host: HostMask) -> BlockMask:
        """A mask of its own memory, on the current stream."""
        if self._streams is not None and host.written is not None:
            self._streams.current().wait_event(host.written)
        bits, offsets = (
            x.to(self._device, non_blocking=True, copy=True) for x in (host.bits, host.row_offsets)
        )
        lists = torch.empty(host.entries, dtype=torch.int16, device=self._device)
        write_lists(bits, offsets, lists)
        return BlockMask(offsets, lists, bits, host.block, host.tokens)


def _in_host_memory(x: Tensor) -> Tensor:
    """A copy of a device tensor in pinned memory, which is only begun."""
    pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.device.type == "cuda")
    return pinned.copy_(x, non_blocking=True)
