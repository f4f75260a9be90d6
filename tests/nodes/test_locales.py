"""Names and tooltips in four languages, and the help pages, for every node that the hosts list."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LANGUAGES = ("en", "zh", "ja", "ko")
# Letters of each language's script, so that an English text left behind is found.
SCRIPT = {"zh": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "ko": "[\uac00-\ud7af]"}


def texts(language: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def english(info: dict[str, Any]) -> dict[str, Any]:
    """What the script in docs/tools makes of a host's nodes."""
    path = ROOT / "docs" / "tools" / "locales.py"
    spec = importlib.util.spec_from_file_location("paro_docs_locales", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.english(info)


@pytest.mark.comfy
def test_english_is_what_the_nodes_say(host):
    """Every input and output has a tooltip, or the script would fail."""
    assert english(host.get("/object_info")) == texts("en"), "run docs/tools/locales.py"


@pytest.mark.comfy
def test_the_page_is_given_all_languages(host):
    served = host.get("/i18n")
    for language in LANGUAGES:
        assert served[language]["nodeDefs"].items() >= texts(language).items()


@pytest.mark.parametrize("language", [code for code in LANGUAGES if code != "en"])
def test_a_translation_covers_every_text(language):
    source, translated = texts("en"), texts(language)
    assert translated.keys() == source.keys()
    for name, node in source.items():
        other = translated[name]
        for part in ("inputs", "outputs"):
            assert other[part].keys() == node[part].keys(), (name, part)
            for key, text in other[part].items():
                assert re.search(SCRIPT[language], text["tooltip"]), (name, key)
                assert text["name"].strip()
        assert re.search(SCRIPT[language], other["description"]), name
        # Figures and file names are not translated: a default that changes is missed otherwise.
        for key, text in node["inputs"].items():
            figures = set(re.findall(r"\d+\.\d+|\b\d{2,}\b", text["tooltip"]))
            assert figures <= set(re.findall(r"\d+\.\d+|\d{2,}", other["inputs"][key]["tooltip"]))


@pytest.mark.comfy
def test_every_node_has_a_help_page_that_names_its_inputs(host):
    info = host.get("/object_info")
    for name in (kind for kind in info if kind.startswith("Paro")):
        page = host.get_text(f"/extensions/paro-attention/docs/{name}.md")
        assert page.startswith(f"# {info[name]['display_name']}\n")
        inputs = info[name]["input"]
        for key in (*inputs.get("required", {}), *inputs.get("optional", {})):
            assert re.search(rf"\b{key}\b", page), f"{name}.md does not explain {key}"
        for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page):
            assert (ROOT / "web" / "docs" / picture).is_file(), picture


@pytest.mark.comfy
def test_nodes_are_found_by_what_users_type(host):
    info = host.get("/object_info")
    if "search_aliases" not in info["ParoLoad"]:
        pytest.skip("this ComfyUI has no search aliases")
    for name in (kind for kind in info if kind.startswith("Paro")):
        assert "paro" in info[name]["search_aliases"], name
