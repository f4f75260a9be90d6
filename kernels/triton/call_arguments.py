"""Arguments of a call's kernels: the buffers that it makes, and what is loaded as tiles."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

ALIGNMENT_BYTES = 256
# What ``attend_blocks`` and the kernels of 4 bits are given, in this order.
GIVEN = (
    "q", "k", "v", "permutation", "order_of_head", "row_offsets", "kv_indices", "computed_bits",
    "tail_bias", "key_bias",
)  # fmt: skip


def named_tensors(*tensors: Tensor) -> dict[str, Tensor]:
    """The tensors that a call is given, in the order of ``GIVEN``, by name."""
    return dict(zip(GIVEN, tensors, strict=True))


class Buffer(NamedTuple):
    """A tensor that lives as long as a call."""

    dtype: torch.dtype
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        size = prod(self.sizes) * self.dtype.itemsize
        return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def total_bytes(buffers: dict[str, Buffer]) -> int:
    """Bytes of all buffers."""
    return sum(buffer.bytes for buffer in buffers.values())


def allocated(buffers: dict[str, Buffer], device: torch.device) -> dict[str, Tensor]:
    """The buffers' tensors by name, uninitialised."""
    return {
        name: torch.empty(buffer.sizes, dtype=buffer.dtype, device=device)
        for name, buffer in buffers.items()
    }


class Tile(NamedTuple):
    """An argument that is a tensor descriptor: the named tensor as a matrix, loaded in tiles.

    Its columns are the tensor's last dimension. ``gluon``: for a kernel in Gluon.
    """

    name: str
    tile: tuple[int, int]
    gluon: bool = False

    def descriptor(self, tensor: Tensor) -> Any:
        """Of a tensor."""
        rows, tile = tensor.flatten(0, -2), list(self.tile)
        if self.gluon:
            from triton.experimental.gluon.language import NVMMASharedLayout
            from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

            size = tensor.element_size()
            # As the copy engine writes tiles and the products read them.
            layout = NVMMASharedLayout(
                swizzle_byte_width=min(self.tile[1] * size, 128), element_bitwidth=8 * size, rank=2
            )
            return TensorDescriptor.from_tensor(rows, tile, layout)
        from triton.tools.tensor_descriptor import TensorDescriptor

        return TensorDescriptor.from_tensor(rows, tile)


@dataclass(frozen=True, slots=True)
class Described:
    """A tensor descriptor of the named tensor, but for the address."""

    name: str
    kind: type
    fields: dict[str, Any]

    def at(self, address: int) -> Any:
        """The descriptor of a tensor at this address; its checks were made the first time."""
        descriptor = object.__new__(self.kind)
        descriptor.__dict__.update(self.fields, base=_Address(address))
        return descriptor


class _Address:
    """Stands for a tensor where only its address is read."""

    __slots__ = ("_address",)

    def __init__(self, address: int) -> None:
        self._address = address

    def data_ptr(self) -> int:
        return self._address
