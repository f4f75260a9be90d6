"""The block mass kernel, through Triton's interpreter, against its twin in PyTorch."""

import os

import pytest
import torch
from paro_attention.kernels import block_mass_of, unavailable_reason

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or unavailable_reason("cpu") is not None,
    reason="needs Triton under TRITON_INTERPRET=1 (set where there is no GPU)",
)


def inputs(batch, heads, tokens, head_dim, orders):
    """q, k [B, H, S, D] as views of [B, S, H * D], and int32 [orders, S] permutations."""
    q, k = (
        torch.randn(batch, tokens, heads * head_dim).half().view(batch, tokens, heads, head_dim)
        for _ in range(2)
    )
    permutation = torch.stack([torch.randperm(tokens) for _ in range(orders)]).int()
    return (q * 2).transpose(1, 2), k.transpose(1, 2), permutation


def both(*arguments, **options):
    return [
        block_mass_of(*arguments, **options, implementation=implementation)
        for implementation in ("triton", "reference")
    ]


@pytest.mark.parametrize(
    ("tokens", "block", "head_dim"),
    [
        (256, (64, 64), 64),
        (300, (64, 128), 64),  # both sides ragged
        (193, (32, 32), 64),  # two query blocks in a tile, the last block of one token
        (130, (128, 32), 64),  # tile widened to the query block
        (100, (64, 128), 96),  # one ragged key block, padded channels
        (150, (64, 64), 120),
    ],
)
def test_equals_the_twin(tokens, block, head_dim):
    got, want = both(*inputs(1, 2, tokens, head_dim, 1), block)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got.sum(-1), torch.ones(got.shape[:2]), atol=1e-5, rtol=0)


def test_maps_take_their_own_head_and_order_and_average_the_batch():
    q, k, permutation = inputs(2, 3, 160, 64, 4)
    heads, orders = torch.tensor([2, 0, 2]).int(), torch.tensor([1, 3, 0]).int()
    got, want = both(q, k, permutation, (64, 32), heads, orders)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)
    alone = block_mass_of(q[:, 2:], k[:, 2:], permutation[1:2], (64, 32), implementation="triton")
    assert torch.equal(got[:1], alone)


def test_logits_of_any_size_are_taken():
    q, k, permutation = inputs(1, 1, 128, 64, 1)
    got, want = both(q * 8, k * 8, permutation, (64, 64))  # logits of some hundreds
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)
    got, want = both(q * 0, k, permutation, (64, 64))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)


def test_an_input_that_is_not_contiguous_along_head_dim_is_copied():
    q, k, permutation = inputs(1, 1, 96, 64, 1)
    turned = q.mT.contiguous().mT
    first, second = (block_mass_of(x, k, permutation, (32, 32)) for x in (q, turned))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=torch.zeros(1, 2, 63, 64)), "k must have the shape of q"),
        (dict(block=(48, 64)), "block must be two of"),
        (dict(permutation=torch.arange(64)[None]), "permutation must be int32"),
        (dict(head_of_map=torch.zeros(0).int()), "at least one map"),
        (dict(order_of_map=torch.zeros(3).int()), "order_of_map must be int32"),
        (dict(scale=0.0), "scale must be positive"),
        (dict(implementation="cuda"), "implementation must be one of"),
    ],
)
def test_bad_input_is_named(change, message):
    x = torch.zeros(1, 2, 64, 64)
    arguments = dict(q=x, k=x, permutation=torch.arange(64).int()[None], block=(32, 32)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        block_mass_of(**arguments)


def test_float32_is_the_twins():
    q, k, permutation = inputs(1, 1, 96, 64, 1)
    with pytest.raises(RuntimeError, match="float16 or bfloat16"):
        block_mass_of(q.float(), k.float(), permutation, (32, 32), implementation="triton")
