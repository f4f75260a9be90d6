"""The share of a step that the sparse attention takes."""

from __future__ import annotations

import time

import pytest
import torch
from paro_attention.nodes import step_timer
from paro_attention.nodes.run_stats import RunStats
from paro_attention.nodes.step_timer import StepTime, StepTimer

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so; counts how often it is read."""
    state = {"now": 0.0, "reads": 0}

    def read():
        state["reads"] += 1
        return state["now"]

    monkeypatch.setattr(step_timer.time, "perf_counter", read)
    return state


def forward(timer, clock, sigma, calls=4, attention=0.25, other=1.0):
    """A forward that takes `other` seconds and `attention` seconds for each sparse call."""
    timer.begin_forward()
    for _ in range(calls):
        clock["now"] += other / max(1, calls)
        with timer.attention(sigma, CPU):
            clock["now"] += attention
    if not calls:
        clock["now"] += other


def test_says_what_share_of_a_step_the_attention_takes(clock):
    timer = StepTimer()
    timer.begin_run(10)
    forward(timer, clock, 1.0, attention=50)  # compiles
    for step in range(1, 10):
        forward(timer, clock, 1 - step / 10)
    clock["now"] += 0.5  # what the sampler does behind the last forward
    assert timer.end_run() == StepTime(pytest.approx(1.0), pytest.approx(2.0))


def test_forwards_of_one_noise_level_are_one_step(clock):
    timer = StepTimer()
    timer.begin_run(4)
    for step in range(4):
        for _ in range(2):  # positive and negative prompt apart
            forward(timer, clock, 1 - step / 10)
    found = timer.end_run()
    assert found is not None and (found.attention, found.step) == (2.0, 4.0)
    assert found.line() == "sparse attention 50 % of the step, 2 s of 4 s"


def test_only_a_few_steps_are_measured(clock):
    timer = StepTimer()
    timer.begin_run(100)
    for step in range(100):
        forward(timer, clock, 1 - step / 100, calls=10)
    timer.end_run()
    assert clock["reads"] <= 2 * 10 * step_timer.MEASURED_STEPS + 101


@pytest.mark.parametrize("steps", [0, 1])
def test_runs_too_short_to_measure_say_nothing(clock, steps):
    timer = StepTimer()
    timer.begin_run(steps)
    for step in range(steps):
        forward(timer, clock, 1 - step / 10)
    assert timer.end_run() is None
    timer.begin_run(5)
    for _ in range(5):
        forward(timer, clock, 1.0, calls=0)  # all dense
    assert timer.end_run() is None


def test_a_failing_call_is_not_counted(clock):
    timer = StepTimer()
    timer.begin_run(2)
    forward(timer, clock, 1.0)
    timer.begin_forward()
    with pytest.raises(RuntimeError), timer.attention(0.5, CPU):
        raise RuntimeError
    assert timer.end_run() is None


def test_events_that_cannot_be_read_do_not_fail_the_run(clock, monkeypatch):
    def not_ready(_begin, _end):
        raise RuntimeError("device not ready")

    timer = StepTimer()
    timer.begin_run(3)
    for step in range(3):
        forward(timer, clock, 1 - step / 10)
    monkeypatch.setattr(step_timer, "_seconds", not_ready)
    assert timer.end_run() is None


def test_the_status_names_it():
    stats = RunStats("1", "load", handled=4, time=StepTime(1.2345, 3.0))
    assert "; sparse attention 41 % of the step, 1.23 s of 3 s" in stats.line()


@pytest.mark.gpu
def test_events_measure_the_gpu_without_waiting():
    timer = StepTimer()
    device = torch.device("cuda", torch.cuda.current_device())
    x = torch.randn(4096, 4096, device=device)
    timer.begin_run(4)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for sigma in (1.0, 0.8, 0.6, 0.4):
        timer.begin_forward()
        with timer.attention(sigma, device):
            for _ in range(30):
                x @ x
        for _ in range(30):
            x @ x
    queued = time.perf_counter() - began
    found = timer.end_run()
    assert found is not None and 0.3 < found.attention / found.step < 0.7
    assert queued < found.step, "four steps were queued before one of them was over"
