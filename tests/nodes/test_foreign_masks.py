"""Masks that other nodes may have put in: none over the picture may be lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from paro_attention.nodes.attention_call import (
    ForwardState,
    HostCall,
    ModuleLayers,
    VisualCall,
    classify,
)
from paro_attention.nodes.attention_hook import _may_change_masks
from paro_attention.nodes.families import Layout

GRID = (1, 4, 3)
TEXT, V = 5, 12


def call(mask: torch.Tensor) -> HostCall:
    q = torch.randn(2, TEXT + V, 16)
    return HostCall(q, q, q, heads=2, mask=mask)


def found(mask: torch.Tensor, patched: bool) -> VisualCall | str:
    state = ForwardState(Layout(GRID, side="last", extra=TEXT), 0.5, None, patched=patched)
    state.enter(ModuleLayers((0,)))
    return classify(call(mask), state, lambda *_: None)


def mask_of(position: int, shape: tuple[int, ...], boolean: bool) -> torch.Tensor:
    mask = torch.zeros(TEXT + V)
    mask[position] = torch.finfo(torch.float32).min
    return (mask == 0 if boolean else mask).expand(*shape, TEXT + V)


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("shape", [(2, 1), (1, 1), (2, 1, 1), (1,)])
@pytest.mark.parametrize("position", [TEXT, TEXT + V - 1])
def test_a_mask_over_the_picture_runs_dense(shape, boolean, position):
    reason = found(mask_of(position, shape, boolean), patched=True)
    assert reason == "attention mask over the picture"


@pytest.mark.parametrize("boolean", [False, True])
@pytest.mark.parametrize("position", [0, TEXT - 1])
def test_a_mask_over_the_text_is_folded_in(boolean, position):
    visual = found(mask_of(position, (2, 1), boolean), patched=True)
    assert isinstance(visual, VisualCall)
    assert visual.key_bias is not None
    assert (visual.key_bias[:, position] < -1e4).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, False),
        ({"patches": {"attn1_output_patch": [print]}, "patches_replace": {}}, False),
        ({"patches": {"attn1_patch": [print]}}, True),
        ({"patches_replace": {"dit": {("double_block", 0): print}}}, True),
    ],
)
def test_it_is_looked_up_where_a_node_can_change_a_mask(options: dict[str, Any], expected: bool):
    assert _may_change_masks(options) is expected
