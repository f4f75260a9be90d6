"""The nodes' own code inside a real ComfyUI, without its server: dense against PARO.

Loads the demo model through ComfyUI's loader, calibrates, then samples one prompt dense and with
the plan at several densities and bits. Prints seconds, the counters of the run and the distance
from the dense video as JSON lines. Works on a GPU and on a CPU:

    <host python> benchmarks/bench_comfyui.py --comfyui ~/ComfyUI --steps 20 --size 128
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from _package import load_package

PROMPTS = (
    "blue star up, sand, pan-left",
    "yellow square left, wood, zoom-in",
    "white ring down, clouds, static",
    "purple triangle right, brick, pan-up",
)
SETTINGS = ((1.0, 16, 16), (1.0, 8, 8), (0.5, 8, 8), (0.3, 8, 8), (0.3, 16, 16), (0.2, 8, 8))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--comfyui", type=Path, required=True, help="a ComfyUI checkout")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128, help="pixels of a side")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3, help="the last run is timed")
    parser.add_argument("--cpu", action="store_true")
    return parser.parse_args()


def enter_comfyui(checkout: Path, cpu: bool) -> None:
    sys.path.insert(0, str(checkout.resolve()))
    sys.argv = [sys.argv[0], *(["--cpu"] if cpu else [])]
    import comfy.options

    comfy.options.enable_args_parsing()


def main() -> None:
    options = parse()
    enter_comfyui(options.comfyui, options.cpu)
    load_package()
    import comfy.sample
    import torch
    from paro_attention.calibration import RuntimeOptions
    from paro_attention.calibration.picture_metrics import psnr_db, ssim
    from paro_attention.demo.vocabulary import encode
    from paro_attention.nodes import attention_hook, run_stats
    from paro_attention.nodes.calibration_run import CalibrationSettings, calibrate
    from paro_attention.nodes.demo_model import DemoVae, load_demo_model
    from paro_attention.nodes.sparse_session import SparseSession

    model = load_demo_model()
    vae = DemoVae(model.get_model_object("latent_format"))
    side = options.size // 2
    latent = torch.zeros(1, 16, options.frames, side, side)

    def conditioning(prompt: str) -> list[list[Any]]:
        return [[encode(prompt)[0], {"pooled_output": None}]]

    def sample(patched: Any) -> tuple[torch.Tensor, float]:
        noise = comfy.sample.prepare_noise(latent, 7)
        started = time.perf_counter()
        samples = comfy.sample.sample(
            patched, noise, options.steps, 2.5, "euler", "simple",
            conditioning("red circle right, grass, static"), conditioning(""), latent,
            disable_pbar=True, seed=7,
        )  # fmt: skip
        return vae.decode(samples), time.perf_counter() - started

    with torch.inference_mode():
        settings = CalibrationSettings(
            seed=100, steps=options.steps, cfg=2.5, sampler_name="euler", scheduler="simple",
            start_step=0, end_step=10_000, density=0.3, noise_bands=4, orders="tiles",
            choice="output_error",
        )  # fmt: skip
        result = calibrate(
            model,
            [conditioning(p) for p in PROMPTS],
            conditioning(""),
            {"samples": latent},
            settings,
        )
        print(
            json.dumps({"calibration_seconds": round(result.seconds, 2), "grid": str(result.grid)})
        )
        for _ in range(options.repeats):
            dense, seconds = sample(model)
        print(json.dumps({"dense_seconds": round(seconds, 3)}))
        for density, qk_bits, pv_bits in SETTINGS:
            session = SparseSession(
                result.plan,
                RuntimeOptions(density=density, qk_bits=qk_bits, pv_bits=pv_bits, warmup=0.0),
                min_tokens=0,
                on_unsupported="error",
            )
            patched = attention_hook.install(model, session)
            for _ in range(options.repeats):
                video, seconds = sample(patched)
            stats = run_stats.recent_runs[-1]
            row = {"density": density, "qk_bits": qk_bits, "pv_bits": pv_bits}
            row |= {"seconds": round(seconds, 3), "psnr_db": psnr_db(video, dense)}
            row |= {"ssim": round(ssim(video, dense), 4)}
            row |= {k: stats[k] for k in ("forwards", "handled", "dense", "mean_density", "kernel")}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
