"""Masks from block mass, recall and its curve."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paro_attention.calibration.block_layout import valid_tokens
from paro_attention.calibration.block_selection import (
    forced_blocks,
    least_selected,
    most_selected,
    select_blocks,
)
from paro_attention.calibration.metrics import (
    RECALL_DENSITIES,
    density,
    recall,
    recall_curve,
    relative_error,
)


def random_mass(heads, tokens, block):
    shape = (heads, -(-tokens // block[0]), -(-tokens // block[1]))
    mass = torch.rand(shape) ** 6
    return mass / mass.sum(-1, keepdim=True)


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(70, 700),
    block=st.sampled_from([(32, 32), (32, 64), (64, 32), (64, 64)]),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_selection_keeps_best_diagonal_and_count(tokens, block, share, seed):
    torch.manual_seed(seed)
    mass = random_mass(2, tokens, block)
    forced = forced_blocks(tokens, block)
    count = int(share * mass[0].numel())
    mask = select_blocks(mass, [count, count], forced)
    assert bool(mask[:, forced].all())
    assert bool(mask.gather(-1, mass.argmax(-1, keepdim=True)).all())
    always = int(select_blocks(mass, [0, 0], forced)[0].sum())
    assert int(mask[0].sum()) == max(count, always)
    least, blocks = least_selected(tokens, block), mask[0].numel()
    bound = most_selected([count, 0], least, blocks)
    assert int(mask[0].sum()) + always <= bound <= max(count, least) + least
    assert most_selected([count], 0, blocks) == count


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(70, 600), seed=st.integers(0, 99))
def test_recall_is_monotone_in_density_and_matches_the_masks(tokens, seed):
    torch.manual_seed(seed)
    block = (32, 64)
    mass = random_mass(2, tokens, block)
    score = random_mass(2, tokens, block)
    forced = forced_blocks(tokens, block)
    rows = valid_tokens(tokens, block[0])
    curve = recall_curve(mass, score, forced, rows)
    assert bool((curve.diff(dim=1) >= -1e-6).all())
    assert curve[:, -1].tolist() == pytest.approx([1, 1], abs=1e-5)
    total = mass[0].numel()
    for index in (3, 12, 25):
        counts = [round(RECALL_DENSITIES[index] * total)] * 2
        kept = recall(mass, select_blocks(score, counts, forced), rows)
        torch.testing.assert_close(curve[:, index], kept, atol=1e-5, rtol=1e-5)


def test_numbers():
    mask = torch.tensor([[True, False], [True, True]])
    mass = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    assert density(mask) == 0.75
    assert recall(mass, mask).item() == pytest.approx(0.875)
    assert relative_error(
        torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])
    ).item() == pytest.approx(0.2)
    with pytest.raises(ValueError, match="one entry per head"):
        select_blocks(mass[None], [1, 1], mask)
