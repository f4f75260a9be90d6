"""Which launches ship: calls are made on CPU tensors, with recorders in place of the kernels."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any
from unittest.mock import patch

from _package import load_package

load_package()

import torch  # noqa: E402
import triton  # noqa: E402
from paro_attention.kernels import BlockMask  # noqa: E402
from paro_attention.kernels import triton as kernels  # noqa: E402
from paro_attention.kernels.hopper_launch import hopper_serves  # noqa: E402
from paro_attention.kernels.hopper_wide_launch import wide_serves  # noqa: E402
from paro_attention.kernels.int4_launch import int4_serves  # noqa: E402
from paro_attention.kernels.packed_layout import padded_head_dim  # noqa: E402
from paro_attention.kernels.triton import fp4, int4  # noqa: E402
from paro_attention.kernels.triton.call_plan import CallPlan, CallShape  # noqa: E402

BITS = [(qk, pv) for qk in (16, 8, 4) for pv in (16, 8, 4)]
USUAL_BITS = ((16, 16), (8, 16), (8, 8), (4, 4))
HEAD_DIMS = (64, 96, 128, 256)
BLOCKS = ((64, 64), (64, 128))
TOKENS = 512
ORDERS = 18
TYPES = {
    torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int8: "i8",
    torch.uint8: "u8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
    torch.float8_e4m3fn: "fp8e4nv",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A call: compute capability, head dimension, bits, block, and whether tokens are extra.

    ``portable``: without the card's own kernel, as where Triton cannot build it. ``tail``: the
    pooled tail.
    """

    capability: int
    head_dim: int
    bits: tuple[int, int]
    block: tuple[int, int]
    extra: bool
    portable: bool = False
    tail: bool = True

    def __str__(self) -> str:
        tokens = "joint" if self.extra else "grid"
        bits, block = (f"{a}{sign}{b}" for (a, b), sign in ((self.bits, "/"), (self.block, "x")))
        kernel = ", portable" if self.portable else ""
        tail = "" if self.tail else ", no tail"
        return f"head_dim {self.head_dim}, bits {bits}, blocks {block}, {tokens}{kernel}{tail}"

    @property
    def kernel_of_4_bits(self) -> Any:
        """The card's own kernel for 4 bits, with its pre-pass."""
        kind = divmod(self.capability, 10), self.head_dim, self.block
        if self.bits != (4, 4) or self.portable:
            return None
        kernel = int4.int4_attention if int4_serves(*kind) else None
        return fp4.fp4_attention if fp4.fp4_available(*kind) else kernel

    @property
    def fp8(self) -> bool:
        return self.bits[1] == 8 and self.capability >= 89

    @property
    def biased(self) -> bool:
        """Whether extra keys have a bias, which the Hopper kernels do not take."""
        return self.extra and (self.portable or not self.on_hopper_kernel)

    @property
    def on_hopper_kernel(self) -> bool:
        card, width = divmod(self.capability, 10), padded_head_dim(self.head_dim)
        eight_bits = hopper_serves(card, width, self.block, *self.bits, self.fp8, self.tail)
        return eight_bits or wide_serves(card, width, self.block, *self.bits)


@dataclass(frozen=True, slots=True)
class CalibrationCase:
    """A calibration: compute capability, head dimension, block."""

    capability: int
    head_dim: int
    block: tuple[int, int]

    def __str__(self) -> str:
        return f"head_dim {self.head_dim}, calibration, blocks {self.block[0]}x{self.block[1]}"


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with what decides its machine code."""

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]


class Recorder:
    """Stands for a kernel and writes its launches down."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, _grid: object) -> Any:
        return self._record

    def _record(self, *given: Any, **named: Any) -> None:
        names = self.kernel.arg_names
        constants = {names[p.num]: named[p.name] for p in self.kernel.params if p.is_constexpr}
        signature = {n: "constexpr" for n in constants}
        aligned = []
        for place, (name, value) in enumerate(zip(names, given, strict=False)):
            signature[name] = _type_of(value)
            fixed = self.kernel.params[place].do_not_specialize
            if not fixed and (isinstance(value, torch.Tensor) or _divisible(value)):
                aligned.append(place)
        options = {n: value for n, value in named.items() if n not in constants}
        self.launches.append(
            Launch(
                self.kernel,
                tuple((n, signature[n]) for n in names),
                tuple(constants.items()),
                tuple(aligned),
                tuple(options.items()),
            )
        )


def is_gluon(kernel: Any) -> bool:
    """Whether a kernel is in Gluon, which Triton 3.3 does not know."""
    return hasattr(kernel, "is_gluon") and kernel.is_gluon()


def _divisible(value: Any) -> bool:
    return isinstance(value, int) and value % 16 == 0


def _type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, int | float):
        return "i32" if isinstance(value, int) else "fp32"
    shape = ", ".join(map(str, value.block_shape))
    layout = f",{value.layout!r}" if hasattr(value, "layout") else ""  # Gluon's have one
    return f"tensordesc<{TYPES[value.base.dtype]}[{shape}]{layout}>"


@contextmanager
def recording(capability: int) -> Iterator[list[Launch]]:
    """Within it, launches are written down as on a card of this compute capability."""
    launches: list[Launch] = []
    card = divmod(capability, 10)
    with ExitStack() as stack:
        stack.enter_context(patch("torch.cuda.get_device_capability", lambda _=None: card))
        for found in pkgutil.iter_modules(kernels.__path__, f"{kernels.__name__}."):
            try:
                module = importlib.import_module(found.name)
            except (ImportError, AttributeError):  # a kernel that this Triton cannot build
                continue
            for name, value in list(vars(module).items()):
                if name.endswith("_kernel") and isinstance(value, triton.JITFunction):
                    stack.enter_context(patch.object(module, name, Recorder(value, launches)))
        yield launches


def launches_of(case: Case | CalibrationCase) -> list[Launch]:
    """The launches of a call or a calibration, none of them twice."""
    with recording(case.capability) as launches:
        if isinstance(case, Case):
            _attend(case)
        else:
            _calibrate(case)
    return list(dict.fromkeys(launches))


def _attend(case: Case) -> None:
    extra = 64 if case.extra else 0
    size = (1, TOKENS + extra, 2, case.head_dim)
    q, k, v = (torch.zeros(size, dtype=torch.bfloat16).transpose(1, 2) for _ in range(3))
    blocks = tuple(-(-TOKENS // side) for side in case.block)
    mask = BlockMask.from_dense(torch.ones(2, *blocks, dtype=torch.bool), case.block, TOKENS)
    order = torch.arange(TOKENS + extra, dtype=torch.int32)[None]
    given = {
        "q": q, "k": k, "v": v, "permutation": order,
        "order_of_head": torch.zeros(2, dtype=torch.int32), "row_offsets": mask.row_offsets,
        "kv_indices": mask.kv_indices, "computed_bits": mask.computed_bits,
        "tail_bias": torch.zeros(2), "key_bias": torch.zeros(1, max(extra, 1)),
    }  # fmt: skip
    scale = case.head_dim**-0.5
    own = case.kernel_of_4_bits
    if own is not None:
        own(*given.values(), case.extra, TOKENS, *case.block, True, scale)
        return
    shape = CallShape(
        device=0, dtype=q.dtype, sizes=tuple(q.shape),
        strides=(*q.stride(), *k.stride(), *v.stride()), aligned=(True,) * len(given),
        lists=(*mask.computed_bits.shape[1:], int(case.biased)), grid_tokens=TOKENS,
        block=case.block, qk_bits=case.bits[0], pv_bits=case.bits[1],
        fp8=case.fp8, tail=case.tail, biased=case.biased, scale=scale,
    )  # fmt: skip
    plan = CallPlan.of(shape)
    plan.hopper = plan.hopper and not case.portable
    plan.wide = plan.wide and not case.portable
    kernels._record(plan, given, torch.empty_like(q))


def _calibrate(case: CalibrationCase) -> None:
    """Block mass of all orders, the choice among them on sampled rows, profiles, a plan's lists."""
    from paro_attention.kernels.triton import block_lists, block_mass, profile, sampled_rows
    from paro_attention.kernels.triton import sampled_errors as errors

    card = torch.device("cuda")  # what the choice of a launch asks; nothing is made on it
    width = padded_head_dim(case.head_dim)
    q, k, v = torch.zeros(3, 2, TOKENS, case.head_dim, dtype=torch.bfloat16)
    blocks, key_blocks = (-(-TOKENS // side) for side in case.block)
    orders = torch.arange(TOKENS, dtype=torch.int32).repeat(ORDERS, 1)
    heads = torch.zeros(ORDERS, dtype=torch.int32)
    order_of = torch.arange(ORDERS, dtype=torch.int32)
    block_mass.kernel_block_mass(
        q[None].expand(2, -1, -1, -1), k[None].expand(2, -1, -1, -1), orders, case.block, heads,
        order_of, case.head_dim**-0.5, block_mass.select_mass_launch(width, card),
    )  # fmt: skip
    rows = torch.arange(sampled_rows.ROW_TILE, dtype=torch.int32)
    of_block = len(rows) // blocks
    valid = torch.ones(len(rows))
    maps = sampled_rows.Maps(
        q, k, v, orders, heads, order_of, rows, case.block, of_block, case.head_dim**-0.5, 1
    )
    launch = sampled_rows.select_rows_launch(width, card)
    dense = sampled_rows.attend_all(maps, launch)
    mass = torch.zeros(ORDERS, blocks, key_blocks)
    errors.mass_of_rows(dense, valid, blocks, of_block, mass)
    counts = torch.ones(2, dtype=torch.int32)
    kept = errors.keep_greatest(mass, mass, torch.ones(blocks), counts)[0][0]
    part = sampled_rows.attend_kept(maps, kept, dense.top, launch)
    pooled = errors.pool_values(maps)
    extra = (part[0], part[1], part[1])
    for more in (None, extra):
        errors.row_errors(
            dense, part, kept, pooled, valid, torch.ones(4), TOKENS, case.block[1], of_block, more,
            errors.error_rows(width, card),
        )  # fmt: skip
    bits = torch.zeros(2, blocks, -(-key_blocks // 32), dtype=torch.int32)
    offsets = torch.zeros(2 * blocks + 1, dtype=torch.int32)
    block_lists.write_lists(bits, offsets, torch.zeros(2 * blocks * key_blocks, dtype=torch.int16))
    places = [
        (torch.zeros(1, count, 4, 3), torch.zeros(1, count, 4)) for count in (blocks, key_blocks)
    ]
    axes = tuple(torch.arange(-15.0, 16.0) for _ in range(3))
    sums = torch.zeros(ORDERS, 31**3, dtype=torch.int64)
    for evaluate, spread, rank in ((1, 0, 0), (1, 0, 1), (0, 1, 0), (1, 1, 0)):
        profile.run_profile_kernel(
            sums.float(), mass, mass, sums, kept, order_of, *places, axes, 1.0,  # type: ignore[arg-type]
            evaluate=bool(evaluate), spread=bool(spread), rank=bool(rank),
        )  # fmt: skip


def cases_for(capability: int, head_dims: list[int]) -> Iterator[Case | CalibrationCase]:
    """Calls whose kernels are looked at: every number format, blocks of 64 and of 128 keys.

    Rows that are padded stand for themselves in the usual formats only: the tiles are the same.
    """
    for head_dim, bits, block in product(head_dims, BITS, BLOCKS):
        if head_dim not in (64, 128, 256) and bits not in USUAL_BITS:
            continue
        for extra in (False, True):
            case = Case(capability, head_dim, bits, block, extra)
            yield case
            if case.kernel_of_4_bits or case.on_hopper_kernel:
                yield replace(case, portable=True)
            without = replace(case, tail=False)
            if without.on_hopper_kernel:
                yield without
    for head_dim, block in product(head_dims, BLOCKS):
        yield CalibrationCase(capability, head_dim, block)
