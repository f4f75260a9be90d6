"""Times are those of a function behind itself, whoever ran before it."""

from __future__ import annotations

import importlib
from itertools import pairwise

import pytest


class Card:
    """A card with a clock of its own beside the host's, which only waits where it is told to.

    Launches are slow for ``settling`` seconds behind another function's.
    """

    HOST = 1e-5  # of the host, a launch

    def __init__(self, monkeypatch, settling=0.0):
        self.host, self.card, self.settling = 0.0, 0.0, settling
        self.last, self.since = "", 0.0
        self.launched, self.waits = [], 0.0
        card, timing = self, importlib.import_module("timing")
        self.time = timing.sustained_ms

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = max(card.card, card.host)

            def synchronize(self):
                card.host = max(card.host, self.at)

            def elapsed_time(self, later):
                assert max(self.at, later.at) <= card.host, "not there yet"
                return (later.at - self.at) * 1e3

        def synchronize():
            card.host = max(card.host, card.card)

        monkeypatch.setattr(timing.torch.cuda, "Event", Event)
        monkeypatch.setattr(timing.torch.cuda, "synchronize", synchronize)
        monkeypatch.setattr(timing.time, "monotonic", lambda: card.host)

    def function(self, name, seconds):
        def run():
            self.host += self.HOST
            begin = max(self.card, self.host)
            if self.last != name:
                self.last, self.since = name, begin
            elif self.card:
                self.waits += begin - self.card
            settled = begin - self.since >= self.settling
            self.card = begin + seconds * (1.0 if settled else 2.0)
            self.launched.append(name)

        return run


def test_the_second_half_of_a_window_counts(monkeypatch):
    card = Card(monkeypatch, settling=0.015)
    times = {"a": 0.001, "b": 0.002, "c": 0.0003}
    functions = {name: card.function(name, seconds) for name, seconds in times.items()}
    assert card.time(functions, 0.0) == pytest.approx(
        {name: 1e3 * seconds for name, seconds in times.items()}
    )


def test_the_median_of_a_window_and_of_the_rounds(monkeypatch):
    card = Card(monkeypatch)
    run, calls = card.function("a", 0.001), []

    def uneven():
        calls.append(0)
        # One launch in five is late, and so is the whole last round.
        for _ in range(3 if len(calls) % 5 == 0 or len(calls) > 70 else 1):
            run()

    assert card.time({"a": uneven}, 0.0, rounds=3) == pytest.approx({"a": 1.0})
    assert len(calls) > 75


def test_the_card_does_not_wait_for_the_host(monkeypatch):
    card = Card(monkeypatch)
    card.time({"a": card.function("a", 0.0005)}, 0.0, rounds=1)
    assert len(card.launched) > 70
    # Once before the window, and where its first launch tells how long one takes.
    assert card.waits < 4 * card.HOST


def test_a_function_longer_than_its_window_is_launched_twice(monkeypatch):
    card = Card(monkeypatch, settling=0.5)
    functions = {name: card.function(name, 1.0) for name in "ab"}
    assert card.time(functions, 0.0, rounds=3) == pytest.approx({"a": 1e3, "b": 1e3}, rel=1e-3)
    # Once before the first round, twice in each.
    assert sorted(card.launched) == ["a"] * 7 + ["b"] * 7


def test_more_seconds_are_longer_windows_and_the_order_is_by_lot(monkeypatch):
    card = Card(monkeypatch)
    functions = {name: card.function(name, 0.01) for name in "abcd"}
    card.time(functions, 20.0, rounds=2)
    assert card.card == pytest.approx(20.0, rel=0.05)
    begun = [later for before, later in pairwise(card.launched) if before != later]
    rounds = begun[-8:-4], begun[-4:]
    assert all(sorted(names) == list("abcd") for names in rounds)
    assert rounds[0] != rounds[1]


def test_no_functions_take_no_time(monkeypatch):
    assert Card(monkeypatch).time({}, 1.0) == {}
