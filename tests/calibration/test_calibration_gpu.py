"""Calibration's kernels on a GPU, against PyTorch, at real sizes."""

from __future__ import annotations

import pytest
import torch
from paro_attention.calibration import TokenGrid
from paro_attention.calibration.block_mass import block_mass
from paro_attention.calibration.extra_keys import RecordedCall
from paro_attention.calibration.grid_orders import GridOrders
from paro_attention.calibration.joint_sequence import JointLayout
from paro_attention.calibration.offset_profile import OffsetBins
from paro_attention.calibration.order_scores import (
    ENERGY,
    ERRORS,
    RETAINED,
    order_scores,
)
from paro_attention.calibration.profile_geometry import ProfileGeometry
from paro_attention.calibration.sampled_maps import maps_are_served, scores_of_heads
from paro_attention.kernels import block_mass_of

pytestmark = pytest.mark.gpu


def strided(tokens, heads, head_dim, dtype, count=2, batch=1):
    """q, k (and v) [B, H, S, D] as views of [B, S, H * D]."""
    shape = (batch, tokens, heads, head_dim)
    return [torch.randn(shape, device="cuda", dtype=dtype).transpose(1, 2) for _ in range(count)]


@pytest.mark.parametrize(
    ("tokens", "heads", "head_dim", "block", "dtype"),
    [
        (32760, 4, 128, (64, 128), torch.bfloat16),
        (17550, 3, 64, (64, 64), torch.float16),
        (9001, 2, 128, (128, 32), torch.bfloat16),
        (5000, 2, 96, (32, 64), torch.float16),
        (4100, 2, 256, (64, 128), torch.bfloat16),
    ],
)
def test_mass_equals_the_twin_and_repeats_bit_for_bit(tokens, heads, head_dim, block, dtype):
    q, k = strided(tokens, heads, head_dim, dtype)
    q = q * 3  # some structure: rows with few large probabilities
    orders = torch.stack([torch.randperm(tokens, device="cuda").int() for _ in range(2)])
    maps = (
        torch.arange(heads, device="cuda", dtype=torch.int32),
        torch.zeros(heads, device="cuda", dtype=torch.int32),
    )
    maps[1][-1] = 1
    got = block_mass_of(q, k, orders, block, *maps, implementation="triton")
    want = block_mass_of(q, k, orders, block, *maps, implementation="reference")
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3 * float(want.mean()))
    torch.testing.assert_close(got.sum(-1), torch.ones_like(got.sum(-1)), rtol=0, atol=1e-4)
    for _ in range(10):
        again = block_mass_of(q, k, orders, block, *maps, implementation="triton")
        assert torch.equal(again, got)


def test_a_batch_is_averaged_and_groups_change_nothing(monkeypatch):
    from paro_attention.calibration import block_mass as module

    q, k = strided(4500, 3, 128, torch.bfloat16, batch=2)
    order = torch.randperm(4500, device="cuda")[None]
    together = [mass for _, mass in block_mass(q, k, order, (64, 64))]
    monkeypatch.setattr(module, "LAUNCH_BYTES", 1)
    alone = [mass for _, mass in block_mass(q, k, order, (64, 64))]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a, b)
    halves = [
        torch.cat([mass for _, mass in block_mass(q[i : i + 1], k[i : i + 1], order, (64, 64))])
        for i in range(2)
    ]
    torch.testing.assert_close(torch.cat(together), sum(halves) / 2, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("text", [0, 77])
@pytest.mark.parametrize("block", [(64, 128), (64, 64)])
def test_scores_of_all_heads_equal_those_head_by_head(text, block):
    grid = TokenGrid(5, 27, 40)  # 5,400 tokens, both last blocks ragged
    q, k, v = strided(grid.tokens + text, 3, 128, torch.bfloat16, count=3)
    near = torch.arange(grid.tokens + text, device="cuda")[:, None] * torch.logspace(
        -4, 0, 64, device="cuda"
    )
    place = torch.cat([near.sin(), near.cos()], 1).to(q.dtype)  # attention that falls off
    q, k = q + 2 * place, k + 2 * place
    layout = JointLayout.of(q.shape[2], grid, 0)
    bias = torch.randn(1, q.shape[2], device="cuda") if text else None
    call = RecordedCall(q, k, v, layout, layout.extra_bias(bias, 1, q.device))
    assert maps_are_served(call.q)
    names = ("FHW", "WHF", "5x3x4")
    orders = GridOrders(grid, block)
    permutations = [orders.permutation(name, call.q.device) for name in names]
    profiles = [orders.geometry(name, call.q.device, sampled=True) for name in names]
    scale = 128**-0.5
    got = scores_of_heads(
        call, torch.stack(permutations).int(), profiles.__getitem__, block, 0.3, scale
    )
    for head in range(3):
        want = order_scores(
            *call.inputs_of(0, head), permutations, block, 0.3, scale,
            profiles=profiles, extra=call.extra(0, head),
        )  # fmt: skip
        energy = want[:, ENERGY]
        torch.testing.assert_close(got[head, :, ENERGY], energy, rtol=1e-2, atol=0)
        # The dense output that errors are measured against is rounded to bfloat16 in PyTorch.
        off = (got[head, :, ERRORS] - want[:, ERRORS]).abs() / energy[:, None]
        assert float(off.max()) < 2e-3
        torch.testing.assert_close(got[head, :, RETAINED], want[:, RETAINED], rtol=0, atol=2e-3)


def test_profiles_are_those_of_the_cpu():
    grid, block = TokenGrid(5, 27, 40), (64, 64)
    bins = OffsetBins.for_grid(grid)
    here, there = (
        ProfileGeometry(bins, grid, "5x3x4", block, device) for device in ("cuda", "cpu")
    )
    mass = torch.rand(2, there.query_blocks, there.key_blocks).pow(4)
    mass /= mass.sum(-1, keepdim=True)
    got, want = here.fit(mass.cuda()).cpu(), there.fit(mass)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(
        here.evaluate(want.cuda()).cpu(), there.evaluate(want), rtol=1e-4, atol=1e-8
    )
    assert torch.equal(here.fit(mass.cuda()).cpu(), got)


def test_scores_repeat_bit_for_bit():
    grid, block = TokenGrid(5, 27, 40), (64, 128)
    q, k, v = strided(grid.tokens, 3, 128, torch.bfloat16, count=3)
    call = RecordedCall(q, k, v, JointLayout.of(q.shape[2], grid, 0), None)
    orders = GridOrders(grid, block)
    names = ("FHW", "WHF", "5x3x4")
    permutations = torch.stack([orders.permutation(name, q.device) for name in names]).int()
    profiles = [orders.geometry(name, q.device, sampled=True) for name in names]
    first, *others = (
        scores_of_heads(call, permutations, profiles.__getitem__, block, 0.3, 128**-0.5)
        for _ in range(6)
    )
    assert first[..., ENERGY].min() > 0
    for again in others:
        assert torch.equal(again, first)
