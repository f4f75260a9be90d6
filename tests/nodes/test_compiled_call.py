"""What is decided around compiled models, without compiling one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paro_attention.nodes.attention_call import is_self_attention
from paro_attention.nodes.compiled_call import StaleGraphs
from torch import nn


class Executor:
    """A compiled model's forward; `answers` says of each call whether it asks our override."""

    def __init__(self, stale: StaleGraphs, answers: list[bool], compiled: bool = True):
        module = nn.Linear(1, 1)
        if compiled:
            module._orig_mod = nn.Identity()
        self.class_obj: Any = SimpleNamespace(modules=lambda: [module])
        self._stale, self._answers = stale, answers
        self.calls = 0

    def __call__(self) -> int:
        self._stale.asked |= self._answers[self.calls]
        self.calls += 1
        return self.calls


@pytest.fixture
def resets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: made.append(1))
    return made


def run(stale: StaleGraphs, executor: Executor, forwards: int) -> list[int]:
    stale.arm()
    return [stale.wrapper()(executor) for _ in range(forwards)]


def test_graphs_from_before_are_made_anew_once(resets: list[int]):
    stale = StaleGraphs()
    executor = Executor(stale, [False, True, True, True, True])
    assert run(stale, executor, 2) == [2, 3]
    assert run(stale, executor, 2) == [4, 5]
    assert len(resets) == 1


def test_graphs_that_never_ask_are_not_made_anew_at_every_run(resets: list[int]):
    stale = StaleGraphs()
    executor = Executor(stale, [False] * 6)
    assert run(stale, executor, 2) == [2, 3]
    assert run(stale, executor, 2) == [4, 5]
    assert len(resets) == 1


def test_an_uncompiled_model_is_never_run_twice(resets: list[int]):
    stale = StaleGraphs()
    assert run(stale, Executor(stale, [False] * 2, compiled=False), 2) == [1, 2]
    assert resets == []


def shapes(*sizes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.empty(size, device="meta") for size in sizes]


@pytest.mark.parametrize(
    ("tensors", "skip_reshape", "gqa", "expected"),
    [
        (shapes((2, 9, 12), (2, 9, 12), (2, 9, 12)), False, False, True),
        (shapes((2, 9, 12), (2, 9, 12), (2, 9, 4, 3)), False, False, True),
        (shapes((2, 4, 9, 3), (2, 4, 9, 3), (2, 4, 9, 3)), True, False, True),
        (shapes((2, 4, 9, 3), (2, 2, 9, 3), (2, 2, 9, 3)), True, True, True),
        (shapes((2, 9, 12), (2, 9, 6), (2, 9, 6)), False, True, True),
        (shapes((2, 4, 9, 3), (2, 2, 9, 3), (2, 2, 9, 3)), True, False, False),
        (shapes((2, 4, 9, 3), (2, 3, 9, 3), (2, 3, 9, 3)), True, True, False),
        (shapes((2, 4, 9, 3), (2, 4, 8, 3), (2, 4, 8, 3)), True, True, False),
        (shapes((2, 9, 12), (2, 9, 5), (2, 9, 5)), False, True, False),
        (shapes((2, 9, 12), (2, 8, 12), (2, 8, 12)), False, False, False),
        (shapes((2, 9, 12), (1, 9, 12), (1, 9, 12)), False, True, False),
        (shapes((2, 9, 12), (2, 9, 12), (2, 9, 6)), False, True, False),
    ],
)
def test_self_attention_is_told_by_shapes(tensors, skip_reshape, gqa, expected):
    assert is_self_attention(*tensors, 4, skip_reshape, gqa) is expected
