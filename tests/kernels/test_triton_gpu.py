"""The Triton kernels on a GPU: against the reference, against SDPA, their memory, torch.compile."""

import itertools
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
)
from paro_attention.kernels import BlockMask, sparse_attention
from paro_attention.kernels.device import fp8_supported

if torch.cuda.is_available():
    from paro_attention.kernels.triton.attention import attention_kernel
    from paro_attention.kernels.triton.hopper import hopper_attention_kernel
    from paro_attention.kernels.triton.prepass import prepass_kernel
    from paro_attention.kernels.triton.prepass_queries import queries_kernel

pytestmark = pytest.mark.gpu
# bfloat16 rounds P and the output to 8 bits: 2**-9 in the mean, a little more over several tiles.
TOLERANCE = {16: 5e-3, 8: 8e-3, 4: 3e-2}
# float16 in equal bits only: mixed bits are covered in bfloat16.
FORMATS = [(torch.bfloat16, *pair) for pair in itertools.product((16, 8, 4), repeat=2)] + [
    (torch.float16, bits, bits) for bits in (16, 8, 4)
]
MAIN_FORMATS = [(16, 16), (8, 16), (8, 8), (4, 4)]


def call(inputs, implementation, **options):
    options = {"tail_bias": inputs.tail_bias, "key_bias": inputs.key_bias} | options
    arguments = (inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation)
    return sparse_attention(*arguments, implementation=implementation, **options)


@pytest.mark.parametrize(("dtype", "qk_bits", "pv_bits"), FORMATS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel_equals_reference(case, dtype, qk_bits, pv_bits):
    inputs = make_inputs(case, dtype, "cuda")
    options = {"qk_bits": qk_bits, "pv_bits": pv_bits}
    got, want = call(inputs, "triton", **options), call(inputs, "reference", **options)
    # FP8 rounds P relative to the running maximum in the kernel and to the row's in the reference:
    # the same but for the format's subnormals.
    assert relative_error(got, want) < TOLERANCE[min(qk_bits, pv_bits)]


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize(("qk_bits", "pv_bits"), [*MAIN_FORMATS, (16, 8)])
@pytest.mark.parametrize("case", JOINT, ids=lambda case: case.name)
def test_a_joint_sequence_equals_the_reference(case, qk_bits, pv_bits, tail):
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    options = {"qk_bits": qk_bits, "pv_bits": pv_bits, "tail": tail}
    got, want = call(inputs, "triton", **options), call(inputs, "reference", **options)
    assert torch.isfinite(got).all()
    assert relative_error(got, want) < TOLERANCE[min(qk_bits, pv_bits)]


@pytest.mark.parametrize(("qk_bits", "pv_bits"), MAIN_FORMATS)
@pytest.mark.parametrize("case", HEAD_DIMS, ids=lambda case: case.name)
def test_every_head_dim_equals_the_reference(case, qk_bits, pv_bits):
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    options = {"qk_bits": qk_bits, "pv_bits": pv_bits}
    got, want = call(inputs, "triton", **options), call(inputs, "reference", **options)
    assert relative_error(got, want) < TOLERANCE[min(qk_bits, pv_bits)]


@pytest.mark.parametrize("bits", [(8, 16), (16, 16)], ids=str)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_a_tail_of_several_tiles_equals_the_reference(head_dim, bits):
    case = Case("long tail", tokens=5000, head_dim=head_dim, block=(64, 32), density=0.2)
    inputs = with_distinct_blocks(make_inputs(case, torch.float16, "cuda"))
    options = {"qk_bits": bits[0], "pv_bits": bits[1]}
    got, want = call(inputs, "triton", **options), call(inputs, "reference", **options)
    # A tail whose keys are rounded in only one of the two is 6e-3 off.
    assert relative_error(got, want) < 2e-3


@pytest.mark.parametrize("case", (*CASES, *JOINT, *HEAD_DIMS), ids=lambda case: case.name)
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


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_a_joint_sequence_at_density_one_is_dense_attention(head_dim, biased):
    hidden = (100,) if biased else None
    case = replace(LONG, head_dim=head_dim, extra=(200, 333), hidden=hidden)
    inputs = make_inputs(case, torch.bfloat16, "cuda")
    bias_of_keys = torch.zeros(1, 1, 1, case.sequence, device="cuda")
    if inputs.key_bias is not None:
        bias_of_keys[0, 0, 0, inputs.permutation[0, case.tokens :].long()] = inputs.key_bias[0]
    q, k, v = (x.float() for x in (inputs.q, inputs.k, inputs.v))
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=bias_of_keys)
    assert relative_error(call(inputs, "triton", qk_bits=16, pv_bits=16), want) < 0.005
    assert relative_error(call(inputs, "triton", qk_bits=8, pv_bits=8), want) < 0.045


@pytest.mark.parametrize("hidden", [None, (5,), (5, 9)], ids=str)
def test_another_text_length_compiles_nothing_new(hidden):
    def compiled():
        device = torch.cuda.current_device()
        kernels = (attention_kernel, hopper_attention_kernel, prepass_kernel, queries_kernel)
        return [len(kernel.device_caches[device][0]) for kernel in kernels if kernel]

    def run(tokens, extra):
        case = Case("text", batch=2, tokens=tokens, extra=extra, block=(64, 128), hidden=hidden)
        call(make_inputs(case, torch.bfloat16, "cuda"), "triton", qk_bits=8, pv_bits=8)

    run(300, (0, 77))
    first = compiled()
    for tokens, extra in ((300, (0, 78)), (300, (16, 0)), (1024, (1, 16)), (257, (128, 128))):
        run(tokens, extra)
    assert compiled() == first


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


def test_a_joint_sequence_compiles_into_one_graph():
    inputs = make_inputs(replace(JOINT[8], head_dim=128), torch.bfloat16, "cuda")

    def block(q, k, v, key_bias):
        return 1.0 + sparse_attention(
            q * 1.0, k, v, inputs.mask, inputs.permutation, qk_bits=8, pv_bits=8, key_bias=key_bias
        )

    arguments = (inputs.q, inputs.k, inputs.v, inputs.key_bias)
    got = torch.compile(block, fullgraph=True)(*arguments)
    assert relative_error(got, block(*arguments)) < 1e-3


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
