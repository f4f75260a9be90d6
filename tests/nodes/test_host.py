"""The pack in a real ComfyUI, through its HTTP API: everything a user does, on tiny models."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.comfy

STEPS = 4
GRAPH = dict[str, Any]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def base(model: str, *, seed: int = 0, clip_vision: bool = False, reference: bool = False) -> GRAPH:
    """Model, conditioning and a 6 x 16 x 16 latent: a grid of 6 x 8 x 8 = 384 tokens."""
    return {
        "unet": node("UNETLoader", unet_name=f"{model}.safetensors", weight_dtype="default"),
        "positive": node("TestConditioning", seed=10, clip_vision=clip_vision, reference=reference),
        "negative": node("TestConditioning", seed=11, clip_vision=clip_vision, reference=reference),
        "latent": node(
            "EmptyHunyuanLatentVideo", width=128, height=128, length=21, batch_size=1
        ),
        "sample": node(
            "KSampler", model=["unet", 0], positive=["positive", 0], negative=["negative", 0],
            latent_image=["latent", 0], seed=seed, steps=STEPS, cfg=3.0, sampler_name="euler",
            scheduler="simple", denoise=1.0,
        ),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="test"),
    }  # fmt: skip


def with_paro(graph: GRAPH, plan: str, **changes: Any) -> GRAPH:
    inputs = {
        "density": 1.0, "qk_bits": "16", "pv_bits": "16", "warmup": 0.0, "dense_layers": "",
        "min_tokens": 0, "on_unsupported": "error",
    } | changes  # fmt: skip
    load = node("ParoLoad", model=["unet", 0], plan=f"{plan}.safetensors", **inputs)
    sample = {**graph["sample"], "inputs": {**graph["sample"]["inputs"], "model": ["load", 0]}}
    return {**graph, "load": load, "sample": sample}


def calibration(graph: GRAPH, name: str, **changes: Any) -> GRAPH:
    inputs = {
        "model": ["unet", 0], "name": name, "latent": ["latent", 0], "seed": 3, "steps": STEPS,
        "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "density": 0.3,
        "noise_bands": 2, "orders": "fhw", "choice": "output_error", "start_at_step": 0,
        "end_at_step": 10000, "positive": ["positive", 0], "negative": ["negative", 0],
        "prompts": "",
    } | changes  # fmt: skip
    kept = {k: v for k, v in graph.items() if k not in ("sample", "save")}
    return {**kept, "calibrate": node("ParoCalibrate", **inputs)}


@pytest.fixture(scope="session")
def planned(host):
    """The host with a calibrated plan "t2v", the only one that chooses among all orders."""
    run = host.run(calibration(base("t2v"), "t2v", orders="tiles"))
    assert run.error is None, run.message
    assert run.outputs["calibrate"]["images"]
    return host


@pytest.fixture(scope="session")
def dense(planned):
    """ComfyUI's own result, before this pack touches the model."""
    return planned.latent(planned.run(base("t2v")))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_pack_loads_and_lists_its_nodes(host):
    info = host.get("/object_info")
    assert {"ParoCalibrate", "ParoLoad", "ParoCompare", "ParoDemoModel"} <= set(info)
    inputs = info["ParoLoad"]["input"]
    assert set(inputs["required"]) == {
        "model", "plan", "density", "qk_bits", "pv_bits", "warmup", "dense_layers", "min_tokens",
        "on_unsupported",
    }  # fmt: skip
    assert set(inputs["optional"]) == {"paro_plan"}
    for name in ("ParoCalibrate", "ParoLoad", "ParoCompare", "ParoDemoModel"):
        assert info[name]["description"], name
        assert host.get_text(f"/extensions/paro-attention/docs/{name}.md").startswith("# ")
    assert "IMPORT FAILED" not in host.log_text()


def test_calibration_writes_one_plan_and_leaves_sampling_alone(planned, dense):
    written = list(planned.plans.iterdir())  # other tests calibrate beside this one
    assert "t2v.safetensors" in [path.name for path in written]
    assert {path.suffix for path in written} == {".safetensors"}
    graph = calibration(base("t2v"), "fhw", seed=0)
    graph["save"] = node("SaveLatent", samples=["calibrate", 1], filename_prefix="test")
    assert torch.equal(planned.latent(planned.run(graph)), dense)


def test_density_one_equals_dense_with_every_call_on_our_path(planned, dense):
    run = planned.run(with_paro(base("t2v"), "t2v"))
    (stats,) = run.stats
    assert stats["dense"] == {}
    assert stats["forwards"] >= STEPS
    assert stats["handled"] == 2 * stats["forwards"]
    assert stats["other"] == 2 * stats["forwards"], "cross-attention is counted apart"
    assert stats["mean_density"] == 1
    result = planned.latent(run)
    assert not torch.equal(result, dense)
    assert relative(result, dense) < 1e-3


def test_a_declining_pack_is_bit_equal(planned, dense):
    run = planned.run(with_paro(base("t2v"), "t2v", density=0.3, min_tokens=100_000))
    (stats,) = run.stats
    assert stats["handled"] == 0
    assert stats["dense"] == {"fewer than 100000 tokens": 2 * stats["forwards"]}
    assert torch.equal(planned.latent(run), dense)


def test_low_density_differs_and_removing_the_node_restores_the_result(planned, dense):
    run = planned.run(with_paro(base("t2v"), "t2v", density=0.3, qk_bits="8", pv_bits="8"))
    (stats,) = run.stats
    assert stats["handled"] == 2 * stats["forwards"]
    assert stats["mean_density"] == pytest.approx(0.3, abs=0.1)
    sparse = planned.latent(run)
    assert torch.isfinite(sparse).all()
    assert 1e-3 < relative(sparse, dense) < 1
    planned.forget()
    again = planned.run(base("t2v"))
    assert "sample" not in again.cached
    assert torch.equal(planned.latent(again), dense)


def test_warmup_and_dense_layers_run_dense(planned):
    run = planned.run(with_paro(base("t2v"), "t2v", density=0.3, warmup=0.5, dense_layers="-1"))
    (stats,) = run.stats
    per_step = stats["forwards"] // STEPS
    assert stats["handled"] == STEPS // 2 * per_step
    assert sum(stats["dense"].values()) == 2 * stats["forwards"] - stats["handled"]


def test_text_shown_on_the_node_tells_what_ran(planned):
    (stats,) = planned.run(with_paro(base("t2v", seed=77), "t2v", density=0.4)).stats
    log = planned.log_text()
    assert "attention calls sparse" in log
    share = 100 * stats["attention_seconds"] / stats["step_seconds"]
    assert 0 < share < 100
    assert f"sparse attention {share:.0f} % of the step" in log


def test_plan_of_another_architecture_is_refused_before_sampling(planned):
    run = planned.run(with_paro(base("t2v-three-layers"), "t2v"))
    assert run.error is not None
    assert run.error["node_id"] == "load"
    assert "sample" not in run.error["executed"]
    assert "2 layers x 2 heads x 128" in run.message
    assert "3 layers x 2 heads x 128" in run.message


def test_plan_of_other_weights_warns_and_runs(planned):
    before = len(planned.log_text())
    run = planned.run(with_paro(base("t2v-other-weights"), "t2v", density=0.5))
    assert run.error is None, run.message
    assert run.stats[0]["handled"] > 0
    assert "other weights" in planned.log_text()[before:]


def test_same_weights_in_lower_precision_do_not_warn(planned):
    before = len(planned.log_text())
    graph = base("t2v")
    graph["unet"]["inputs"]["weight_dtype"] = "fp8_e4m3fn"
    run = planned.run(with_paro(graph, "t2v"))
    assert run.error is None, run.message
    assert run.stats[0]["handled"] > 0
    assert "other weights" not in planned.log_text()[before:]


def test_a_plan_calibrated_again_under_its_name_is_seen(planned):
    assert planned.run(calibration(base("t2v"), "again")).error is None
    graph = with_paro(base("t2v"), "again", density=0.3)
    first = planned.run(graph)
    repeated = planned.run(graph)
    assert {"load", "sample"} <= repeated.cached
    assert planned.run(calibration(base("t2v-other-weights"), "again")).error is None
    second = planned.run(graph)
    assert not {"load", "sample"} & second.cached
    assert not torch.equal(planned.latent(first), planned.latent(second))


def test_the_newest_fitting_plan_is_found_by_itself(planned):
    assert planned.run(calibration(base("t2v-other-weights"), "newest")).error is None
    before = len(planned.log_text())
    graph = with_paro(base("t2v"), "t2v", density=0.3)
    graph["load"]["inputs"]["plan"] = "auto"
    run = planned.run(graph)
    assert run.error is None, run.message
    assert "other weights" not in planned.log_text()[before:], "the model's own plan comes first"
    graph = with_paro(base("t2v-three-layers"), "t2v")
    graph["load"]["inputs"]["plan"] = "auto"
    assert "none of the" in planned.run(graph).message
    graph["load"]["inputs"]["plan"] = "none"
    assert "connect paro_plan" in planned.run(graph).message


def test_calibration_shows_progress_text_and_previews(host):
    """Watched as the frontend does: previews are the demo model's own colours, not Wan's."""
    socket = host.listen("watcher")
    graph = calibration(
        {"demo": demo_graph()["demo"]}, "watched", model=["demo", 0], latent=["demo", 5],
        positive=["demo", 3], negative=["demo", 4],
    )  # fmt: skip
    prompt = host.submit(graph, "watcher")
    texts, pictures, progress = [], [], []
    while True:
        message = socket.message()
        if isinstance(message, bytes):
            kind = int.from_bytes(message[:4])
            if kind == 3:
                length = int.from_bytes(message[4:8])
                texts.append(message[8 + length :].decode())
            else:
                start = message.find(b"\xff\xd8\xff")
                pictures.append(Image.open(io.BytesIO(message[start:])))
        elif message["type"] == "progress":
            progress.append((message["data"]["value"], message["data"]["max"]))
        elif message["type"] in ("execution_success", "execution_error"):
            assert message["type"] == "execution_success", message
            break
    socket.close()
    assert host.wait(prompt).error is None
    assert any(f"run 1 of 1, step {STEPS} of {STEPS}" in text for text in texts), texts
    assert any("wrote watched.safetensors" in text for text in texts), texts
    assert progress[-1] == (STEPS, STEPS)
    assert len(pictures) >= STEPS
    assert pictures[-1].width == pictures[-1].height >= 256


def test_interrupting_a_calibration_leaves_the_old_plan(planned):
    path = planned.plans / "t2v.safetensors"
    before = path.read_bytes()
    files = sorted(planned.plans.iterdir())
    seen = planned.runs_seen()
    prompt = planned.submit(calibration(base("t2v"), "t2v", seed=5, steps=1000))
    mark = len(planned.log_text())
    deadline = time.monotonic() + 30
    while "calibrating, run" not in planned.log_text()[mark:] and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    planned.post("/interrupt")
    run = planned.wait(prompt, seen)
    assert run.interrupted
    assert path.read_bytes() == before
    assert sorted(planned.plans.iterdir()) == files
    assert planned.run(with_paro(base("t2v"), "t2v", density=0.3)).error is None


def test_calibrating_on_a_patched_model_records_the_dense_one(planned):
    graph = calibration(with_paro(base("t2v"), "t2v", density=0.1), "patched", model=["load", 0])
    run = planned.run(graph)
    assert run.error is None, run.message
    assert {stats["kind"] for stats in run.stats} == {"calibrate"}


def test_bad_plan_files_are_named_and_nothing_is_sampled(planned):
    whole = (planned.plans / "t2v.safetensors").read_bytes()
    cases = {"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"\x00" * 64}
    for name, content in cases.items():
        (planned.plans / f"{name}.safetensors").write_bytes(content)
        run = planned.run(with_paro(base("t2v"), name))
        assert run.error is not None and run.error["node_id"] == "load"
        assert f"{name}.safetensors" in run.message, run.message
        (planned.plans / f"{name}.safetensors").unlink()
    assert "missing.safetensors" in planned.refused(with_paro(base("t2v"), "missing"))


def test_bad_inputs_are_refused(planned):
    for name, value in (("density", 0.0), ("density", 1.5), ("qk_bits", "7"), ("pv_bits", "x")):
        refused = planned.refused(with_paro(base("t2v"), "t2v", **{name: value}))
        assert name in refused, (name, refused)
    run = planned.run(with_paro(base("t2v"), "t2v", dense_layers="0,9"))
    assert "dense_layers must name layers 0 to 1" in run.message
    run = planned.run(calibration(base("t2v"), "../outside"))
    assert "name must be a file name" in run.message
    run = planned.run(calibration(base("t2v"), "x", prompts="red circle"))
    assert "connect clip" in run.message
    nothing = calibration(base("t2v"), "x")
    del nothing["calibrate"]["inputs"]["positive"]
    assert "at least one prompt" in planned.run(nothing).message


def test_overrides_of_others_are_chained_and_survive_neither_order(planned, dense):
    graph = base("t2v")
    graph["other"] = node("TestOverride", model=["unet", 0], factor=0.5)
    graph["sample"]["inputs"]["model"] = ["other", 0]
    other = planned.latent(planned.run(graph))
    assert not torch.equal(other, dense)

    before = with_paro(graph, "t2v", density=0.3, min_tokens=100_000)
    before["load"]["inputs"]["model"] = ["other", 0]
    assert torch.equal(planned.latent(planned.run(before)), other)

    after = with_paro(base("t2v"), "t2v")
    after["other"] = node("TestOverride", model=["load", 0], factor=1.0)
    after["sample"]["inputs"]["model"] = ["other", 0]
    run = planned.run(after)
    (stats,) = run.stats
    assert stats["handled"] == 2 * stats["forwards"]
    assert relative(planned.latent(run), dense) < 1e-3


def test_image_to_video(host):
    graph = base("i2v", clip_vision=True)
    assert host.run(calibration(graph, "i2v")).error is None
    expected = host.latent(host.run(graph))
    run = host.run(with_paro(graph, "i2v"))
    (stats,) = run.stats
    assert stats["handled"] == 2 * stats["forwards"]
    assert stats["other"] == 4 * stats["forwards"], "text and image cross-attention"
    assert relative(host.latent(run), expected) < 1e-3
    run = host.run(with_paro(graph, "i2v", density=0.3, qk_bits="8", pv_bits="8"))
    assert relative(host.latent(run), expected) > 1e-3


def test_a_reference_frame_beside_the_grid_stays_dense_and_the_grid_is_sparse(planned):
    plain, reference = base("fun"), base("fun", reference=True)
    assert planned.run(calibration(plain, "fun")).error is None
    expected = planned.latent(planned.run(reference))
    run = planned.run(with_paro(reference, "fun"))
    (stats,) = run.stats
    assert stats["dense"] == {}
    assert stats["handled"] == 2 * stats["forwards"]
    assert relative(planned.latent(run), expected) < 1e-3
    sparse = planned.run(with_paro(reference, "fun", density=0.3))
    assert sparse.stats[0]["handled"] == 2 * sparse.stats[0]["forwards"]
    assert relative(planned.latent(sparse), expected) > 1e-3
    assert not torch.equal(expected, planned.latent(planned.run(plain)))


def test_two_experts_each_follow_their_own_plan(planned):
    """Wan 2.2: the high-noise expert hands over to the low-noise one after half of the steps."""
    high, low = "t2v", "t2v-other-weights"
    graph = base(high)
    graph["low"] = node("UNETLoader", unet_name=f"{low}.safetensors", weight_dtype="default")
    half = STEPS // 2
    assert planned.run(calibration(graph, "high", end_at_step=half)).error is None
    run = planned.run(
        calibration(graph, "low", model=["low", 0], earlier_model=["unet", 0], start_at_step=half)
    )
    assert run.error is None, run.message

    def sampled(plans: bool) -> GRAPH:
        both = dict(graph)
        stages = {"high": (["unet", 0], 0, half), "low": (["low", 0], half, 10000)}
        latent: list[Any] = ["latent", 0]
        for name, (model, start, end) in stages.items():
            if plans:
                loaded = with_paro(graph, name)["load"]
                loaded["inputs"] |= {"model": model, "warmup": 0.5}
                both[f"load-{name}"] = loaded
                model = [f"load-{name}", 0]
            both[f"sample-{name}"] = node(
                "KSamplerAdvanced", model=model, positive=["positive", 0],
                negative=["negative", 0], latent_image=latent, noise_seed=0, steps=STEPS, cfg=3.0,
                sampler_name="euler", scheduler="simple", start_at_step=start, end_at_step=end,
                add_noise="enable" if start == 0 else "disable",
                return_with_leftover_noise="enable" if end == half else "disable",
            )  # fmt: skip
            latent = [f"sample-{name}", 0]
        del both["sample"]
        both["save"] = node("SaveLatent", samples=latent, filename_prefix="test")
        return both

    expected = planned.latent(planned.run(sampled(plans=False)))
    run = planned.run(sampled(plans=True))
    assert relative(planned.latent(run), expected) < 1e-3
    first, second = run.stats
    assert sum(first["dense"].values()) == first["calls"] // 2, "half of its steps are warm-up"
    assert second["dense"] == {}, "the second expert continues, it needs no warm-up"


def test_wan22_with_48_channels(host):
    graph = base("wan22-5b")
    graph["latent"] = node("TestLatent", channels=48, frames=6, height=16, width=16)
    assert host.run(calibration(graph, "wan22")).error is None
    expected = host.latent(host.run(graph))
    run = host.run(with_paro(graph, "wan22"))
    assert run.stats[0]["handled"] == 2 * run.stats[0]["forwards"] > 0
    assert relative(host.latent(run), expected) < 1e-3


def test_other_transformers_run_dense_with_one_line(planned):
    graph = base("t2v")
    graph["unet"] = node("TestOtherDiT")
    graph["latent"] = node("TestLatent", channels=4, frames=4, height=8, width=8)
    expected = planned.latent(planned.run(graph))
    run = planned.run(with_paro(graph, "t2v", on_unsupported="dense"))
    assert torch.equal(planned.latent(run), expected)
    unknown = "MadeUpDiT is a model that PARO does not know"
    assert planned.log_text().count(unknown) == 1
    run = planned.run(with_paro(graph, "t2v", on_unsupported="error"))
    assert unknown in run.message
    assert unknown in planned.run(calibration(graph, "other")).message


def test_compare(planned, dense):
    graph = base("t2v")
    sparse = with_paro(graph, "t2v", density=0.3)
    graph["load"] = sparse["load"]
    graph["sparse"] = sparse["sample"]
    graph["same"] = node("ParoCompare", latent_a=["sample", 0], latent_b=["sample", 0], gain=4.0)
    graph["other"] = node("ParoCompare", latent_a=["sample", 0], latent_b=["sparse", 0], gain=4.0)
    run = planned.run(graph)
    assert "identical" in run.outputs["same"]["text"][0]
    assert "PSNR" in run.outputs["other"]["text"][0]
    assert run.outputs["other"]["images"]
    lonely = base("t2v")
    lonely["compare"] = node("ParoCompare", latent_a=["sample", 0], gain=4.0)
    assert "needs a pair" in planned.run(lonely).message


def demo_graph(**changes: Any) -> GRAPH:
    inputs = {
        "prompt": "red circle right, grass, static", "negative": "", "width": 64, "height": 64,
        "frames": 2,
    } | changes  # fmt: skip
    return {
        "demo": node("ParoDemoModel", **inputs),
        "sample": node(
            "KSampler", model=["demo", 0], positive=["demo", 3], negative=["demo", 4],
            latent_image=["demo", 5], seed=0, steps=STEPS, cfg=2.5, sampler_name="euler",
            scheduler="simple", denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["demo", 2]),
        "look": node("PreviewImage", images=["decode", 0]),
        "save": node("SaveLatent", samples=["sample", 0], filename_prefix="demo"),
    }  # fmt: skip


def test_demo_model_ends_in_pictures(host):
    run = host.run(demo_graph())
    assert run.error is None, run.message
    assert len(run.outputs["look"]["images"]) == 2
    image = host.image(run.outputs["look"]["images"][0])
    assert image.size == (64, 64)
    red, green, blue = (max(channel) for channel in image.getextrema())
    assert max(red, green, blue) > 60, "not black"


def test_demo_model_takes_prompts_from_clip_text_encode(host):
    graph = demo_graph()
    direct = host.latent(host.run(graph))
    graph["text"] = node("CLIPTextEncode", clip=["demo", 1], text="red circle right, grass, static")
    graph["sample"]["inputs"]["positive"] = ["text", 0]
    assert torch.equal(host.latent(host.run(graph)), direct)
    graph["text"]["inputs"]["text"] = "blue star up, sand, static"
    assert not torch.equal(host.latent(host.run(graph)), direct)


def test_demo_model_names_unknown_words(host):
    mark = len(host.log_text())
    assert host.run(demo_graph(prompt="red circle elephant")).error is None
    assert "does not know elephant" in host.log_text()[mark:]


def test_demo_vae_encodes_what_it_decodes(host):
    graph = demo_graph()
    graph["encode"] = node("VAEEncode", pixels=["decode", 0], vae=["demo", 2])
    graph["again"] = node("VAEDecode", samples=["encode", 0], vae=["demo", 2])
    graph["compare"] = node("ParoCompare", images_a=["decode", 0], images_b=["again", 0], gain=4.0)
    run = host.run(graph)
    assert run.error is None, run.message
    text = run.outputs["compare"]["text"][0]
    assert "identical" in text or float(text.split("PSNR ")[1].split(" dB")[0]) > 100


def test_demo_model_calibrates_on_lines_of_prompts_and_runs(host):
    graph = demo_graph()
    graph["calibrate"] = calibration(
        {}, "demo", model=["demo", 0], latent=["demo", 5], negative=["demo", 4], clip=["demo", 1],
        prompts="red circle right, grass, static\n\nblue star up, sand, pan-left", cfg=2.5,
    )["calibrate"]  # fmt: skip
    del graph["calibrate"]["inputs"]["positive"]
    graph["load"] = node(
        "ParoLoad", model=["demo", 0], plan="none", paro_plan=["calibrate", 0], density=0.5,
        qk_bits="8", pv_bits="8", warmup=0.15, dense_layers="", min_tokens=0,
        on_unsupported="error",
    )  # fmt: skip
    graph["sample"]["inputs"]["model"] = ["load", 0]
    run = host.run(graph)
    assert run.error is None, run.message
    kinds = [stats["kind"] for stats in run.stats]
    assert kinds == ["calibrate", "calibrate", "load"]
    assert run.stats[-1]["handled"] > 0
    assert host.image(run.outputs["calibrate"]["images"][0]).width > 600


def test_the_example_workflow_runs(host):
    """The workflow as the frontend would send it, with fewer steps and a smaller video."""
    graph = host.example("paro_demo.json")
    smaller = {"steps": 2, "width": 64, "height": 64, "frames": 2}
    for entry in graph.values():
        entry["inputs"] |= {k: v for k, v in smaller.items() if k in entry["inputs"]}
    run = host.run(graph)
    assert run.error is None, run.message
    assert run.stats[-1]["handled"] > 0
    shown = [o for o in run.outputs.values() if o.get("text")]
    assert any("PSNR" in o["text"][0] for o in shown)
