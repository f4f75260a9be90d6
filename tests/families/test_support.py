"""docs/support.json, README.md and nodes/families say the same; `make support` writes them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from paro_attention.nodes.families import FAMILIES, UNSERVED

ROOT = Path(__file__).resolve().parents[2]


def _load_support():
    path = Path(__file__).with_name("support.py")
    spec = importlib.util.spec_from_file_location("family_support", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


support = _load_support()
ROWS = json.loads((ROOT / "docs" / "support.json").read_text(encoding="utf-8"))


def test_readme_shows_the_rows():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert support.filled(text, ROWS) == text, "run make support"


def test_every_family_has_a_row():
    rows = {row["family"]: row for row in ROWS if row["family"]}
    assert list(rows) == list(dict.fromkeys(family.name for family in FAMILIES))
    for row in rows.values():
        assert 0 < row["sparse_calls"] <= row["calls"]
        assert row["max_rel_err"] < support.EXACT
        assert row["versions"] and row["classes"] and row["head_dim"]


def test_every_reason_has_a_row():
    reasons = {row["note"] for row in ROWS if not row["family"]}
    assert set(UNSERVED.values()) <= reasons
    assert all(row["versions"] and row["classes"] for row in ROWS)


def answer(error: float, handled: int = 6) -> dict:
    run = {"error": error, "dense": {}, "handled": handled, "forwards": 3}
    return {
        "calls": 4.0,
        "head_dim": 128,
        "misplaced": [],
        "exact_cfg_1": run,
        "exact_cfg_3": run | {"error": 0.0},
    }


def test_rows_gather_what_the_hosts_saw():
    case = SimpleNamespace(name="a", family="A", reason="", note="", model_class="KlassA")
    edit = SimpleNamespace(name="b", family="A", reason="", note="dense b", model_class="KlassA")
    none = SimpleNamespace(name="c", family="", reason="no hook", note="", model_class="KlassC")
    served = {"family": "A", "reason": ""}
    old = support.Host(
        "0.3.64",
        {"a": answer(2e-6), "c": {"dense": True, "reason": "C: no hook here"}},
        {"KlassA": served, "KlassC": served, "UNet": {"family": "", "reason": "convolutional"}},
    )
    new = support.Host("0.33.0", {"a": answer(1e-7), "b": answer(3.4e-5)}, {"KlassD": served})
    hosts, cases = [old, new], [case, edit, none]
    (row,) = support.served_rows(["A"], cases, hosts)
    assert row == {
        "family": "A", "classes": ["KlassA", "KlassC", "KlassD"], "versions": ["0.3.64", "0.33.0"],
        "head_dim": [128], "sparse_calls": 2, "calls": 4, "max_rel_err": 3e-5, "note": "dense b",
    }  # fmt: skip
    dense = support.dense_rows(cases, hosts)
    assert [(r["note"], r["classes"], r["versions"]) for r in dense] == [
        ("convolutional", ["UNet"], ["0.3.64"]),
        ("no hook here", ["KlassC"], ["0.3.64"]),
    ]
    text = support.section([row, *dense])
    assert "| A | 0.3.64, 0.33.0 | KlassA, KlassC, KlassD | 128 | 2 / 4 | dense b |" in text
    assert "| UNet | 0.3.64 | convolutional |" in text


def test_faults_are_found():
    case = SimpleNamespace(family="A", reason="", layers=2, repeats=0)
    assert support.fault(case, answer(1e-6)) == ""
    assert support.fault(case, answer(0.1)) == "differs from the host"
    assert support.fault(case, {"error": "Trace\nValueError: no\n"}) == "ValueError: no"
    assert support.fault(case, answer(1e-6, handled=3)).startswith("3 calls in 3 forwards")
    assert support.fault(case, answer(1e-6) | {"misplaced": ["corner"]}) == "corner"
    declined = answer(1e-6) | {"exact_cfg_1": {"error": 0.0, "dense": {"mask": 6}}}
    assert "mask" in support.fault(case, declined)
    dense = SimpleNamespace(family="", reason="no hook", calls=0)
    assert support.fault(dense, {"dense": True, "reason": "C: no hook"}) == ""
    assert "is not dense" in support.fault(dense, {"dense": False, "reason": ""})
    reached = {"dense": True, "reason": "C: no hook", "calls": 2.0}
    assert "is not dense" in support.fault(dense, reached)


def test_a_readme_without_its_section_is_refused():
    with pytest.raises(ValueError, match="must have one"):
        support.filled("nothing here\n", ROWS)
