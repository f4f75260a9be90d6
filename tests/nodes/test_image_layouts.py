"""Layouts of the image models with text first, on stand-ins that need no ComfyUI."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from paro_attention.nodes.families import Forward
from paro_attention.nodes.families.aura import AURAFLOW
from paro_attention.nodes.families.chroma import CHROMA
from paro_attention.nodes.families.flux import FLUX
from paro_attention.nodes.families.qwen import QWEN_IMAGE
from paro_attention.nodes.families.sd3 import SD3
from torch import nn

TEXT = 7
REFERENCES = [torch.zeros(1, 16, 8, 10), torch.zeros(1, 16, 5, 7)]  # 4 x 5 and 3 x 4 tokens


def forward(x, **values):
    return Forward(x, {"context": torch.zeros(1, TEXT, 4)} | values)


def joint_block(*, twice: bool, norms: bool) -> nn.Module:
    """What the layout of Stable Diffusion 3 looks at in one of its blocks."""

    def attention() -> nn.Module:
        module = nn.Module()
        module.qkv = nn.Linear(4, 12)
        if norms:
            module.ln_q = nn.RMSNorm(4)
            module.ln_k = nn.RMSNorm(4)
        return module

    block = nn.Module()
    block.x_block = nn.Module()
    block.x_block.attn = attention()
    if twice:
        block.x_block.attn2 = attention()
    return block


def sd3(*blocks: nn.Module, registers: int = 0):
    return SimpleNamespace(
        joint_blocks=blocks,
        register_length=registers,
        x_embedder=SimpleNamespace(patch_size=(2, 2)),
    )


def test_references_lie_behind_the_picture():
    model = SimpleNamespace(patch_size=2)
    layout = FLUX.layout(model, forward(torch.zeros(1, 16, 17, 29), ref_latents=REFERENCES))
    assert layout.grid == (1, 9, 15)
    assert layout.first(TEXT + 135 + 32) == TEXT
    assert layout.first(TEXT + 135) is None
    assert layout.first(TEXT + 3 + 135 + 32) is None


def test_a_patch_of_the_inputs_may_lengthen_the_text_alone():
    values = forward(torch.zeros(1, 16, 17, 29), ref_latents=REFERENCES).values
    patched = Forward(torch.zeros(1, 16, 17, 29), values, {"patches": {"post_input": [print]}})
    layout = FLUX.layout(SimpleNamespace(patch_size=2), patched)
    assert layout.first(TEXT + 3 + 135 + 32) == TEXT + 3


def test_every_patch_size_counts_what_is_left_over():
    flux2 = FLUX.layout(SimpleNamespace(patch_size=1), forward(torch.zeros(1, 128, 7, 13)))
    radiance = CHROMA.layout(SimpleNamespace(patch_size=16), forward(torch.zeros(1, 3, 75, 230)))
    assert flux2.grid == (1, 7, 13)
    assert radiance.grid == (1, 5, 15)


def test_chroma_ignores_references():
    model = SimpleNamespace(patch_size=2)
    layout = CHROMA.layout(model, forward(torch.zeros(1, 16, 17, 29), ref_latents=REFERENCES))
    assert layout.first(TEXT + 135) == TEXT
    assert layout.first(TEXT + 135 + 32) is None


def test_layers_and_layered_references_are_frames():
    references = [torch.zeros(1, 16, 2, 8, 10)]
    x = torch.zeros(1, 16, 3, 9, 15)
    layout = QWEN_IMAGE.layout(SimpleNamespace(patch_size=2), forward(x, ref_latents=references))
    assert layout.grid == (3, 5, 8)
    assert layout.first(TEXT + 120 + 40) == TEXT
    assert layout.first(TEXT + 120 + 20) is None


def test_registers_count_as_text():
    x = torch.zeros(1, 4, 17, 29)
    aura = SimpleNamespace(patch_size=2, register_tokens=torch.zeros(1, 8, 4))
    assert AURAFLOW.layout(aura, forward(x)).first(8 + TEXT + 135) == 8 + TEXT
    model = sd3(joint_block(twice=False, norms=True), registers=3)
    layout = SD3.layout(model, Forward(x, {"c_crossattn": torch.zeros(1, TEXT, 4)}))
    assert layout.first(3 + TEXT + 135) == 3 + TEXT
    assert layout.first(135) is None


def test_a_block_that_attends_twice_is_two_layers():
    first, second = joint_block(twice=True, norms=True), joint_block(twice=False, norms=True)
    model = sd3(first, second)
    assert SD3.modules(model) == [first, first, second]
    layout = SD3.layout(
        model, Forward(torch.zeros(1, 16, 17, 29), {"c_crossattn": torch.ones(1, TEXT, 4)})
    )
    assert layout.first(TEXT + 135) == TEXT
    assert layout.first(135) == 0
    assert layout.first(134) is None


@pytest.mark.parametrize(("norms", "weights"), [(True, 4), (False, 2)])
def test_stable_diffusion_3_is_told_by_its_norms_or_else_by_its_biases(norms, weights):
    found = list(SD3.norms(joint_block(twice=True, norms=norms)))
    assert len(found) == weights
    assert {weight.numel() for weight in found} == ({4} if norms else {12})
