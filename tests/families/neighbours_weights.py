"""What is done to the weights: LoRA, low VRAM, block swap, fp8, GGUF."""

from __future__ import annotations

from typing import Any

import torch
from cases.case import randomize, text, tiny
from cases.wan import CONFIG
from neighbours import both_orders, equal, planned, sampler, scenario
from neighbours_sampling import survives, taking
from torch import nn


def lora(model: Any) -> Any:
    """Core's LoRA loader with a LoRA on q, k, v and the feed-forward of every block."""
    import comfy.sd

    weights: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(3)
    for block in range(2):
        for name in ("self_attn.q", "self_attn.k", "self_attn.v", "ffn.0"):
            key = f"diffusion_model.blocks.{block}.{name}"
            weights[f"{key}.lora_up.weight"] = torch.randn(256, 4, generator=generator) / 16
            weights[f"{key}.lora_down.weight"] = torch.randn(4, 256, generator=generator) / 16
    return comfy.sd.load_lora_for_models(model, None, weights, 1.0, 0.0)[0]


def warnings(model: Any) -> list[str]:
    """What Load PARO says of the plan of the case on this model."""
    from paro_attention.nodes.model_identity import check_plan, identify

    return check_plan(planned()[1], identify(model))


@scenario
def lora_patches() -> dict[str, Any]:
    seen = both_orders(lora)
    patched = lora(planned()[0])
    said = warnings(patched)
    sampler()(patched, 3.0)  # the weights are now patched in place
    return seen | {"warnings": said + warnings(patched)}


def low_vram(model: Any) -> Any:
    """A model of which only a part is loaded: the rest is cast when it is needed."""
    kind = type(model)

    class LowVram(kind):
        def load(self, *args: Any, **kwargs: Any) -> Any:
            kwargs["full_load"] = False
            if len(args) > 1:
                args = (args[0], 200_000, *args[2:])
            else:
                kwargs["lowvram_model_memory"] = 200_000
            return super().load(*args, **kwargs)

    LowVram.__name__ = kind.__name__
    clone = model.clone()
    clone.__class__ = LowVram
    return clone


def cast_modules(model: Any) -> int:
    return sum(bool(getattr(m, "comfy_cast_weights", False)) for m in model.model.modules())


@scenario
def low_vram_with_lora() -> dict[str, Any]:
    """Loaded in part, unloaded between the runs, with patches that are applied while casting."""
    base, plan = planned()
    model = tiny("WAN21_T2V", CONFIG)
    before = cast_modules(model)
    took = taking(text(7, 64, 1), text(5, 64, 2))
    counts: list[int] = []

    def take(patched: Any) -> torch.Tensor:
        part = low_vram(lora(patched))
        out = took(part)
        counts.append(cast_modules(part) - before)
        part.detach()
        return out

    seen = survives(take, model, plan)
    whole = took(lora(base))
    return seen | {
        "cast_modules": min(counts),
        "dense_error": float((take(model) - whole).norm() / whole.norm()),
    }


def swapped(model: Any) -> Any:
    """Block swap: the weights of a block are on the device only while it runs."""
    for block in model.model.diffusion_model.blocks:
        stash: dict[str, torch.Tensor] = {}

        def leave(module: nn.Module, _args: Any, _out: Any, stash: dict = stash) -> None:
            for name, parameter in module.named_parameters():
                stash[name] = parameter.data
                parameter.data = parameter.data.new_empty(0)

        def enter(module: nn.Module, _args: Any, stash: dict = stash) -> None:
            for name, parameter in module.named_parameters():
                parameter.data = stash.pop(name, parameter.data)

        block.register_forward_pre_hook(enter)
        block.register_forward_hook(leave)
    return model


@scenario
def block_swap() -> dict[str, Any]:
    """Set up before Load PARO, and after it on the model that it has hooked."""
    base, plan = planned()
    take = taking(text(7, 64, 1), text(5, 64, 2))
    expected = take(base)
    first = survives(take, swapped(tiny("WAN21_T2V", CONFIG)), plan)
    model = tiny("WAN21_T2V", CONFIG)
    survives(take, model, plan)
    second = survives(take, swapped(model), plan)
    return {"before": first, "after": second, "dense_is_equal": equal(take(model), expected)}


def in_fp8() -> Any:
    """A model whose weights are stored in fp8 and cast when they are used."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    device = comfy.model_management.get_torch_device()
    made = comfy.supported_models.WAN21_T2V(dict(CONFIG))
    made.set_inference_dtype(torch.float8_e4m3fn, torch.float32)
    model = made.get_model({}, "", device=device)
    whole = model.diffusion_model.to(torch.float32)
    randomize(whole, 0)
    whole.to(torch.float8_e4m3fn)
    return comfy.model_patcher.ModelPatcher(
        model, load_device=device, offload_device=torch.device("cpu")
    )


@scenario
def fp8_weights() -> dict[str, Any]:
    model, plan = in_fp8(), planned()[1]
    stored = model.model.diffusion_model.blocks[0].self_attn.q.weight.dtype
    seen = survives(taking(text(7, 64, 1), text(5, 64, 2)), model, plan)
    return seen | {"stored": str(stored), "warnings": warnings(model)}


class Quantized(nn.Module):
    """A linear layer as a GGUF loader has it: packed codes, dequantised in every forward."""

    def __init__(self, linear: Any):
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        codes = (linear.weight / scale).round().to(torch.int8)
        self.weight = nn.Parameter(codes.view(torch.uint8), requires_grad=False)
        self.bias = linear.bias
        self.scale = scale.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.view(torch.int8).to(x.dtype) * self.scale.to(x.dtype)
        return nn.functional.linear(x, weight, self.bias)


def quantized() -> Any:
    """A model patcher like a GGUF loader's: one more field that its clones keep."""
    model = tiny("WAN21_T2V", CONFIG)
    kind = type(model)

    class Patcher(kind):
        patch_on_device = False

        def clone(self, *args: Any, **kwargs: Any) -> Any:
            clone = super().clone(*args, **kwargs)
            clone.__class__ = Patcher
            clone.patch_on_device = self.patch_on_device
            return clone

    model.__class__ = Patcher
    model.patch_on_device = True
    for block in model.model.diffusion_model.blocks:
        for part in (block.self_attn, block.cross_attn):
            for name in ("q", "k", "v", "o"):
                setattr(part, name, Quantized(getattr(part, name)))
    return model


@scenario
def gguf_weights() -> dict[str, Any]:
    from neighbours import load_paro

    model, plan = quantized(), planned()[1]
    patched = load_paro(model, plan)
    seen = survives(taking(text(7, 64, 1), text(5, 64, 2)), model, plan)
    return seen | {"kept": patched.clone().patch_on_device, "warnings": warnings(model)}
