import pytest
import torch
from paro_attention.kernels.fp8_numerics import linear_keys, round_probabilities
from paro_attention.kernels.hopper_launch import hopper_serves

P = torch.exp2(torch.linspace(-12, 0, 4096))


def test_exact_rounding_is_that_of_the_format():
    error = (round_probabilities(P) / P - 1).abs()
    assert error.max() <= 2.0**-4


def test_linear_codes_are_within_a_step_and_unbiased():
    linear = linear_keys(len(P), P.device)
    ratio = round_probabilities(P, linear=True)[linear] / P[linear]
    assert (ratio - 1).abs().max() < 0.11
    assert abs(ratio.mean() - 1) < 0.005
    exact = round_probabilities(P, linear=True)[~linear]
    assert torch.equal(exact, round_probabilities(P)[~linear])


def test_a_quarter_of_the_keys_is_linear_in_every_tile():
    assert linear_keys(128, torch.device("cpu")).view(4, 32).sum(1).tolist() == [8] * 4


def test_nothing_and_everything_are_codes():
    p = torch.tensor([0.0, 1.0]).repeat(32)
    assert torch.equal(round_probabilities(p)[:2], p[:2])
    rounded = round_probabilities(p, linear=True)
    assert torch.equal(rounded[p == 0], p[p == 0])
    assert (rounded[p == 1] - 1).abs().max() <= 2.0**-4


@pytest.mark.parametrize(
    ("capability", "head_dim", "block", "bits", "fp8", "tail", "served"),
    [
        ((9, 0), 128, (64, 128), (8, 8), True, True, True),
        ((9, 0), 64, (128, 128), (8, 8), True, True, True),
        ((9, 0), 256, (64, 128), (8, 8), True, True, False),
        ((9, 0), 128, (32, 128), (8, 8), True, True, False),
        ((9, 0), 128, (64, 64), (8, 8), True, True, True),
        ((9, 0), 128, (64, 32), (8, 8), True, True, False),
        ((9, 0), 128, (64, 128), (8, 16), False, True, False),
        ((9, 0), 128, (64, 128), (8, 8), False, True, False),
        ((9, 0), 128, (64, 128), (8, 8), True, False, True),
        ((9, 0), 128, (64, 64), (8, 8), True, False, False),
        ((10, 0), 128, (64, 128), (8, 8), True, True, False),
    ],
)
def test_the_hopper_kernel_serves_what_it_was_built_for(
    capability, head_dim, block, bits, fp8, tail, served
):
    assert hopper_serves(capability, head_dim, block, *bits, fp8, tail) is served
