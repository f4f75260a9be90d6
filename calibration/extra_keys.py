"""The extra keys of a recorded call: always computed exactly, whatever the mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels.attention_rows import matmul_operand, rows_per_tile, scaled_logits
from .joint_sequence import JointLayout

HIDDEN = -1e4  # a bias of this or less hides its key


class ExtraPart(NamedTuple):
    """What the extra keys add to some rows of attention. R rows, relative to each row's maximum.

    Attributes:
        weighted: [R, D] sum of p * v.
        total: [R, 1] sum of p.
        shrink: [R, 1] factor that brings the grid's p, relative to the maximum over the grid, to
            the maximum over all keys.
    """

    weighted: Tensor
    total: Tensor
    shrink: Tensor


class ExtraKeys:
    """The visible extra keys of one head and batch entry."""

    def __init__(self, keys: Tensor, values: Tensor, bias: Tensor | None) -> None:
        """Takes keys and values [E, D], E >= 1, and float32 [E] added to the logits."""
        self.keys, self.values, self.bias = keys, values, bias
        self._operand, self._values = matmul_operand(keys), values.float()

    def part(self, rows: Tensor, top: Tensor, scale: float) -> ExtraPart:
        """What these keys add to rows of attention over the grid.

        Args:
            rows: [R, D] queries from `matmul_operand`.
            top: float32 [R, 1] greatest logit of each row over the grid.
            scale: softmax scale.
        """
        logits = scaled_logits(rows, self._operand, scale)
        if self.bias is not None:
            logits += self.bias
        most = torch.maximum(top, logits.amax(1, keepdim=True))
        p = logits.sub_(most).exp_()
        return ExtraPart(p @ self._values, p.sum(1, keepdim=True), (top - most).exp())


class RecordedCall:
    """One attention call, cut in the grid's part and the extra keys.

    Attributes:
        q, k, v: [B, H, V, D] of the grid's tokens, views.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, layout: JointLayout, extra_bias: Tensor | None
    ) -> None:
        """Takes whole sequences [B, H, S, D] and the bias of their extra keys, [B or 1, E]."""
        self.q, self.k, self.v = (layout.grid_part(x) for x in (q, k, v))
        self._keys = self._values = None
        if layout.extra:
            self._keys, self._values = layout.extra_part(k), layout.extra_part(v)
        self._bias = [] if extra_bias is None else [_visible(row) for row in extra_bias]

    def inputs_of(self, entry: int, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [V, D] of a head."""
        return self.q[entry, head], self.k[entry, head], self.v[entry, head]

    def extra(self, entry: int, head: int) -> ExtraKeys | None:
        """The visible extra keys of a head, None where there are none."""
        if self._keys is None or self._values is None:
            return None
        keys, values, bias = self._keys[entry, head], self._values[entry, head], None
        if self._bias:
            visible, bias = self._bias_of(entry)
            keys, values = keys[visible], values[visible]
        return ExtraKeys(keys, values, bias) if len(keys) else None

    def extra_of_heads(self, entry: int) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """Visible keys and values of all heads, [H, E, D] each, and their bias, float32 [E]."""
        if self._keys is None or self._values is None:
            return None
        keys, values, bias = self._keys[entry], self._values[entry], None
        if self._bias:
            visible, bias = self._bias_of(entry)
            keys, values = keys[:, visible], values[:, visible]
        return (keys, values, bias) if keys.shape[1] else None

    def _bias_of(self, entry: int) -> tuple[Tensor, Tensor | None]:
        return self._bias[entry if len(self._bias) > 1 else 0]


def _visible(bias: Tensor) -> tuple[Tensor, Tensor | None]:
    """Index of the keys that are not hidden, and their bias where any is not 0."""
    visible = (bias > HIDDEN).nonzero().flatten()
    bias = bias[visible]
    return visible, bias if bool(bias.any()) else None


def dense_output(q: Tensor, k: Tensor, v: Tensor, scale: float, extra: ExtraKeys | None) -> Tensor:
    """float32 [V, D]: dense attention of one head over its grid, [V, D], and the extra keys."""
    if extra is not None:
        k, v = torch.cat([k, extra.keys]), torch.cat([v, extra.values])
    queries, keys = matmul_operand(q), matmul_operand(k)
    if extra is None or extra.bias is None:
        output = torch.nn.functional.scaled_dot_product_attention(
            queries[None, None], keys[None, None], matmul_operand(v)[None, None], scale=scale
        )
        return output[0, 0].float()
    # A fused kernel wants the bias in the dtype of q, which would round it.
    values = v.float()
    output = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    step = rows_per_tile(len(keys), 1, q.device)
    for start in range(0, len(q), step):
        logits = scaled_logits(queries[start : start + step], keys, scale)
        logits[:, -len(extra.bias) :] += extra.bias
        output[start : start + step] = logits.softmax(1) @ values
    return output
