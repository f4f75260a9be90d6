"""MiniMax-H3, which denoises video and sound in one sequence."""

from __future__ import annotations

import torch

from .case import Case, noise, text, tiny

CONFIG = {
    "image_model": "minimax_h3", "hidden_size": 256, "num_layers": 2,
    "token_refiner_num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 128,
    "ffn_hidden_size": 128, "text_dim": 48, "timestep_input_dim": 32,
    "time_embed_hidden_size": 64, "time_embed_dim": 32,
}  # fmt: skip


def build():
    model = tiny("MiniMaxH3", CONFIG)
    frequencies = model.get_model_object("diffusion_model").rope.inv_freq
    steps = torch.arange(frequencies.numel(), device=frequencies.device) / frequencies.numel()
    frequencies.copy_(10000.0**-steps)
    return model


def latent():
    from comfy.nested_tensor import NestedTensor

    return NestedTensor((torch.zeros(1, 24, 3, 13, 18), torch.zeros(1, 32, 2, 11)))


def case(name: str, **extras) -> Case:
    return Case(
        name=name,
        family="MiniMax-H3",
        model_class="MiniMaxH3",
        build=build,
        latent=latent,
        positive=lambda: text(7, 48, 1, **extras),
        negative=lambda: text(5, 48, 2, **extras),
        grid=(3, 7, 9),
        layers=2,
        calls=2,
        note="sound, key frames and references stay dense",
    )


KEYFRAMES = [{"resolved_frame_index": 0, "latent": noise(1, 24, 1, 14, 18)}]
REFERENCES = [
    {"kind": "image", "latent_h": 8, "latent_w": 6, "latent": noise(1, 24, 1, 8, 6)},
    {
        "kind": "video_audio", "latent_t": 2, "latent_h": 4, "latent_w": 6, "ref_audio_t": 3,
        "latent": noise(1, 24, 2, 4, 6), "audio_latent": noise(1, 32, 2, 3),
    },
]  # fmt: skip

CASES = [
    case("minimax-h3"),
    case("minimax-h3-keyframes", minimax_keyframes=KEYFRAMES),
    case("minimax-h3-references", minimax_refs=REFERENCES),
]
