"""One attention call of the host, and whether it may be replaced: pure, needs no ComfyUI."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .families import Grid, Layout

STATE_KEY = "paro"
"""Where the state of one forward lies in ComfyUI's `transformer_options`."""

CROSS_ATTENTION = "not visual self-attention"


class ModuleLayers:
    """The layers whose visual calls a self-attention module makes, in their order.

    Attributes:
        ids: the layers' indices.
        tensor: the same as int64 [n]. A compiled graph takes it as an input, where an int would
            be a constant of the graph and every layer would need a graph of its own.
    """

    __slots__ = ("ids", "tensor")

    def __init__(self, ids: tuple[int, ...]):
        self.ids = ids
        self.tensor = torch.tensor(ids, dtype=torch.int64, device="cpu")


class ForwardState:
    """What the attention calls of one forward of the model share.

    An object, not a dict: ComfyUI copies nested dicts along the way, and the hooks on the layers
    must be seen by the call that follows.

    Attributes:
        layout: where the grid lies, or why this forward runs dense.
        sigma: noise level.
        conditional_rows: batch entries of the positive prompt; None if not known.
        key_masks: masks that only hide keys hide none of the grid's.
        patched: other nodes may have changed the masks, so that this must be looked up.
        module: layers of the self-attention module that is running; None outside one.
        calls: how many of its calls have been made.
        answered: a call was declined and is on its way down the chain of overrides, where there
            may be one of ours again: neighbours put themselves in front of it at every step.
    """

    __slots__ = (
        "answered", "calls", "conditional_rows", "key_masks", "layout", "module", "patched",
        "sigma",
    )  # fmt: skip

    def __init__(
        self,
        layout: Layout | str,
        sigma: float,
        conditional_rows: tuple[int, ...] | None,
        key_masks: bool = True,
        patched: bool = False,
    ):
        self.layout = layout
        self.sigma = sigma
        self.conditional_rows = conditional_rows
        self.key_masks = key_masks
        self.patched = patched
        self.module: ModuleLayers | None = None
        self.calls = 0
        self.answered = False

    def enter(self, module: ModuleLayers | None) -> None:
        """A self-attention module begins, or none is running any more."""
        self.module = module
        self.calls = 0

    def next_layer(self) -> int | None:
        """Layer of the running module's next visual call; None if no more are to come."""
        if self.module is None or self.calls >= len(self.module.ids):
            return None
        return self.module.ids[self.calls]


@dataclass(frozen=True, slots=True)
class VisualCall:
    """A visual self-attention call.

    Attributes:
        layer: index of the layer in order of execution.
        sigma: noise level of this forward.
        grid: token grid of V tokens.
        q, k, v: [B, H, S, D], post-RoPE, the model's token order; views of what the host passed.
        conditional_rows: batch entries that belong to the positive prompt; None if not known.
        first: position of the grid's first token; the other S - V tokens are text, references, ...
        key_bias: float32 [B or 1, S], added to the logits of each key; None for none.
    """

    layer: int
    sigma: float
    grid: Grid
    q: Tensor
    k: Tensor
    v: Tensor
    conditional_rows: tuple[int, ...] | None
    first: int = 0
    key_bias: Tensor | None = None

    @property
    def tokens(self) -> int:
        """V, the tokens of the grid."""
        return self.grid[0] * self.grid[1] * self.grid[2]


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
        """q [B, H, S, D] and k, v, which may have fewer heads; views, nothing is copied."""
        if self.skip_reshape:
            return self.q, self.k, self.v
        dim = math.prod(self.q.shape[2:]) // self.heads
        q, k, v = (
            x.view(x.shape[0], x.shape[1], -1, dim).transpose(1, 2)
            for x in (self.q, self.k, self.v)
        )
        return q, k, v

    @property
    def is_self_attention(self) -> bool:
        """Whether q, k and v are as many tokens; heads of keys and values may be shared."""
        return is_self_attention(
            self.q, self.k, self.v, self.heads, self.skip_reshape, self.enable_gqa
        )

    def restore(self, out: Tensor) -> Tensor:
        """[B, H, S, D] -> the layout that the host asked for."""
        if self.skip_output_reshape:
            return out
        batch, heads, tokens, dim = out.shape
        return out.transpose(1, 2).reshape(batch, tokens, heads * dim)

    @property
    def tokens(self) -> int:
        """S."""
        return self.q.shape[2] if self.skip_reshape else self.q.shape[1]


def is_self_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, skip_reshape: bool, enable_gqa: bool
) -> bool:
    """`HostCall.is_self_attention` of arguments, in terms that torch.compile can follow."""
    if skip_reshape:
        shapes = [tuple(x.shape) for x in (q, k, v)]
    else:
        # Heads may be apart already: SD3's values are [B, S, H, D].
        widths = [x.shape[2] * x.shape[3] if x.ndim == 4 else x.shape[2] for x in (q, k, v)]
        dim = widths[0] // heads
        if any(width % dim for width in widths):
            return False
        shapes = [
            (x.shape[0], width // dim, x.shape[1], dim)
            for x, width in zip((q, k, v), widths, strict=True)
        ]
    of_q, of_k, of_v = shapes
    if of_k != of_v:
        return False
    if of_q == of_k:
        return True
    alike = (of_q[0], *of_q[2:]) == (of_k[0], *of_k[2:])
    return enable_gqa and alike and of_q[1] % of_k[1] == 0


def classify(
    call: HostCall,
    state: ForwardState | None,
    cannot_serve: Callable[[torch.device, torch.dtype, int], str | None],
) -> VisualCall | str:
    """The visual self-attention call that this is, or why it must run the host's own attention.

    Args:
        call: the bound call.
        state: the state of this forward, None outside one. A visual call uses up its layer.
        cannot_serve: (device, dtype, head_dim) -> reason, what the kernels cannot do.

    Returns:
        The call, or a short reason; calls with the same reason are counted together.
    """
    layer = None if state is None else state.next_layer()
    if state is None or layer is None:
        return CROSS_ATTENTION
    if not call.is_self_attention:
        return "query, key and value differ in shape"
    if isinstance(state.layout, str):
        return state.layout
    first = state.layout.first(call.tokens)
    if first is None:
        return "other tokens than expected beside the visual ones"
    state.calls += 1
    if call.scale is not None:
        return "softmax scale of the model's own"
    if not call.low_precision_attention or call.attn_precision == torch.float32:
        return "full precision asked for"
    q, k, v = call.heads_first()
    if k.shape[1] != q.shape[1]:  # the host's backends copy shared heads too
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    key_bias = None
    if call.mask is not None:
        key_bias = _key_bias(call.mask, q.shape[0], q.shape[2])
        if key_bias is None or not state.key_masks:
            return "attention mask"
        # Waits for the device, but only in a forward that other nodes reach into.
        if state.patched and bool(key_bias.narrow(1, first, state.layout.tokens).any()):
            return "attention mask over the picture"
    reason = cannot_serve(q.device, q.dtype, q.shape[3])
    if reason is not None:
        return reason
    return VisualCall(
        layer, state.sigma, state.layout.grid, q, k, v, state.conditional_rows, first, key_bias
    )


def _key_bias(mask: Tensor, batch: int, tokens: int) -> Tensor | None:
    """A mask that says the same to every query, as float32 [B or 1, S]; None for other masks.

    The shapes are ComfyUI's: [B, 1, S] and [B, 1, 1, S]; two dimensions are [S, S] or [1, S].
    """
    if mask.ndim == 2:
        mask = mask.unsqueeze(0)
    if mask.ndim not in (3, 4) or mask.shape[-1] != tokens or mask.shape[-2] != 1:
        return None
    if mask.ndim == 4 and mask.shape[1] != 1:
        return None
    bias = mask.reshape(mask.shape[0], tokens)
    if bias.shape[0] not in (1, batch):
        return None
    if bias.dtype == torch.bool:
        return torch.zeros_like(bias, dtype=torch.float32).masked_fill_(~bias, float("-inf"))
    return bias.float()
