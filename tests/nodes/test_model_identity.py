"""A model is known again after a change of precision, and told from another finetune."""

from __future__ import annotations

import pytest
import torch
from paro_attention.nodes.families.wan import WAN
from paro_attention.nodes.model_identity import norm_fingerprint, weight_distance
from torch import nn


class Attention(nn.Module):
    num_heads, head_dim = 2, 128

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.norm_q, self.norm_k = nn.RMSNorm(256), nn.RMSNorm(256)
        for norm in (self.norm_q, self.norm_k):
            norm.weight.data = 1 + 0.3 * torch.randn(256, generator=generator)


class Layer(nn.Module):
    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.self_attn = Attention(generator)


class WanModel(nn.Module):
    def __init__(self, seed: int, layers: int = 8):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleList([Layer(generator) for _ in range(layers)])


def fingerprint(model: nn.Module) -> str:
    return norm_fingerprint(model, WAN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_rounding_is_not_another_model(dtype):
    exact, rounded = fingerprint(WanModel(0)), fingerprint(WanModel(0).to(dtype))
    assert exact != rounded
    assert weight_distance(exact, rounded) == 0


def test_a_finetune_is_told_from_its_base_by_its_size_of_change():
    base, finetune = WanModel(0), WanModel(0)
    for parameter in finetune.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    distance = weight_distance(fingerprint(base), fingerprint(finetune))
    assert distance == pytest.approx(0.02, rel=0.4)
    other = weight_distance(fingerprint(base), fingerprint(WanModel(1)))
    assert other is not None and other > 0.1


def test_equal_weights_have_equal_fingerprints_whatever_the_device_order():
    assert fingerprint(WanModel(3)) == fingerprint(WanModel(3))


def test_weights_that_are_not_loaded_are_unknown():
    model = WanModel(0).to("meta")
    assert fingerprint(model) == "unknown"
    assert weight_distance("unknown", fingerprint(WanModel(0))) is None
