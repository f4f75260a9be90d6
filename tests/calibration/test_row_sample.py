"""The sampled rows: where they lie, and whether they choose the orders that all rows choose."""

from __future__ import annotations

import pytest
import torch
from paro_attention.calibration import TokenGrid
from paro_attention.calibration.grid_orders import GridOrders
from paro_attention.calibration.order_choice import choose_orders
from paro_attention.calibration.order_scores import MAPS, RETAINED, order_scores
from paro_attention.calibration.profile_geometry import ProfileGeometry
from paro_attention.calibration.row_sample import RowSample, sampled_blocks
from paro_attention.demo.experiment import draw_prompts
from paro_attention.demo.sampler import CFG, sample
from paro_attention.demo.vocabulary import encode
from paro_attention.demo.wan import load_demo_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("tokens", [1, 64, 1000, 1024, 1090, 4096, 8192, 8193, 32760, 75600])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_rows_lie_in_their_blocks(tokens, block):
    sampled = RowSample.of(tokens, block, CPU)
    whole = RowSample.everything(tokens, block, CPU)
    valid = sampled.valid.bool()
    assert torch.equal(sampled.blocks, sampled_blocks(len(whole.blocks)))
    inside = sampled.positions // block == sampled.blocks[:, None]
    assert bool(inside[valid].all())
    assert bool(valid.any(1).all())  # every block has a row
    assert int(whole.valid.sum()) == tokens
    if len(whole.blocks) <= 16:  # short sequences are not sampled
        assert torch.equal(sampled.positions, whole.positions)
        assert torch.equal(sampled.valid, whole.valid)
    else:
        assert 256 <= int(valid.sum()) <= 512
        assert len(sampled.blocks) == min(128, len(whole.blocks))
        distinct = sampled.positions[0].unique()
        assert len(distinct) == sampled.rows_of_block


@pytest.fixture(scope="module")
def demo_attention():
    """q, k, v [1, 3, 1152, 128] of one layer of the demo model in two steps of a run."""
    kept, step = [], [0]

    def attend(layer, q, k, v):
        if layer == 3 and step[0] in (0, 2):
            kept.append([x[:1].clone() for x in (q, k, v)])
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    prompt = encode(draw_prompts(1, 0)[0])[0]
    sample(
        load_demo_model(), prompt, encode("")[0], (8, 24, 24), 3, CFG, 7, attention=attend,
        on_step=lambda done, *_: step.__setitem__(0, done + 1),
    )  # fmt: skip
    return kept


def test_few_rows_choose_as_all_rows_do(demo_attention):
    grid, block = TokenGrid(8, 12, 12), (32, 32)  # 36 query blocks
    names = ("FHW", "HWF", "WHF", "8x2x2", "2x4x4", "1x4x8")
    orders = GridOrders(grid, block)
    permutations = [orders.permutation(name, CPU) for name in names]

    def scores(rows, profiles):
        return torch.stack(
            [
                sum(
                    order_scores(
                        q[0, head], k[0, head], v[0, head], permutations, block, 0.3, 128**-0.5,
                        profiles=profiles, sample=rows,
                    )
                    for q, k, v in demo_attention
                )
                for head in range(3)
            ]
        )[None].double()  # fmt: skip

    few = scores(None, [orders.geometry(name, CPU, sampled=True) for name in names])
    every = scores(
        RowSample.everything(grid.tokens, block[0], CPU),
        [ProfileGeometry(orders.bins, grid, name, block) for name in names],
    )
    recall = (every[..., RETAINED] / every[..., MAPS])[0]
    for criterion in ("output_error", "block_mass"):
        chosen, best = (choose_orders(x, criterion, 0.5).order[0] for x in (few, every))
        head = torch.arange(3)
        assert float((recall[head, best] - recall[head, chosen]).mean()) < 0.005
    # The orders differ by much more than that.
    assert float((recall.amax(1) - recall.amin(1)).min()) > 0.02
