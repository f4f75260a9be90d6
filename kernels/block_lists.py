"""The two packed forms of a block mask: a bit per block, and the lists of computed blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from .device import unavailable_reason

PACKED_AT_ONCE = 1 << 23  # blocks; packing or listing one takes 4 to 20 bytes


def pack_bits(mask: Tensor) -> Tensor:
    """Packs a bool [H, Qb, KVb] into int32 [H, Qb, ceil(KVb / 32)]; block j is bit j % 32."""
    heads, query_blocks, key_blocks = mask.shape
    words = -(-key_blocks // 32)
    weights = torch.ones(32, dtype=torch.int64, device=mask.device) << torch.arange(
        32, device=mask.device
    )
    # Bit 31 is the sign of the int32 word. No two bits meet, so that no sum overflows.
    weights = torch.where(weights >= 2**31, weights - 2**32, weights).to(torch.int32)
    bits = torch.empty(heads, query_blocks, words, dtype=torch.int32, device=mask.device)
    for part in head_slices(heads, query_blocks * key_blocks):
        padded = torch.nn.functional.pad(mask[part], (0, words * 32 - key_blocks))
        in_words = padded.unflatten(-1, (words, 32))
        torch.sum(in_words * weights, -1, dtype=torch.int32, out=bits[part])
    return bits


def unpack_bits(bits: Tensor, key_blocks: int) -> Tensor:
    """bool [..., KVb] of int32 [..., words], what ``pack_bits`` packed."""
    column = torch.arange(key_blocks, device=bits.device)
    return (bits[..., column // 32] >> (column % 32).to(torch.int32)) & 1 == 1


def write_lists(computed_bits: Tensor, row_offsets: Tensor, lists: Tensor) -> None:
    """Writes the computed blocks of every query block, one list behind the other.

    On a GPU that the kernels serve it is one kernel launch: no memory is allocated and the host
    does not wait.

    Args:
        computed_bits: int32 [H, Qb, words], contiguous; bits behind the last key block are 0.
        row_offsets: int32 [H * Qb + 1], where the list of each row starts: the number of bits in
            all rows before it.
        lists: int16 [N], written up to the last list; what does not fit is left out.
    """
    if computed_bits.device.type == "cuda" and unavailable_reason(computed_bits.device) is None:
        from .triton.block_lists import write_lists as write_with_triton

        write_with_triton(computed_bits, row_offsets, lists)
    else:
        write_lists_reference(computed_bits, row_offsets, lists)


def write_lists_reference(computed_bits: Tensor, row_offsets: Tensor, lists: Tensor) -> None:
    """``write_lists`` in plain PyTorch: the specification of the kernel."""
    heads, query_blocks, words = computed_bits.shape
    column = torch.arange(words * 32, device=computed_bits.device).to(torch.int16)
    filled, entries = 0, lists.shape[0]
    for part in head_slices(heads, query_blocks * words * 32):
        computed = unpack_bits(computed_bits[part], words * 32)
        # Row by row, and ascending in each row: the lists one behind the other.
        listed = column.expand_as(computed)[computed][: entries - filled]
        lists[filled : filled + len(listed)] = listed
        filled += len(listed)


def head_slices(heads: int, blocks: int) -> list[slice]:
    """Slices of as many heads of ``blocks`` blocks as are packed or listed at once."""
    together = max(1, PACKED_AT_ONCE // max(1, blocks))
    return [slice(start, start + together) for start in range(0, heads, together)]
