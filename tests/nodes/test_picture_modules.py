"""The JavaScript of the picture against the Python that it follows, run by Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_scripts import benchmark_script
from made_plan import make_plan
from paro_attention.calibration import PlanRuntime, RuntimeOptions
from paro_attention.nodes.preview_budget import shared_budget

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPTS = ROOT / "web" / "js"
DENSITIES = (0.05, 0.1, 0.17, 0.3, 0.42, 0.5, 0.77, 0.95, 1.0)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """Runs an expression that may use everything that a module exports."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node.js")
    folder = tmp_path_factory.mktemp("js")
    for script in SCRIPTS.glob("*.js"):
        shutil.copy(script, folder)
    (folder / "package.json").write_text('{"type": "module"}')

    def run(module: str, expression: str, **values: Any) -> Any:
        text = (
            f"import * as m from './{module}';\n"
            "const v = JSON.parse((await import('node:fs')).readFileSync(0, 'utf8'));\n"
            f"console.log(JSON.stringify({expression}));\n"
        )
        (folder / "run.js").write_text(text)
        done = subprocess.run(
            [program, "run.js"], cwd=folder, input=json.dumps(values), capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("warmup", [0.0, 0.15, 0.5])
@pytest.mark.parametrize("dense_layers", [(), (0, 3)])
@pytest.mark.parametrize("equal", [False, True])
def test_head_densities_are_those_of_the_run_time(node, warmup, dense_layers, equal):
    plan = make_plan((4, 12, 16), 5, 7, (32, 32))
    if equal:  # all heads alike: only the order of equal slopes decides
        plan.error[:] = plan.error[0, 0, 0]
    budgets = [shared_budget(plan, 2, band, dense_layers) for band in range(4)]
    found = node(
        "paro_budget.js",
        """v.densities.map((density) => {
          const steps = m.sparseSteps(v.schedule, v.edges, v.warmup);
          const bands = m.bandDensities(density, v.shares, steps);
          return v.budgets.map((budget, band) => [
            bands[band], ...m.headDensities(budget, bands[band], v.heads)]);
        })""",
        densities=DENSITIES,
        schedule=plan.schedule,
        edges=plan.bands.edges,
        shares=plan.shares,
        warmup=warmup,
        heads=plan.heads,
        budgets=[
            {"grid": b.grid, "pieces": b.pieces.tolist(), "first_row": b.first_row,
             "rows": b.rows, "floor": b.floor, "least": b.least}
            for b in budgets
        ],
    )  # fmt: skip
    for density, told in zip(DENSITIES, found, strict=True):
        options = RuntimeOptions(density=density, warmup=warmup, dense_layers=dense_layers)
        runtime = PlanRuntime(plan, plan.grid, options, "cpu")
        blocks = runtime.blocks[0] * runtime.blocks[1]
        for band in range(4):
            assert told[band][0] == pytest.approx(runtime.band_densities[band])
            wanted = runtime.head_densities(band)[2]
            assert np.abs(np.array(told[band][1:]) - wanted).max() <= 1 / blocks


def test_a_dense_layer_keeps_everything(node):
    told = node("paro_budget.js", "[...m.headDensities({first_row: null}, 0.2, 3)]")
    assert told == [1, 1, 1]


def test_interpolates_from_the_origin(node):
    told = node(
        "paro_budget.js",
        "[0, 0.1, 0.2, 0.3, 0.6, 1, 2].map((x) => m.interpolate([0.2, 0.4, 1], [0.5, 0.7, 1], x))",
    )
    assert told == pytest.approx([0, 0.25, 0.5, 0.6, 0.8, 1, 1])


def test_speed_table_agrees_with_the_results():
    text = benchmark_script("speed_table").module_text()
    assert (SCRIPTS / "paro_speed_table.js").read_text() == text


def test_speed_is_what_was_measured(node):
    report = json.loads((ROOT / "benchmarks" / "results" / "attention-h100.json").read_text())
    rows = [
        row for row in report["rows"]
        if row["ours"] and row["tail"] and (row["qk_bits"], row["pv_bits"]) == (8, 8)
        and row["whole_call"] and row.get("masks", "random") == "random"
    ]  # fmt: skip
    wanted = [
        {
            "card": report["gpu"], "tokens": row["tokens"], "headDim": row["head_dim"],
            "block": row["block"], "qkBits": 8, "pvBits": 8, "density": row["density"],
        }
        for row in rows
    ]  # fmt: skip
    told = node("paro_speed.js", "v.wanted.map(m.speedUp)", wanted=wanted)
    assert len(told) > 20
    for row, found in zip(rows, told, strict=True):
        assert found["factor"] == pytest.approx(row["speed_up"], rel=2e-3)
        assert found["tokens"] == row["tokens"]


def test_all_blocks_in_16_bits_are_dense_attention(node):
    wanted = {
        "card": "NVIDIA H100 80GB HBM3", "tokens": 32768, "headDim": 128, "block": [64, 128],
        "qkBits": 16, "pvBits": 16,
    }  # fmt: skip
    report = json.loads((ROOT / "benchmarks" / "results" / "attention-h100.json").read_text())
    own_kernel = next(
        row["speed_up"] for row in report["rows"]
        if row["ours"] and row["whole_call"] and row["density"] == 1 and row["tokens"] == 32768
        and (row["qk_bits"], row["pv_bits"]) == (16, 16)
    )  # fmt: skip
    assert node("paro_speed.js", "m.speedUp(v)", **wanted, density=1)["factor"] == 1
    almost = node("paro_speed.js", "m.speedUp(v)", **wanted, density=0.999)["factor"]
    assert almost == pytest.approx(own_kernel, rel=5e-3) != 1


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"card": "NVIDIA GeForce RTX 4090"}, "card"),
        ({"card": "NVIDIA H100 PCIe"}, "card"),
        ({"tokens": 2048}, "size"),
        ({"qkBits": 4}, "size"),
        ({"headDim": 96}, "size"),
        ({"block": [32, 32]}, "size"),
        ({"card": ""}, "card_unknown"),
    ],
)
def test_no_speed_is_made_up(node, change, missing):
    wanted = {
        "card": "NVIDIA H100 80GB HBM3", "tokens": 75600, "headDim": 128, "block": [64, 128],
        "qkBits": 8, "pvBits": 8, "density": 0.3,
    }  # fmt: skip
    assert "factor" in node("paro_speed.js", "m.speedUp(v)", **wanted)
    assert node("paro_speed.js", "m.speedUp(v)", **(wanted | change)) == {"missing": missing}


def test_card_names_are_taken_from_device_names(node):
    names = ["cuda:0 NVIDIA H100 80GB HBM3 : cudaMallocAsync", "cuda:1 NVIDIA RTX A6000 : native",
             "cpu", None]  # fmt: skip
    told = node("paro_speed.js", "v.names.map(m.cardName)", names=names)
    assert told == ["NVIDIA H100 80GB HBM3", "NVIDIA RTX A6000", "cpu", ""]


RUN = {
    "forwards": 6, "calls": 24, "handled": 20, "dense": {"dense layer": 1, "warm-up": 3},
    "mean_density": 0.4321, "kernel": "QK 8 bits, PV 8 bits, Triton", "failed": False,
    "details": "grid 8x16x16; blocks 64x64",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {},
            "Last run: 20 of 24 attention calls sparse · 4 dense (3 warm-up, 1 dense layer) · "
            "mean density 0.43 · QK 8 bits, PV 8 bits, Triton",
        ),
        (
            {"dense": {}, "failed": True, "kernel": ""},
            "Last run, stopped: 20 of 24 attention calls sparse",
        ),
        ({"calls": 0}, "Last run: no visual attention call in 6 forwards."),
        (
            {"dense": {}, "kernel": "", "attention_seconds": 1.2345, "step_seconds": 3.0},
            "Last run: 20 of 24 attention calls sparse · mean density 0.43 · "
            "sparse attention 41 % of the step, 1.23 s of 3 s",
        ),
        (
            {"dense": {}, "kernel": "QK 4 bits, PV 8 bits, Triton", "details":
             "grid 21x45x80, calibrated on 13x30x52: profiles evaluated with offsets kept"},
            "Last run: 20 of 24 attention calls sparse · mean density 0.43 · "
            "QK 4 bits, PV 8 bits, Triton · plan of 13x30x52 tokens used on 21x45x80 · "
            "4 bits run on 8-bit units, not faster than 8",
        ),
        (
            {"dense": {}, "kernel": "QK 4 bits, PV 4 bits, Triton on INT4 units"},
            "Last run: 20 of 24 attention calls sparse · mean density 0.43 · "
            "QK 4 bits, PV 4 bits, Triton on INT4 units",
        ),
        (
            {"dense": {}, "kernel": "", "details": "density 0.1, keeps 58% of the attention by"},
            "Last run: 20 of 24 attention calls sparse · mean density 0.43 · "
            "only 58 % of the attention kept: raise density",
        ),
        (
            {"dense": {}, "kernel": "", "details": "density 0.3, keeps 79% of the attention by"},
            "Last run: 20 of 24 attention calls sparse · mean density 0.43",
        ),
    ],
)  # fmt: skip
def test_says_what_a_run_did(node, change, text):
    assert node("paro_status.js", "m.statusText(v)", **(RUN | change)) == text


CHINESE = (
    "上次运行：24 次注意力调用中 20 次稀疏 · 4 次稠密（3 预热, 1 少于 4096 个令牌） · "
    "平均密度 0.43 · QK 8 位，PV 8 位，CPU 参考实现"
)
JAPANESE = (
    "前回の実行：アテンション呼び出し 24 回中 20 回がスパース · 4 回は密（3 ウォームアップ, "
    "1 トークンが 4096 未満） · 平均密度 0.43 · QK 8 ビット、PV 8 ビット、CPU の参照実装"
)
ENGLISH = (
    "Last run: 20 of 24 attention calls sparse · 4 dense (3 warm-up, 1 fewer than 4096 tokens) · "
    "mean density 0.43 · QK 8 bits, PV 8 bits, reference on CPU"
)


@pytest.mark.parametrize(
    ("locale", "text"),
    [("zh", CHINESE), ("zh-TW", CHINESE), ("ja", JAPANESE), ("fr", ENGLISH), (None, ENGLISH)],
)
def test_speaks_the_chosen_language_or_english(node, locale, text):
    run = RUN | {
        "dense": {"warm-up": 3, "fewer than 4096 tokens": 1},
        "kernel": "QK 8 bits, PV 8 bits, reference on CPU",
    }
    expression = """await (async () => {
      (await import("./paro_language.js")).setLanguage(v.locale);
      return m.statusText(v.run);
    })()"""
    assert node("paro_status.js", expression, run=run, locale=locale) == text


def test_a_reason_that_is_in_no_table_is_said_as_the_server_says_it(node):
    run = RUN | {"dense": {"softmax scale of the model's own": 4}}
    told = node("paro_status.js", "m.statusText(v)", **run)
    assert "4 dense (4 softmax scale of the model's own)" in told


def test_finds_the_last_run_of_a_node(node):
    runs = [
        {"kind": "load", "node": "3", "n": 0}, {"kind": "load", "node": "7:5", "n": 1},
        {"kind": "calibrate", "node": "3", "n": 2}, {"kind": "load", "node": "3", "n": 3},
        {"kind": "load", "node": "13", "n": 4},
    ]  # fmt: skip
    expression = """await (async () => {
      const answer = { ok: true, json: async () => v.runs };
      const source = new m.PlanSource(async () => answer);
      return Promise.all([3, 5, 13, 4].map(async (id) => (await source.lastRun(id))?.n ?? null));
    })()"""
    assert node("paro_data.js", expression, runs=runs) == [3, 1, 4, None]


def test_every_module_parses_and_the_modules_name_each_other(node):
    for script in SCRIPTS.glob("*.js"):
        if script.name != "paro_load.js":  # imports ComfyUI's own modules
            assert node(script.name, "Object.keys(m).length > 0")
