"""Where 4-bit operands lie in memory so that a thread loads them ready for ``mma.m16n8k64``. Pure.

The instruction multiplies A [16, 64] by B [64, 8] (PTX ISA, "Matrix Fragments for mma.m16n8k64"):
lane ``4g + t`` of a warp holds four 32-bit words of A, two of B and four sums of C,

    A word ``half + 2 * upper``: row g + 8 * half, k = 32 * upper + 8t + (0..7)
    B word ``upper``:            column g,         k = 32 * upper + 8t + (0..7)
    C sum ``c + 2 * half``:      row g + 8 * half, column 2t + c

with the eighth k values of a word in its nibbles, lowest first. What a lane holds is stored side by
side, so that it loads 16 bytes at once and unpacks nothing.

Between the two products of attention P stays where it is: the lane that holds the sums of columns
2t and 2t + 1 in eight adjacent C tiles (64 keys) calls them its 16 values of k. The k of P.V is
therefore key ``key_of_k(k)``, and only the packing of V knows of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

NIBBLES = 8  # in a word
STEP = 64  # values of k in one instruction
ROWS = 16  # of A in one instruction
COLUMNS = 8  # of B in one instruction
LANES = 32
WORDS = 4  # 16 bytes, the widest load of a lane


def key_of_k(k: Tensor) -> Tensor:
    """The key, within each 64, that stands at position ``k`` of the second product.

    k = 32u + 8t + 2j + c is column 2t + c of C tile 4u + j.
    """
    upper, lane, pair, odd = k % STEP // 32, k % 32 // 8, k % 8 // 2, k % 2
    return k // STEP * STEP + 8 * (4 * upper + pair) + 2 * lane + odd


def to_words(x: Tensor) -> Tensor:
    """[..., K] integers in [-8, 15] -> int32 [..., K // 8], the first in the lowest nibble."""
    nibbles = (x.long() & 15).unflatten(-1, (-1, NIBBLES))
    shifts = 4 * torch.arange(NIBBLES, device=x.device)
    words = (nibbles << shifts).sum(-1)
    return (words - ((words >> 31) << 32)).int()


def from_words(words: Tensor, signed: bool) -> Tensor:
    """Inverse of :func:`to_words`: int32 [..., 8 * words]."""
    shifts = 4 * torch.arange(NIBBLES, device=words.device, dtype=torch.int32)
    nibbles = (words[..., None] >> shifts) & 15
    if signed:
        nibbles = nibbles - ((nibbles & 8) << 1)
    return nibbles.flatten(-2)


def pack_a(x: Tensor) -> Tensor:
    """[..., M, K] -> int32 [..., M / 16, K / 64, 32, 4]: a lane's words of A side by side.

    M must be a multiple of 16 and K of 64.
    """
    # [..., m, half, g, step, upper, t], and back to front for the lane's own order.
    words = to_words(x).unflatten(-1, (-1, 2, 4)).unflatten(-4, (-1, 2, 8))
    words = _reordered(words, (0, 3, 2, 5, 4, 1))
    return words.flatten(-4, -3).flatten(-2)


def unpack_a(packed: Tensor, signed: bool) -> Tensor:
    """Inverse of :func:`pack_a`."""
    words = packed.unflatten(-1, (2, 2)).unflatten(-3, (8, 4))
    words = _reordered(words, (0, 5, 2, 1, 4, 3))
    return from_words(words.flatten(-3).flatten(-4, -2), signed)


def pack_b(x: Tensor) -> Tensor:
    """[..., N, K] (B transposed) -> int32 [..., N * K / 1024, 32, 4].

    The words of a lane are numbered (tile of 8 columns, step of 64 k, upper); four in a row lie
    side by side. N * K must be a multiple of 1024, N of 8 and K of 64.
    """
    words = to_words(x).unflatten(-1, (-1, 2, 4)).unflatten(-4, (-1, 8))
    # [..., tile, g, step, upper, t] -> [..., (tile, step, upper), (g, t)]
    words = _reordered(words, (0, 2, 3, 1, 4)).flatten(-2).flatten(-4, -2)
    return words.unflatten(-2, (-1, WORDS)).transpose(-1, -2).contiguous()


def unpack_b(packed: Tensor, k: int, signed: bool) -> Tensor:
    """Inverse of :func:`pack_b`: [..., N, k]."""
    words = packed.transpose(-1, -2).flatten(-3, -2)
    words = words.unflatten(-2, (-1, k // STEP, 2)).unflatten(-1, (8, 4))
    words = _reordered(words, (0, 3, 1, 2, 4))
    return from_words(words.flatten(-3).flatten(-3, -2), signed)


def pack_values(levels: Tensor) -> Tensor:
    """V [..., keys, D], levels in [0, 15], as B of P.V: its k are the keys of ``key_of_k``."""
    keys = key_of_k(torch.arange(levels.shape[-2], device=levels.device))
    return pack_b(levels.index_select(-2, keys).transpose(-1, -2))


def _reordered(x: Tensor, last: tuple[int, ...]) -> Tensor:
    """``x`` with its last dimensions permuted among themselves."""
    before = x.ndim - len(last)
    return x.permute(*range(before), *(before + axis for axis in last))
