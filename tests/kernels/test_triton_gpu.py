"""The Triton kernels on a GPU: against the reference, against SDPA, their memory, torch.compile."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from attention_cases import CASES, Case, make_inputs, relative_error
from paro_attention.kernels import BlockMask, sparse_attention
from paro_attention.kernels.device import fp8_supported

pytestmark = pytest.mark.gpu
# bfloat16 rounds P and the output to 8 bits: 2**-9 in the mean, a little more over several tiles.
TOLERANCE = {16: 5e-3, 8: 8e-3, 4: 3e-2}


def call(inputs, implementation, **options):
    options = {"tail_bias": inputs.tail_bias} | options
    arguments = (inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation)
    return sparse_attention(*arguments, implementation=implementation, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pv_bits", [16, 8, 4])
@pytest.mark.parametrize("qk_bits", [16, 8, 4])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_equals_reference(case, qk_bits, pv_bits, dtype):
    if dtype == torch.float16 and qk_bits != pv_bits:
        pytest.skip("mixed bits are covered in bfloat16")
    inputs = make_inputs(case, dtype, "cuda")
    options = {"qk_bits": qk_bits, "pv_bits": pv_bits}
    got, want = call(inputs, "triton", **options), call(inputs, "reference", **options)
    # FP8 rounds P relative to the running maximum in the kernel and to the row's in the reference:
    # the same but for the format's subnormals.
    assert relative_error(got, want) < TOLERANCE[min(qk_bits, pv_bits)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_int8_values_equal_the_reference(case):
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    options = {"qk_bits": 8, "pv_bits": 8, "pv8": "int8", "tail": False}
    assert (
        relative_error(call(inputs, "triton", **options), call(inputs, "reference", **options))
        < 8e-3
    )


LONG = Case("long", heads=4, tokens=4100, head_dim=128, block=(64, 128), density=1.0)


@pytest.mark.parametrize(
    ("qk_bits", "pv_bits", "budget"), [(16, 16, 0.005), (8, 16, 0.016), (8, 8, 0.045), (4, 4, 0.25)]
)
def test_dense_error_stays_within_its_budget(qk_bits, pv_bits, budget):
    inputs = make_inputs(LONG, torch.bfloat16, "cuda")
    want = F.scaled_dot_product_attention(inputs.q.float(), inputs.k.float(), inputs.v.float())
    assert relative_error(call(inputs, "triton", qk_bits=qk_bits, pv_bits=pv_bits), want) < budget


def test_values_with_a_mean_add_up_in_full_precision():
    """FP8 products are added with about 14 bits on Hopper; a long sum must not drift with them."""
    inputs = make_inputs(replace(LONG, tokens=8200), torch.float16, "cuda")
    inputs = replace(inputs, v=inputs.v + 4.0)
    options = {"qk_bits": 8, "pv_bits": 8, "tail": False}
    got, want = call(inputs, "triton", **options), call(inputs, "reference", **options)
    assert relative_error(got, want) < 1e-3


def test_the_same_input_gives_the_same_bits():
    inputs = make_inputs(LONG, torch.bfloat16, "cuda")
    first = call(inputs, "triton", qk_bits=8, pv_bits=8)
    assert torch.equal(first, call(inputs, "triton", qk_bits=8, pv_bits=8))


@pytest.mark.parametrize("block", [(64, 128), (128, 128), (64, 64)], ids=str)
def test_peak_memory_is_dense_plus_1_6_of_q(block):
    heads, tokens = 12, 16384
    q, k, v = (
        torch.randn(1, tokens, heads * 128, device="cuda", dtype=torch.bfloat16)
        .view(1, tokens, heads, 128)
        .transpose(1, 2)
        for _ in range(3)
    )
    dense_mask = torch.rand(heads, tokens // block[0], tokens // block[1], device="cuda") < 0.3
    mask = BlockMask.from_dense(dense_mask, block, tokens)
    permutation = torch.stack([torch.randperm(tokens, device="cuda") for _ in range(heads)]).int()

    def peak(function):
        function()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    dense = peak(lambda: F.scaled_dot_product_attention(q, k, v))
    ours = peak(lambda: sparse_attention(q, k, v, mask, permutation, qk_bits=8, pv_bits=8))
    assert ours <= dense + 1.6 * q.numel() * q.element_size()


def test_compiles_into_one_graph():
    inputs = make_inputs(Case("compile", tokens=512, head_dim=128), torch.bfloat16, "cuda")

    def block(q, k, v):
        return (
            sparse_attention(q * 1.0, k, v, inputs.mask, inputs.permutation, qk_bits=8, pv_bits=8)
            + 1.0
        )

    want = block(inputs.q, inputs.k, inputs.v)
    got = torch.compile(block, fullgraph=True)(inputs.q, inputs.k, inputs.v)
    assert relative_error(got, want) < 1e-3


def test_eight_bit_values_use_fp8_where_the_card_has_it():
    inputs = make_inputs(LONG, torch.bfloat16, "cuda")
    auto = call(inputs, "triton", qk_bits=8, pv_bits=8)
    named = call(
        inputs,
        "triton",
        qk_bits=8,
        pv_bits=8,
        pv8="fp8" if fp8_supported(inputs.q.device) else "int8",
    )
    assert torch.equal(auto, named)
