"""Makes the example workflows and their thumbnails.

    python docs/tools/workflows.py http://127.0.0.1:8188

The address is that of a running ComfyUI with this pack: the workflows are built from the nodes that
it really has. Thumbnails are drawings of the graphs; nothing on them is a result.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphs import Graph, Node
from thumbnails import draw_thumbnail

FOLDER = Path(__file__).resolve().parent.parent.parent / "example_workflows"
PROMPT = "A red fox runs through fresh snow at sunrise, the camera follows it, detailed fur"
PROMPTS = (
    "A woman in a yellow coat walks along a rainy street at night, neon signs\n"
    "Waves break on a rocky coast, aerial view, slow motion"
)
PICTURES = (
    "Portrait of an old fisherman, soft window light\n"
    "A city street in the rain at night, neon signs"
)
AVOID = "blurry, low quality, static, watermark, distorted"
FIRST_TIME = """### First time
Choose your model files and press **Run**. **Calibrate PARO** samples its prompts once without
PARO, which takes as long as that many runs, and writes a plan to *models/paro*. Then this workflow
samples with the plan.

### From then on
Select **Calibrate PARO** and press **Ctrl+M** to mute it. **Load PARO** then finds the plan file of
your model by itself (**auto**), also after a restart.

### The slider
**density** on **Load PARO** is the share of the attention that is computed: 0.5 stays closest
to the model without PARO, 0.3 is a good middle, 0.2 is fast.
"""


def main(address: str) -> None:
    """Write every workflow and its thumbnail."""
    with urllib.request.urlopen(f"{address}/object_info", timeout=60) as reply:
        info = json.load(reply)
    for name, build in WORKFLOWS.items():
        graph = build(info)
        workflow = graph.workflow()
        text = json.dumps(workflow, indent=2, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        draw_thumbnail(workflow, graph.title).save(FOLDER / f"{name}.jpg", quality=88)


def _texts(graph: Graph, clip: Node, column: int, negative: str | None = AVOID) -> list[Any]:
    """Two encoded texts; without a negative text, zeros."""
    encode = {"box": 380, "extra_height": 20, "clip": clip["CLIP"]}
    positive = graph.add("CLIPTextEncode", column, title="Prompt", text=PROMPT, **encode)
    if negative is None:
        zero = graph.add(
            "ConditioningZeroOut", column, box=380, conditioning=positive["CONDITIONING"]
        )
        return [positive["CONDITIONING"], zero["CONDITIONING"]]
    other = graph.add("CLIPTextEncode", column, title="Negative prompt", text=negative, **encode)
    return [positive["CONDITIONING"], other["CONDITIONING"]]


def _calibrate(graph: Graph, column: int, name: str, **values: Any) -> Node:
    return graph.add(
        "ParoCalibrate", column, box=380, extra_height=40,
        **({"prompts": PROMPTS, "name": name} | values),
    )  # fmt: skip


def _load(graph: Graph, column: int, model: Any, calibrate: Node, **values: Any) -> Node:
    # The page makes the node as high as its live picture needs.
    return graph.add(
        "ParoLoad", column, model=model, paro_plan=calibrate["paro_plan"], box=340,
        extra_height=600, **values,
    )  # fmt: skip


def _finish(graph: Graph, column: int, samples: Any, vae: Any, fps: float, prefix: str) -> None:
    """Decode and save; fps 0 for pictures."""
    if not fps:
        decoded = graph.add("VAEDecode", column, samples=samples, vae=vae)
        graph.add("SaveImage", column, images=decoded["IMAGE"], filename_prefix=prefix,
                  extra_height=280)  # fmt: skip
        return
    decoded = graph.add("VAEDecodeTiled", column, samples=samples, vae=vae)
    graph.add(
        "SaveAnimatedWEBP", column, images=decoded["IMAGE"], filename_prefix=prefix, fps=fps,
        lossless=False, quality=85, extra_height=240,
    )  # fmt: skip


def _frames(graph: Graph) -> None:
    graph.group("1  Model and prompt", 0, 1)
    graph.group("2  Calibrate, once", 2)
    graph.group("3  Sample with PARO", 3, 4)


def _one_model(
    info: dict[str, Any], title: str, name: str, *, loader: Callable[[Graph], list[Any]],
    latent: tuple[str, dict[str, Any]], sampling: dict[str, Any], fps: float,
    negative: str | None = AVOID, guidance: float | None = None, prompts: str = PROMPTS,
    note: str = "",
) -> Graph:  # fmt: skip
    """Load, encode, calibrate, sample, decode: one model, one plan."""
    graph = Graph(info, title)
    model, clip, vae = loader(graph)
    graph.note(FIRST_TIME + note, 0, width=350, height=440)
    positive, other = _texts(graph, clip, 1, negative)
    if guidance is not None:
        guided = graph.add("FluxGuidance", 1, box=380, conditioning=positive, guidance=guidance)
        positive = guided["CONDITIONING"]
    empty = graph.add(latent[0], 1, box=380, **latent[1])
    conditions = {"positive": positive, "negative": other}
    calibrate = _calibrate(
        graph, 2, name, model=model, latent=empty["LATENT"], clip=clip["CLIP"], prompts=prompts,
        **sampling, **conditions,
    )  # fmt: skip
    load = _load(graph, 3, model, calibrate)
    sampled = graph.add(
        "KSampler", 4, model=load["model"], latent_image=empty["LATENT"], **sampling, **conditions
    )
    _finish(graph, 4, sampled["LATENT"], vae, fps, f"paro/{name}")
    _frames(graph)
    return graph


def _loaders(
    unet: str, clip: dict[str, Any], vae: str, shift: tuple[str, float] | None = None
) -> Callable[[Graph], list[Any]]:
    """Model (with its shift), CLIP and VAE from files of their own."""

    def add(graph: Graph) -> list[Any]:
        loaded = graph.add("UNETLoader", 0, box=350, unet_name=unet)
        kind = "DualCLIPLoader" if "clip_name2" in clip else "CLIPLoader"
        text = graph.add(kind, 0, box=350, **clip)
        decoder = graph.add("VAELoader", 0, box=350, vae_name=vae)
        model = loaded["MODEL"]
        if shift is not None:
            model = graph.add(shift[0], 0, box=350, model=model, shift=shift[1])["MODEL"]
        return [model, text, decoder["VAE"]]

    return add


UMT5 = {"clip_name": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "type": "wan"}
WAN_VAE = "wan_2.1_vae.safetensors"


def _settings(steps: int, cfg: float, sampler: str, scheduler: str) -> dict[str, Any]:
    return {"steps": steps, "cfg": cfg, "sampler_name": sampler, "scheduler": scheduler}


def wan21_t2v(info: dict[str, Any]) -> Graph:
    """Wan 2.1, text to video, 480p, 5 seconds: 32,760 tokens."""
    return _one_model(
        info, "Wan 2.1: text to video", "wan2.1-t2v-1.3b",
        loader=_loaders(
            "wan2.1_t2v_1.3B_fp16.safetensors", UMT5, WAN_VAE, ("ModelSamplingSD3", 8.0)
        ),
        latent=("EmptyHunyuanLatentVideo", {"width": 832, "height": 480, "length": 81}),
        sampling=_settings(30, 6.0, "uni_pc", "simple"),
        fps=16.0,
    )  # fmt: skip


def hunyuan_video(info: dict[str, Any]) -> Graph:
    """HunyuanVideo, text to video."""
    return _one_model(
        info, "HunyuanVideo: text to video", "hunyuan-video-t2v",
        loader=_loaders(
            "hunyuan_video_t2v_720p_bf16.safetensors",
            {"clip_name1": "clip_l.safetensors", "type": "hunyuan_video",
             "clip_name2": "llava_llama3_fp8_scaled.safetensors"},
            "hunyuan_video_vae_bf16.safetensors", ("ModelSamplingSD3", 7.0),
        ),
        latent=("EmptyHunyuanLatentVideo", {"width": 848, "height": 480, "length": 73}),
        sampling=_settings(20, 1.0, "euler", "simple"), negative=None, guidance=6.0, fps=24.0,
    )  # fmt: skip


def flux(info: dict[str, Any]) -> Graph:
    """Flux.1 dev at 2.4 megapixels: 9,216 tokens."""
    return _one_model(
        info, "Flux.1 dev: text to image", "flux-dev",
        loader=_loaders(
            "flux1-dev.safetensors",
            {"clip_name1": "t5xxl_fp16.safetensors", "clip_name2": "clip_l.safetensors",
             "type": "flux"},
            "ae.safetensors",
        ),
        latent=("EmptySD3LatentImage", {"width": 1536, "height": 1536}),
        sampling=_settings(20, 1.0, "euler", "simple"), negative=None, guidance=3.5, fps=0,
        prompts=PICTURES,
        note="\nPictures have few tokens: below 1024 x 1024 they run without PARO "
        "(**min_tokens**), and the gain is small.\n",
    )  # fmt: skip


def qwen_image(info: dict[str, Any]) -> Graph:
    """Qwen-Image at its own size: 6,889 tokens."""
    return _one_model(
        info, "Qwen-Image: text to image", "qwen-image",
        loader=_loaders(
            "qwen_image_fp8_e4m3fn.safetensors",
            {"clip_name": "qwen_2.5_vl_7b_fp8_scaled.safetensors", "type": "qwen_image"},
            "qwen_image_vae.safetensors", ("ModelSamplingAuraFlow", 3.1),
        ),
        latent=("EmptySD3LatentImage", {"width": 1328, "height": 1328}),
        sampling=_settings(20, 2.5, "euler", "simple"), fps=0, prompts=PICTURES,
        note="\nPictures have few tokens, so that the gain is small.\n",
    )  # fmt: skip


def cogvideox(info: dict[str, Any]) -> Graph:
    """CogVideoX, text to video: 17,550 tokens; needs a ComfyUI that has the model."""
    return _one_model(
        info, "CogVideoX: text to video", "cogvideox-5b",
        loader=_loaders(
            "cogvideox_5b_bf16.safetensors",
            {"clip_name": "t5xxl_fp16.safetensors", "type": "cogvideox"},
            "cogvideox_vae.safetensors",
        ),
        latent=("EmptyHunyuanLatentVideo", {"width": 720, "height": 480, "length": 49}),
        sampling=_settings(50, 6.0, "euler", "sgm_uniform"), fps=8.0,
        note="\nNeeds a ComfyUI that has CogVideoX (0.33.0 has it, 0.3.64 does not). Pick the "
        "files that you have.\n",
    )  # fmt: skip


def ltxv(info: dict[str, Any]) -> Graph:
    """LTX-Video, text to video: 4,992 tokens."""
    graph = Graph(info, "LTX-Video: text to video")
    file = graph.add(
        "CheckpointLoaderSimple", 0, box=350, ckpt_name="ltx-video-2b-v0.9.5.safetensors"
    )
    clip = graph.add("CLIPLoader", 0, box=350, clip_name="t5xxl_fp16.safetensors", type="ltxv")
    empty = graph.add("EmptyLTXVLatentVideo", 0, length=97)
    shifted = graph.add("ModelSamplingLTXV", 0, model=file["MODEL"], latent=empty["LATENT"])
    graph.note(FIRST_TIME, 0, width=350, height=380)
    texts = _texts(graph, clip, 1)
    framed = graph.add(
        "LTXVConditioning", 1, box=380, positive=texts[0], negative=texts[1], frame_rate=25.0
    )
    conditions = {"positive": framed["positive"], "negative": framed["negative"]}
    sampling = _settings(30, 3.0, "euler", "simple")
    calibrate = _calibrate(
        graph, 2, "ltxv-2b", model=shifted["MODEL"], latent=empty["LATENT"], clip=clip["CLIP"],
        **sampling, **conditions,
    )  # fmt: skip
    load = _load(graph, 3, shifted["MODEL"], calibrate)
    sampled = graph.add(
        "KSampler", 4, model=load["model"], latent_image=empty["LATENT"], **sampling, **conditions
    )
    _finish(graph, 4, sampled["LATENT"], file["VAE"], 25.0, "paro/ltxv-2b")
    _frames(graph)
    return graph


MUTE = "Select **Calibrate PARO** and press **Ctrl+M** to mute it."
MUTE_BOTH = "Select both **Calibrate PARO** nodes and press **Ctrl+M** to mute them."
EXPERTS = """### Two experts, two plans
Wan 2.2 samples the noisy steps with one model and the others with a second one. Each has attention
of its own, so each is calibrated and gets its own **Load PARO**.

The step at which they change (10 of 20) stands in both **Calibrate PARO** nodes (among the advanced
inputs) and in both samplers: change it in all four.

**warmup** counts on the first expert alone; the second continues its run.
"""


def _two_experts(info: dict[str, Any], title: str, name: str, files: str, *, image: bool) -> Graph:
    graph = Graph(info, title)
    models = []
    for part in ("high", "low"):
        loaded = graph.add(
            "UNETLoader", 0, box=380, title=f"Model, {part}-noise expert",
            unet_name=f"{files}_{part}_noise_14B_fp8_scaled.safetensors",
        )  # fmt: skip
        models.append(
            graph.add("ModelSamplingSD3", 0, box=380, model=loaded["MODEL"], shift=8.0)["MODEL"]
        )
    clip = graph.add("CLIPLoader", 0, box=380, **UMT5)
    vae = graph.add("VAELoader", 0, box=380, vae_name=WAN_VAE)["VAE"]
    graph.note(FIRST_TIME.replace(MUTE, MUTE_BOTH), 0, width=380, height=440)  # fmt: skip
    positive, negative = _texts(graph, clip, 1)
    size = {"width": 832, "height": 480, "length": 81}
    if image:
        start = graph.add("LoadImage", 1, image="example.png", extra_height=240)
        made = graph.add(
            "WanImageToVideo", 1, positive=positive, negative=negative, vae=vae,
            start_image=start["IMAGE"], **size,
        )  # fmt: skip
        positive, negative, latent = made["positive"], made["negative"], made["latent"]
    else:
        empty = graph.add("EmptyHunyuanLatentVideo", 1, **size)
        latent = empty["LATENT"]
    graph.note(EXPERTS, 1, width=380, height=300)
    shared = {
        "latent": latent, "positive": positive, "negative": negative, "clip": clip["CLIP"],
        **_settings(20, 3.5, "euler", "simple"),
    }  # fmt: skip
    high = _calibrate(
        graph, 2, f"{name}-high", title="Calibrate PARO, high-noise expert", model=models[0],
        end_at_step=10, **shared,
    )  # fmt: skip
    low = _calibrate(
        graph, 2, f"{name}-low", title="Calibrate PARO, low-noise expert", model=models[1],
        earlier_model=models[0], start_at_step=10, **shared,
    )  # fmt: skip
    del shared["latent"], shared["clip"]
    loads = [
        _load(graph, 3, model, c, title=f"Load PARO, {part}-noise expert")
        for model, c, part in zip(models, (high, low), ("high", "low"), strict=True)
    ]
    first = graph.add(
        "KSamplerAdvanced", 4, title="KSampler, noisy steps", model=loads[0]["model"],
        latent_image=latent, start_at_step=0, end_at_step=10, return_with_leftover_noise="enable",
        **shared,
    )  # fmt: skip
    second = graph.add(
        "KSamplerAdvanced", 4, title="KSampler, the other steps", model=loads[1]["model"],
        latent_image=first["LATENT"], add_noise="disable", start_at_step=10, end_at_step=10000,
        **shared,
    )  # fmt: skip
    _finish(graph, 5, second["LATENT"], vae, 16.0, f"paro/{name}")
    graph.group("1  Models and prompt", 0, 1)
    graph.group("2  Calibrate, once", 2)
    graph.group("3  Sample with PARO", 3, 4)
    graph.group("4  Result", 5)
    return graph


def wan22_t2v(info: dict[str, Any]) -> Graph:
    """Wan 2.2 A14B, text to video, two experts with a plan each."""
    return _two_experts(
        info, "Wan 2.2: text to video, two experts", "wan2.2-t2v", "wan2.2_t2v", image=False
    )


def wan22_i2v(info: dict[str, Any]) -> Graph:
    """Wan 2.2 A14B, image to video, two experts with a plan each."""
    return _two_experts(
        info, "Wan 2.2: image to video, two experts", "wan2.2-i2v", "wan2.2_i2v", image=True
    )


SMALL = {"width": 64, "height": 64}
DEMO_PROMPTS = "blue square up, stone, zoom-in\nyellow star left, wood, pan-right"
DEMO = {"steps": 10, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple"}


def _demo(graph: Graph) -> tuple[Node, Node]:
    """The bundled model, small enough for a CPU, and its calibration."""
    demo = graph.add("ParoDemoModel", 0)
    demo.values |= SMALL
    calibrate = _calibrate(
        graph, 1, "paro-demo", model=demo["model"], latent=demo["latent"],
        negative=demo["negative"], clip=demo["clip"], prompts=DEMO_PROMPTS, **DEMO,
    )  # fmt: skip
    return demo, calibrate


def calibrate_only(info: dict[str, Any]) -> Graph:
    """Calibration alone, on the bundled model, with its report."""
    graph = Graph(info, "Calibrate: make a plan")
    _, calibrate = _demo(graph)
    graph.note(
        """### Calibrate your own model
Put your model loader, LoRAs and shift in place of **PARO Demo Model**, and connect its CLIP and an
empty latent of the size that you sample at.

- **prompts**: two to four, one a line, of the kind that you make.
- **steps, cfg, sampler, scheduler**: as you sample.
- **name**: the plan is written to *models/paro* under this name.

Everything else is fine as it is. The plan serves every density, seed, prompt, resolution and step
count of this model.

This example is small, so that it runs without a GPU too.
""",
        0, height=420,
    )  # fmt: skip
    graph.add(
        "PreviewImage", 2, title="Before and after reordering", images=calibrate["report"],
        box=720, extra_height=480,
    )  # fmt: skip
    graph.group("1  Model", 0)
    graph.group("2  Calibrate", 1)
    graph.group("3  What it found", 2)
    return graph


def record(info: dict[str, Any]) -> Graph:
    """A plan from runs that are made anyway, on the bundled model."""
    graph = Graph(info, "Record: a plan while you work")
    demo = graph.add("ParoDemoModel", 0)
    demo.values |= SMALL
    graph.note(
        """### A plan while you work
Queue this as often as **runs** says, each time with another prompt (the seed changes by itself).
The pictures are those that you would get anyway. **Record PARO** says which run it has recorded,
and after the last one writes the plan to *models/paro*.

Then put **Load PARO** in place of **Record PARO**.

- Keep steps, scheduler and size the same until the plan is there; prompt and seed may change.
- You can stop in between: it goes on with the next run, also after a restart.
- With your own model: put it behind the loader, LoRAs and shift, before the sampler.
""",
        0, height=400,
    )  # fmt: skip
    kept = graph.add(
        "ParoRecord", 1, model=demo["model"], name="paro-demo-recorded", runs=2, extra_height=40
    )
    text = graph.add(
        "CLIPTextEncode", 1, title="Prompt: another one for each run", clip=demo["clip"],
        text="blue square up, stone, zoom-in", box=380, extra_height=20,
    )  # fmt: skip
    sampled = graph.add(
        "KSampler", 2, model=kept["model"], positive=text["CONDITIONING"],
        negative=demo["negative"], latent_image=demo["latent"], **DEMO,
    )  # fmt: skip
    sampled.control = "randomize"
    decoded = graph.add("VAEDecode", 2, samples=sampled["LATENT"], vae=demo["vae"])
    graph.add("PreviewImage", 3, images=decoded["IMAGE"], box=480, extra_height=400)
    graph.group("1  Model", 0)
    graph.group("2  Record", 1)
    graph.group("3  Sample as usual", 2, 3)
    return graph


def report(info: dict[str, Any]) -> Graph:
    """A plan in pictures."""
    graph = Graph(info, "Report: look at a plan")
    _, calibrate = _demo(graph)
    graph.note(
        """### Look at a plan
**PARO Report** needs a plan alone, no model: choose a file in **plan**, or connect a plan as here.

- **maps**: attention before and after reordering
- **masks**: the blocks that are computed at this density
- **curves**: how much attention they hold
- **table**: every layer; the ones to name in **dense_layers** first are marked

To look at plans that you have, delete the two other nodes.
""",
        0, height=360,
    )  # fmt: skip
    shown = graph.add("ParoReport", 2, box=420, extra_height=330, paro_plan=calibrate["paro_plan"])
    for column, names in ((3, ("maps", "masks")), (4, ("curves", "table"))):
        for output in names:
            graph.add(
                "PreviewImage", column, title=output, images=shown[output], box=640,
                extra_height=360,
            )  # fmt: skip
    graph.group("1  Plan", 0, 1)
    graph.group("2  Report", 2)
    graph.group("3  Its pictures", 3, 4)
    return graph


def compare(info: dict[str, Any]) -> Graph:
    """The same video dense and at two densities, compared."""
    graph = Graph(info, "Compare: how close is it?")
    demo, calibrate = _demo(graph)
    graph.note(
        """### How close is it on your model?
Three runs from the same noise: full attention, density 0.5 and density 0.2. **PARO Compare** says
how far each is from the first, and shows where.

A difference is not a fault: another seed changes far more. Look whether the second video is as
*good*.
""",
        0, height=300,
    )  # fmt: skip
    models = [("full attention", demo["model"])]
    for density in (0.5, 0.2):
        load = _load(
            graph, 2, demo["model"], calibrate, density=density, min_tokens=0, plan="none",
        )  # fmt: skip
        load.title = f"Load PARO, density {density:g}"
        models.append((f"density {density:g}", load["model"]))
    decoded = []
    for title, model in models:
        sampled = graph.add(
            "KSampler", 3, title=f"KSampler, {title}", model=model, positive=demo["positive"],
            negative=demo["negative"], latent_image=demo["latent"], **DEMO,
        )  # fmt: skip
        decoded.append(
            graph.add("VAEDecode", 4, samples=sampled["LATENT"], vae=demo["vae"])["IMAGE"]
        )
    for (title, _), images in list(zip(models, decoded, strict=True))[1:]:
        graph.add(
            "ParoCompare", 5, title=f"PARO Compare: full attention and {title}",
            images_a=decoded[0], images_b=images, box=560, extra_height=330,
        )  # fmt: skip
    graph.group("1  Model and plan", 0, 1)
    graph.group("2  Three runs", 2, 3, 4)
    graph.group("3  Compare", 5)
    return graph


WORKFLOWS: dict[str, Callable[[dict[str, Any]], Graph]] = {
    "paro_calibrate": calibrate_only,
    "paro_record": record,
    "paro_report": report,
    "paro_compare": compare,
    "paro_wan21_t2v": wan21_t2v,
    "paro_wan22_t2v": wan22_t2v,
    "paro_wan22_i2v": wan22_i2v,
    "paro_hunyuan_video": hunyuan_video,
    "paro_flux_dev": flux,
    "paro_qwen_image": qwen_image,
    "paro_cogvideox": cogvideox,
    "paro_ltxv": ltxv,
}

if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188")
