"""Inputs of the kernel tests: one case per thing that has gone wrong somewhere before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from paro_attention.kernels import BlockMask


@dataclass(frozen=True)
class Case:
    name: str
    batch: int = 1
    heads: int = 2
    tokens: int = 256
    head_dim: int = 64
    block: tuple[int, int] = (64, 64)
    density: float = 0.4
    layout: str = "BSHD"
    empty_row: bool = False
    text: int = 0  # tokens kept dense both ways and in place: > 0 first, < 0 last


CASES = (
    Case("one head, whole blocks", heads=1),
    Case("ragged queries and keys", tokens=300),
    Case("ragged with one token in the last block", tokens=257),
    Case("batch of two, strided heads-first", batch=2, tokens=200, layout="BHSD"),
    Case("head_dim 128, key blocks wider", tokens=330, head_dim=128, block=(64, 128)),
    Case("query blocks wider", tokens=260, block=(128, 64)),
    Case("small blocks", tokens=150, block=(32, 32)),
    Case("rows without any block", tokens=200, empty_row=True),
    Case("everything computed", tokens=190, density=1.0),
    Case("text first", tokens=280, text=40),
    Case("text last", tokens=280, text=-40),
)


@dataclass(frozen=True)
class Inputs:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: BlockMask
    dense_mask: torch.Tensor
    permutation: torch.Tensor
    tail_bias: torch.Tensor


def make_inputs(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Inputs:
    """Normal q, k, v with an offset in K (as real models have), random orders and masks."""
    generator = torch.Generator().manual_seed(seed)

    def tensor() -> torch.Tensor:
        if case.layout == "BHSD":
            # A slice of a fused projection: rows are three heads apart in memory.
            x = torch.randn(
                case.batch, case.heads, case.tokens, 3 * case.head_dim, generator=generator
            )
            return x.to(device, dtype)[..., case.head_dim : 2 * case.head_dim]
        x = torch.randn(case.batch, case.tokens, case.heads * case.head_dim, generator=generator)
        return x.to(device, dtype).view(case.batch, case.tokens, case.heads, -1).transpose(1, 2)

    q, k, v = tensor(), tensor(), tensor()
    k += torch.randn(1, case.heads, 1, case.head_dim, generator=generator).to(device, dtype) * 0.5
    rows, columns = (-(-case.tokens // side) for side in case.block)
    mask = torch.rand(case.heads, rows, columns, generator=generator) < case.density
    if case.empty_row:
        mask[0, 0] = False
    text = abs(case.text)
    orders = [_order(case, generator) for _ in range(case.heads)]
    if text:
        first_key, first_query = ((case.tokens - text) // side for side in reversed(case.block))
        mask[:, first_query:] = True
        mask[:, :, first_key:] = True
    return Inputs(
        q, k, v,
        BlockMask.from_dense(mask, case.block, case.tokens).to(device),
        mask.to(device),
        torch.stack(orders).int().to(device),
        (torch.randn(case.heads, generator=generator) * 0.5).to(device),
    )  # fmt: skip


def _order(case: Case, generator: torch.Generator) -> torch.Tensor:
    """A random order of the visual tokens; text tokens go last, in their own order."""
    text = abs(case.text)
    visual = torch.randperm(case.tokens - text, generator=generator)
    if case.text > 0:
        return torch.cat((visual + text, torch.arange(text)))
    return torch.cat((visual, torch.arange(case.tokens - text, case.tokens)))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of ``want``; NaN fails any comparison."""
    return float((got.float() - want.float()).norm() / want.float().norm())
