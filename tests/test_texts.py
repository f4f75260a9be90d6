"""The texts of the picture in Load PARO: every language says what the modules ask for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "web" / "js"
# Letters of each language's script, so that an English text left behind is found.
SCRIPT = {"zh": "[\u4e00-\u9fff]", "ja": "[\u3040-\u30ff\u4e00-\u9fff]", "ko": "[\uac00-\ud7af]"}


def table() -> dict[str, dict[str, str]]:
    """Texts by language and key."""
    script = (SCRIPTS / "paro_texts.js").read_text(encoding="utf-8")
    _, body = script.split("export const TEXTS = ")
    return json.loads(body.rstrip().removesuffix(";"))


def values(text: str) -> set[str]:
    """The places of a text that stand for values."""
    return set(re.findall(r"\{(\w+)\}", text))


def test_four_languages():
    assert list(table()) == ["en", "zh", "ja", "ko"]


@pytest.mark.parametrize("language", list(SCRIPT))
def test_a_language_says_what_english_says(language):
    english, other = table()["en"], table()[language]
    assert list(other) == list(english)
    for key, text in english.items():
        assert values(other[key]) == values(text), key
        assert re.search(SCRIPT[language], other[key]), (key, other[key])
        # Figures are not translated; of words, a text may well have fewer.
        plain = re.sub(r"\{\w+\}", "", text)
        assert set(re.findall(r"\d+", plain)) == set(
            re.findall(r"\d+", re.sub(r"\{\w+\}", "", other[key]))
        ), key


def test_no_text_is_missing_and_none_is_left_over():
    """Every key that the modules say is in the table, and every key there is used."""
    code = "".join(
        path.read_text(encoding="utf-8")
        for path in SCRIPTS.glob("*.js")
        if path.name != "paro_texts.js"
    )
    keys = set(table()["en"])
    asked = set(re.findall(r'\bsay\("(\w+)"', code))
    assert asked <= keys, asked - keys
    # Built from the names of the steppers, and said by the server (nodes/sparse_session.py).
    built = {f"{name}_at" for name in ("layer", "head", "band")}
    built |= {f"{name}_tip" for name in ("before", "reordered", "all_heads")}
    server = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("nodes", "calibration")
        for path in (SCRIPTS.parent.parent / folder).glob("*.py")
    )
    for key in keys - built:
        quoted = f'"{key}"' in code
        # A reason with a number is a formatted string.
        told = re.search(re.escape(key).replace(r"\{n\}", r"\{[^}]*\}"), server)
        assert quoted or told, f"nothing says {key}"
