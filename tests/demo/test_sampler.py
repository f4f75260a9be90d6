"""Euler sampling with guidance."""

from __future__ import annotations

import pytest
import torch
from paro_attention.demo.sampler import guided_velocity, sample, seeded_noise, shifted_sigmas
from paro_attention.demo.wan import WanConfig, WanModel
from torch import Tensor


@pytest.fixture(scope="module")
def model() -> WanModel:
    torch.manual_seed(1)
    made = WanModel(WanConfig(dim=128, ffn_dim=128, layers=2))
    torch.nn.init.normal_(made.head.head.weight, std=0.05)
    return made.eval().requires_grad_(False)


def test_sigmas_run_from_one_to_zero() -> None:
    sigmas = shifted_sigmas(4, 3.0)
    assert sigmas == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])
    with pytest.raises(ValueError, match="got 0"):
        shifted_sigmas(0)


def test_noise_depends_on_its_seed_alone() -> None:
    both = seeded_noise((16, 2, 4, 4), [3, 4])
    assert torch.equal(both[1:], seeded_noise((16, 2, 4, 4), [4]))


def test_batched_samples_equal_single_ones(model: WanModel) -> None:
    context = torch.randn(2, 16, 4096).sign()
    negative = torch.zeros(1, 16, 4096)
    both = sample(model, context, negative, (2, 4, 4), steps=3, seeds=[5, 6])
    one = sample(model, context[1:], negative, (2, 4, 4), steps=3, seeds=6)
    assert both.shape == (2, 16, 2, 4, 4)
    torch.testing.assert_close(both[1:], one, rtol=1e-4, atol=1e-5)


def test_guidance_extrapolates(model: WanModel) -> None:
    context, negative = torch.randn(1, 16, 4096).sign(), torch.zeros(1, 16, 4096)
    x = torch.randn(1, 16, 2, 4, 4)

    def velocity(cfg: float) -> Tensor:
        return guided_velocity(model, x, 0.7, context, negative, cfg)

    zero, one, three = velocity(0.0), velocity(1.0), velocity(3.0)
    torch.testing.assert_close(three, zero + 3 * (one - zero), rtol=1e-4, atol=1e-5)


def test_steps_are_reported_and_the_attention_is_used(model: WanModel) -> None:
    seen: list[float] = []
    layers: list[int] = []

    def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        layers.append(layer)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    zeros = torch.zeros(1, 16, 4096)
    sample(
        model, zeros, zeros, (2, 4, 4), steps=2, cfg=2.0, attention=attention,
        on_step=lambda step, sigma, velocity: seen.append(sigma),
    )  # fmt: skip
    assert seen == pytest.approx([1.0, 0.75])
    assert layers == [0, 1, 0, 1]


def test_contexts_must_fit_the_seeds(model: WanModel) -> None:
    with pytest.raises(ValueError, match="context must have 1 or 3 rows, got 2"):
        sample(model, torch.zeros(2, 1, 4096), torch.zeros(1, 1, 4096), (2, 4, 4), seeds=[1, 2, 3])
