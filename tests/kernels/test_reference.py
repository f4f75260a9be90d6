import math
from dataclasses import replace

import attention_cases as cases
import pytest
import torch
import torch.nn.functional as F
from attention_cases import (
    CASES,
    HEAD_DIMS,
    JOINT,
    make_inputs,
    relative_error,
    with_distinct_blocks,
)
from paro_attention.kernels import BlockMask, sparse_attention
from paro_attention.kernels.quantization import (
    SAMPLED_FROM,
    SAMPLING_STEP,
    hadamard,
    hadamard_matrix,
    statistics_step,
)


def reference(inputs, **options):
    return sparse_attention(
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.mask,
        inputs.permutation,
        implementation="reference",
        **({"key_bias": inputs.key_bias} | options),
    )


def naive_attention(inputs, tail):
    """Query block by query block from the definition, without any of the reference's code."""
    batch, heads, sequence, head_dim = inputs.q.shape
    tokens = inputs.mask.tokens
    out = torch.zeros(batch, heads, sequence, head_dim)
    query_block, key_block = inputs.mask.block
    key_bias = inputs.key_bias
    if key_bias is None:
        key_bias = torch.zeros(1, sequence - tokens)
    key_bias = key_bias.expand(batch, -1).double()
    everything = torch.ones(inputs.dense_mask.shape[-1], dtype=torch.bool)
    for b in range(batch):
        shown = key_bias[b] > -1e4
        for h in range(heads):
            order = inputs.permutation[h].long()
            q, k, v = (x[b, h][order].double() for x in (inputs.q, inputs.k, inputs.v))
            starts = [*range(0, tokens, query_block), tokens]
            rows_of_mask = [*inputs.dense_mask[h], everything]
            for start, end, row_of_mask in zip(
                starts, [*starts[1:], sequence], rows_of_mask, strict=True
            ):
                keys, values = [k[tokens:][shown]], [v[tokens:][shown]]
                offsets = [key_bias[b][shown]]
                for block, computed in enumerate(row_of_mask.tolist()):
                    part = slice(block * key_block, min(tokens, (block + 1) * key_block))
                    if computed:
                        keys.append(k[part])
                        values.append(v[part])
                        offsets.append(torch.zeros(len(k[part]), dtype=torch.double))
                    elif tail:
                        keys.append(k[part].mean(0, keepdim=True))
                        values.append(v[part].mean(0, keepdim=True))
                        bias = inputs.tail_bias[h].double() + math.log(len(k[part]))
                        offsets.append(bias[None])
                if sum(map(len, keys)):
                    logits = q[start:end] @ torch.cat(keys).T * head_dim**-0.5 + torch.cat(offsets)
                    rows = torch.softmax(logits, -1) @ torch.cat(values)
                    out[b, h, order[start:end]] = rows.float()
    return out


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("case", CASES + JOINT, ids=lambda case: case.name)
def test_matches_the_definition(case, tail):
    inputs = make_inputs(case, torch.float32)
    got = reference(inputs, tail=tail, tail_bias=inputs.tail_bias)
    assert relative_error(got, naive_attention(inputs, tail)) < 1e-5


def test_density_one_without_reordering_is_dense_attention():
    case = cases.Case("dense", batch=2, tokens=200, density=1.0)
    inputs = make_inputs(case, torch.float32)
    got = sparse_attention(inputs.q, inputs.k, inputs.v, inputs.mask)
    assert relative_error(got, F.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)) < 1e-6


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("extra", [(23, 0), (0, 40), (9, 70)], ids=str)
def test_density_one_with_extra_tokens_is_dense_attention(extra, biased):
    hidden = (3, 0) if biased else None
    case = cases.Case("dense", batch=2, tokens=200, density=1.0, extra=extra, hidden=hidden)
    inputs = make_inputs(case, torch.float32)
    bias_of_keys = torch.zeros(2, 1, 1, case.sequence)
    if inputs.key_bias is not None:
        bias_of_keys[:, 0, 0, inputs.permutation[0, case.tokens :].long()] = inputs.key_bias
    want = F.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v, attn_mask=bias_of_keys)
    assert relative_error(reference(inputs), want) < 1e-5


def test_one_mask_serves_every_number_of_extra_tokens():
    """Hidden extra tokens change nothing at the grid's rows, whatever their number."""
    inputs = make_inputs(cases.Case("grid", tokens=200), torch.float32)
    want = reference(inputs)
    for count in (1, 64, 100):
        q, k, v = (
            torch.cat((x, torch.randn(1, 2, count, 64)), 2) for x in (inputs.q, inputs.k, inputs.v)
        )
        behind = torch.arange(200, 200 + count, dtype=torch.int32).expand(2, -1)
        joint = replace(
            inputs, q=q, k=k, v=v, permutation=torch.cat((inputs.permutation, behind), 1),
            key_bias=torch.full((1, count), -torch.inf),
        )  # fmt: skip
        assert relative_error(reference(joint)[:, :, :200], want) < 1e-5


def test_a_key_bias_is_in_natural_units():
    """A key with bias log 2 counts twice."""
    case = cases.Case("one extra token", tokens=64, extra=(0, 2), density=1.0)
    inputs = make_inputs(case, torch.float32)
    twice = replace(
        inputs,
        k=torch.cat((inputs.k[:, :, :65], inputs.k[:, :, 64:65]), 2),
        v=torch.cat((inputs.v[:, :, :65], inputs.v[:, :, 64:65]), 2),
    )
    bias = torch.tensor([[math.log(2.0), -math.inf]])
    got = reference(inputs, key_bias=bias)[:, :, :65]
    assert relative_error(got, reference(twice)[:, :, :65]) < 1e-5


def test_reordering_alone_changes_nothing():
    inputs = make_inputs(cases.Case("dense", tokens=300, density=1.0), torch.float32)
    got = reference(inputs)
    assert relative_error(got, F.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)) < 1e-6


def test_a_row_with_neither_blocks_nor_tail_is_zero():
    inputs = make_inputs(cases.Case("empty", tokens=200, empty_row=True), torch.float32)
    got = reference(inputs, tail=False)
    rows = inputs.permutation[0, : inputs.mask.block[0]].long()
    assert not got[0, 0, rows].any()
    assert torch.isfinite(got).all()


def test_the_output_goes_on_without_a_copy():
    inputs = make_inputs(cases.Case("layout", batch=2, tokens=128), torch.float32)
    got = reference(inputs)
    assert got.transpose(1, 2).is_contiguous()


# Budgets for normal data against full precision, at density 1: the published relative errors of
# these formats (8/8 about 0.02-0.04, 4-bit stacks 0.1-0.25 on unstructured data).
@pytest.mark.parametrize(
    ("qk_bits", "pv_bits", "pv8", "budget"),
    [
        (8, 16, "int8", 0.016),
        (16, 8, "int8", 0.02),
        (8, 8, "int8", 0.025),
        (8, 8, "fp8", 0.045),
        (4, 16, "int8", 0.18),
        (16, 4, "int8", 0.15),
        (4, 4, "int8", 0.23),
    ],
)
def test_low_bits_stay_within_their_budget(qk_bits, pv_bits, pv8, budget):
    case = cases.Case("budget", heads=2, tokens=1000, head_dim=128, block=(64, 128), density=1.0)
    inputs = make_inputs(case, torch.float32)
    got = reference(inputs, qk_bits=qk_bits, pv_bits=pv_bits, pv8=pv8)
    want = F.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)
    assert 0 < relative_error(got, want) < budget


@pytest.mark.parametrize(("bits", "budget"), [(8, 0.025), (4, 0.23)])
@pytest.mark.parametrize("case", JOINT[:3] + HEAD_DIMS[:5], ids=lambda case: case.name)
def test_low_bits_of_joint_sequences_stay_within_their_budget(case, bits, budget):
    inputs = make_inputs(replace(case, density=1.0), torch.float32)
    got = reference(inputs, qk_bits=bits, pv_bits=bits, pv8="int8")
    assert 0 < relative_error(got, reference(inputs)) < budget


# Against 16 bits with the same mask and tail. Where blocks are distinct the tail holds much of a
# row, and its rounding shows most.
@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_a_tail_with_eight_bit_keys_stays_within_the_budget(head_dim, distinct):
    case = cases.Case("tail", tokens=1000, head_dim=head_dim, block=(64, 128), density=0.3)
    inputs = make_inputs(case, torch.float32)
    inputs = with_distinct_blocks(inputs) if distinct else inputs
    got = reference(inputs, qk_bits=8, pv_bits=16)
    assert 0 < relative_error(got, reference(inputs)) < 0.014


def test_a_row_that_is_all_tail_has_the_rounding_of_eight_bits():
    """Without any block a row is softmax over the pooled keys, rounded together to int8."""
    case = cases.Case("tail alone", heads=1, tokens=512, block=(128, 64), density=0.0)
    inputs = with_distinct_blocks(make_inputs(case, torch.float32))
    order = inputs.permutation[0].long()
    q, k, v = (x[0, 0][order] for x in (inputs.q, inputs.k, inputs.v))
    pooled_k, pooled_v = ((x.view(8, 64, 64)).mean(1) for x in (k - k.mean(0), v))
    q = quantised(q, q.abs().amax(1, keepdim=True) / 127)
    pooled_k = quantised(pooled_k, pooled_k.abs().max() / 127)
    want = torch.empty(512, 64)
    want[order] = torch.softmax(q @ pooled_k.T * 64**-0.5, -1) @ pooled_v
    got = reference(inputs, qk_bits=8, pv_bits=16)[0, 0]
    assert relative_error(got, want) < 1e-4


def quantised(x, step):
    return (x / step).round() * step


def test_eight_bits_ignore_a_large_offset_of_all_keys():
    inputs = make_inputs(cases.Case("offset", tokens=256, density=1.0), torch.float32)
    shifted = inputs.k + 30.0
    options = {"qk_bits": 8, "pv_bits": 16, "implementation": "reference"}
    plain = sparse_attention(
        inputs.q, inputs.k, inputs.v, inputs.mask, inputs.permutation, **options
    )
    offset = sparse_attention(
        inputs.q, shifted, inputs.v, inputs.mask, inputs.permutation, **options
    )
    assert relative_error(offset, plain) < 2e-3


def test_hadamard_is_orthonormal_and_equals_its_matrix():
    x = torch.randn(5, 128)
    assert torch.allclose(hadamard(hadamard(x)), x, atol=1e-5)
    matrix = hadamard_matrix(128, x.device, torch.float32)
    assert torch.allclose(x @ matrix * 128**-0.5, hadamard(x), atol=1e-4)
    with pytest.raises(ValueError, match="power of two"):
        hadamard(torch.randn(2, 96))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qk_bits": 6}, ValueError, r"qk_bits must be one of \(16, 8, 4\), got 6"),
        ({"pv_bits": 3}, ValueError, r"pv_bits must be one of .* got 3"),
        ({"implementation": "cuda"}, ValueError, "implementation must be one of"),
        ({"pv8": "e5m2"}, ValueError, "pv8 must be one of"),
        ({"k": torch.zeros(1, 2, 100, 64)}, ValueError, r"k must have q's shape \[1, 2, 128, 64\]"),
        (
            {"v": torch.zeros(1, 2, 128, 64, dtype=torch.float16)},
            TypeError,
            "v must have q's dtype",
        ),
        ({"scale": 0.0}, ValueError, "scale must be positive and finite, got 0.0"),
        ({"q": torch.zeros(128, 64)}, ValueError, r"q must be \[B, H, S, D\], got \[128, 64\]"),
        ({"tail_bias": torch.zeros(3)}, ValueError, r"tail_bias must be float32 \[2\]"),
        (
            {"permutation": torch.zeros(2, 5, dtype=torch.int32)},
            ValueError,
            "permutation must be int32",
        ),
        (
            {"order_of_head": torch.zeros(9, dtype=torch.int32)},
            ValueError,
            r"order_of_head must be int32 \[2\]",
        ),
        (
            {"mask": BlockMask.from_dense(torch.ones(2, 4, 4, dtype=torch.bool), (64, 64), 256)},
            ValueError,
            "mask must be for 2 heads and at most 128 tokens .* got a mask for 2 heads and 256",
        ),
        (
            {"permutation": torch.zeros(2, 100, dtype=torch.int32)},
            ValueError,
            r"permutation must be int32 \[orders, 128\], got torch.int32 \[2, 100\]",
        ),
        (
            {"key_bias": torch.zeros(1, 128)},
            ValueError,
            r"key_bias must be float32 \[1 or 1, 28\] .* got torch.float32 \[1, 128\]",
        ),
        ({"key_bias": torch.zeros(3, 28)}, ValueError, r"key_bias must be .* got .* \[3, 28\]"),
        ({"key_bias": torch.zeros(28)}, ValueError, r"key_bias must be .* got .* \[28\]"),
        (
            {"key_bias": torch.zeros(1, 28, dtype=torch.bool)},
            ValueError,
            "key_bias must be float32 .* got torch.bool",
        ),
        (
            {"key_bias": torch.zeros(1, 28, device="meta")},
            ValueError,
            "key_bias must be on q's device cpu, got meta",
        ),
    ],
)
def test_bad_input_names_both_sides(change, error, message):
    arguments = {name: torch.zeros(1, 2, 128, 64) for name in ("q", "k", "v")}
    arguments["mask"] = BlockMask.from_dense(torch.ones(2, 2, 2, dtype=torch.bool), (64, 64), 100)
    with pytest.raises(error, match=message):
        sparse_attention(**(arguments | change))


def test_insisting_on_triton_where_it_cannot_run_says_why():
    inputs = make_inputs(cases.Case("float32", tokens=128), torch.float32)
    with pytest.raises(RuntimeError, match="float16 or bfloat16, not float32"):
        sparse_attention(inputs.q, inputs.k, inputs.v, inputs.mask, implementation="triton")


@pytest.mark.parametrize("head_dim", [100, 264])
def test_a_head_dim_that_the_kernels_do_not_serve_is_named(head_dim):
    inputs = make_inputs(cases.Case("odd", tokens=64, head_dim=head_dim), torch.float16)
    arguments = (inputs.q, inputs.k, inputs.v, inputs.mask)
    message = f"head_dim in multiples of 8 up to 256, not {head_dim}"
    with pytest.raises(RuntimeError, match=message):
        sparse_attention(*arguments, implementation="triton")
    assert torch.isfinite(sparse_attention(*arguments)).all()


def test_an_outlier_that_the_sample_of_values_missed_is_not_cut_off():
    tokens, outlier = SAMPLED_FROM, 5
    assert outlier % SAMPLING_STEP
    q, k, v = (torch.randn(1, 1, tokens, 64) for _ in range(3))
    v[:, :, outlier] *= 12.0
    k[:, :, outlier] *= 3.0
    blocks = torch.ones(1, tokens // 64, tokens // 128, dtype=torch.bool)
    mask = BlockMask.from_dense(blocks, (64, 128), tokens)
    got = sparse_attention(q, k, v, mask, qk_bits=8, pv_bits=8, pv8="fp8", tail=False)
    assert relative_error(got, F.scaled_dot_product_attention(q, k, v)) < 0.045


def test_statistics_are_sampled_only_where_the_format_has_room():
    assert statistics_step(SAMPLED_FROM - 1, 8, True) == 1
    assert statistics_step(SAMPLED_FROM, 8, True) == SAMPLING_STEP
    assert statistics_step(SAMPLED_FROM, 8, False) == 1
    assert statistics_step(SAMPLED_FROM, 16, False) == SAMPLING_STEP
