"""Wan 2.1 and 2.2: what is sampled alone, and what has reference frames beside it."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import torch

from .case import Case, noise, randomize, text, tiny

CONFIG = {
    "image_model": "wan2.1", "model_type": "t2v", "dim": 256, "ffn_dim": 256, "num_heads": 2,
    "num_layers": 2, "text_dim": 64, "freq_dim": 64, "in_dim": 16, "out_dim": 16,
}  # fmt: skip
VACE = {"model_type": "vace", "vace_layers": 2, "vace_in_dim": 96, "num_layers": 4}
S2V = {"model_type": "s2v", "audio_dim": 32}
ANIMATE = {"model_type": "animate", "in_dim": 36, "num_layers": 5}
GRID = (3, 7, 5)


def latent(height: int = 14, width: int = 10, channels: int = 16):
    return torch.zeros(1, channels, 3, height, width)


def frames(count: int, seed: int = 11, height: int = 14, width: int = 10):
    return noise(1, 16, count, height, width, seed=seed)


def clip(seed: int = 3):
    return SimpleNamespace(penultimate_hidden_states=noise(1, 257, 1280, seed=seed))


def takes(function: str, name: str) -> bool:
    """Whether this ComfyUI's Wan reads this value of the conditioning."""
    from comfy.ldm.wan.model import WanModel

    code = getattr(WanModel, function).__code__
    return name in (*code.co_names, *code.co_consts)


def vace_masks(count: int) -> dict:
    masks = {"vace_mask": lambda: [noise(1, 64, 3, 14, 10, seed=9)] * count}
    return masks | {"vace_strength": lambda: [0.9, 0.4][:count]}


def s2v_is_reachable() -> bool:
    """Whether a block of S2V is given the options by which ComfyUI's hook is found."""
    from comfy.ldm.wan.model import WanModel_S2V

    return "freqs=freqs, context=context, transformer_options" in inspect.getsource(WanModel_S2V)


class Motion(torch.nn.Module):
    """Stands for Animate's motion encoder, which is far larger than the transformer here."""

    def get_motion(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(pixels.flatten(1)[:, None], 512)[:, 0]


def build_animate():
    model = tiny("WAN22_Animate", CONFIG | ANIMATE)
    model.model.diffusion_model.motion_encoder = Motion()
    return model


def has_multitalk() -> bool:
    try:
        import comfy.ldm.wan.model_multitalk
    except ImportError:
        return False
    return comfy.ldm.wan.model_multitalk is not None


def build_multitalk():
    """What WanInfiniteTalkToVideo does: voices are listened to behind the text."""
    import comfy.ldm.wan.model_multitalk as multitalk
    import comfy.model_patcher
    import comfy.ops

    model = tiny("WAN21_I2V", CONFIG | {"model_type": "i2v", "in_dim": 36}).clone()
    device, dtype = model.load_device, model.model.diffusion_model.dtype
    block = torch.nn.Module()
    block.norm_x = torch.nn.Identity()
    block.audio_cross_attn = multitalk.SingleStreamMultiAttention(
        256, 32, num_heads=2, qkv_bias=True, device=device, dtype=dtype,
        operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    randomize(block, 5)
    voice = torch.nn.Module()
    voice.blocks = torch.nn.ModuleList([block, block])
    patcher = comfy.model_patcher.ModelPatcher(voice, device, torch.device("cpu"))
    model.set_model_attn2_patch(multitalk.MultiTalkCrossAttnPatch(patcher))
    options = model.model_options["transformer_options"]
    options["audio_embeds"] = noise(3, 4, 32, seed=6).to(device, dtype)
    return model


def wan(
    name: str,
    model_class: str = "WAN21_T2V",
    config: dict | None = None,
    extras: dict | None = None,
    **settings,
) -> Case:
    """A case with the same conditioning beside both texts."""
    config = CONFIG | (config or {})
    extras = extras or {}
    layers = config["num_layers"]
    values = {
        "name": name,
        "family": "Wan",
        "model_class": model_class,
        "build": lambda: tiny(model_class, config),
        "latent": latent,
        "positive": lambda: text(7, 64, 1, **{k: make() for k, make in extras.items()}),
        "negative": lambda: text(5, 64, 2, **{k: make() for k, make in extras.items()}),
        "grid": GRID,
        "layers": layers,
        "calls": 2 * layers,
    }
    return Case(**(values | settings))


CASES = [
    wan("wan-t2v"),
    wan("wan-t2v-batched", negative=lambda: text(7, 64, 2)),
    wan("wan-t2v-odd-latent", latent=lambda: latent(13, 9)),
    wan(
        "wan-i2v",
        "WAN21_I2V",
        {"model_type": "i2v", "in_dim": 36},
        {"clip_vision_output": clip, "concat_latent_image": lambda: frames(3)},
        calls=6,
    ),
    wan("wan22-i2v", config={"in_dim": 36}, extras={"concat_latent_image": lambda: frames(3)}),
    wan(
        "wan22-5b",
        "WAN22_T2V",
        {"in_dim": 48, "out_dim": 48},
        latent=lambda: latent(channels=48),
        noise_mask=lambda: torch.tensor([0.0, 1, 1]).view(1, 1, 3, 1, 1).expand(1, 1, 3, 14, 10),
        note="5B: a timestep for each frame",
    ),
    wan(
        "wan-fun-reference",
        config={"in_dim": 32, "in_dim_ref_conv": 16},
        extras={
            "concat_latent_image": lambda: frames(3),
            "reference_latents": lambda: [frames(1, 12)],
        },
        note="the reference frame stays dense",
    ),
    wan(
        "wan-fun-control",
        "WAN21_FunControl2V",
        {"model_type": "i2v", "in_dim": 48, "in_dim_ref_conv": 16},
        {
            "clip_vision_output": clip,
            "concat_latent_image": lambda: noise(1, 32, 3, 14, 10, seed=4),
            "reference_latents": lambda: [frames(1, 12)],
        },
        calls=6,
        note="the reference frame stays dense",
    ),
    wan(
        "wan-phantom",
        extras={"time_dim_concat": lambda: frames(2)},
        note="the subjects' frames stay dense",
    ),
    wan(
        "wan-in-context",
        config={"in_dim_ref_conv": 16},
        extras={
            "context_latents": lambda: [frames(2, 13), frames(1, 14, 9, 6)],
            "time_dim_concat": lambda: frames(1, 15),
            "reference_latents": lambda: [frames(1, 12)],
        },
        exists=lambda: takes("_forward", "context_latents"),
        note="latents in context stay dense",
    ),
    wan("wan-flow-rvs", "WAN21_FlowRVS", {"model_type": "flow_rvs"}),
    wan(
        "wan-camera",
        "WAN21_Camera",
        {"model_type": "camera", "in_dim": 32},
        {
            "clip_vision_output": clip,
            "concat_latent_image": lambda: frames(3),
            "camera_conditions": lambda: noise(1, 24, 3, 112, 80, seed=6),
        },
        calls=6,
    ),
    wan(
        "wan22-camera",
        "WAN22_Camera",
        {"model_type": "camera_2.2", "in_dim": 36},
        {"camera_conditions": lambda: noise(1, 24, 3, 112, 80, seed=6)},
    ),
    wan(
        "wan-vace",
        "WAN21_Vace",
        VACE,
        {"vace_frames": lambda: [noise(1, 32, 3, 14, 10, seed=7)], **vace_masks(1)},
        layers=6,
        calls=12,
    ),
    wan(
        "wan-vace-two",
        "WAN21_Vace",
        VACE,
        {
            "vace_frames": lambda: [noise(1, 32, 3, 14, 10, seed=s) for s in (7, 8)],
            **vace_masks(2),
        },
        layers=6,
        calls=16,
        repeats=2,
        note="VACE: its blocks run once for each input",
    ),
    wan(
        "wan-humo",
        "WAN21_HuMo",
        {"model_type": "humo"},
        {
            "audio_embed": lambda: noise(1, 3, 8, 5, 1280, seed=8),
            "reference_latents": lambda: [frames(1, 12)],
        },
        calls=6,
        note="the reference frame stays dense",
    ),
    wan(
        "wan-humo-17b",
        "WAN21_HuMo",
        {"model_type": "humo", "in_dim": 36},
        {
            "audio_embed": lambda: noise(1, 3, 8, 5, 1280, seed=8),
            "reference_latents": lambda: [frames(1, 12)],
        },
        calls=6,
        note="the reference frame stays dense",
    ),
    wan(
        "wan-s2v",
        "WAN22_S2V",
        S2V,
        {
            "audio_embed": lambda: noise(1, 25, 32, 12, seed=8),
            "reference_latents": lambda: [frames(1, 12)],
            "reference_motion": lambda: frames(19, 13),
            "control_video": lambda: frames(3, 14),
        },
        exists=s2v_is_reachable,
        note="reference and motion frames stay dense",
    ),
    wan(
        "wan-s2v-unreachable",
        "WAN22_S2V",
        S2V,
        family="",
        reason="do not use ComfyUI's attention hook in this version",
        exists=lambda: not s2v_is_reachable(),
    ),
    wan(
        "wan-animate",
        "WAN22_Animate",
        ANIMATE,
        {
            "clip_vision_output": clip,
            "concat_latent_image": lambda: frames(3),
            "face_video_pixels": lambda: noise(1, 3, 8, 16, 16, seed=9),
            "pose_video_latent": lambda: frames(2, 13),
        },
        build=build_animate,
        calls=15,
        note="the face adapter stays dense",
    ),
    wan(
        "wan-scail",
        "WAN21_SCAIL",
        {"model_type": "scail", "in_dim": 20},
        {
            "clip_vision_output": clip,
            "reference_latents": lambda: [frames(1, 12)],
            "pose_video_latent": lambda: frames(3, 13, 7, 5),
        },
        calls=6,
        note="reference and pose frames stay dense",
    ),
    wan(
        "wan-scail2",
        "WAN21_SCAIL2",
        {"model_type": "scail2", "in_dim": 20},
        {
            "clip_vision_output": clip,
            "reference_latents": lambda: [frames(1, 12), frames(1, 15)],
            "pose_video_latent": lambda: frames(3, 13, 7, 5),
            "driving_mask_28ch": lambda: noise(1, 3, 28, 7, 5, seed=16),
            "ref_mask_28ch": lambda: noise(1, 5, 28, 14, 10, seed=17),
            "ref_mask_flag": lambda: False,
        },
        calls=6,
        note="reference and pose frames stay dense",
    ),
    wan(
        "wan-dancer",
        "WAN22_WanDancer",
        {"model_type": "wandancer", "in_dim": 36},
        {
            "clip_vision_output": clip,
            "clip_vision_output_ref": lambda: clip(4),
            "concat_latent_image": lambda: frames(3, width=16),
            "audio_embed": lambda: noise(1, 11, 35, seed=8),
            "fps": lambda: 25.0,
        },
        latent=lambda: latent(width=16),
        grid=(3, 7, 8),
        calls=6,
    ),
    wan(
        "wan-multitalk",
        "WAN21_I2V",
        {"model_type": "i2v", "in_dim": 36},
        {"clip_vision_output": clip, "concat_latent_image": lambda: frames(3)},
        build=build_multitalk,
        calls=6,
        exists=has_multitalk,
        note="also InfiniteTalk; the attention to the voice stays dense",
    ),
    wan(
        "wan-animate2",
        "WAN_Animate2",
        {"model_type": "animate2", "in_dim": 36},
        family="",
        reason="each frame attends on its own",
    ),
    wan("wan-causal-ar", "WAN21_CausalAR_T2V", family="", reason="block by block"),
]
