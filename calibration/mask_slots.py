"""Two places on the device that the masks of the layers take turns in.

While one layer's attention reads its mask in one place, the next layer's is brought to the other on
a side stream. The places stay: after the largest mask has been there, nothing is allocated any
more. A place is written again only behind the last kernel that reads it, and the host waits for
nothing: all order between the two streams is by events.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernels import BlockMask
from ..kernels.block_lists import write_lists

SLOTS = 2

Key = tuple[int, int]  # (layer, noise band)


@dataclass(frozen=True, slots=True)
class HostMask:
    """A mask in host memory, pinned where there is a GPU.

    Attributes:
        bits: int32 [H, Qb, words], as in BlockMask.
        row_offsets: int32 [H * Qb + 1], as in BlockMask.
        entries: length of the lists, at least row_offsets[-1].
        block: (query, key) tokens of a block.
        tokens: grid tokens.
        written: event behind the copy from the device; None where nothing is under way.
    """

    bits: Tensor
    row_offsets: Tensor
    entries: int
    block: tuple[int, int]
    tokens: int
    written: Any = None

    @property
    def bytes(self) -> int:
        return tensor_bytes(self.bits, self.row_offsets)


class Streams(Protocol):
    """What is needed of a device's streams: the consumer's, which is the current one, and a side
    stream. Streams and events are torch's, or a test's."""

    def current(self) -> Any: ...

    @property
    def side(self) -> Any: ...

    def on_side(self) -> AbstractContextManager[Any]: ...

    def event(self) -> Any: ...

    def share(self, tensors: Sequence[Tensor], stream: Any) -> None: ...


class CudaStreams:
    """The streams of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side: torch.cuda.Stream | None = None

    def current(self) -> torch.cuda.Stream:
        """The stream that the caller is on."""
        return torch.cuda.current_stream(self._device)

    @property
    def side(self) -> torch.cuda.Stream:
        """The stream on which masks arrive."""
        if self._side is None:
            self._side = torch.cuda.Stream(self._device)
        return self._side

    def on_side(self) -> AbstractContextManager[Any]:
        """Makes the side stream the current one for a while."""
        return torch.cuda.stream(self.side)

    def event(self) -> torch.cuda.Event:
        """A new event, for order between streams only."""
        return torch.cuda.Event()

    def share(self, tensors: Sequence[Tensor], stream: Any) -> None:
        """Keeps the memory of tensors, once they are gone, until `stream` has come by."""
        for tensor in tensors:
            tensor.record_stream(stream)


class Slot:
    """Memory for one layer's mask."""

    def __init__(
        self, heads: int, block: tuple[int, int], tokens: int, entries: int, device: torch.device
    ) -> None:
        """Allocates room for a mask of this many heads and tokens with up to `entries` blocks."""
        query_blocks, key_blocks = (-(-tokens // side) for side in block)
        words = -(-key_blocks // 32)
        self.mask = BlockMask(
            torch.empty(heads * query_blocks + 1, dtype=torch.int32, device=device),
            torch.empty(entries, dtype=torch.int16, device=device),
            torch.empty(heads, query_blocks, words, dtype=torch.int32, device=device),
            block,
            tokens,
        )
        self.key: Key | None = None
        self.readers = 0
        self.last_use = 0
        self.ready: Any = None
        self.released: Any = None

    @property
    def bytes(self) -> int:
        """Device memory of the slot."""
        return tensor_bytes(*self.tensors)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.mask.row_offsets, self.mask.kv_indices, self.mask.computed_bits

    def takes(self, host: HostMask) -> bool:
        """True where the mask has room here."""
        mask = self.mask
        return (
            (mask.block, mask.tokens) == (host.block, host.tokens)
            and mask.computed_bits.shape == host.bits.shape
            and mask.kv_indices.shape[0] >= host.entries
        )


class MaskSlots:
    """The slots of one device, and who reads them."""

    def __init__(self, device: torch.device, streams: Streams) -> None:
        """Prepares slots for masks on `device`; memory is taken by the first masks."""
        self._device, self._streams = device, streams
        self._slots: list[Slot] = []
        self._clock = itertools.count(1)

    @property
    def bytes(self) -> int:
        """Device memory of all slots."""
        return sum(slot.bytes for slot in self._slots)

    def clear(self) -> None:
        """Gives the memory back. What is still being read or written is kept until that is done."""
        self._slots = []

    def holds(self, key: Key) -> bool:
        """True where the mask is in a slot or on its way there."""
        return self._find(key) is not None

    def bring(self, key: Key, host: HostMask, entries: int) -> bool:
        """Starts bringing a mask to the slot that was not used for longest; returns at once.

        Args:
            key: what to call it.
            host: the mask.
            entries: room for a list to allocate where the slot has to be, at least host.entries.

        Returns:
            False where every slot is being read.
        """
        slot = self._slot_for(host, max(entries, host.entries))
        if slot is None:
            return False
        slot.key = key
        offsets, lists, bits = slot.tensors
        with self._streams.on_side():
            side = self._streams.side
            for before in (slot.released, host.written):
                if before is not None:
                    side.wait_event(before)
            offsets.copy_(host.row_offsets, non_blocking=True)
            bits.copy_(host.bits, non_blocking=True)
            write_lists(bits, offsets, lists)
            slot.ready.record(side)
        return True

    @contextmanager
    def lend(self, key: Key) -> Iterator[BlockMask]:
        """The mask of a slot, for kernels that are launched on the current stream meanwhile.

        Raises:
            KeyError: no slot holds it.
        """
        slot = self._find(key)
        if slot is None:
            raise KeyError(key)
        stream = self._streams.current()
        stream.wait_event(slot.ready)
        if slot.released is not None:
            # Readers on several streams come one behind the other, so that the last event is
            # behind all of them.
            stream.wait_event(slot.released)
        self._streams.share(slot.tensors, stream)
        slot.readers += 1
        slot.last_use = next(self._clock)
        try:
            yield slot.mask
        finally:
            slot.readers -= 1
            if slot.released is None:
                slot.released = self._streams.event()
            slot.released.record(self._streams.current())

    def _find(self, key: Key) -> Slot | None:
        return next((slot for slot in self._slots if slot.key == key), None)

    def _slot_for(self, host: HostMask, entries: int) -> Slot | None:
        """A slot that nobody reads, with room for the mask."""
        if len(self._slots) == SLOTS:
            free = [slot for slot in self._slots if slot.readers == 0]
            if not free:
                return None
            oldest = min(free, key=lambda slot: slot.last_use)
            if oldest.takes(host):
                return oldest
            self._slots.remove(oldest)
            del free, oldest
        slot = Slot(host.bits.shape[0], host.block, host.tokens, entries, self._device)
        # The memory may have been another tensor's a moment ago, which kernels on the current
        # stream still use; and it must outlast the side stream's work when the slot goes.
        slot.ready, slot.released = self._streams.event(), self._streams.event()
        slot.released.record(self._streams.current())
        self._streams.share(slot.tensors, self._streams.side)
        self._slots.append(slot)
        return slot


def tensor_bytes(*tensors: Tensor) -> int:
    """Memory of tensors that own all of it."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
