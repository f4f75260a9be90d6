"""Inputs of the kernel tests: one case per thing that has gone wrong somewhere before."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    extra: tuple[int, int] = (0, 0)  # extra tokens before and behind the grid's ``tokens``
    # Extra keys of each batch entry: every third has a bias, and this many of the first are hidden.
    hidden: tuple[int, ...] | None = None

    @property
    def sequence(self) -> int:
        """Tokens of q, k and v: the grid's and the extra ones."""
        return self.tokens + sum(self.extra)


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


# Joint sequences: the mask covers ``tokens`` grid tokens, the extra ones have blocks of their own.
JOINT = (
    Case("joint: extra tokens first, whole blocks", tokens=192, extra=(64, 0)),
    Case("joint: extra tokens last, ragged twice", tokens=110, extra=(0, 45), block=(32, 32)),
    Case("joint: extra tokens on both sides", tokens=200, extra=(50, 31), layout="BHSD"),
    Case("joint: one extra token", tokens=130, extra=(0, 1)),
    Case(
        "joint: key blocks wider, whole and ragged",
        tokens=330, head_dim=128, block=(64, 128), extra=(7, 140),
    ),
    Case("joint: query blocks wider", tokens=180, block=(128, 64), extra=(70, 0)),
    Case("joint: rows without any block", tokens=130, extra=(0, 40), empty_row=True),
    Case("joint: everything computed", tokens=130, extra=(20, 20), density=1.0),
    Case(
        "joint: a bias per batch entry, a hidden block",
        batch=2, tokens=70, block=(32, 32), extra=(0, 50), hidden=(0, 40),
    ),
    Case(
        "joint: all extra keys hidden, and no block",
        batch=2, tokens=150, extra=(30, 0), hidden=(30, 5), empty_row=True,
    ),
    Case("joint: one bias for the batch", batch=2, tokens=128, extra=(0, 50), hidden=(9,)),
)  # fmt: skip

# Head dimensions that are stored wider than they are.
HEAD_DIMS = (
    Case("head_dim 72", tokens=150, head_dim=72, layout="BHSD"),
    Case("head_dim 80, extra tokens", tokens=100, head_dim=80, extra=(0, 20)),
    Case("head_dim 96, extra tokens", tokens=150, head_dim=96, extra=(40, 0)),
    Case("head_dim 120, three heads, bias", heads=3, tokens=150, head_dim=120,
         block=(64, 128), extra=(0, 20), hidden=(5,)),
    Case("head_dim 256, extra tokens", heads=1, tokens=150, head_dim=256, extra=(0, 20)),
    Case("head_dim 256, key blocks wider", heads=1, tokens=200, head_dim=256, block=(64, 128)),
    Case("head_dim 40", heads=1, tokens=100, head_dim=40),
)  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: BlockMask
    dense_mask: torch.Tensor
    permutation: torch.Tensor
    tail_bias: torch.Tensor
    key_bias: torch.Tensor | None = None


def make_inputs(case: Case, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Inputs:
    """Normal q, k, v with an offset in K (as real models have), random orders and masks."""
    generator = torch.Generator().manual_seed(seed)

    def tensor() -> torch.Tensor:
        if case.layout == "BHSD":
            # A slice of a fused projection: rows are three heads apart in memory.
            x = torch.randn(
                case.batch, case.heads, case.sequence, 3 * case.head_dim, generator=generator
            )
            return x.to(device, dtype)[..., case.head_dim : 2 * case.head_dim]
        x = torch.randn(case.batch, case.sequence, case.heads * case.head_dim, generator=generator)
        return x.to(device, dtype).view(case.batch, case.sequence, case.heads, -1).transpose(1, 2)

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
        None if case.hidden is None else _key_bias(case).to(device),
    )  # fmt: skip


def with_distinct_blocks(inputs: Inputs) -> Inputs:
    """Adds a vector of its own to the grid's keys and values of each block.

    Their means are then as large as what deviates from them, so that the tail shows in the output.
    """
    generator = torch.Generator().manual_seed(1)
    tokens, key_block = inputs.mask.tokens, inputs.mask.block[1]
    order = inputs.permutation[:, :tokens, None].cpu().long()
    heads, blocks, head_dim = len(order), -(-tokens // key_block), inputs.k.shape[-1]

    def shifted(x: torch.Tensor) -> torch.Tensor:
        of_block = torch.randn(heads, blocks, head_dim, generator=generator)
        of_token = of_block.repeat_interleave(key_block, 1)[:, :tokens]
        in_place = torch.zeros(heads, x.shape[2], head_dim)
        in_place.scatter_(1, order.expand_as(of_token), of_token)
        return x + in_place.to(x.device, x.dtype)

    return replace(inputs, k=shifted(inputs.k), v=shifted(inputs.v))


def with_rows_of_all_lengths(inputs: Inputs) -> Inputs:
    """Other lists: of all lengths up to a fifth of the blocks, every fifth as its neighbour."""
    share = torch.rand(inputs.dense_mask.shape[:2], generator=torch.Generator().manual_seed(1))
    keep = torch.rand(inputs.dense_mask.shape, generator=torch.Generator().manual_seed(2))
    dense_mask = keep < 0.2 * share.square()[..., None]
    dense_mask[:, ::5] = dense_mask[:, 1::5][:, : dense_mask[:, ::5].shape[1]]
    mask = BlockMask.from_dense(dense_mask, inputs.mask.block, inputs.mask.tokens)
    return replace(inputs, mask=mask.to(inputs.q.device), dense_mask=dense_mask.to(inputs.q.device))


def _key_bias(case: Case) -> torch.Tensor:
    """[entries, extra tokens]; keys are hidden by either of the values that mean so."""
    assert case.hidden is not None
    bias = torch.zeros(len(case.hidden), sum(case.extra))
    bias[:, ::3] = 0.7
    for entry, count in enumerate(case.hidden):
        bias[entry, :count] = -torch.inf
        bias[entry, :count:2] = -1e4
    return bias


def _order(case: Case, generator: torch.Generator) -> torch.Tensor:
    """A random order of the visual tokens; text tokens go last, in their own order.

    Extra tokens go behind all of them, the leading ones first.
    """
    text = abs(case.text)
    visual = torch.randperm(case.tokens - text, generator=generator)
    if sum(case.extra):
        leading, trailing = case.extra
        grid_end = leading + case.tokens
        behind = torch.arange(grid_end, grid_end + trailing)
        return torch.cat((visual + leading, torch.arange(leading), behind))
    if case.text > 0:
        return torch.cat((visual + text, torch.arange(text)))
    return torch.cat((visual, torch.arange(case.tokens - text, case.tokens)))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Frobenius norm of the difference over that of ``want``; NaN fails any comparison."""
    return float((got.float() - want.float()).norm() / want.float().norm())
