"""Where the packed masks of a run live.

On the CPU a mask is kept as it is. On a GPU one bit per block stays in pinned host memory; the
lists of one layer at a time are unpacked on the device, those of the next layer on a side stream
while the current layer computes. Lists of the whole run would take many gigabytes; bits take 1.1 GB
for 40 layers of 40 heads, four noise bands and 75,600 tokens. All runs together keep HOST_BYTES of
them, the most recently used. Masks of small models stay on the device altogether.
"""

from __future__ import annotations

import itertools
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..kernels import BlockMask

RESIDENT_BYTES = 128 << 20
HOST_BYTES = 2 << 30
_ELEMENTS_AT_ONCE = 1 << 23

Key = tuple[int, int]  # (layer, noise band)


@dataclass(frozen=True, slots=True)
class _HostMask:
    bits: Tensor  # int32 [H, Qb, words], pinned
    offsets: Tensor  # int32 [H * Qb + 1], pinned
    entries: int  # of the lists
    key_blocks: int
    block: tuple[int, int]
    tokens: int

    @property
    def bytes(self) -> int:
        return _bytes(self.bits) + _bytes(self.offsets)


@dataclass(frozen=True, slots=True)
class _Arriving:
    key: Key
    mask: BlockMask
    ready: torch.cuda.Event


class HostMasks:
    """The masks of one run in host memory, under a limit that all runs share."""

    _all: ClassVar[weakref.WeakSet[HostMasks]] = weakref.WeakSet()
    _clock = itertools.count()

    def __init__(self) -> None:
        self._masks: OrderedDict[Key, tuple[_HostMask, int]] = OrderedDict()  # oldest use first
        self._all.add(self)

    def add(self, key: Key, mask: _HostMask) -> None:
        """Keeps a mask; the least recently used ones of any run make room."""
        self._masks[key] = (mask, next(self._clock))
        self._masks.move_to_end(key)
        runs = [run for run in self._all if run._masks]
        size = sum(run.bytes for run in runs)
        while size > HOST_BYTES and runs:
            oldest = min(runs, key=lambda run: run._last_use)
            size -= oldest._masks.popitem(last=False)[1][0].bytes
            runs = [run for run in runs if run._masks]

    def get(self, key: Key) -> _HostMask | None:
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

    def __init__(self, device: torch.device) -> None:
        """Prepares an empty store for masks that are wanted on `device`."""
        self._device = device
        self._resident: dict[Key, BlockMask] = {}
        self._resident_bytes = 0
        self._host = HostMasks()
        self._arriving: _Arriving | None = None
        self._side: torch.cuda.Stream | None = None

    def clear(self) -> None:
        """Forgets all masks; the next use builds them again."""
        self._resident.clear()
        self._resident_bytes = 0
        self._host.clear()
        self._arriving = None

    def get(self, layer: int, band: int, build: Callable[[int, int], BlockMask]) -> BlockMask:
        """The mask on the device, valid on the current stream.

        Args:
            layer, band: which mask.
            build: makes the mask of (layer, band) on the device. Not kept: it would hold the
                runtime that owns this store, and all masks, until a garbage collection.
        """
        key = (layer, band)
        if key in self._resident:
            return self._resident[key]
        arriving, self._arriving = self._arriving, None
        if arriving is not None and arriving.key == key:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(arriving.ready)
            for tensor in _tensors(arriving.mask):
                tensor.record_stream(stream)
            return arriving.mask
        host = self._host.get(key)
        if host is not None:
            return _unpacked(host, self._device)
        mask = build(layer, band)
        self._keep(key, mask)
        return mask

    def prefetch(self, layer: int, band: int) -> None:
        """Starts bringing a mask that was built before to the device; returns at once."""
        key = (layer, band)
        if self._arriving is not None and self._arriving.key == key:
            return
        host = self._host.get(key)
        if host is None:
            return
        if self._side is None:
            self._side = torch.cuda.Stream(self._device)
        with torch.cuda.stream(self._side):
            mask = _unpacked(host, self._device)
            ready = torch.cuda.Event()
            ready.record(self._side)
        self._arriving = _Arriving(key, mask, ready)

    def _keep(self, key: Key, mask: BlockMask) -> None:
        size = sum(_bytes(tensor) for tensor in _tensors(mask))
        if self._device.type != "cuda" or self._resident_bytes + size <= RESIDENT_BYTES:
            self._resident[key] = mask
            self._resident_bytes += size
            return
        bits, offsets = (
            torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)
            for x in (mask.computed_bits, mask.row_offsets)
        )
        entries = mask.kv_indices.shape[0]
        self._host.add(
            key, _HostMask(bits, offsets, entries, mask.num_key_blocks, mask.block, mask.tokens)
        )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(mask: BlockMask) -> tuple[Tensor, Tensor, Tensor]:
    return mask.row_offsets, mask.kv_indices, mask.computed_bits


def _unpacked(host: _HostMask, device: torch.device) -> BlockMask:
    """A BlockMask from its bits, without waiting for the device."""
    bits = host.bits.to(device, non_blocking=True)
    offsets = host.offsets.to(device, non_blocking=True)
    heads, query_blocks, _ = bits.shape
    # One entry more than the lists: skipped blocks are written there and cut off.
    indices = torch.zeros(host.entries + 1, dtype=torch.int16, device=device)
    starts = offsets[:-1].view(heads, query_blocks, 1)
    column = torch.arange(host.key_blocks, device=device)
    together = max(1, _ELEMENTS_AT_ONCE // (query_blocks * host.key_blocks))
    for start in range(0, heads, together):
        part = slice(start, start + together)
        flags = (bits[part][..., column // 32] >> (column % 32).to(torch.int32)) & 1
        place = flags.cumsum(-1, dtype=torch.int32) - 1 + starts[part]
        place = torch.where(flags == 1, place, host.entries).long().view(-1)
        indices.scatter_(0, place, column.to(torch.int16).expand_as(flags).reshape(-1))
    return BlockMask(offsets, indices[: host.entries], bits, host.block, host.tokens)
