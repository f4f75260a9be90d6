"""Images: grids of one frame, of any size, with text beside them and any head_dim."""

from __future__ import annotations

import pytest
import torch
from paro_attention.calibration import (
    ModelIdentity,
    PlanRuntime,
    Recorder,
    RuntimeOptions,
    TokenGrid,
)
from paro_attention.calibration.block_layout import default_block
from paro_attention.calibration.metrics import relative_error
from paro_attention.calibration.token_order import (
    IMAGE_STRIPES,
    candidate_orders,
    grid_permutation,
)


def blocks_of(order, grid, size=64):
    """The blocks of an order, each as a set of tokens, in any sequence."""
    return {frozenset(part.tolist()) for part in grid_permutation(order, grid).split(size)}


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (48, 84), (52, 76), (33, 47)])
def test_candidates_of_an_image(height, width):
    grid = TokenGrid(1, height, width)
    block = default_block(grid.tokens)
    names = candidate_orders(grid, block, "tiles")
    assert names[:2] == ("FHW", "FWH") and len(names) <= 18
    # Every patch that a block can be is there, under its own name or another's.
    shapes = ["1x8x8", "1x4x16", "1x16x4"] + (["1x8x16", "1x16x8"] if 128 in block else [])
    sides = sorted(set(block))
    offered = {tuple(frozenset(blocks_of(name, grid, n)) for n in sides) for name in names}
    for shape in shapes:
        assert tuple(frozenset(blocks_of(shape, grid, n)) for n in sides) in offered, shape
    assert len(offered) == len(names)


def test_stripes_cut_whole_tiles_alike_and_others_better():
    even, odd = TokenGrid(1, 16, 32), TokenGrid(1, 16, 28)
    assert blocks_of("1x8x1", even) == blocks_of("1x8x8", even)
    assert blocks_of("1x128x8", even) == blocks_of("1x8x8", even)

    def spread(order, grid):
        """Mean number of columns that a block touches."""
        return sum(len({t % grid.width for t in b}) for b in blocks_of(order, grid)) / 7

    assert spread("1x8x1", odd) < 1.3 * 8 < spread("1x8x8", odd)
    assert set(IMAGE_STRIPES).isdisjoint(candidate_orders(TokenGrid(2, 16, 28), (64, 64), "tiles"))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(64, 64, (64, 64)), (48, 84, (64, 64)), (128, 128, (64, 128)), (96, 172, (64, 128))],
)
def test_blocks_of_an_image(height, width, expected):
    assert default_block(height * width) == expected


LARGEST = TokenGrid(1, 40, 40)


def image_attention(local_attention, grid, features, seed):
    """Two heads of one attention on every grid: features fixed in tokens, as rotary ones are."""
    torch.manual_seed(seed)
    kinds = [((0, 1.5, 1.5), (0, 0, 0)), ((0, 0.3, 4.0), (0, 0, 2))]
    heads = [local_attention(LARGEST, *kind, features=features, noise=0.05) for kind in kinds]
    inside = torch.arange(LARGEST.tokens).view(40, 40)[: grid.height, : grid.width].reshape(-1)
    q, k, v = (torch.cat(parts, 1)[:, :, inside] for parts in zip(*heads, strict=True))
    # Values are smooth, as a picture is.
    rows, columns = inside // 40, inside % 40
    waves = torch.arange(1, v.shape[-1] + 1) / v.shape[-1] / 4
    return q, k, torch.sin(rows[:, None] * waves + columns[:, None] * waves.flip(0)).expand_as(v)


@pytest.mark.parametrize("features", [24, 40])
def test_one_image_size_calibrates_others(local_attention, features):
    size = 3 * features  # no power of two: 72 and 120
    recorder = Recorder(
        TokenGrid(1, 24, 24), layers=1, heads=2, head_dim=size, schedule=[1.0, 0.6, 0.3],
        block=(32, 32), prompts=2, steps_per_band=1, orders=("tiles", "fhw"),
    )  # fmt: skip
    for prompt in range(2):
        recorder.begin_prompt(prompt)
        inputs = image_attention(local_attention, recorder.grid, features, prompt)
        text = torch.randn(3, 1, 2, 20 + prompt, size)
        whole = [torch.cat([t, x], 2) for t, x in zip(text, inputs, strict=True)]
        for sigma in recorder.steps:
            recorder.record(0, sigma, *whole, dense_first=20 + prompt)
    identity = ModelIdentity("image", "w", 1, 2, size)
    ordered, rows = recorder.finish(identity), recorder.finish(identity, orders="fhw")
    options = RuntimeOptions(density=0.25, qk_bits=16, pv_bits=16, shares=False, warmup=0.0)

    def error(plan, grid):
        inputs = image_attention(local_attention, grid, features, 7)
        whole = [torch.cat([x, torch.randn(1, 2, 33, size)], 2) for x in inputs]
        out = PlanRuntime(plan, grid, options, "cpu").attention(0, 0.6, *whole)
        dense = torch.nn.functional.scaled_dot_product_attention(*whole)
        return float(relative_error(out, dense))

    for shape in ((24, 24), (40, 40), (33, 29), (17, 37)):
        grid = TokenGrid(1, *shape)
        assert error(ordered, grid) < 0.06
        assert error(ordered, grid) < 0.25 * error(rows, grid)
