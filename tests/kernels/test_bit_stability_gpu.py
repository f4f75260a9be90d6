"""The same input gives the same bits, a hundred times over, whatever else the card is doing.

Between two runs another stream is given work, so that programs start in another order beside
another neighbour, and the memory that the next workspace gets is filled with another byte: 0xFF is
NaN in every format, so that a kernel that reads what it has not written shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from attention_cases import Case, Inputs, make_inputs
from paro_attention.calibration import TokenGrid
from paro_attention.calibration.block_selection import forced_blocks, select_blocks
from paro_attention.calibration.extra_keys import RecordedCall
from paro_attention.calibration.grid_orders import GridOrders
from paro_attention.calibration.joint_sequence import JointLayout
from paro_attention.calibration.sampled_maps import scores_of_heads
from paro_attention.kernels import BlockMask, block_mass_of, sparse_attention
from paro_attention.kernels.device import fp8_supported

if torch.cuda.is_available():
    from paro_attention.kernels.triton import int4

pytestmark = pytest.mark.gpu
RUNS = 100
GARBAGE_BYTES = 4 << 20
BYTES = (255, 0, 127, 128, 66)
# Ragged grid, extra tokens on both sides, a bias per batch entry, one hidden key block.
SHAPE = Case("ragged", batch=2, heads=3, tokens=1050, extra=(20, 150), hidden=(70, 9))
GRID = TokenGrid(3, 19, 25)
BF16, FP16 = torch.bfloat16, torch.float16


def check(run: Callable[[], torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
    """Fails where one of ``RUNS`` runs differs from the first in any bit."""
    first = bits_of(run())
    beside = torch.cuda.Stream()
    noise = torch.randn(1024, 1024, device="cuda", dtype=BF16)
    changed = torch.zeros((), dtype=torch.int64, device="cuda")
    beside.wait_stream(torch.cuda.current_stream())
    for n in range(1, RUNS):
        torch.full((GARBAGE_BYTES,), BYTES[n % len(BYTES)], dtype=torch.uint8, device="cuda")
        with torch.cuda.stream(beside):
            for _ in range(n % 4):
                noise[: 128 * (1 + n % 7)] @ noise
        differ = [(a != b).any() for a, b in zip(bits_of(run()), first, strict=True)]
        changed += torch.stack(differ).any()
    assert int(changed) == 0, f"{int(changed)} of {RUNS} runs differ from the first"


def bits_of(results: torch.Tensor | tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    results = (results,) if isinstance(results, torch.Tensor) else results
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return [x.contiguous().view(kinds[x.element_size()]) for x in results]


def uneven_inputs(case: Case, dtype: torch.dtype) -> Inputs:
    """Rows that compute from none to all of their blocks."""
    rows, columns = (-(-case.tokens // side) for side in case.block)
    density = torch.rand(case.heads, rows, 1) * 1.2 - 0.1
    mask = BlockMask.from_dense(
        torch.rand(case.heads, rows, columns) < density, case.block, case.tokens
    )
    return replace(make_inputs(case, dtype, "cuda"), mask=mask.to("cuda"))


@pytest.mark.parametrize(
    ("bits", "block", "head_dim", "dtype", "tail", "pv8"),
    [
        ((16, 16), (64, 128), 128, BF16, True, "auto"),
        ((16, 16), (64, 64), 64, FP16, False, "auto"),
        ((8, 16), (64, 128), 128, BF16, True, "auto"),
        ((8, 16), (128, 128), 64, FP16, True, "auto"),
        ((8, 16), (128, 64), 64, BF16, True, "auto"),  # a hole of a whole key block
        ((16, 16), (128, 64), 128, FP16, True, "auto"),
        ((8, 8), (64, 64), 128, BF16, True, "fp8"),  # two blocks a step
        ((8, 8), (64, 64), 64, FP16, False, "fp8"),
        ((8, 8), (64, 128), 128, BF16, True, "fp8"),
        ((8, 8), (128, 128), 128, BF16, True, "fp8"),
        ((8, 8), (128, 64), 64, FP16, True, "fp8"),
        ((8, 8), (64, 128), 120, BF16, True, "fp8"),
        ((8, 8), (64, 128), 256, BF16, True, "fp8"),
        ((8, 8), (64, 128), 128, BF16, True, "int8"),
        ((8, 8), (64, 64), 64, FP16, False, "int8"),
        ((16, 8), (64, 128), 128, BF16, True, "auto"),
        ((4, 4), (64, 64), 128, BF16, True, "auto"),
        ((4, 4), (64, 128), 64, FP16, False, "auto"),
        ((4, 8), (64, 64), 128, BF16, True, "auto"),
        ((4, 16), (64, 128), 64, BF16, True, "auto"),
        ((8, 4), (64, 64), 128, BF16, True, "auto"),
    ],
    ids=str,
)
def test_attention(bits, block, head_dim, dtype, tail, pv8):
    if pv8 == "fp8" and not fp8_supported(torch.device("cuda")):
        pytest.skip("this card does not multiply FP8")
    case = replace(SHAPE, block=block, head_dim=head_dim)
    inputs = uneven_inputs(case, dtype)
    given = (inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation)
    options = {
        "qk_bits": bits[0], "pv_bits": bits[1], "tail": tail, "tail_bias": inputs.tail_bias,
        "pv8": pv8, "implementation": "triton", "key_bias": inputs.key_bias,
    }  # fmt: skip
    check(lambda: sparse_attention(*given, **options))


def test_attention_without_extra_tokens():
    case = replace(SHAPE, extra=(0, 0), hidden=None, head_dim=128, block=(64, 128))
    inputs = uneven_inputs(case, BF16)
    given = (inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation)
    check(lambda: sparse_attention(*given, qk_bits=8, pv_bits=8, implementation="triton"))


@pytest.mark.parametrize("extra", [0, 300], ids=["video", "joint"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("bits", [(8, 8), (8, 16), (16, 16)], ids=str)
def test_attention_of_thousands_of_rows(bits, head_dim, extra):
    """A kernel once held NaN in a few rows of one call in a hundred, of long sequences alone."""
    case = Case("long", 1, 6, 17_776, head_dim, (64, 128), density=0.05, extra=(0, extra))
    inputs = make_inputs(case, BF16, "cuda")
    given = (inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation)
    options = {"qk_bits": bits[0], "pv_bits": bits[1], "implementation": "triton"}
    assert torch.isfinite(sparse_attention(*given, **options)).all()
    check(lambda: sparse_attention(*given, **options))


@pytest.mark.parametrize(
    ("block", "head_dim", "tail"), [((64, 64), 128, True), ((128, 128), 64, False)], ids=str
)
def test_attention_of_the_int4_kernel(block, head_dim, tail):
    if int4.int4_attention is None or torch.cuda.get_device_capability() > (9, 0):
        pytest.skip("the INT4 kernel needs Triton 3.6's Gluon and a card up to sm_90")
    case = replace(SHAPE, block=block, head_dim=head_dim)
    inputs = uneven_inputs(case, BF16)
    mask, orders = inputs.mask, torch.arange(case.heads, dtype=torch.int32, device="cuda")
    given = (
        inputs.q, inputs.k, inputs.v, inputs.permutation, orders, mask.row_offsets,
        mask.kv_indices, mask.computed_bits, inputs.tail_bias, inputs.key_bias, True, mask.tokens,
        *block, tail, head_dim**-0.5,
    )  # fmt: skip
    check(lambda: int4.int4_attention(*given))


def test_lists_of_computed_blocks():
    """Selected by mass, with many blocks of equal mass, and listed."""
    tokens, block = 5000, (64, 64)
    forced = forced_blocks(tokens, block, "cuda")
    mass = torch.randint(0, 50, (4, *forced.shape), device="cuda") / 50
    counts = [800, 2000, 3333, 5900]
    entries = 4 * forced.numel()

    def build():
        computed = select_blocks(mass, counts, forced)
        mask = BlockMask.from_dense(computed, block, tokens, entries)
        lists = torch.where(
            torch.arange(entries, device="cuda") < mask.row_offsets[-1], mask.kv_indices, 0
        )
        return mask.row_offsets, lists, mask.computed_bits

    check(build)


@pytest.mark.parametrize(
    ("block", "head_dim", "dtype"), [((64, 128), 128, BF16), ((64, 64), 64, FP16)], ids=str
)
def test_block_mass(block, head_dim, dtype):
    tokens, heads = GRID.tokens, 3
    q, k = (
        torch.randn(2, tokens, heads, head_dim, device="cuda", dtype=dtype).transpose(1, 2)
        for _ in range(2)
    )
    orders = torch.stack([torch.randperm(tokens, device="cuda").int() for _ in range(heads)])
    maps = [torch.tensor(x, dtype=torch.int32, device="cuda") for x in ([0, 1, 2, 0], [2, 1, 0, 0])]
    check(lambda: block_mass_of(q * 2, k, orders, block, *maps, implementation="triton"))


@pytest.mark.parametrize("order", ["3x4x5", "WFH"])
def test_profiles(order):
    orders = GridOrders(GRID, (64, 128))
    geometry = orders.geometry(order, torch.device("cuda"))
    mass = torch.rand(3, geometry.query_blocks, geometry.key_blocks, device="cuda").pow(4)
    mass /= mass.sum(-1, keepdim=True)

    def fit():
        profiles = geometry.fit(mass)
        return profiles, geometry.evaluate(profiles)

    check(fit)


def test_scores_of_orders():
    q, k, v = (
        torch.randn(1, GRID.tokens + 9, 2, 64, device="cuda", dtype=BF16).transpose(1, 2)
        for _ in range(3)
    )
    layout = JointLayout.of(q.shape[2], GRID, 4)
    call, orders = RecordedCall(q, k, v, layout, None), GridOrders(GRID, (64, 64))
    names = ("FHW", "3x4x5")
    permutations = torch.stack([orders.permutation(name, q.device) for name in names]).int()
    profiles = [orders.geometry(name, q.device, sampled=True) for name in names]
    check(lambda: scores_of_heads(call, permutations, profiles.__getitem__, (64, 64), 0.3, 0.125))
