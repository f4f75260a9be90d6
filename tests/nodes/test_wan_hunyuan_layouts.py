"""Where the grids of Wan's and Hunyuan's variants lie in their sequences; needs no ComfyUI."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paro_attention.nodes.families import Forward, find_family, unserved_class
from paro_attention.nodes.families.hunyuan import HUNYUAN
from paro_attention.nodes.families.wan import WAN, WAN_FAMILIES
from torch import nn

GRID, V = (3, 7, 5), 105
FAMILIES = {family.model_class: family for family in WAN_FAMILIES}


def latent(frames: int, height: int = 13, width: int = 9) -> torch.Tensor:
    return torch.zeros(1, 16, frames, height, width)


def convolution(kernel: tuple[int, int, int]) -> SimpleNamespace:
    return SimpleNamespace(kernel_size=kernel, stride=kernel)


def place(family: Any, model: Any, **values: Any) -> tuple[int | None, int]:
    """Position of the grid's first token, and all tokens, of a latent of the odd size 13 x 9."""
    layout = family.layout(model, Forward(latent(3), values))
    assert layout.grid == GRID
    assert layout.extra is not None
    return layout.first(V + layout.extra), V + layout.extra


WAN_MODEL = SimpleNamespace(patch_size=(1, 2, 2), ref_conv=None)
FUN_MODEL = SimpleNamespace(patch_size=(1, 2, 2), ref_conv=object())
S2V_MODEL = SimpleNamespace(
    patch_size=(1, 2, 2),
    frame_packer=SimpleNamespace(
        zip_frame_buckets=[1, 2, 16],
        proj=convolution((1, 2, 2)),
        proj_2x=convolution((2, 4, 4)),
        proj_4x=convolution((4, 8, 8)),
    ),
)


@pytest.mark.parametrize(
    ("model_class", "model", "values", "first", "others"),
    [
        ("WanModel", WAN_MODEL, {}, 0, 0),
        ("WanModel", WAN_MODEL, {"reference_latent": torch.zeros(1, 16, 14, 10)}, 0, 0),
        ("WanModel", FUN_MODEL, {"reference_latent": torch.zeros(1, 16, 14, 10)}, 35, 35),
        ("WanModel", WAN_MODEL, {"time_dim_concat": latent(2)}, 0, 70),
        ("WanModel", WAN_MODEL, {"context_latents": [latent(2), latent(1, 9, 6)]}, 0, 70 + 15),
        (
            "WanModel",
            FUN_MODEL,
            {"reference_latent": torch.zeros(1, 16, 14, 10), "time_dim_concat": latent(1)},
            35,
            70,
        ),
        ("HumoWanModel", WAN_MODEL, {"reference_latent": latent(1, 14, 10)}, 0, 35),
        ("WanModel_S2V", S2V_MODEL, {}, 0, 0),
        ("WanModel_S2V", S2V_MODEL, {"reference_latent": latent(1, 14, 10)}, 0, 35),
        # 7 x 5 of the last frame, 3 x 2 of the two before, 4 x 1 x 1 of the sixteen before those.
        ("WanModel_S2V", S2V_MODEL, {"reference_motion": latent(19, 14, 10)}, 0, 35 + 6 + 4),
        ("SCAILWanModel", WAN_MODEL, {"reference_latent": latent(2)}, 70, 70),
        (
            "SCAILWanModel",
            WAN_MODEL,
            {"reference_latent": latent(1), "pose_latents": latent(3, 7, 5)},
            35,
            35 + 3 * 4 * 3,
        ),
    ],
)
def test_frames_beside_wans_grid(model_class, model, values, first, others):
    assert place(FAMILIES[model_class], model, **values) == (first, V + others)


def test_vace_blocks_run_between_the_main_ones():
    def block() -> SimpleNamespace:
        return SimpleNamespace(self_attn=nn.Module())

    model = SimpleNamespace(
        blocks=[block() for _ in range(4)],
        vace_blocks=[block() for _ in range(2)],
        vace_layers_mapping={0: 0, 2: 1},
    )
    main = [b.self_attn for b in model.blocks]
    vace = [b.self_attn for b in model.vace_blocks]
    assert WAN.modules(model) == [main[0], vace[0], main[1], main[2], vace[1], main[3]]


class S2V(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        attention = nn.Module()
        attention.num_heads, attention.head_dim = 2, 128
        block = nn.Module()
        block.self_attn = attention
        self.blocks = nn.ModuleList([block])


def test_s2v_is_served_where_its_loop_hands_on_the_options():
    class WanModel_S2V(S2V):
        def forward_orig(self, x, freqs, transformer_options):
            for block in self.blocks:
                x = block(x, freqs=freqs, transformer_options=transformer_options)
            return x

    assert find_family(WanModel_S2V()) is FAMILIES["WanModel_S2V"]


def test_s2v_is_unreachable_where_its_loop_keeps_the_options():
    class WanModel_S2V(S2V):
        def forward_orig(self, x, freqs, transformer_options):
            for block in self.blocks:
                x = block(x, freqs=freqs)
            return x, transformer_options.get("patches_replace")

    assert find_family(WanModel_S2V()) is None
    assert "hook in this version" in unserved_class(WanModel_S2V())


@pytest.mark.parametrize("name", ["CausalWanModel", "WanAnimate2Model"])
def test_variants_without_plain_self_attention_say_so(name):
    model_class = type(name, (type("WanModel", (S2V,), {}),), {})
    assert find_family(model_class()) is None
    assert unserved_class(model_class()).startswith(f"{name}: ")
    assert "does not know" not in unserved_class(model_class())


def hunyuan(flipped: bool, **parts: Any) -> SimpleNamespace:
    block = SimpleNamespace(flipped_img_txt=True) if flipped else SimpleNamespace()
    return SimpleNamespace(double_blocks=[block], patch_size=[1, 2, 2], **parts)


@pytest.mark.parametrize(
    ("flipped", "parts", "values", "first", "others"),
    [
        (False, {}, {}, 7, 7),
        (True, {}, {}, 0, 7),
        (False, {}, {"ref_latent": latent(1)}, 7 + 35, 7 + 35),
        (True, {}, {"ref_latent": latent(1)}, 35, 7 + 35),
        (False, {}, {"txt_byt5": torch.zeros(1, 4, 8)}, 7, 7),
        (False, {"byt5_in": object()}, {"txt_byt5": torch.zeros(1, 4, 8)}, 11, 11),
        (
            False,
            {"byt5_in": object(), "vision_in": object()},
            {"txt_byt5": torch.zeros(1, 4, 8), "clip_fea": torch.zeros(1, 9, 8)},
            20,
            20,
        ),
    ],
)
def test_text_and_reference_beside_hunyuans_grid(flipped, parts, values, first, others):
    values = {"context": torch.zeros(1, 7, 48), **values}
    assert place(HUNYUAN, hunyuan(flipped, **parts), **values) == (first, V + others)


def test_hunyuan_image_has_a_grid_of_one_frame():
    model = SimpleNamespace(double_blocks=[SimpleNamespace()], patch_size=[1, 1])
    values = {"context": torch.zeros(1, 7, 48)}
    layout = HUNYUAN.layout(model, Forward(torch.zeros(1, 64, 11, 9), values))
    assert layout.grid == (1, 11, 9)
