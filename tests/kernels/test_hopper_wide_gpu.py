"""The Hopper kernel of 16-bit values on a GPU, and beside it the Triton kernel of other cards."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attention_cases import (
    CASES,
    HEAD_DIMS,
    JOINT,
    Case,
    make_inputs,
    relative_error,
    with_distinct_blocks,
    with_rows_of_all_lengths,
)
from paro_attention.kernels import sparse_attention

if torch.cuda.is_available():
    from paro_attention.kernels.triton.hopper_support import wide_available

pytestmark = pytest.mark.gpu
if torch.cuda.is_available() and torch.cuda.get_device_capability() != (9, 0):
    pytestmark = [pytest.mark.gpu, pytest.mark.skip(reason="needs a Hopper GPU (sm_90)")]

BLOCKS = [(64, 128), (128, 128)]
BITS = [(8, 16), (16, 16)]
# P and the output are rounded to the inputs' type: 2**-9 in the mean with bfloat16.
TOLERANCE = {torch.bfloat16: 5e-3, torch.float16: 2e-3}
# Every further type, head dimension and tail is kernels more to compile, which takes longest here.
# Keys with a bias are the Triton kernel's.
ALIKE = ("one head, whole blocks", "small blocks", "text last")
SERVED = [
    replace(case, block=BLOCKS[number % 2])
    for number, case in enumerate((*CASES, *JOINT, HEAD_DIMS[0], HEAD_DIMS[2]))
    if case.hidden is None and case.name not in ALIKE
]
TWO = [replace(case, block=(64, 128)) for case in (CASES[1], JOINT[2])]
LONG = Case("long", heads=4, tokens=4100, head_dim=128, block=(64, 128), density=1.0)


def call(inputs, bits, implementation, **options):
    options = {"tail_bias": inputs.tail_bias, "key_bias": inputs.key_bias} | options
    arguments = (inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation)
    return sparse_attention(
        *arguments, qk_bits=bits[0], pv_bits=bits[1], implementation=implementation, **options
    )


def check(inputs, bits, **options):
    got, want = (call(inputs, bits, name, **options) for name in ("triton", "reference"))
    assert torch.isfinite(got).all()
    assert relative_error(got, want) < TOLERANCE[inputs.q.dtype]


@pytest.mark.parametrize("bits", BITS, ids=str)
@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_equals_its_reference(case, bits):
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    assert wide_available(torch.cuda.get_device_capability(), case.head_dim, case.block, *bits)
    check(inputs, bits)


@pytest.mark.parametrize("bits", BITS, ids=str)
@pytest.mark.parametrize("case", TWO, ids=["grid", "joint"])
def test_equals_its_reference_without_a_tail(case, bits):
    check(make_inputs(case, torch.bfloat16, "cuda"), bits, tail=False)


@pytest.mark.parametrize("bits", BITS, ids=str)
@pytest.mark.parametrize("case", TWO, ids=["grid", "joint"])
def test_the_triton_kernel_serves_the_same_calls(case, bits, monkeypatch):
    from paro_attention.kernels.triton import call_plan, hopper_support

    monkeypatch.setattr(hopper_support, "wide_serves", lambda *_: False)
    monkeypatch.setattr(call_plan, "_plans", {})
    check(make_inputs(case, torch.bfloat16, "cuda"), bits)


@pytest.mark.parametrize(
    ("head_dim", "block", "extra", "bits"),
    [
        (64, (128, 128), (0, 0), (8, 16)),
        (128, (64, 128), (70, 260), (8, 16)),
        (64, (64, 128), (70, 260), (16, 16)),
        (128, (128, 128), (0, 0), (16, 16)),
    ],
    ids=str,
)
def test_long_rows_of_many_lengths(head_dim, block, extra, bits):
    """Lists of all lengths, neighbours that share few blocks or many, a ring that goes round."""
    case = Case("long", 1, 3, 12_345, head_dim, block, density=0.1, extra=extra)
    inputs = with_rows_of_all_lengths(make_inputs(case, torch.bfloat16, "cuda"))
    check(inputs, bits)


@pytest.mark.parametrize("bits", BITS, ids=str)
def test_a_tail_of_several_tiles_equals_the_reference(bits):
    case = Case("tail", tokens=20_000, head_dim=128, block=(64, 128), density=0.1)
    check(with_distinct_blocks(make_inputs(case, torch.float16, "cuda")), bits)


@pytest.mark.parametrize(
    ("head_dim", "grid", "extra", "bits"),
    [
        (64, 17_776, 300, (8, 16)),
        (128, 17_665, 0, (8, 16)),
        (64, 17_665, 0, (16, 16)),
        (128, 17_776, 300, (16, 16)),
    ],
    ids=str,
)
def test_a_hundred_calls_are_finite_and_alike(head_dim, grid, extra, bits):
    """Programs of many rows, that begin and end beside each other, over and over."""
    case = Case("often", 1, 6, grid, head_dim, (64, 128), density=0.05, extra=(0, extra))
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    first = call(inputs, bits, "triton")
    assert torch.isfinite(first).all()
    alike = torch.stack([(call(inputs, bits, "triton") == first).all() for _ in range(100)])
    assert alike.all()


@pytest.mark.parametrize(("bits", "budget"), [((8, 16), 0.016), ((16, 16), 0.005)], ids=str)
def test_dense_error_stays_within_its_budget(bits, budget):
    inputs = make_inputs(replace(LONG, tokens=8200), torch.bfloat16, "cuda")
    want = F.scaled_dot_product_attention(inputs.q.float(), inputs.k.float(), inputs.v.float())
    assert relative_error(call(inputs, bits, "triton"), want) < budget


@pytest.mark.parametrize("bits", BITS, ids=str)
def test_logits_far_apart_leave_the_largest(bits):
    """A maximum that grows by much, and one that lags behind by less than is raised."""
    inputs = make_inputs(LONG, torch.float16, "cuda")
    for size in (0.1, 6.0, 30.0):
        check(replace(inputs, q=inputs.q * size), bits)


@pytest.mark.parametrize("bits", BITS, ids=str)
def test_another_length_compiles_nothing_new(bits):
    from paro_attention.kernels.triton.hopper_wide import hopper_wide_kernel

    def run(tokens, extra):
        case = Case("text", batch=2, tokens=tokens, extra=extra, block=(64, 128))
        check(make_inputs(case, torch.bfloat16, "cuda"), bits)
        return len(hopper_wide_kernel.device_caches[torch.cuda.current_device()][0])

    first = run(300, (0, 77))
    lengths = ((300, (0, 78)), (300, (16, 0)), (1024, (1, 16)), (257, (128, 128)))
    assert {run(*length) for length in lengths} == {first}
