"""Which calls the Hopper kernel of 16-bit values serves, and that its launch fits the card."""

import pytest
from paro_attention.kernels.hopper_launch import QUERY_ROWS, STEP_KEYS
from paro_attention.kernels.hopper_wide_launch import (
    CONSUMER_REGISTERS,
    GROUPS,
    MAX_REGISTERS,
    PRODUCER_REGISTERS,
    STAGES,
    wide_serves,
)

REGISTERS, SHARED_BYTES = 65_536, 227 * 1024  # of a multiprocessor of sm_90


@pytest.mark.parametrize(
    ("capability", "head_dim", "block", "bits", "served"),
    [
        ((9, 0), 128, (64, 128), (8, 16), True),
        ((9, 0), 64, (128, 128), (16, 16), True),
        ((9, 0), 64, (64, 128), (8, 16), True),
        ((9, 0), 128, (128, 128), (16, 16), True),
        ((9, 0), 256, (64, 128), (16, 16), False),
        ((9, 0), 128, (32, 128), (16, 16), False),
        ((9, 0), 128, (64, 64), (8, 16), False),
        ((9, 0), 128, (64, 128), (8, 8), False),
        ((9, 0), 128, (64, 128), (4, 16), False),
        ((9, 0), 128, (64, 128), (16, 8), False),
        ((8, 9), 128, (64, 128), (16, 16), False),
        ((10, 0), 128, (64, 128), (8, 16), False),
    ],
)
def test_the_kernel_serves_what_it_was_built_for(capability, head_dim, block, bits, served):
    assert wide_serves(capability, head_dim, block, *bits) is served


@pytest.mark.parametrize(("bits", "head_dim"), STAGES)
def test_the_ring_leaves_room_for_little_else(bits, head_dim):
    row = head_dim * bits // 8
    of_a_stage = STEP_KEYS * (row + 2 * head_dim)
    used = GROUPS * QUERY_ROWS * row + STAGES[bits, head_dim] * of_a_stage
    # Biases, tokens, barriers, and 2 KiB a group to turn its rows in.
    assert used + GROUPS * (STEP_KEYS + QUERY_ROWS) * 4 + GROUPS * 2048 + 512 <= SHARED_BYTES
    assert used + of_a_stage > SHARED_BYTES


def test_the_groups_share_out_all_registers():
    # The warp that fetches has three idle ones beside it.
    assert 128 * (GROUPS * CONSUMER_REGISTERS + PRODUCER_REGISTERS) == REGISTERS
    assert 128 * (GROUPS + 1) * MAX_REGISTERS == REGISTERS
