"""What a call decides once for its shapes: sizes, buffers, launches, and the compiled kernels.

Triton looks at every argument of every launch to find the compiled kernel: tens of microseconds for
kernels of fifty arguments, more than the kernels themselves take on a short sequence. All of it
follows from the call's shapes, strides, alignments and options. The first call of a kind is
recorded as it goes; the next ones fill in addresses and launch what the first one compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..launch import LaunchConfig, select_launch
from ..packed_layout import PackedLayout, low_tail, padded_head_dim, pooled_tile
from .call_arguments import Buffer, Described, Tile, allocated, total_bytes
from .head_groups import HeadGroups
from .hopper_support import hopper_available, wide_available
from .primitives import stride_alignment

# What the copy engine loads by; Triton 3.3 lacks it.
HAS_DESCRIPTORS = find_spec("triton.tools.tensor_descriptor") is not None
# A new prompt length is a new plan; forgetting old ones costs a look at the arguments.
MAX_PLANS = 512


class CallShape(NamedTuple):
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
        qk_bits, pv_bits, fp8, tail, biased, scale: as in ``sparse_attention``; ``fp8`` only with
            8-bit V.
        row_heads: heads of a row of the output where the call is a group of them; 0: its own.
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
    scale: float
    row_heads: int = 0


@dataclass(frozen=True, slots=True)
class _Launch:
    """A launch as it was made: whatever else it takes is at the named tensors' addresses."""

    runner: Any
    arguments: tuple[str | Described, ...]
    static: tuple[Any, ...]


@dataclass(slots=True)
class CallPlan:
    """Decisions and recorded launches of one ``CallShape``; shared by all calls of that shape.

    Attributes:
        shape: what the plan is for.
        layout: where the packed tokens lie.
        width: padded head dimension.
        alignment: what the strides of batch and head may be said to be multiples of.
        launch: how the attention kernel is launched.
        tma, paired: whether keys and values come by the copy engine; whether two blocks a step.
        hopper: whether Hopper's own kernel serves the calls.
        wide: whether Hopper's kernel of 16-bit values does.
        buffers: the call's own tensors by name.
        kept: tensors by name that all calls share.
        groups: how many heads run together; decided by the first call.
    """

    shape: CallShape
    layout: PackedLayout
    width: int
    alignment: int
    launch: LaunchConfig
    tma: bool
    paired: bool
    hopper: bool
    wide: bool
    buffers: dict[str, Buffer] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    groups: HeadGroups | None = None
    _launches: dict[tuple[Any, str], _Launch] = field(default_factory=dict)
    _offsets: dict[str, int] = field(default_factory=dict)
    _kept_at: dict[str, int] = field(default_factory=dict)
    _workspace: int = 0
    _recorded: bool = False

    @classmethod
    def of(cls, shape: CallShape) -> CallPlan:
        """Makes the plan of a shape."""
        tokens, head_dim = shape.sizes[2:]
        width = padded_head_dim(head_dim)
        capability = (9, 0) if shape.device < 0 else torch.cuda.get_device_capability(shape.device)
        launch = select_launch(shape.block, width, shape.qk_bits, shape.pv_bits, capability)
        of_heads = (stride for n in range(3) for stride in strides_of(shape, n)[:2])
        unbiased = shape.device >= 0 and not shape.biased  # nor interpreted
        kind = capability, head_dim, shape.block, shape.qk_bits, shape.pv_bits
        tma = HAS_DESCRIPTORS and launch.tma and 4 not in (shape.qk_bits, shape.pv_bits)
        return cls(
            shape=shape,
            layout=PackedLayout.of(tokens, shape.grid_tokens, shape.block),
            width=width,
            alignment=stride_alignment(head_dim, of_heads),
            launch=launch,
            tma=tma,
            paired=tma and launch.paired and shape.fp8 and shape.qk_bits == 8,
            hopper=unbiased and hopper_available(*kind, shape.fp8, shape.tail),
            wide=unbiased and wide_available(*kind),
        )

    @property
    def low_tail(self) -> bool:
        """Whether the pooled tail has 8-bit keys."""
        return self.shape.tail and low_tail(self.shape.qk_bits, self.shape.pv_bits)

    @property
    def tail_tile(self) -> int:
        """Pooled rows that are quantised together; in a 16-bit tail those of one step."""
        if self.low_tail:
            return pooled_tile(self.shape.block[1], self.shape.sizes[3])
        return self.tail_rows

    @property
    def tail_rows(self) -> int:
        """Pooled rows of one step of the tail; 8-bit values are stored by the tile, and read so."""
        if self.low_tail and self.shape.pv_bits == 8:
            return self.tail_tile
        return min(self.launch.key_tile, self.launch.tail_rows)

    @property
    def pooled(self) -> bool:
        """Whether the pre-pass pools: for the tail, or because 4 bits are relative to the means."""
        return self.shape.tail or 4 in (self.shape.qk_bits, self.shape.pv_bits)

    @property
    def workspace(self) -> int:
        """Bytes of the call's own tensors."""
        return total_bytes(self.buffers)

    def allocate(self, device: torch.device) -> dict[str, Tensor]:
        """The call's own tensors, uninitialised."""
        return allocated(self.buffers, device)

    def run(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        tensors: dict[str, Tensor],
        arguments: Sequence[str | Tile],
        numbers: tuple[int | float, ...],
        constants: dict[str, Any],
        launch_of: str = "",
        **options: int | None,
    ) -> None:
        """Launches a kernel on the current stream and records how.

        Args:
            kernel: the jit function; its arguments are tensors, numbers and constants in turn.
            grid: programs.
            tensors: the call's tensors by name, q among them.
            arguments: names of the tensors that the kernel takes, in its order; for one that the
                call has no use for stands q.
            numbers: what it takes that is neither a tensor nor a constant.
            constants: its constexpr arguments by name, in its order.
            launch_of: tells two launches of one kernel apart.
            options: Triton's launch options.
        """
        given, recorded = [], []
        for argument in arguments:
            if isinstance(argument, str):
                name = argument if argument in tensors else "q"
                given.append(tensors[name])
                recorded.append(name)
                continue
            descriptor = argument.descriptor(tensors[argument.name])
            given.append(descriptor)
            fields = {name: x for name, x in vars(descriptor).items() if name != "base"}
            recorded.append(Described(argument.name, type(descriptor), fields))
        compiled = kernel[grid](*given, *numbers, **constants, **options)
        if compiled is not None:  # the interpreter compiles nothing
            self._launches[kernel, launch_of] = _Launch(
                compiled[grid], tuple(recorded), (*numbers, *constants.values())
            )

    def finish_recording(self) -> None:
        """Ends the first call; there is nothing to replay where nothing was compiled."""
        offsets, end = {}, 0
        for name, buffer in self.buffers.items():
            offsets[name] = end
            end += buffer.bytes
        self._offsets, self._workspace = offsets, end
        self._kept_at = {name: x.data_ptr() for name, x in self.kept.items()}
        self._recorded = bool(self._launches)

    def replay(self, device: torch.device, stream: int, given: dict[str, int]) -> bool:
        """Launches what the first call launched; False where there was none yet.

        Args:
            device: of the call's tensors.
            stream: address of the current stream.
            given: addresses of the tensors that the call was given.

        Raises:
            torch.cuda.OutOfMemoryError: the workspace does not fit. Nothing was launched, and
                nothing will be until a call of the shape is recorded again.
        """
        if not self._recorded:
            return False
        try:
            workspace = torch.empty(self._workspace, dtype=torch.uint8, device=device)
        except torch.cuda.OutOfMemoryError:
            self._recorded = False
            raise
        base = workspace.data_ptr()
        at = given | self._kept_at
        for name, offset in self._offsets.items():
            at[name] = base + offset
        for launch in self._launches.values():
            addresses = (
                at[x] if isinstance(x, str) else x.at(at[x.name]) for x in launch.arguments
            )
            launch.runner(*addresses, *launch.static, stream=stream)
        return True


def strides_of(shape: CallShape, tensor: int) -> tuple[int, ...]:
    """Strides of batch, head and token of q (0), k (1) or v (2)."""
    return shape.strides[4 * tensor : 4 * tensor + 3]


_plans: dict[CallShape, CallPlan] = {}


def plan_of(shape: CallShape) -> CallPlan:
    """The plan of a shape, made on its first call."""
    plan = _plans.get(shape)
    if plan is None:
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        plan = _plans[shape] = CallPlan.of(shape)
    return plan
