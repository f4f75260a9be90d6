"""Layouts of further image models, on stand-ins that need no ComfyUI."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from paro_attention.nodes.families import Forward
from paro_attention.nodes.families.hidream import HIDREAM
from paro_attention.nodes.families.krea import IDEOGRAM4, KREA2, MAGE_FLOW, PIXELDIT
from paro_attention.nodes.families.lens import JOYIMAGE, LENS
from paro_attention.nodes.families.lumina import LUMINA
from paro_attention.nodes.families.omnigen import BOOGU, OMNIGEN2
from torch import nn

TEXT = 7
PIXELS = torch.zeros(1, 16, 17, 29)  # 9 x 15 tokens in patches of 2
REFERENCES = [torch.zeros(1, 16, 8, 10), torch.zeros(1, 16, 5, 7)]  # 4 x 5 and 3 x 4 tokens


def forward(x, **values):
    return Forward(x, {"context": torch.zeros(1, TEXT, 4)} | values)


@pytest.mark.parametrize(("multiple", "padding"), [(None, 0), (32, 25), (135, 0)])
def test_padding_of_z_image_lies_behind_the_picture(multiple, padding):
    model = SimpleNamespace(patch_size=2, pad_tokens_multiple=multiple)
    layout = LUMINA.layout(model, forward(PIXELS))
    assert layout.grid == (1, 9, 15)
    assert layout.first(32 + 64 + 135 + padding) == 32 + 64
    assert layout.first(135 + padding) == 0
    assert padding == 0 or layout.first(135) is None
    older = LUMINA.layout(SimpleNamespace(patch_size=2), forward(PIXELS))
    assert older.first(TEXT + 135) == TEXT


def test_the_picture_to_edit_widens_hidreams_grid():
    model = SimpleNamespace(patch_size=2)
    alone = HIDREAM.layout(model, forward(PIXELS, image_cond=None))
    assert alone.grid == (1, 9, 15)
    assert alone.first(135 + 20) == alone.first(135 + 40) == 0
    edit = HIDREAM.layout(model, forward(PIXELS, image_cond=torch.zeros(1, 16, 17, 29)))
    assert edit.grid == (1, 9, 29)


@pytest.mark.parametrize("family", [OMNIGEN2, BOOGU], ids=lambda family: family.name)
def test_whatever_lies_in_front_of_omnigens_picture_is_not_its_own(family):
    layout = family.layout(SimpleNamespace(patch_size=2), forward(PIXELS))
    assert layout.first(135) == 0
    assert layout.first(TEXT + 32 + 135) == TEXT + 32
    assert layout.first(134) is None


def test_boogus_double_blocks_attend_twice():
    double = [SimpleNamespace(img_instruct_attn=nn.Identity(), img_self_attn=nn.Identity())] * 2
    single = [SimpleNamespace(attn=nn.Identity())]
    model = SimpleNamespace(double_stream_layers=double, single_stream_layers=single)
    expected = [double[0].img_instruct_attn, double[0].img_self_attn] * 2 + [single[0].attn]
    assert all(a is b for a, b in zip(BOOGU.modules(model), expected, strict=True))


@pytest.mark.parametrize(
    ("default", "values", "behind"),
    [
        (None, {}, 0),
        ("index", {}, 32),
        (None, {"ref_latents_method": "index_timestep_zero"}, 32),
    ],
)
def test_krea_counts_references_only_where_it_takes_them(default, values, behind):
    model = SimpleNamespace(patch=2, default_ref_method=default)
    video = [latent.unsqueeze(2) for latent in REFERENCES]
    layout = KREA2.layout(model, forward(PIXELS.unsqueeze(2), ref_latents=video, **values))
    assert layout.grid == (1, 9, 15)
    assert layout.first(TEXT + 135 + behind) == TEXT
    assert layout.first(TEXT + 135 + behind + 1) is None


def test_latents_that_come_as_patches():
    x = torch.zeros(1, 128, 7, 13)
    references = [torch.zeros(1, 128, 4, 5)]
    mage = MAGE_FLOW.layout(SimpleNamespace(patch_size=1), forward(x, ref_latents=references))
    ideogram = IDEOGRAM4.layout(SimpleNamespace(), forward(x))
    without_text = IDEOGRAM4.layout(SimpleNamespace(), forward(x, context=None))
    lens = LENS.layout(SimpleNamespace(), forward(x))
    assert {mage.grid, ideogram.grid, lens.grid} == {(1, 7, 13)}
    assert mage.first(TEXT + 91 + 20) == TEXT
    assert ideogram.first(TEXT + 91) == TEXT
    assert without_text.first(91) == 0 and without_text.first(TEXT + 91) is None
    assert lens.first(TEXT + 91) == 0


@pytest.mark.parametrize(("longest", "text"), [(300, TEXT), (4, 4)])
def test_pixeldit_cuts_long_texts(longest, text):
    model = SimpleNamespace(patch_size=16, txt_max_length=longest)
    layout = PIXELDIT.layout(model, forward(torch.zeros(1, 3, 75, 230)))
    assert layout.grid == (1, 5, 15)
    assert layout.first(text + 75) == text


def test_joyimage_has_references_and_text_behind_the_frames():
    model = SimpleNamespace(patch_size=[1, 2, 2])
    references = [latent.unsqueeze(2) for latent in REFERENCES]
    x = torch.zeros(1, 16, 2, 17, 29)
    layout = JOYIMAGE.layout(model, forward(x, ref_latents=references))
    assert layout.grid == (2, 9, 15)
    assert layout.first(270 + 32 + TEXT) == 0
    assert layout.first(270 + TEXT) is None
