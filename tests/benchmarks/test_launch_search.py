"""What the search makes of times, and how it writes them into the launch table."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from paro_attention.kernels import launch_table
from paro_attention.kernels.launch import select_launch
from paro_attention.kernels.launch_table import LaunchConfig

TABLE = Path(launch_table.__file__)
SLOW, FAST = LaunchConfig(64, 128, 4, 3), LaunchConfig(64, 128, 4, 2, 168, tma=True)


@pytest.fixture(scope="module")
def search():
    return importlib.import_module("launch_search")


@pytest.mark.parametrize("capability", [(8, 6), (9, 0)], ids=str)
def test_candidates_begin_with_the_present_launch_and_fit_the_block(search, capability):
    for key in search.MAIN:
        launches = search.candidates(key, capability)
        assert launches[0] == select_launch(key.block, key.head_dim, *key.bits, capability)
        assert 4 <= len(launches) <= 16 and len(set(launches)) == len(launches)
        for launch in launches:
            assert key.block[0] % launch.query_tile == 0 and key.block[1] % launch.key_tile == 0
            assert capability[0] == 9 or not launch.tma
            if key.bits[1] < 16:
                assert launch.key_tile == key.block[1]


def test_keys_are_read_as_they_are_written(search):
    for key in search.MAIN:
        assert search.Key.parse(str(key)) == key


def test_a_launch_must_win_clearly_to_take_a_density(search):
    times = {
        SLOW: {1.0: 10.0, 0.5: 5.0, 0.2: 2.0, 0.1: 0.99},
        FAST: {1.0: 8.0, 0.5: 4.0, 0.2: 1.9, 0.1: 1.0},
    }
    assert set(search.chosen(times).values()) == {FAST}
    times[SLOW][0.1] = 0.9
    assert search.chosen(times) == {1.0: FAST, 0.5: FAST, 0.2: FAST, 0.1: SLOW}


def test_rows_cover_every_density_once(search):
    key = search.Key((8, 8), (64, 128))
    times = {
        SLOW: {1.0: 10.0, 0.5: 5.0, 0.2: 2.0, 0.1: 0.9},
        FAST: {1.0: 8.0, 0.5: 4.0, 0.2: 1.9, 0.1: 1.0},
    }
    low, high = search.table_rows(key, times, 90, 8e12)
    assert low.densities == (0.0, 0.141) and high.densities == (0.141, 1.0)
    assert low.launch == SLOW and high.launch == FAST
    assert high.measured == ((1.0, 1000), (0.5, 1000), (0.2, 842))
    (only,) = search.table_rows(key, {FAST: times[FAST]}, 90, 8e12)
    assert only.densities == (0.0, 1.0) and len(only.measured) == 4


def test_the_written_table_is_read_back(search, tmp_path, monkeypatch):
    key = search.Key((8, 8), (64, 128))
    rows = search.table_rows(key, {SLOW: {1.0: 10.0, 0.1: 1.0}}, 90, 8e12)
    text = search.rewritten(TABLE.read_text(), "SEARCHED", "LaunchRow", rows)
    block = launch_table.BlockRow(90, 0.04, (64, 64), 0.3, 0.25)
    text = search.rewritten(text, "BLOCKS", "BlockRow", [block])
    assert max(map(len, text.splitlines())) <= 100
    (tmp_path / "written_launch_table.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    read = importlib.import_module("written_launch_table")
    assert [repr(row) for row in read.SEARCHED] == [repr(row) for row in rows]
    assert repr(read.BLOCKS[0]) == repr(block)
    found = read.launch_row((64, 128), 128, 8, 8, (9, 0), 0.3)
    assert found.launch.num_stages == 3 and found.measured == ((1.0, 800), (0.1, 800))
    assert not read.launch_row((64, 128), 128, 8, 8, (8, 9), 0.3).measured
    again = search.rewritten(text, "SEARCHED", "LaunchRow", ())
    again = search.rewritten(again, "BLOCKS", "BlockRow", ())
    assert "SEARCHED: tuple[LaunchRow, ...] = ()" in again


def test_rows_of_other_calls_stay(search):
    times = {SLOW: {1.0: 10.0}}
    mine = search.table_rows(search.Key((8, 8), (64, 128)), times, 90, 8e12)
    other = search.table_rows(search.Key((8, 8), (64, 128)), times, 89, 8e12)
    faster = search.table_rows(search.Key((8, 8), (64, 128)), {FAST: {1.0: 8.0}}, 90, 8e12)
    assert search.merged([*mine, *other], faster) == [*faster, *other]
