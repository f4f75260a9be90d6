"""Errors of many maps at once, through Triton's interpreter, against `order_scores`."""

from __future__ import annotations

import os

import pytest
import torch
from joint_cases import bias_of, joined
from paro_attention.calibration import TokenGrid
from paro_attention.calibration import sampled_maps as module
from paro_attention.calibration.extra_keys import RecordedCall
from paro_attention.calibration.grid_orders import GridOrders
from paro_attention.calibration.joint_sequence import JointLayout
from paro_attention.calibration.order_scores import (
    ENERGY,
    ERRORS,
    RETAINED,
    error_curves,
    order_scores,
)
from paro_attention.calibration.sampled_maps import map_errors, maps_are_served
from paro_attention.kernels import unavailable_reason

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or unavailable_reason("cpu") is not None,
    reason="needs Triton under TRITON_INTERPRET=1 (set where there is no GPU)",
)
DENSITIES = (0.1, 0.3, 0.75)
SCALE = 96**-0.5


def recorded_call(local_attention, grid, first=0, last=0, kind=None):
    """A float16 call of two heads, with text around the grid."""
    parts = [local_attention(grid, sharp, noise=0.5) for sharp in ((0.3, 1, 1), (1, 0, 0.5))]
    q, k, v = (torch.cat(pair, 1).half() for pair in zip(*parts, strict=True))
    q, k, v = joined((q, k, v), first, last)
    layout = JointLayout.of(q.shape[2], grid, first)
    bias = bias_of(kind, 1, q.shape[2])
    return RecordedCall(q, k, v, layout, layout.extra_bias(bias, 1, q.device))


@pytest.mark.parametrize(
    ("grid", "block", "names", "text", "kind"),
    [
        ((3, 7, 9), (32, 32), ("FHW", "3x4x3"), (0, 0), None),
        ((3, 7, 9), (64, 128), ("FHW", "3x4x3"), (5, 9), "some"),
        ((3, 7, 9), (32, 64), ("WHF",), (0, 6), None),
        ((2, 15, 19), (32, 64), ("FHW", "2x4x4"), (0, 0), None),  # 18 query blocks: rows sampled
    ],
)
def test_equals_the_scores_of_each_head(
    local_attention, monkeypatch, grid, block, names, text, kind
):
    grid = TokenGrid(*grid)
    call = recorded_call(local_attention, grid, *text, kind)
    orders = GridOrders(grid, block)
    permutations = [orders.permutation(name, call.q.device) for name in names]
    profiles = [orders.geometry(name, call.q.device, sampled=True) for name in names]
    maps = [(head, order) for order in range(len(names)) for head in range(2)]
    stacked = torch.stack(permutations).int()
    arguments = (call, 0, maps, stacked, profiles.__getitem__, block)
    found = map_errors(*arguments, DENSITIES, SCALE)
    rows = map_errors(*arguments, (0.3,), SCALE).score_rows()
    for n, (head, order) in enumerate(maps):
        inputs = [x[0, head] for x in (call.q, call.k, call.v)]
        one, profile = [permutations[order]], [profiles[order]]
        extra = call.extra(0, head)
        curve = error_curves(*inputs, one, block, SCALE, profile, DENSITIES, extra)[0]
        energy = curve[0, -1]
        torch.testing.assert_close(found.energy[n], energy, rtol=2e-3, atol=0)
        # P is rounded to float16 on the way to the output: errors of less than 1e-6 are noise.
        torch.testing.assert_close(
            found.errors[n] / energy, curve[:, :-1] / energy, rtol=1e-2, atol=2e-6
        )
        want = order_scores(
            *inputs, one, block, 0.3, SCALE, profiles=profile, extra=extra
        )[0]  # fmt: skip
        torch.testing.assert_close(rows[n, ERRORS], want[ERRORS], rtol=1e-2, atol=2e-6 * energy)
        torch.testing.assert_close(rows[n, ENERGY], want[ENERGY], rtol=2e-3, atol=0)
        torch.testing.assert_close(rows[n, RETAINED], want[RETAINED], rtol=1e-4, atol=1e-4)
        assert rows[n, -1] == 1
    monkeypatch.setattr(module, "GROUP_BYTES", 1)  # every map by itself
    alone = map_errors(*arguments, DENSITIES, SCALE)
    torch.testing.assert_close(alone.errors, found.errors)


def test_the_interpreter_is_for_tests_alone():
    assert not maps_are_served(torch.zeros(1, 1, 64, 64).half())
