"""The FP4 path's numbers in PyTorch: what ``reference_attention`` computes with ``fp4=True``.

NVFP4: values are e2m1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), and 16 neighbours along the
summed dimension share a scale in e4m3 (NVIDIA, "Pretraining Large Language Models with NVFP4",
arXiv 2509.25149). One more scale in float32 puts those scales where e4m3 is precise.

| operand | neighbours | float32 scale | before rounding |
|---|---|---|---|
| Q | channels | per token | Hadamard rotation |
| K | channels | per key block | mean of every 16 keys removed, Hadamard rotation |
| P | keys | row and block: the maximum there | |
| V | keys | per key block | the block's mean removed |

q.k = q.(k - mean of its 16 keys) + q.(that mean), and the second term is formed in 16 bits;
likewise the mean of V is weighted with the exact probabilities. Q, K and V choose for each 16
whether their largest value becomes 6 or 4, by squared error ("Four Over Six", arXiv 2512.02010):
between 4 and 6 e2m1 is coarse.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .key_packing import in_blocks
from .packed_layout import padded_head_dim
from .quantization import SCALE_FLOOR, hadamard

GROUP = 16
E2M1_MAX = 6.0
E4M3_MAX = 448.0
# The least scale: below it e4m3 has fewer bits, and nothing there is worth them.
E4M3_MIN_NORMAL = 2.0**-6
# A group's largest value becomes 4 where that is better: its scale is then 1.5 times as large.
LARGEST_SCALE = 256.0


def round_to_e2m1(x: Tensor) -> Tensor:
    """Nearest e2m1 value, ties to the even code, for |x| < 7."""
    size = x.abs()
    fine, coarse = (size * 2).round() / 2, (size / 2).round() * 2
    return torch.where(size < 2, fine, torch.where(size < 4, size.round(), coarse)) * x.sign()


def round_scale(x: Tensor) -> Tensor:
    """Nearest positive e4m3 value that is not subnormal, for x up to 448; ties to even."""
    bits = x.clamp_min(E4M3_MIN_NORMAL).contiguous().view(torch.int32)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20 << 20
    return bits.view(torch.float32)


def round_in_groups(x: Tensor, step: Tensor) -> Tensor:
    """``x`` rounded to NVFP4 along its last dimension, a multiple of 16.

    Args:
        x: float32.
        step: the float32 scale, which broadcasts against ``x``; see :func:`step_of`.
    """
    groups = (x / step).unflatten(-1, (-1, GROUP))
    top = groups.abs().amax(-1, keepdim=True)
    rounded = []
    for largest in (E2M1_MAX, 4.0):
        scale = round_scale(top / largest)
        rounded.append(round_to_e2m1(groups / scale) * scale)
    errors = [(y - groups).square().sum(-1, keepdim=True) for y in rounded]
    return torch.where(errors[1] < errors[0], rounded[1], rounded[0]).flatten(-2) * step


def step_of(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The float32 scale of everything along ``dim`` (kept)."""
    top = x.abs().amax(dim, keepdim=True).clamp_min(SCALE_FLOOR)
    return top / (LARGEST_SCALE * E2M1_MAX)


def round_probabilities(p: Tensor) -> Tensor:
    """P [..., multiple of 16], at most 1, rounded to NVFP4 along its last dimension."""
    groups = p.unflatten(-1, (-1, GROUP))
    scale = round_scale(groups.amax(-1, keepdim=True) * E4M3_MAX) / (E4M3_MAX * E2M1_MAX)
    return (round_to_e2m1(groups / scale) * scale).flatten(-2)


class Fp4Logits:
    """Unscaled logits of a slice of rows against all packed keys, and against the pooled keys.

    Args:
        q: [B, H, S, D].
        k: [B, H, blocks * key_block, D], keys in whole blocks, holes zero.
        pooled_k: [B, H, key_blocks, D], block means of the grid's keys.
        exists: bool [blocks * key_block], False at holes.
        key_block: keys of a block.
        dtype: in which means are stored.
    """

    def __init__(
        self, q: Tensor, k: Tensor, pooled_k: Tensor, exists: Tensor, key_block: int,
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        sizes = exists.view(-1, GROUP).sum(-1, dtype=torch.float32).clamp_min(1.0)
        means = (in_blocks(k, GROUP).sum(-2) / sizes[:, None]).to(dtype).float()
        centred = (k - means.repeat_interleave(GROUP, -2)) * exists[:, None]
        blocks = in_blocks(_rotated(centred), key_block)
        self.k = round_in_groups(blocks, step_of(blocks, (-2, -1))).flatten(-3, -2)
        rotated = _rotated(q)
        self.q4 = round_in_groups(rotated, step_of(rotated, -1))
        self.q, self.means, self.pooled_k = q, means, pooled_k

    def __call__(self, rows: slice) -> Tensor:
        of_means = self.q[:, :, rows] @ self.means.transpose(-1, -2)
        logits = self.q4[:, :, rows] @ self.k.transpose(-1, -2)
        return logits + of_means.repeat_interleave(GROUP, -1)

    def pooled(self, rows: slice) -> Tensor:
        return self.q[:, :, rows] @ self.pooled_k.transpose(-1, -2)


class Fp4Values:
    """P @ V for probabilities relative to the row maximum.

    Args:
        v: [B, H, blocks * key_block, D], values in whole blocks, holes zero.
        means: [B, H, blocks, D], block means as they are stored.
        exists: bool [blocks * key_block], False at holes.
        key_block: keys of a block.
    """

    def __init__(self, v: Tensor, means: Tensor, exists: Tensor, key_block: int) -> None:
        centred = (v - means.repeat_interleave(key_block, -2)) * exists[:, None]
        blocks = in_blocks(centred, key_block).transpose(-1, -2)
        rounded = round_in_groups(blocks, step_of(blocks, (-2, -1)))
        self.v = rounded.transpose(-1, -2).flatten(-3, -2)
        self.means, self.key_block = means, key_block

    def __call__(self, p: Tensor) -> Tensor:
        blocks = in_blocks(p[..., None], self.key_block).squeeze(-1)
        top = blocks.amax(-1, keepdim=True).clamp_min(SCALE_FLOOR)
        rounded = (round_probabilities(blocks / top) * top).flatten(-2)
        return rounded @ self.v + blocks.sum(-1) @ self.means


def in_groups(x: Tensor) -> Tensor:
    """Rotated channels [..., multiple of 64] in the order in which 16 share a scale.

    After the rotation one order is as good as another. Channel 8j + 2t + c of 64 becomes
    16t + 2j + c, because matrix units leave 8j + 2t + c of all j and c in one lane.
    """
    return x.unflatten(-1, (-1, 8, 4, 2)).transpose(-2, -3).flatten(-4)


def _rotated(x: Tensor) -> Tensor:
    """Hadamard rotation of rows in float16, filled with zeros up to the kernels' power of two."""
    x = pad(x, (0, padded_head_dim(x.shape[-1]) - x.shape[-1])).half().float()
    return in_groups(hadamard(x))
