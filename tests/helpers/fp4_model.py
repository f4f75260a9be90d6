"""What bytes and scale codes of the FP4 path stand for."""

from __future__ import annotations

import torch
from attention_cases import Case, Inputs
from torch import Tensor

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def e2m1_values(packed: Tensor) -> Tensor:
    """uint8 [..., K / 2] -> float32 [..., K], the lower half of a byte first."""
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(-2).long()
    return E2M1.to(packed.device)[codes & 7] * (1 - 2 * (codes >> 3))


def decoded(packed: Tensor, scales: Tensor) -> Tensor:
    """Values [..., K] of bytes [..., K / 2] and e4m3 codes [..., K / 16]."""
    of_groups = scales.view(torch.float8_e4m3fn).float()
    return e2m1_values(packed) * of_groups.repeat_interleave(16, -1)


def arguments(inputs: Inputs, case: Case, tail: bool) -> tuple:
    """The arguments of ``fp4_attention`` for a case, each head with its own order."""
    orders = torch.arange(case.heads, dtype=torch.int32, device=inputs.q.device)
    biased = inputs.key_bias is not None
    mask = inputs.mask
    return (
        inputs.q, inputs.k, inputs.v, inputs.permutation, orders, mask.row_offsets,
        mask.kv_indices, mask.computed_bits, inputs.tail_bias,
        inputs.key_bias if biased else inputs.tail_bias, biased, mask.tokens, *mask.block, tail,
        case.head_dim**-0.5,
    )  # fmt: skip


def of_reference(inputs: Inputs, case: Case, tail: bool) -> tuple[tuple, dict]:
    """Arguments of ``reference_attention`` for the same call; bits are missing."""
    orders = torch.arange(case.heads, dtype=torch.int32, device=inputs.q.device)
    given = (
        inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation, orders, inputs.tail_bias,
    )  # fmt: skip
    named = {"fp8": False, "tail": tail, "scale": case.head_dim**-0.5, "key_bias": inputs.key_bias}
    return given, named
