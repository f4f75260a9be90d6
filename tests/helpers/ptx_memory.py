"""Memory of ``ptx_machine``."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

Array = np.ndarray
BYTES = np.arange(16)


class Memory:
    """Tensors by their own addresses; an access outside all of them is an error."""

    def __init__(self, tensors: list[Any]) -> None:
        parts = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        parts = dict(sorted((at, s) for at, s in parts.items() if s.nbytes()))
        self.parts = [np.frombuffer((_buffer(s)), np.uint8) for s in parts.values()]
        self.start = np.array(list(parts), np.uint64)
        self.size = np.array([len(x) for x in self.parts], np.uint64)
        self.offset = (np.cumsum(self.size) - self.size).astype(np.int64)
        self.bytes = np.concatenate(self.parts)

    def at(self, address: Array, count: int) -> Array:
        """Places in ``bytes`` of these bytes, [threads, count]."""
        part = np.searchsorted(self.start, address, "right") - 1
        inside = address - self.start[part]
        if (part < 0).any() or (inside + np.uint64(count) > self.size[part]).any():
            raise IndexError(f"{count} bytes at {address} are outside of all tensors")
        return (self.offset[part] + inside.astype(np.int64))[:, None] + BYTES[:count]

    def store(self) -> None:
        """Writes everything back into the tensors."""
        for part, first in zip(self.parts, self.offset, strict=True):
            part.setflags(write=True)
            part[:] = self.bytes[first : first + len(part)]


def _buffer(storage: Any) -> Any:
    return (ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr())
