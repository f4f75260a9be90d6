"""The order of a head, on attention whose best order is known by construction."""

from __future__ import annotations

import pytest
import torch
from paro_attention.calibration.order_choice import CHOICES, choose_orders
from paro_attention.calibration.order_scores import (
    ENERGY,
    INCOHERENCE,
    MAPS,
    RETAINED,
    SCORE_COLUMNS,
    SPARSE,
    order_scores,
)
from paro_attention.calibration.paper_metric import paper_score
from paro_attention.calibration.row_sample import sampled_blocks
from paro_attention.calibration.tail_bias import TAIL_BIASES
from paro_attention.calibration.token_grid import TokenGrid
from paro_attention.calibration.token_order import candidate_orders, grid_permutation

GRID = TokenGrid(8, 16, 16)
BLOCK = (32, 32)


def scores_of(q, k, v, density=0.2, names=None):
    names = names or candidate_orders(GRID, BLOCK, "tiles")
    permutations = [grid_permutation(name, GRID) for name in names]
    scale = q.shape[-1] ** -0.5
    scores = order_scores(q[0, 0], k[0, 0], v[0, 0], permutations, BLOCK, density, scale, True)
    return names, scores[None, None].double()


@pytest.mark.parametrize(
    ("sharpness", "shift", "good"),
    [
        # The same place in all frames: columns of time, or all frames x a small patch.
        ((0, 2, 2), (0, 0, 0), {"HWF", "WHF", "8x2x2"}),
        # The whole frame, its own or the next one: whole frames in a block.
        ((3, 0, 0), (0, 0, 0), {"FHW", "FWH", "1x4x8", "1x8x4"}),
        ((3, 0, 0), (1, 0, 0), {"FHW", "FWH", "1x4x8", "1x8x4"}),
        # A small patch of the next frame (frame diagonals): patches within one frame.
        ((2, 2, 2), (1, 0, 0), {"1x4x8", "1x8x4"}),
        # The same picture row or column, wherever and whenever.
        ((0, 3, 0), (0, 0, 0), {"HFW", "HWF"}),
        ((0, 0, 3), (0, 0, 0), {"WFH", "WHF"}),
    ],
)
def test_finds_the_order_that_the_attention_was_built_for(local_attention, sharpness, shift, good):
    names, scores = scores_of(*local_attention(GRID, sharpness, shift))
    for choice in ("output_error", "block_mass"):
        chosen = names[int(choose_orders(scores, choice, 0.5).order)]
        assert chosen in good, choice
    error = choose_orders(scores, "output_error", 0.5).error[0, 0]
    fhw = float(error[names.index("FHW")])
    assert float(error.min()) <= fhw


def test_density_one_has_no_error_and_keeps_everything(local_attention):
    q, k, v = local_attention(GRID, (0.5, 1, 1))
    _, scores = scores_of(q, k, v, density=1.0, names=("FHW", "8x2x2"))
    row = scores[0, 0]
    assert float(row[:, : len(TAIL_BIASES)].max()) < 1e-6 * float(row[0, ENERGY])
    assert row[:, RETAINED].tolist() == pytest.approx([1, 1], abs=1e-5)


def test_sampled_errors_are_those_of_the_reference_kernel(local_attention):
    """All query blocks sampled: the error equals that of sparse_attention with the same mask."""
    from paro_attention.calibration.block_mass import block_mass
    from paro_attention.calibration.block_selection import forced_blocks, select_blocks
    from paro_attention.kernels import BlockMask, sparse_attention

    grid = TokenGrid(4, 9, 11)  # 396 tokens: 13 blocks, the last ragged
    q, k, v = local_attention(grid, (0.5, 1, 1), noise=0.5)
    order = grid_permutation("4x2x4", grid)
    scale = q.shape[-1] ** -0.5
    assert len(sampled_blocks(13)) == 13
    row = order_scores(q[0, 0], k[0, 0], v[0, 0], [order], BLOCK, 0.3, scale)[0]
    ((_, mass),) = block_mass(q, k, order[None], BLOCK)
    kept = select_blocks(mass, [round(0.3 * 13 * 13)], forced_blocks(grid.tokens, BLOCK))
    mask = BlockMask.from_dense(kept, BLOCK, grid.tokens)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for index, bias in enumerate(TAIL_BIASES):
        out = sparse_attention(
            q.contiguous(), k.contiguous(), v, mask, order[None].int(),
            tail_bias=torch.tensor([bias]), implementation="reference",
        )  # fmt: skip
        expected = float((out - dense).square().sum())
        assert float(row[index]) == pytest.approx(expected, rel=1e-3)


def test_small_tiles_give_the_same_scores(local_attention, monkeypatch):
    from paro_attention.kernels import attention_rows

    q, k, v = local_attention(TokenGrid(2, 9, 11), (0.5, 1, 1), noise=0.5)
    arguments = (q[0, 0], k[0, 0], v[0, 0], [torch.arange(198)], BLOCK, 0.3, 0.1, True)
    whole = order_scores(*arguments)
    monkeypatch.setattr(attention_rows, "CPU_TILE_BYTES", 1)
    torch.testing.assert_close(order_scores(*arguments), whole, rtol=1e-4, atol=1e-6)


def test_paper_metric_against_its_definition(local_attention):
    grid = TokenGrid(2, 8, 8)
    q, k, v = local_attention(grid, (0, 1.5, 1.5))
    scale = q.shape[-1] ** -0.5
    row = order_scores(q[0, 0], k[0, 0], v[0, 0], [torch.arange(128)], BLOCK, 0.3, scale, True)[0]
    p = torch.softmax(q[0, 0] @ k[0, 0].T * scale, -1)
    blocks = p.view(4, 32, 4, 32).transpose(1, 2).reshape(16, -1)
    epsilon = 1e-3 * 17550 / 128
    sparse = ((blocks < epsilon).float().mean(1) >= 0.9).float().mean()
    incoherence = (blocks.amax(1) / blocks.mean(1)).mean()
    assert float(row[SPARSE]) == pytest.approx(float(sparse))
    assert float(row[INCOHERENCE]) == pytest.approx(float(incoherence), rel=1e-3)


def test_mended_sign_prefers_the_sparser_order():
    sparse, incoherence = torch.tensor([0.2, 0.8]), torch.tensor([10.0, 10.0])
    assert int(paper_score(sparse, incoherence, 0.5).argmin()) == 1
    assert int(paper_score(torch.tensor([0.5, 0.5]), torch.tensor([20.0, 9.0]), 0.5).argmin()) == 1


def test_choices_and_missing_maps_are_named():
    scores = torch.zeros(2, 1, 1, SCORE_COLUMNS)
    scores[0, ..., MAPS] = 1
    with pytest.raises(ValueError, match=r"no maps of \[1\]"):
        choose_orders(scores, "output_error", 0.5)
    with pytest.raises(ValueError, match=f"choice must be one of {', '.join(CHOICES)}"):
        choose_orders(scores, "best", 0.5)
