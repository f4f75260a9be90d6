"""What a call decides once for its shapes, and its kernels as they were compiled.

Triton looks at every argument of every launch to find the compiled kernel: tens of microseconds for
kernels of fifty arguments, more than the kernels themselves take on a short sequence. All of it
follows from the call's shapes, strides, alignments and options, so that the second call of a kind
launches what the first one compiled.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..launch import LaunchConfig, select_launch
from ..packed_layout import PackedLayout, padded_head_dim

# A new prompt length is a new plan; forgetting old ones costs a look at the arguments.
MAX_PLANS = 512


@dataclass(frozen=True, slots=True)
class CallShape:
    """What the launches of a call follow from, beside the values in its tensors.

    Attributes:
        device: index of the GPU, -1 for the interpreter.
        dtype: of q, k and v.
        sizes: (batch, heads, tokens, head_dim).
        strides: of q, k and v, element by element.
        aligned: of each tensor that the caller passes, whether it begins at a multiple of 16 bytes.
        lists: (query blocks, words of a row, keys' biases of a batch entry or of all).
        grid_tokens: tokens that the block mask covers.
        block: (query, key) tokens of a block.
        qk_bits, pv_bits, fp8, tail, biased: as in ``sparse_attention``; ``fp8`` only with 8-bit V.
    """

    device: int
    dtype: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    aligned: tuple[bool, ...]
    lists: tuple[int, ...]
    grid_tokens: int
    block: tuple[int, int]
    qk_bits: int
    pv_bits: int
    fp8: bool
    tail: bool
    biased: bool


@dataclass(slots=True)
class CallPlan:
    """Decisions and compiled kernels of one ``CallShape``; shared by all calls of that shape.

    Attributes:
        shape: what the plan is for.
        layout: where the packed tokens lie.
        width: padded head dimension.
        alignment: what the strides of batch and head may be said to be multiples of.
        launch: how the attention kernel is launched.
        tma, paired: whether keys and values come by the copy engine; whether two blocks a step.
    """

    shape: CallShape
    layout: PackedLayout
    width: int
    alignment: int
    launch: LaunchConfig
    tma: bool
    paired: bool
    _compiled: dict[tuple[Any, str], Any] = field(default_factory=dict)
    _descriptors: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, shape: CallShape) -> CallPlan:
        """Makes the plan of a shape."""
        tokens, head_dim = shape.sizes[2:]
        width = padded_head_dim(head_dim)
        capability = (9, 0) if shape.device < 0 else torch.cuda.get_device_capability(shape.device)
        launch = select_launch(shape.block, width, shape.qk_bits, shape.pv_bits, capability)
        # The interpreter stands for Hopper, but its copies are ordinary loads.
        tma = launch.tma and 4 not in (shape.qk_bits, shape.pv_bits)
        return cls(
            shape=shape,
            layout=PackedLayout.of(tokens, shape.grid_tokens, shape.block),
            width=width,
            alignment=_alignment(shape),
            launch=launch,
            tma=tma,
            paired=launch.paired and tma and shape.fp8 and shape.qk_bits == 8,
        )

    @property
    def low_tail(self) -> bool:
        """Whether the pooled tail is computed in 8 bits."""
        return self.shape.tail and self.shape.qk_bits == self.shape.pv_bits == 8

    @property
    def pooled(self) -> bool:
        """Whether the pre-pass pools: for the tail, or because 4 bits are relative to the means."""
        return self.shape.tail or 4 in (self.shape.qk_bits, self.shape.pv_bits)

    def run(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
        launch_of: str = "",
        **options: int | None,
    ) -> None:
        """Launches a kernel on the current stream.

        Args:
            kernel: the jit function.
            grid: programs.
            arguments: all that are not constants, in the kernel's order.
            constants: its constexpr arguments by name, in the kernel's order, behind the others.
            launch_of: tells two launches of one kernel with different constants apart.
            options: Triton's launch options.
        """
        key = (kernel, launch_of)
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[grid](*arguments, *constants.values())
            return
        compiled = kernel[grid](*arguments, **constants, **options)
        if compiled is not None:  # the interpreter compiles nothing
            self._compiled[key] = compiled

    def descriptor(self, name: str, x: Tensor, tile: tuple[int, int]) -> Any:
        """A tensor descriptor of ``x`` as rows of tile[1] elements, loaded in tiles."""
        template = self._descriptors.get(name)
        if template is None:
            from triton.tools.tensor_descriptor import TensorDescriptor

            template = TensorDescriptor.from_tensor(x.view(-1, tile[1]), list(tile))
            self._descriptors[name] = copy.copy(template)
            self._descriptors[name].base = None
            return template
        described = copy.copy(template)
        described.base = x
        return described


_plans: dict[CallShape, CallPlan] = {}


def plan_of(shape: CallShape) -> CallPlan:
    """The plan of a shape, made on its first call."""
    plan = _plans.get(shape)
    if plan is None:
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        plan = _plans[shape] = CallPlan.of(shape)
    return plan


def _alignment(shape: CallShape) -> int:
    """Triton finds strides of multiples of 16 by itself; odd multiples of 8 channels need telling.

    1 says nothing.
    """
    if shape.sizes[3] % 16 == 0:
        return 1
    of_rows = (s for i, s in enumerate(shape.strides) if i % 4 < 2)
    return 8 if all(stride % 8 == 0 for stride in of_rows) else 1
