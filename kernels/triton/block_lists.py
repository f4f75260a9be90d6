"""From one bit per block to the lists of computed blocks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

WORDS_AT_ONCE = 32


@triton.jit
def popcount(x):
    """Number of bits set in each 32-bit unsigned word, by sums of neighbouring fields.

    H. S. Warren, Hacker's Delight, section 5-1. Runs in the interpreter too, unlike ``popc``.
    """
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    x = x + (x >> 8)
    return ((x + (x >> 16)) & 0x3F).to(tl.int32)


@triton.jit(do_not_specialize=("bit_words", "entries"))
def block_lists_kernel(computed_bits, row_offsets, lists, bit_words, entries, WORDS: tl.constexpr):
    """Grid (H * Qb): one program writes the list of one query block.

    A bit's place in the list is the number of bits before it: those of the words before, and those
    below it in its own word.
    """
    row = tl.program_id(0).to(tl.int64)
    start = tl.load(row_offsets + row)
    words = computed_bits + row * bit_words
    index = tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    below = (tl.full([32], 1, tl.uint32) << bit.to(tl.uint32)) - 1
    for first in range(0, bit_words, WORDS):
        word = tl.load(words + first + index, mask=first + index < bit_words, other=0)
        word = word.to(tl.uint32, bitcast=True)
        counts = popcount(word)
        before = start + tl.cumsum(counts, 0) - counts
        place = before[:, None] + popcount(word[:, None] & below[None, :])
        computed = ((word[:, None] >> bit.to(tl.uint32)[None, :]) & 1) == 1
        block = (first + index)[:, None] * 32 + bit[None, :]
        tl.store(lists + place, block.to(tl.int16), mask=computed & (place < entries))
        start += tl.sum(counts, 0)


def write_lists(computed_bits: Tensor, row_offsets: Tensor, lists: Tensor) -> None:
    """As ``kernels.block_lists.write_lists`` says, on the current stream and without waiting."""
    heads, query_blocks, words = computed_bits.shape
    # Triton launches on the current device, which need not be that of the bits.
    with torch.cuda.device_of(computed_bits):
        block_lists_kernel[(heads * query_blocks,)](
            computed_bits, row_offsets, lists, words, lists.shape[0],
            WORDS=WORDS_AT_ONCE, num_warps=1,
        )  # fmt: skip
