"""Block mass against a naive computation from the whole attention map."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paro_attention.calibration.block_layout import valid_tokens
from paro_attention.calibration.block_mass import block_mass
from paro_attention.calibration.token_grid import TokenGrid
from paro_attention.calibration.token_order import grid_permutation


def naive_mass(q, k, permutation, block):
    """[H, Qb, KVb] from the stored map, block by block."""
    tokens = q.shape[2]
    p = torch.softmax(q.double() @ k.double().transpose(-1, -2) * q.shape[-1] ** -0.5, -1).mean(0)
    p = p[:, permutation][:, :, permutation]
    rows = [p[:, i : i + block[0]].mean(1) for i in range(0, tokens, block[0])]
    blocks = [
        torch.stack([row[:, j : j + block[1]].sum(1) for j in range(0, tokens, block[1])], -1)
        for row in rows
    ]
    return torch.stack(blocks, 1)


@settings(max_examples=12, deadline=None)
@given(
    grid=st.sampled_from([(2, 5, 7), (3, 8, 8), (1, 9, 13), (4, 4, 4)]),
    block=st.sampled_from([(32, 32), (64, 32), (32, 64), (64, 128)]),
    batch=st.integers(1, 2),
)
def test_equals_naive_map_for_ragged_lengths(grid, block, batch):
    grid = TokenGrid(*grid)
    q, k = (torch.randn(batch, 2, grid.tokens, 16) * 2 for _ in range(2))
    orders = [grid_permutation(name, grid) for name in ("FHW", "WHF", "2x2x4")]
    for head, mass in block_mass(q, k, torch.stack(orders), block):
        for index, order in enumerate(orders):
            expected = naive_mass(q, k, order, block)[head]
            torch.testing.assert_close(mass[index].double(), expected, atol=1e-5, rtol=1e-5)


def test_small_tiles_give_the_same_mass(monkeypatch):
    from paro_attention.kernels import attention_rows

    grid = TokenGrid(3, 7, 11)
    q, k = (torch.randn(1, 1, grid.tokens, 8) for _ in range(2))
    orders = torch.stack([grid_permutation(name, grid) for name in ("HWF", "FHW")])
    (_, whole), *_ = block_mass(q, k, orders, (32, 32))
    monkeypatch.setattr(attention_rows, "CPU_TILE_BYTES", 1)
    (_, tiled), *_ = block_mass(q, k, orders, (32, 32))
    torch.testing.assert_close(whole, tiled, atol=1e-6, rtol=1e-5)


def test_rows_sum_to_one_and_strided_half_inputs_are_taken():
    q, k = (torch.randn(1, 130, 3 * 8).half().view(1, 130, 3, 8).transpose(1, 2) for _ in range(2))
    for _, mass in block_mass(q, k, torch.arange(130)[None], (64, 64)):
        assert mass.shape == (1, 3, 3)
        torch.testing.assert_close(mass.sum(-1), torch.ones(1, 3))
    assert valid_tokens(130, 64).tolist() == [64, 64, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=torch.zeros(1, 2, 63, 8)), "k must have the shape of q"),
        (dict(k=torch.zeros(1, 2, 64, 8).half()), "k must have the dtype of q"),
        (dict(block=(48, 64)), "block must be"),
        (dict(permutations=torch.arange(63)[None]), r"permutations must be \[O, 64\]"),
        (dict(permutations=[torch.arange(64)[None]]), "one per head"),
    ],
)
def test_bad_input_is_named(change, message):
    x = torch.zeros(1, 2, 64, 8)
    arguments = dict(q=x, k=x, permutations=torch.arange(64)[None], block=(32, 32)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        block_mass(**arguments)
