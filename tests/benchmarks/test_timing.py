"""Times are those that a function settles to by itself, whoever ran before it."""

from __future__ import annotations

import importlib

import pytest


class Card:
    """A card whose launches are slow behind another function's, and then settle."""

    def __init__(self, monkeypatch):
        self.now, self.last, self.runs = 0.0, "", 0
        self.launched = []
        card, timing = self, importlib.import_module("timing")
        self.time = timing.sustained_ms

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = card.now

            def synchronize(self):
                assert self.at <= card.now

            def elapsed_time(self, later):
                return (later.at - self.at) * 1e3

        monkeypatch.setattr(timing.torch.cuda, "Event", Event)
        monkeypatch.setattr(timing.torch.cuda, "synchronize", lambda: None)
        monkeypatch.setattr(timing.time, "monotonic", lambda: card.now)

    def function(self, name, seconds):
        def run():
            self.runs = self.runs + 1 if self.last == name else 1
            self.last = name
            self.launched.append(name)
            self.now += seconds * (3.0 if self.runs <= 2 else 1.0)

        return run


def test_each_function_is_timed_where_it_has_settled(monkeypatch):
    card = Card(monkeypatch)
    times = {"a": 0.001, "b": 0.002, "c": 0.0003}
    functions = {name: card.function(name, seconds) for name, seconds in times.items()}
    assert card.time(functions, 0.0) == pytest.approx(
        {name: 1e3 * seconds for name, seconds in times.items()}
    )


def test_a_long_function_is_timed_behind_itself(monkeypatch):
    card = Card(monkeypatch)
    function = card.function("a", 1.0)
    card.runs = 2
    card.last = "a"
    assert card.time({"a": function}, 0.0, rounds=3) == {"a": 1000.0}
    # Once before the first round, twice in each.
    assert len(card.launched) == 1 + 3 * 2


def test_more_seconds_are_longer_windows_and_the_order_is_by_lot(monkeypatch):
    card = Card(monkeypatch)
    functions = {name: card.function(name, 0.01) for name in "abcd"}
    card.time(functions, 20.0, rounds=2)
    assert card.now == pytest.approx(20.0, rel=0.05)
    begun = [y for x, y in zip(card.launched, card.launched[1:], strict=False) if x != y]
    rounds = begun[-8:-4], begun[-4:]
    assert all(sorted(names) == list("abcd") for names in rounds)
    assert rounds[0] != rounds[1]
