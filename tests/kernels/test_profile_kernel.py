"""The profile kernel, through Triton's interpreter, against the corners that PyTorch lists."""

import os

import pytest
import torch
from paro_attention.calibration import TokenGrid
from paro_attention.calibration.offset_profile import OffsetBins
from paro_attention.calibration.profile_geometry import ProfileGeometry
from paro_attention.kernels import unavailable_reason

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or unavailable_reason("cpu") is not None,
    reason="needs Triton under TRITON_INTERPRET=1 (set where there is no GPU)",
)


@pytest.mark.parametrize(
    ("grid", "order", "block", "sampled"),
    [((3, 7, 9), "3x4x3", (32, 64), None), ((1, 13, 30), "WFH", (64, 32), [0, 3, 6])],
)
def test_fits_and_evaluates_as_pytorch_does(grid, order, block, sampled):
    grid = TokenGrid(*grid)
    bins = OffsetBins.for_grid(grid)
    blocks = None if sampled is None else torch.tensor(sampled)
    plain, kernel = (ProfileGeometry(bins, grid, order, block, query_blocks=blocks) for _ in "12")
    kernel._by_kernel = True
    mass = torch.rand(2, plain.query_blocks, plain.key_blocks)
    mass /= mass.sum(-1, keepdim=True)
    assert torch.equal(plain.reached, kernel.reached)
    want, got = plain.fit(mass), kernel.fit(mass)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(kernel.evaluate(want), plain.evaluate(want), rtol=1e-5, atol=1e-7)
