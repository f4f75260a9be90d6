"""The log-bias of a head's pooled tail.

A skipped block stands in the softmax as its mean key and mean value with logit
scale * q.mean + log(tokens) + bias. The bias is fitted on the error of the output, never on the
block's true mass: exp(q.mean) under-counts blocks exactly where the mean value is a bad stand-in.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TAIL_BIASES = (0.0, -0.5, 0.25, 0.5, 0.75, 1.0)


def tail_errors(
    exact: Tensor, exact_total: Tensor, tail: Tensor, tail_total: Tensor, reference: Tensor
) -> Tensor:
    """Squared error of the output for every bias in TAIL_BIASES.

    Args:
        exact: [R, D] sum of p * v over computed blocks, p relative to the row maximum.
        exact_total: [R, 1] sum of p over computed blocks.
        tail: [R, D] the same over the pooled keys of skipped blocks, without bias.
        tail_total: [R, 1].
        reference: [R, D] dense output.

    Returns:
        float32 [len(TAIL_BIASES)], summed over rows.
    """
    errors = []
    for bias in TAIL_BIASES:
        weight = math.exp(bias)
        output = torch.add(exact, tail, alpha=weight)
        output /= torch.add(exact_total, tail_total, alpha=weight)
        errors.append(output.sub_(reference).square_().sum())
    return torch.stack(errors)
