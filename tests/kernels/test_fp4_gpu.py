"""The FP4 kernel on a GPU: the reference, its bits, and what ``tl.dot_scaled`` multiplies.

Where the card has no FP4 units (sm_90) the kernel multiplies the same numbers in float16, and
``tl.dot_scaled`` runs in Triton's emulation, which has no e4m3 scales: there it is asked with
scales of powers of two. On sm_120 everything is native.
"""

from __future__ import annotations

import pytest
import torch
from attention_cases import CASES, HEAD_DIMS, JOINT, Case, make_inputs, relative_error
from fp4_model import arguments, decoded, e2m1_values, of_reference
from paro_attention.kernels.fp4_launch import CAPABILITIES, fp4_serves
from paro_attention.kernels.fp4_numerics import round_to_e2m1, step_of
from paro_attention.kernels.reference import reference_attention

pytestmark = pytest.mark.gpu
BIG_BLOCKS = Case("128x128 blocks", heads=3, tokens=700, head_dim=128, block=(128, 128))
LONG = Case("long lists", heads=2, tokens=4100, head_dim=128, density=0.7)
EVERY = (
    *CASES, *JOINT, *HEAD_DIMS, BIG_BLOCKS, LONG,
    Case("wide queries, bias", tokens=500, head_dim=96, block=(128, 64), extra=(30, 77),
         hidden=(5,)),
    Case("32 queries", tokens=150, block=(32, 64)),
    Case("32 queries, 128 channels", tokens=200, head_dim=128, block=(32, 128), extra=(0, 9)),
)  # fmt: skip
SERVED = [case for case in EVERY if fp4_serves((12, 0), case.head_dim, case.block)]


@pytest.fixture(scope="module")
def native():
    return torch.cuda.get_device_capability() in CAPABILITIES


@pytest.fixture(scope="module")
def attend():
    return pytest.importorskip("paro_attention.kernels.triton.fp4_attention").fp4_attention


@pytest.mark.parametrize(
    ("dtype", "tail", "bound"),
    [(torch.bfloat16, True, 5e-3), (torch.float16, False, 3e-3)],
    ids=["bfloat16, tail", "float16"],
)
@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_kernel_equals_reference(attend, native, case, dtype, tail, bound):
    """Up to the rounding of the output and of the tail, and values on rounding boundaries."""
    inputs = make_inputs(case, dtype, "cuda")
    got = attend(*arguments(inputs, case, tail), native=native)
    given, named = of_reference(inputs, case, tail)
    want = reference_attention(*given, qk_bits=4, pv_bits=4, fp4=True, **named)
    assert torch.isfinite(got).all()
    assert relative_error(got, want) < bound


@pytest.mark.parametrize("case", [BIG_BLOCKS, JOINT[4], LONG], ids=lambda case: case.name)
def test_the_same_input_gives_the_same_bits_a_hundred_times(attend, native, case):
    given = arguments(make_inputs(case, torch.bfloat16, "cuda"), case, True)
    first = attend(*given, native=native)
    assert all(torch.equal(first, attend(*given, native=native)) for _ in range(99))


@pytest.mark.parametrize(("keys", "channels"), [(64, 64), (64, 128), (128, 64), (128, 128)])
def test_the_product_is_that_of_the_values(native, keys, channels):
    from fp4_products import product, quantized

    a, b = torch.randn(64, channels, device="cuda"), torch.randn(keys, channels, device="cuda")
    positive = torch.rand(64, channels, device="cuda") * 6.3
    given = [*quantized(a / step_of(a, -1)), *quantized(b / step_of(b, -1))]
    sums, packed = product(*given, positive, native)
    want = decoded(*given[:2]).double() @ decoded(*given[2:]).double().T
    assert relative_error(sums, want) < 1e-5
    assert torch.equal(e2m1_values(packed), round_to_e2m1(positive))


def test_dot_scaled_takes_bytes_and_scales_as_the_kernel_lays_them():
    """Which half of a byte comes first, and that B's scales lie by its columns."""
    from fp4_products import product

    a, b = (torch.randint(0, 256, (64, 64), device="cuda", dtype=torch.uint8) for _ in range(2))
    of_a, of_b = (
        torch.randint(120, 135, (64, 4), device="cuda", dtype=torch.uint8) for _ in range(2)
    )
    sums, _ = product(a, of_a, b, of_b, torch.zeros(64, 128, device="cuda"), False)
    left, right = (
        e2m1_values(x).double() * (scale.double() - 127).exp2().repeat_interleave(32, -1)
        for x, scale in ((a, of_a), (b, of_b))
    )
    assert relative_error(sums, left @ right.T) < 1e-5
