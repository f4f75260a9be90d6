"""What the README and the nodes' speed table make of a report of benchmarks/attention.py."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os

import pytest
import torch
from paro_attention.kernels import unavailable_reason


def report():
    """A report with every kind of row, in the form that the benchmark writes."""
    base = {
        "batch": 1, "heads": 12, "tokens": 32768, "extra_tokens": 0, "head_dim": 128,
        "whole_call": True, "qk_bits": 8, "pv_bits": 8, "rel_err": 0.04,
    }  # fmt: skip
    sdpa = {"ours": False, "baseline": True, "name": "torch SDPA (default)", "block": None,
            "density": 1.0, "ms": 10.0, "note": ""}  # fmt: skip
    rows = [base | sdpa]
    rows.append(rows[0] | {"baseline": False, "name": "torch SDPA (cuDNN)", "ms": 20.0})
    rows.append(
        rows[1] | {"name": "sol_attn, density 0.3", "density": 0.3, "ms": 7.0, "own_blocks": True,
                   "note": "chooses its blocks"}
    )  # fmt: skip
    ours = base | {"ours": True, "baseline": False, "tail": True, "masks": "random"}
    for density, ms in ((1.0, 8.0), (0.3, 2.5)):
        name = f"PARO 8/8, 64x128, density {density}"
        row = ours | {"name": name, "block": [64, 128], "density": density, "ms": ms}
        rows.append(row | {"tflops": 800.0})
        rows.append(row | {"whole_call": False, "ms": ms - 0.2, "tflops": 950.4})
        rows.append(row | {"masks": "demo", "ms": ms + 0.5, "tflops": 700.0})
    overhead = {
        "heads": 12, "tokens": 32768, "head_dim": 128, "prepass_and_epilogue_share": 0.018,
        "reorder_in_call_share": 0.004, "reorder_alone_share": 0.009,
    }  # fmt: skip
    return {
        "gpu": "a card", "versions": {"torch": "2"}, "commit": "abc", "rows": rows,
        "overhead": [overhead], "not_run": [],
        "peers": [
            {"key": "sdpa", "name": "torch SDPA (default)", "reason": None},
            {"key": "sage2", "name": "SageAttention 2", "reason": "not installed"},
        ],
    }  # fmt: skip


@pytest.fixture
def results(tmp_path):
    (tmp_path / "attention-h100.json").write_text(json.dumps(report()))
    return tmp_path


@pytest.fixture(scope="module")
def tables():
    return importlib.import_module("readme_tables")


def test_the_main_table_divides_by_the_default_sdpa_alone(tables, results):
    lines = tables.attention_table(results).splitlines()
    assert "| 32,768, 12 x 128 | 8/8 | 64x128 | 10.00 ms |  | 4.00x |  |  | 0.040 |" in lines
    demo = "| 32,768, 12 x 128 | 8/8, demo masks | 64x128 | 10.00 ms |  | 3.33x |  |  | 0.040 |"
    assert demo in lines
    assert "kernel" not in "".join(lines[:5]) and "demo model's heads" in lines[-1]


def test_rows_of_another_run_are_named_under_the_table(tables, results, tmp_path):
    whole = report()
    other = {"commit": "old", "tokens": 118800}
    for part in ("rows", "overhead"):
        whole[part] += [row | other for row in report()[part]]
        whole[part] += [
            row | other | {"tokens": 4608, "timing": "by hand"} for row in report()[part]
        ]
        whole[part] += [row | other | {"head_dim": 64, "tokens": 32768} for row in report()[part]]
    (tmp_path / "attention-h100.json").write_text(json.dumps(whole | {"timing": "by lot"}))
    line = (
        "commit `abc`, by lot; 32,768 (12 x 64), 118,800 tokens: commit `old`, one launch of each "
        "in turn; 4,608 tokens: commit `old`, by hand."
    )
    assert line in tables.attention_table(tmp_path).splitlines()[-1]
    assert line in tables.kernel_table(tmp_path).splitlines()[-1]
    # One shape, all of whose rows were kept.
    peers = tables.peer_table(tmp_path).splitlines()[-1]
    assert "by lot; 118,800 tokens: commit `old`, one launch of each in turn." in peers


def test_peers_stand_beside_ours_and_absent_ones_say_why(tables, results):
    lines = tables.peer_table(results).splitlines()
    assert "| torch SDPA (cuDNN) | 20.00 |  |  |  |  | 0.040 |  |" in lines
    assert "| sol_attn |  |  | 7.00 |  |  |  | chooses its blocks |" in lines
    assert "| **PARO 8/8, 64x128** | 8.00 |  | 2.50 |  |  | 0.040 |  |" in lines
    assert "Not run: SageAttention 2 (not installed)." in lines[-1]


def test_the_kernel_and_the_overhead_have_their_own_table(tables, results):
    lines = tables.kernel_table(results).splitlines()
    assert "| 32,768 tokens, 8/8 | 64x128 | 950 |  | 950 |  |  |" in lines
    assert "| 32,768, 12 x 128 | 1.8% | 0.4% | 0.9% |" in lines


def test_the_fastest_at_equal_error_is_marked(tables, tmp_path):
    rows = [
        {"error": 0.02, "best": "PARO 64x64", "ms": {"PARO 64x64": 3.0, "sol_attn": None}},
        {"error": 0.08, "best": "sol_attn", "ms": {"PARO 64x64": 1.5, "sol_attn": 1.25}},
    ]
    curve = {
        "gpu": "a card", "versions": {"torch": "2"}, "commit": "abc", "tokens": 32768,
        "sdpa_ms": 10.0, "equal_error": rows, "not_run": [{"name": "x", "reason": "absent"}],
        "points": [{"family": "PARO 64x64"}, {"family": "sol_attn"}, {"family": "sol_attn"}],
    }  # fmt: skip
    (tmp_path / "error-curve-h100.json").write_text(json.dumps(curve))
    lines = tables.curve_table(tmp_path).splitlines()
    assert lines[0] == "| error | PARO 64x64 | sol_attn |"
    assert lines[2:4] == ["| 0.02 | **3.00 ms** |  |", "| 0.08 | 1.50 ms | **1.25 ms** |"]
    assert "Not run: x (absent)." in lines[-1] and "error_curve.py" in lines[-1]


def test_an_older_report_has_no_peer_and_kernel_tables(tables, tmp_path):
    old = report()
    old["rows"] = [row for row in old["rows"] if row["whole_call"]][:1]
    for name in ("peers", "overhead"):
        del old[name]
    del old["rows"][0]["baseline"]
    (tmp_path / "attention-h100.json").write_text(json.dumps(old))
    assert tables.peer_table(tmp_path) is None and tables.kernel_table(tmp_path) is None
    assert "| tokens" in tables.attention_table(tmp_path)


def test_the_speed_table_takes_whole_calls_with_random_masks():
    entries = importlib.import_module("speed_table").measured(report())
    assert [entry["times"] for entry in entries] == [[[0.3, 0.25], [1.0, 0.8]]]


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or unavailable_reason("cpu") is not None,
    reason="needs Triton under TRITON_INTERPRET=1 (set where there is no GPU)",
)
def test_the_benchmarks_rows_fill_the_tables(tables, tmp_path, monkeypatch):
    gated = importlib.import_module("gated_functions")
    cases, peers = importlib.import_module("bench_cases"), importlib.import_module("peers")
    shape = cases.Shape(1, 160, 64, extra_tokens=32)
    bench = gated.Bench(cases.random_inputs(shape, "cpu", torch.float16), (9, 0))
    by_key = {peer.key: peer for peer in peers.PEERS}
    bench.add_peer(by_key["sdpa"], (0.5,))
    bench.add_peer(dataclasses.replace(by_key["sdpa"], name="wrong", budget=0.0), (0.5,))
    bench.add_peer(by_key["sol"], (0.5,))
    bench.add(gated.Setting(0.5, (64, 64), (8, 16), alone=True), None)
    assert [row["name"] for row in bench.not_run] == ["wrong", "comfy-kitchen sol_attn"]
    assert "over its budget" in bench.not_run[0]["reason"]

    def fake(functions, _seconds, _rounds):
        for function in functions.values():
            function()
        return {name: 2.0 for name in functions}

    monkeypatch.setattr(gated, "sustained_ms", fake)
    rows, extra = bench.timed(0.0)
    assert extra == {} and [row["whole_call"] for row in rows] == [True, True, False]
    assert all(row["ms"] == 2.0 and row["speed_up"] == 1.0 for row in rows)
    assert rows[0]["baseline"] and rows[0]["tflops"] == pytest.approx(shape.flops / 2e9)
    density = rows[1]["density"]
    assert rows[1]["tflops"] / rows[0]["tflops"] == pytest.approx(1 - 0.64 * (1 - density))
    full = report() | {"rows": json.loads(json.dumps(rows))}
    (tmp_path / "attention-h100.json").write_text(json.dumps(full))
    for table in ("attention", "peers", "kernel"):
        assert tables.SECTIONS[table](tmp_path)
