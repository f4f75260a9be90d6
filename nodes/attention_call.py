"""One attention call of the host, and whether it may be replaced: pure, needs no ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .families import Grid

STATE_KEY = "paro"
"""Where the state of one forward lies in ComfyUI's `transformer_options`."""

CROSS_ATTENTION = "not visual self-attention"


class ForwardState:
    """What the attention calls of one forward of the model share.

    An object, not a dict: ComfyUI copies nested dicts along the way, and the hooks on the layers
    must be seen by the call that follows.
    """

    __slots__ = ("conditional_rows", "grid", "layer", "sigma", "tokens")

    def __init__(self, grid: Grid, sigma: float, conditional_rows: tuple[int, ...] | None):
        self.grid = grid
        self.tokens = grid[0] * grid[1] * grid[2]
        self.sigma = sigma
        self.conditional_rows = conditional_rows
        self.layer: int | None = None


@dataclass(frozen=True, slots=True)
class VisualCall:
    """A visual self-attention call.

    Attributes:
        layer: index of the layer in order of execution.
        sigma: noise level of this forward.
        grid: token grid; S is its product.
        q, k, v: [B, H, S, D], post-RoPE, the model's token order; views of what the host passed.
        conditional_rows: batch entries that belong to the positive prompt; None if not known.
    """

    layer: int
    sigma: float
    grid: Grid
    q: Tensor
    k: Tensor
    v: Tensor
    conditional_rows: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class HostCall:
    """The arguments of ComfyUI's `optimized_attention`, bound by name.

    Models differ in what they pass by position; the names and the order are the host's.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    heads: int
    mask: Tensor | None = None
    attn_precision: torch.dtype | None = None
    skip_reshape: bool = False
    skip_output_reshape: bool = False
    enable_gqa: bool = False
    low_precision_attention: bool = True
    scale: float | None = None
    transformer_options: dict[str, Any] | None = None

    @classmethod
    def bind(cls, args: tuple, kwargs: dict[str, Any]) -> HostCall:
        """Bind a call; keyword arguments that this pack does not know are ignored."""
        names = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape",
                 "skip_output_reshape")  # fmt: skip
        values: dict[str, Any] = dict(zip(names, args, strict=False))
        values.update({k: v for k, v in kwargs.items() if k in cls.__dataclass_fields__})
        return cls(**values)

    def heads_first(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as [B, H, S, D]; views, nothing is copied."""
        if self.skip_reshape:
            return self.q, self.k, self.v
        q, k, v = (
            x.view(x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)
            for x in (self.q, self.k, self.v)
        )
        return q, k, v

    def restore(self, out: Tensor) -> Tensor:
        """[B, H, S, D] -> the layout that the host asked for."""
        if self.skip_output_reshape:
            return out
        batch, heads, tokens, dim = out.shape
        return out.transpose(1, 2).reshape(batch, tokens, heads * dim)


def decline_reason(
    call: HostCall,
    state: ForwardState | None,
    cannot_serve: Callable[[torch.device, torch.dtype, int], str | None],
) -> str | None:
    """Why a call must run the host's own attention, or None when it may be replaced.

    Args:
        call: the bound call.
        state: the state of this forward, None outside one.
        cannot_serve: (device, dtype, head_dim) -> reason, what the kernels cannot do.

    Returns:
        A short reason; calls with the same reason are counted together.
    """
    if state is None or state.layer is None:
        return CROSS_ATTENTION
    q, k, v = call.q, call.k, call.v
    if call.enable_gqa or not q.shape == k.shape == v.shape:
        return "query, key and value differ in shape"
    if call.mask is not None:
        return "attention mask"
    if call.scale is not None:
        return "softmax scale of the model's own"
    if not call.low_precision_attention or call.attn_precision == torch.float32:
        return "full precision asked for"
    tokens = q.shape[2] if call.skip_reshape else q.shape[1]
    if tokens != state.tokens:
        return "other tokens beside the visual ones"
    head_dim = q.shape[3] if call.skip_reshape else q.shape[2] // call.heads
    return cannot_serve(q.device, q.dtype, head_dim)
