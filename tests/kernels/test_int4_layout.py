"""The 4-bit operand layout against a model of the instruction, written from the PTX manual."""

from __future__ import annotations

import pytest
import torch
from paro_attention.kernels.int4_layout import (
    from_words,
    key_of_k,
    pack_a,
    pack_b,
    pack_values,
    to_words,
    unpack_a,
    unpack_b,
)


def signed(*shape):
    return torch.randint(-8, 8, shape)


def levels(*shape):
    return torch.randint(0, 16, shape)


def mma(a, b, a_signed, b_signed):
    """Sums [32 lanes, 4] of one m16n8k64 from its words a [32, 4], b [32, 2].

    PTX ISA, fragments of .s4/.u4 operands: for element i of a lane, groupID = lane >> 2 and
    threadID = lane % 4,
      A: row = groupID for 0 <= i < 8 || 16 <= i < 24, else groupID + 8
         col = threadID * 8 + (i & 7) for i < 16, else threadID * 8 + (i & 7) + 32
      B: row = threadID * 8 + (i & 7) for i < 8, else threadID * 8 + (i & 7) + 32; col = groupID
      C: row = groupID for i < 2, else groupID + 8; col = threadID * 2 + (i & 1)
    """
    matrix_a = torch.zeros(16, 64, dtype=torch.long)
    matrix_b = torch.zeros(64, 8, dtype=torch.long)
    elements_a, elements_b = from_words(a, a_signed), from_words(b, b_signed)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(32):
            row = group if i < 8 or 16 <= i < 24 else group + 8
            matrix_a[row, thread * 8 + (i & 7) + (0 if i < 16 else 32)] = elements_a[lane, i]
        for i in range(16):
            matrix_b[thread * 8 + (i & 7) + (0 if i < 8 else 32), group] = elements_b[lane, i]
    product = matrix_a @ matrix_b
    sums = torch.zeros(32, 4, dtype=torch.long)
    for lane in range(32):
        group, thread = lane >> 2, lane % 4
        for i in range(4):
            sums[lane, i] = product[group + 8 * (i >= 2), thread * 2 + (i & 1)]
    return sums


def words_of_b(packed, tile, step, steps):
    """The two words [32, 2] of a tile of columns and a step of k."""
    first = (tile * steps + step) * 2
    return packed[first // 4, :, first % 4 : first % 4 + 2]


def product(packed_a, packed_b, columns, a_signed, b_signed):
    """Sums [tiles of columns, 32 lanes, 4] of one tile of 16 rows, as the kernel forms them."""
    steps = packed_a.shape[0]
    sums = torch.zeros(columns // 8, 32, 4, dtype=torch.long)
    for tile in range(columns // 8):
        for step in range(steps):
            b = words_of_b(packed_b, tile, step, steps)
            sums[tile] += mma(packed_a[step], b, a_signed, b_signed)
    return sums


def as_matrix(sums):
    """[tiles, 32, 4] -> [16, 8 * tiles]."""
    sums = sums.unflatten(1, (8, 4)).unflatten(-1, (2, 2))  # [tile, g, t, half, c]
    return sums.permute(3, 1, 0, 2, 4).reshape(16, -1)


@pytest.mark.parametrize("k", [64, 128])
def test_packing_is_reversible(k):
    for make, is_signed in ((signed, True), (levels, False)):
        x = make(2, 3, 64, k)
        assert torch.equal(from_words(to_words(x), is_signed), x)
        assert torch.equal(unpack_a(pack_a(x), is_signed), x)
        assert torch.equal(unpack_b(pack_b(x), k, is_signed), x)
    assert pack_a(signed(2, 64, k)).shape == (2, 4, k // 64, 32, 4)
    assert pack_b(signed(2, 64, k)).shape == (2, 64 * k // 1024, 32, 4)


@pytest.mark.parametrize("keys", [64, 128])
def test_the_keys_of_a_product_are_a_permutation_within_64(keys):
    order = key_of_k(torch.arange(keys))
    assert torch.equal(order.sort().values, torch.arange(keys))
    assert torch.equal(order // 64, torch.arange(keys) // 64)


@pytest.mark.parametrize(("k", "n"), [(64, 64), (128, 64), (128, 128)])
def test_packed_operands_give_the_integer_product(k, n):
    q, keys = signed(16, k), signed(n, k)
    got = as_matrix(product(pack_a(q)[0], pack_b(keys), n, True, True))
    assert torch.equal(got, q @ keys.T)


@pytest.mark.parametrize(("keys", "channels"), [(64, 64), (64, 128), (128, 64), (128, 128)])
def test_sums_of_the_first_product_are_the_operand_of_the_second(keys, channels):
    """Every lane builds its words of P from its own sums, in their order, and from nothing else."""
    p, v = levels(16, keys), levels(keys, channels)
    # The sums [tile, lane, c + 2 * half] as the first product would leave them.
    sums = p.reshape(2, 8, keys // 8, 4, 2).permute(2, 1, 3, 0, 4).reshape(keys // 8, 32, 4)
    words = torch.zeros(keys // 64, 32, 4, dtype=torch.long)
    for step in range(keys // 64):
        for upper in range(2):
            for half in range(2):
                tiles = sums[8 * step + 4 * upper :][:4, :, 2 * half : 2 * half + 2]
                own = tiles.permute(1, 0, 2).reshape(32, 8)  # (tile, c), lowest nibble first
                words[step, :, half + 2 * upper] = to_words(own)[:, 0]
    got = as_matrix(product(words, pack_values(v), channels, False, False))
    assert torch.equal(got, p @ v)
