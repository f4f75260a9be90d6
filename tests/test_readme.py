"""README.md shows the figures of benchmarks/results, and names files that exist."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from benchmark_scripts import benchmark_script

ROOT = Path(__file__).resolve().parent.parent


tables = benchmark_script("readme_tables")


def test_readme_agrees_with_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run make readme"


def test_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_attention_table_divides_the_whole_call_by_sdpa(tmp_path):
    base = {"whole_call": True, "batch": 1, "heads": 12, "tokens": 1024, "head_dim": 128}
    rows = [
        base | {"ours": False, "block": None, "density": 1.0, "ms": 8.0, "rel_err": None},
        base | {"ours": True, "block": [64, 128], "density": 1.0, "ms": 8.0, "rel_err": 0.03},
        base | {"ours": True, "block": [64, 128], "density": 0.501, "ms": 4.0, "rel_err": 0.03},
    ]
    rows = [row | {"qk_bits": 8, "pv_bits": 8} for row in rows]
    report = {"gpu": "a card", "versions": {"torch": "2"}, "commit": "abc", "rows": rows}
    (tmp_path / "attention-h100.json").write_text(json.dumps(report))
    table = tables.attention_table(tmp_path)
    assert "| 1,024, 12 x 128 | 8/8 | 64x128 | 8.00 ms | 2.00x |  |  |  | 0.030 |" in table
    assert "a card" in table and "`abc`" in table


def test_sections_without_results_are_empty_and_unknown_ones_refused(tmp_path):
    text = "a\n<!-- figures:demo -->\nold\n<!-- /figures -->\nb\n"
    assert tables.filled(text, tmp_path) == "a\n<!-- figures:demo -->\n<!-- /figures -->\nb\n"
    with pytest.raises(ValueError, match="figures must be one of"):
        tables.filled(text.replace("demo", "speed"), tmp_path)


def _sentences() -> str:
    """Every text in the code of the pack, f-strings with their values left out."""
    found = []
    for folder in ("nodes", "kernels", "calibration"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [p.value for p in node.values if isinstance(p, ast.Constant)]
                    found.append("\0".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_troubleshooting_is_keyed_by_what_the_code_says():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Troubleshooting")[1].split("\n## ")[0]
    keys = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(keys) > 10
    said = _sentences().replace("models/\0", "models/paro")  # the folder's name is a constant
    for key in keys:
        # Numbers, names and the prefixes that are put before a reason stand for values.
        pieces = re.split(r"\bN\b|…|\b\d{2,}\b|^runs dense: |^dense: ", key)
        for piece in (p.strip(" ,'") for p in pieces):
            assert piece in said, f"nothing in the code says {piece!r} of {key!r}"


def test_every_template_is_in_the_quick_start():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "example_workflows").glob("*.json"):
        assert f"(example_workflows/{path.name})" in text, path.name
