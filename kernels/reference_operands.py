"""The reference's two products in each number format: unscaled logits, and P @ V."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .fp8_numerics import round_probabilities
from .key_packing import in_blocks
from .packed_layout import padded_head_dim
from .quantization import (
    FP8_MAX,
    INT4_MAX,
    INT8_MAX,
    SCALE_FLOOR,
    UINT4_MAX,
    fake_quantize,
    hadamard,
    symmetric_scale,
)


def _rounded_by_block(k: Tensor, key_block: int) -> Tensor:
    """K rounded to int8 with one scale per block of rows."""
    scale = symmetric_scale(in_blocks(k, key_block), INT8_MAX, (-2, -1)).squeeze(-1)
    scale = scale.expand(*scale.shape[:-1], key_block).flatten(-2)[..., : k.shape[-2], None]
    return fake_quantize(k, scale, -INT8_MAX, INT8_MAX) * scale


def _rotated(x: Tensor) -> Tensor:
    """Hadamard rotation, on rows filled with zeros up to the kernels' power of two."""
    return hadamard(pad(x, (0, padded_head_dim(x.shape[-1]) - x.shape[-1])))


class Logits:
    """Unscaled logits of a slice of rows against all packed keys, and against the pooled keys.

    ``tail_tile``: pooled keys that are rounded together to 8 bits; 0 keeps them in 16.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        means_k: Tensor,
        exists: Tensor,
        key_block: int,
        key_blocks: int,
        bits: int,
        tail_tile: int,
    ) -> None:
        self.means = None
        self.key_block = key_block
        self.pooled_k = means_k[..., :key_blocks, :]
        self.q_tail = q
        if bits == 16:
            self.q, self.k = q, k
        elif bits == 8:
            q_scale = symmetric_scale(q, INT8_MAX, -1)
            self.q = fake_quantize(q, q_scale, -INT8_MAX, INT8_MAX) * q_scale
            self.k = _rounded_by_block(k, key_block)
            self.q_tail = self.q
            if tail_tile:
                self.pooled_k = _rounded_by_block(self.pooled_k, tail_tile)
        else:
            # q.k = q.(k - block mean) + q.(block mean): the second term is exact, and it is the
            # pooled tail's own logit.
            self.means = means_k
            q_rotated = _rotated(q)
            centred = k - means_k.repeat_interleave(key_block, -2)
            k_rotated = _rotated(centred * exists[:, None])
            q_scale = symmetric_scale(q_rotated, INT4_MAX, -1)
            k_scale = symmetric_scale(k_rotated, INT4_MAX, -1)
            self.q = fake_quantize(q_rotated, q_scale, -INT4_MAX, INT4_MAX) * q_scale
            self.k = fake_quantize(k_rotated, k_scale, -INT4_MAX, INT4_MAX) * k_scale

    def __call__(self, rows: slice) -> Tensor:
        logits = self.q[:, :, rows] @ self.k.transpose(-1, -2)
        if self.means is not None:
            of_means = self.q_tail[:, :, rows] @ self.means.transpose(-1, -2)
            logits = logits + of_means.repeat_interleave(self.key_block, -1)
        return logits

    def pooled(self, rows: slice) -> Tensor:
        return self.q_tail[:, :, rows] @ self.pooled_k.transpose(-1, -2)


class Values:
    """P @ V for probabilities relative to the row maximum, in the precision asked for.

    ``v_scale`` [B, H, 1, D] is that of 8 bits, which the tail's values share. ``rounded_p``: FP8
    probabilities come rounded.
    """

    def __init__(
        self,
        v: Tensor,
        v_scale: Tensor,
        means_v: Tensor,
        exists: Tensor,
        key_block: int,
        bits: int,
        fp8: bool,
        rounded_p: bool,
    ) -> None:
        self.rounded_p = rounded_p
        self.key_block = key_block
        self.bits = bits
        self.fp8 = fp8
        self.v = v
        if bits == 8 and fp8:
            in_range = (v * (1.0 / v_scale)).clamp(-FP8_MAX, FP8_MAX)
            self.v = in_range.to(torch.float8_e4m3fn).float() * v_scale
        elif bits == 8:
            self.v = fake_quantize(v, v_scale, -INT8_MAX, INT8_MAX) * v_scale
        elif bits == 4:
            self.means_v = means_v
            centred = (v - means_v.repeat_interleave(key_block, -2)) * exists[:, None]
            centred = in_blocks(centred, key_block)
            # The zeros that fill a ragged block lie inside [low, high]: deviations average to zero.
            low, high = centred.amin(-2, keepdim=True), centred.amax(-2, keepdim=True)
            step = ((high - low) / UINT4_MAX).clamp_min(SCALE_FLOOR)
            levels = fake_quantize(centred - low, step, 0.0, UINT4_MAX)
            self.v = (levels * step + low).flatten(-3, -2)

    def __call__(self, p: Tensor) -> Tensor:
        if self.bits == 16:
            return p @ self.v
        if self.bits == 8 and self.fp8:
            return (p if self.rounded_p else round_probabilities(p)) @ self.v
        levels = INT8_MAX if self.bits == 8 else UINT4_MAX
        in_tiles = pad(p, (0, -p.shape[-1] % self.key_block))
        in_tiles = in_tiles.unflatten(-1, (-1, self.key_block))
        p_scale = symmetric_scale(in_tiles, levels, -1)
        rounded = (fake_quantize(in_tiles, p_scale, 0.0, levels) * p_scale).flatten(-2)
        out = rounded[..., : p.shape[-1]] @ self.v
        if self.bits == 4:
            out = out + in_tiles.sum(-1) @ self.means_v
        return out
