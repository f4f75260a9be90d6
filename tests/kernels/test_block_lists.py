"""The lists of computed blocks: the kernel (interpreted without a GPU) against plain PyTorch."""

import os

import pytest
import torch
from paro_attention.kernels import block_lists
from paro_attention.kernels.block_lists import (
    pack_bits,
    unpack_bits,
    write_lists,
    write_lists_reference,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def random_mask(heads, query_blocks, key_blocks, density):
    generator = torch.Generator().manual_seed(key_blocks)
    return torch.rand(heads, query_blocks, key_blocks, generator=generator) < density


def offsets_of(mask):
    return torch.nn.functional.pad(mask.sum(-1).view(-1).cumsum(0), (1, 0)).int()


def some_empty_rows():
    mask = random_mask(3, 5, 70, 0.3)
    mask[0, 0] = mask[1, 2:] = mask[2, 4] = False
    return mask


MASKS = {
    "one block": torch.ones(1, 1, 1, dtype=torch.bool),
    "no block": torch.zeros(2, 3, 40, dtype=torch.bool),
    "empty rows": some_empty_rows(),
    "every block": torch.ones(2, 3, 64, dtype=torch.bool),
    "a word and a bit": random_mask(2, 4, 33, 0.5),
    "the sign bit alone": torch.arange(64).remainder(32).eq(31).expand(2, 2, -1),
    "more words than are read at once": random_mask(1, 3, 1100, 0.4),
    "thin": random_mask(2, 7, 591, 0.01),
}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


@masks
def test_bits_are_the_mask_again(mask):
    bits = pack_bits(mask)
    assert bits.dtype == torch.int32 and bits.shape[-1] == -(-mask.shape[-1] // 32)
    assert torch.equal(unpack_bits(bits, mask.shape[-1]), mask)
    assert not unpack_bits(bits, bits.shape[-1] * 32)[..., mask.shape[-1] :].any()


@masks
def test_lists_are_the_columns_of_every_row(mask):
    lists = torch.full((int(mask.sum()) + 3,), -1, dtype=torch.int16)
    write_lists_reference(pack_bits(mask), offsets_of(mask), lists)
    wanted = [row.nonzero().flatten() for row in mask.flatten(0, 1)]
    assert torch.equal(lists[:-3], torch.cat(wanted).short())
    assert lists[-3:].tolist() == [-1] * 3


@masks
def test_the_kernel_writes_what_pytorch_does(mask):
    kernel = pytest.importorskip(
        "paro_attention.kernels.triton.block_lists", reason="Triton is not installed"
    )
    if DEVICE == "cpu" and not INTERPRETED:
        pytest.skip("needs a GPU or TRITON_INTERPRET=1")
    offsets, bits = offsets_of(mask).to(DEVICE), pack_bits(mask.to(DEVICE))
    total = int(mask.sum())
    # Longer than needed, as long, and too short: then the last ones are left out.
    for entries in (total + 5, total, max(0, total - 7)):
        got, want = (torch.full((entries,), -1, dtype=torch.int16, device=DEVICE) for _ in "ab")
        kernel.write_lists(bits, offsets, got)
        write_lists_reference(bits, offsets, want)
        assert torch.equal(got, want)


def test_listing_a_head_at_a_time_changes_nothing(monkeypatch):
    mask = random_mask(5, 9, 40, 0.4)
    mask[2] = False
    lists = [torch.zeros(int(mask.sum()), dtype=torch.int16) for _ in range(2)]
    bits = pack_bits(mask)
    write_lists(bits, offsets_of(mask), lists[0])
    monkeypatch.setattr(block_lists, "PACKED_AT_ONCE", 1)
    assert torch.equal(pack_bits(mask), bits)
    write_lists(bits, offsets_of(mask), lists[1])
    assert torch.equal(*lists)
