"""Joint sequences for tests: a grid with extra tokens around it, and what attention gives."""

from __future__ import annotations

import math

import torch

BIASES = (None, "some", "hidden", "all hidden", "per entry")


def joined(inputs, first, last, batch=1):
    """Grid q, k, v with random extra tokens around them."""
    whole = []
    for x in inputs:
        extra = torch.randn(batch, x.shape[1], first + last, x.shape[-1])
        x = x.expand(batch, -1, -1, -1)
        whole.append(torch.cat([extra[:, :, :first], x, extra[:, :, first:]], 2))
    return whole


def bias_of(kind, batch, tokens):
    """A key bias; grid tokens carry values that must be ignored."""
    if kind is None:
        return None
    bias = torch.randn(batch if kind == "per entry" else 1, tokens)
    if kind in ("hidden", "per entry"):
        hidden = torch.rand(bias.shape) < 0.4
        bias = bias.masked_fill(hidden, -math.inf if kind == "hidden" else -1e4)
    return torch.full_like(bias, -2e4) if kind == "all hidden" else bias


def joint_attention(q, k, v, first, grid_tokens, bias, kept=None):
    """Dense softmax over the joint sequence; `kept` bool [H, V, V] in the model's order."""
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    grid = slice(first, first + grid_tokens)
    if bias is not None:
        bias = bias.clone()
        bias[:, grid] = 0
        logits = logits + bias[:, None, None, :]
    if kept is not None:
        logits[:, :, grid, grid] = logits[:, :, grid, grid].masked_fill(~kept, -math.inf)
    return logits.softmax(-1) @ v
