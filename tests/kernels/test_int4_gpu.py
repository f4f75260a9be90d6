"""The INT4 kernel on a GPU: the instruction, the integers, the reference, and its bits.

Cards of sm_90 run the instruction in emulation, so that the results can be checked there too.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attention_cases import CASES, HEAD_DIMS, JOINT, Case, make_inputs, relative_error
from int4_model import attention_of_packed
from paro_attention.kernels.int4_launch import int4_serves
from paro_attention.kernels.int4_layout import pack_a, pack_b, pack_values
from paro_attention.kernels.packed_layout import PackedLayout, padded_head_dim
from paro_attention.kernels.reference import reference_attention

pytestmark = pytest.mark.gpu
BIG_BLOCKS = Case("128x128 blocks", heads=3, tokens=700, head_dim=128, block=(128, 128))
LONG = Case("long lists", heads=2, tokens=4100, head_dim=128, density=0.7)
ALL = (
    *CASES, *JOINT, *HEAD_DIMS, BIG_BLOCKS, LONG,
    Case("wide queries, bias", tokens=500, head_dim=96, block=(128, 64), extra=(30, 77),
         hidden=(5,)),
    Case("32 queries", tokens=150, block=(32, 64)),
)  # fmt: skip
SERVED = [case for case in ALL if int4_serves((8, 6), case.head_dim, case.block)]


def arguments(inputs, case, tail):
    orders = torch.arange(case.heads, dtype=torch.int32, device="cuda")
    biased = inputs.key_bias is not None
    mask = inputs.mask
    return (
        inputs.q, inputs.k, inputs.v, inputs.permutation, orders, mask.row_offsets,
        mask.kv_indices, mask.computed_bits, inputs.tail_bias,
        inputs.key_bias if biased else inputs.tail_bias, biased, mask.tokens, *mask.block, tail,
        case.head_dim**-0.5,
    )  # fmt: skip


@pytest.fixture(scope="module")
def attend():
    int4 = pytest.importorskip("paro_attention.kernels.triton.int4")
    if int4.int4_attention is None:
        pytest.skip("this Triton has not the Gluon that the kernel needs")
    if torch.cuda.get_device_capability() > (9, 0):
        pytest.skip("mma.m16n8k64 on 4-bit integers ends with sm_90")
    return int4.int4_attention


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_kernel_equals_reference(attend, case, dtype, tail):
    inputs = make_inputs(case, dtype, "cuda")
    got = attend(*arguments(inputs, case, tail))
    want = reference_attention(
        inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation,
        torch.arange(case.heads, device="cuda"), inputs.tail_bias, qk_bits=4, pv_bits=4, fp8=False,
        tail=tail, scale=case.head_dim**-0.5, key_bias=inputs.key_bias,
    )  # fmt: skip
    assert torch.isfinite(got).all()
    assert relative_error(got, want) < 3e-2


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("case", SERVED, ids=lambda case: case.name)
def test_kernel_makes_of_its_operands_what_their_integers_say(attend, case, tail):
    """Nothing is lost but the output's rounding, 2**-12.2 rms in float16."""
    from paro_attention.kernels.triton.int4_prepass import mean_of_keys, prepare_int4

    case = replace(case, tokens=min(case.tokens, 1000))
    inputs = make_inputs(case, torch.float16, "cuda")
    layout = PackedLayout.of(case.sequence, case.tokens, case.block)
    orders = torch.arange(case.heads, dtype=torch.int32, device="cuda")
    width = padded_head_dim(case.head_dim)
    prepared = prepare_int4(
        inputs.q, inputs.k, inputs.v, inputs.permutation, orders,
        mean_of_keys(inputs.k, width), layout, case.block[1], width, 1,
    )  # fmt: skip
    want = attention_of_packed(
        prepared, inputs.q, inputs.permutation, orders, inputs.dense_mask, layout, case.block,
        inputs.tail_bias, inputs.key_bias, tail=tail, scale=case.head_dim**-0.5,
    )  # fmt: skip
    # A P on a rounding boundary may fall either way: hardware's exp2 has 22 bits.
    assert relative_error(attend(*arguments(inputs, case, tail)), want) < 1e-3


@pytest.mark.parametrize("case", [BIG_BLOCKS, JOINT[4], LONG], ids=lambda case: case.name)
def test_the_same_input_gives_the_same_bits_a_hundred_times(attend, case):
    given = arguments(make_inputs(case, torch.bfloat16, "cuda"), case, True)
    first = attend(*given)
    assert all(torch.equal(first, attend(*given)) for _ in range(99))


@pytest.mark.parametrize("warps", [2, 4])
@pytest.mark.parametrize(("keys", "channels"), [(64, 64), (64, 128), (128, 64), (128, 128)])
def test_both_products_are_the_integer_products(attend, keys, channels, warps):
    from int4_products import both_products

    q, k = torch.randint(-8, 8, (16 * warps, channels)), torch.randint(-8, 8, (keys, channels))
    p, v = torch.randint(0, 16, (16 * warps, keys)), torch.randint(0, 16, (keys, channels))
    packed = pack_a(q).contiguous().cuda(), pack_b(k).cuda(), p.int().cuda(), pack_values(v).cuda()
    scores, sums = both_products(*packed, keys, channels, warps)
    assert torch.equal(scores.cpu().long(), q @ k.T)
    assert torch.equal(sums.cpu().long(), p @ v)
