"""What lies in a call's workspace before it does not show in what it gives. No GPU."""

import os

import pytest
import torch
from attention_cases import CASES, HEAD_DIMS, JOINT, Case, make_inputs
from paro_attention.kernels import sparse_attention, unavailable_reason

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or unavailable_reason("cpu") is not None,
    reason="needs Triton under TRITON_INTERPRET=1 (set where there is no GPU)",
)
call_plan = pytest.importorskip(
    "paro_attention.kernels.triton.call_plan", reason="Triton is not installed"
)


@pytest.mark.parametrize(
    ("case", "bits", "tail"),
    [
        *((CASES[1], bits, True) for bits in ((16, 16), (8, 16), (8, 8), (4, 4), (4, 8), (8, 4))),
        (CASES[5], (8, 8), True),  # query blocks wider: holes behind the keys
        (CASES[7], (8, 8), False),  # rows without any block
        (JOINT[4], (8, 8), True),
        (JOINT[5], (8, 8), True),
        (JOINT[5], (8, 16), True),  # a hole of a whole key block, among the tail's pooled rows
        (JOINT[5], (16, 16), True),
        (JOINT[8], (8, 8), True),
        (HEAD_DIMS[3], (8, 8), True),  # padded channels
    ],
    ids=lambda x: x.name if isinstance(x, Case) else str(x),
)
def test_garbage_in_the_workspace_does_not_show(monkeypatch, case, bits, tail):
    inputs = make_inputs(case, torch.float16)
    allocate = call_plan.CallPlan.allocate

    def attention(byte):
        def filled(plan, device):
            tensors = allocate(plan, device)
            for x in tensors.values():
                x.view(torch.uint8).fill_(byte)
            return tensors

        monkeypatch.setattr(call_plan.CallPlan, "allocate", filled)
        return sparse_attention(
            inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation, qk_bits=bits[0],
            pv_bits=bits[1], tail=tail, tail_bias=inputs.tail_bias, key_bias=inputs.key_bias,
            pv8="int8", implementation="triton",
        )  # fmt: skip

    # All bits set: NaN in every floating-point format.
    assert torch.equal(attention(255), attention(0))


@pytest.mark.parametrize(
    ("bits", "values"),
    [((8, 16), (torch.float16, (2, 128, 64))), ((8, 8), (torch.int8, (2, 1, 64, 128)))],
)
def test_the_tail_is_stored_in_whole_tiles(monkeypatch, bits, values):
    """Its keys in 8 bits and values in their own; what no block stands for is zero."""
    seen = {}
    allocate = call_plan.CallPlan.allocate
    monkeypatch.setattr(
        call_plan.CallPlan, "allocate", lambda *a: seen.update(allocate(*a)) or seen
    )
    inputs = make_inputs(CASES[1], torch.float16)  # 300 tokens: five key blocks
    sparse_attention(
        inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation, qk_bits=bits[0],
        pv_bits=bits[1], pv8="int8", implementation="triton",
    )  # fmt: skip
    keys, scale, stored = (seen[f"tail_{x}"] for x in ("keys", "key_scale", "values"))
    assert (keys.dtype, tuple(keys.shape)) == (torch.int8, (2, 128, 64))
    assert tuple(scale.shape) == (2, 1)
    assert (stored.dtype, tuple(stored.shape)) == values
    if bits[1] == 16:
        assert torch.equal(stored[:, :5], seen["pooled_v"])
        assert not stored[:, 5:].any() and not keys[:, 5:].any()
        rounded = keys[:, :5] * scale[:, :, None]
        half_step = scale.max() / 2
        assert (rounded - seen["pooled_k"].float()).abs().max() <= half_step * 1.001
    else:
        assert keys[:, 16:].eq(0).all() and stored[..., 5:].eq(0).all()
