"""Which shapes a benchmark times, and what its report keeps of an earlier one."""

from __future__ import annotations

import importlib
import json
from argparse import Namespace

import pytest


@pytest.fixture
def attention():
    return importlib.import_module("attention")


@pytest.fixture
def kept():
    return importlib.import_module("kept_shapes")


def rows_of(tokens, extra=0, heads=12):
    shape = {"heads": heads, "tokens": tokens, "head_dim": 128, "extra_tokens": extra, "batch": 1}
    return [shape | {"name": name, "ms": 1.0} for name in ("SDPA", "ours")]


def report(commit, *rows, not_run=()):
    return {
        "gpu": "a card", "versions": {"torch": "2"}, "commit": commit,
        "rows": [row for group in rows for row in group],
        "overhead": [group[0] for group in rows], "not_run": list(not_run),
    }  # fmt: skip


def skipped(shape, reason):
    return {"name": "all", "shape": shape, "reason": reason}


def test_shapes_that_a_run_lacks_are_kept_and_name_their_commit(kept):
    short, long = "4,608 tokens with 512 extra, 12 x 128", "32,768 tokens, 12 x 128"
    never = skipped("75,600 tokens, 40 x 128", "the budget was spent")
    new = report("new", rows_of(32768), not_run=[skipped(short, "the budget was spent")])
    earlier = report(
        "old", rows_of(32768), rows_of(4608, 512),
        not_run=[skipped(short, "slow"), skipped(long, "slow"), never],
    ) | {"timing": "by hand"}  # fmt: skip
    whole = kept.with_kept(new, earlier)
    assert whole["rows"][:2] == new["rows"] and whole["commit"] == "new"
    assert [row["tokens"] for row in whole["rows"][2:]] == [4608, 4608]
    assert {(row["commit"], row["timing"]) for row in whole["rows"][2:]} == {("old", "by hand")}
    assert [row["tokens"] for row in whole["overhead"]] == [32768, 4608]
    assert whole["not_run"] == [skipped(short, "slow"), never]
    # Kept once more, by a run without them, they stay those of their own commit.
    again = kept.with_kept(new, whole | {"commit": "newer", "timing": "another"})
    assert again["rows"] == whole["rows"]


@pytest.mark.parametrize("part", ["gpu", "versions"], ids=["card", "versions"])
def test_nothing_is_kept_of_another_card_or_version(kept, part):
    earlier = report("old", rows_of(4608)) | {part: "another"}
    with pytest.raises(ValueError, match=f"same {part} only.*another.*without --keep"):
        kept.with_kept(report("new"), earlier)


@pytest.mark.parametrize("text", [None, "", "[]", "{}", json.dumps({"rows": []})])
def test_a_file_that_is_no_report_is_refused_at_once(attention, capsys, tmp_path, text):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit):
        attention.parse(["--keep", str(path)])
    said = capsys.readouterr().err
    assert "--keep takes" in said and "report.json" in said


def test_shapes_are_groups_and_numbers_of_tokens(attention):
    def chosen(*arguments):
        return [str(shape) for shape, _ in attention.parse(arguments).todo]

    every = [str(shape) for shapes in attention.SHAPES.values() for shape in shapes]
    assert chosen() == every
    assert chosen("--quick") == ["32,768 tokens, 12 x 128"]
    assert chosen("--shapes", "33016,75600") == [
        "75,600 tokens, 40 x 128", "33,016 tokens with 256 extra, 12 x 128"
    ]  # fmt: skip
    joint = [str(shape) for shape in attention.SHAPES["joint"]]
    assert chosen("--shapes", "joint") == chosen("--shapes", "4608,joint") == joint
    assert len(chosen("--shapes", "4608")) == 3


@pytest.mark.parametrize("wrong", [["--shapes", "4609"], ["--masks", "none"], ["--peers", "x"]])
def test_an_unknown_choice_is_named(attention, capsys, wrong):
    with pytest.raises(SystemExit):
        attention.parse(wrong)
    assert repr(wrong[1]) in capsys.readouterr().err


def test_a_report_is_written_whole_with_what_it_keeps(attention, kept, tmp_path):
    out = tmp_path / "new" / "attention.json"
    new, earlier = report("new", rows_of(32768)), report("old", rows_of(4608))
    attention.write(out, new)
    assert json.loads(out.read_text()) == new
    attention.write(out, kept.with_kept(new, earlier))
    assert [row["tokens"] for row in json.loads(out.read_text())["rows"]] == [32768] * 2 + [
        4608
    ] * 2
    with pytest.raises(TypeError):
        attention.write(out, new | {"gpu": Namespace})
    assert len(json.loads(out.read_text())["rows"]) == 4
