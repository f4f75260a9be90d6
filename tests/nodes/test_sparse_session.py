"""The session behind Load PARO, on a real plan; needs no ComfyUI."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from paro_attention.calibration import (
    ModelIdentity,
    NoiseBands,
    Plan,
    Recorder,
    RuntimeOptions,
    TokenGrid,
)
from paro_attention.nodes.attention_call import HostCall, VisualCall
from paro_attention.nodes.run_stats import recent_runs
from paro_attention.nodes.sparse_session import SparseSession

GRID = TokenGrid(4, 8, 8)
LAYERS, HEADS, DIM = 2, 2, 64
SIGMAS = [1.0, 0.9, 0.6, 0.3]
MODEL = SimpleNamespace(get_model_object=lambda _name: SimpleNamespace(sigma_max=1.0))


def tensors(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, HEADS, GRID.tokens, DIM)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    return q, k, v


def call(layer: int, sigma: float) -> VisualCall:
    return VisualCall(layer, sigma, GRID.shape, *tensors(layer), (0,))


@pytest.fixture(scope="module")
def plan() -> Plan:
    recorder = Recorder(
        GRID, layers=LAYERS, heads=HEADS, head_dim=DIM, schedule=SIGMAS,
        bands=NoiseBands.from_schedule(SIGMAS, count=2), orders="fhw",
    )  # fmt: skip
    recorder.begin_prompt(0)
    for sigma in SIGMAS:
        for layer in range(LAYERS):
            if recorder.wants(layer, sigma):
                recorder.record(layer, sigma, *tensors(layer))
    return recorder.finish(ModelIdentity("a", "w", LAYERS, HEADS, DIM, "test"))


def session(plan: Plan, told: list | None = None, **changes) -> SparseSession:
    options = {"density": 1.0, "qk_bits": 16, "pv_bits": 16, "warmup": 0.0}
    settings = {"min_tokens": 0, "on_unsupported": "dense"} | {
        k: changes.pop(k) for k in ("min_tokens", "on_unsupported") if k in changes
    }
    lines = [] if told is None else told
    return SparseSession(
        plan, RuntimeOptions(**(options | changes)), **settings, node_id="7",
        tell=lambda text, level: lines.append((level, text)),
    )  # fmt: skip


def run(sparse: SparseSession, sigmas: list[float] = SIGMAS) -> list:
    sparse.begin_run(sigmas, MODEL)
    results = []
    for sigma in sigmas:
        sparse.begin_forward()
        for layer in range(LAYERS):
            results.append(sparse.attend(call(layer, sigma)))
            if isinstance(results[-1], str):
                sparse.declined(results[-1])
    sparse.end_run(failed=False)
    return results


def test_density_one_is_dense_attention_and_counted(plan):
    told: list = []
    results = run(session(plan, told))
    for i, result in enumerate(results):
        expected = F.scaled_dot_product_attention(*tensors(i % LAYERS))
        assert (result - expected).norm() / expected.norm() < 1e-5
    summary = recent_runs[-1]
    assert (summary["handled"], summary["dense"], summary["mean_density"]) == (8, {}, 1)
    assert "8 of 8 attention calls sparse in 4 forwards" in told[-1][1]


def test_low_density_is_reported_as_executed(plan):
    run(session(plan, density=0.5))
    assert recent_runs[-1]["mean_density"] == pytest.approx(0.5, abs=0.15)


def test_warm_up_runs_dense_and_is_skipped_by_a_run_that_continues(plan):
    sparse = session(plan, warmup=0.5, density=0.5)
    assert [isinstance(r, str) for r in run(sparse)] == [True] * 4 + [False] * 4
    assert recent_runs[-1]["dense"] == {"warm-up": 4}
    assert not any(isinstance(r, str) for r in run(sparse, SIGMAS[2:]))
    assert [isinstance(r, str) for r in run(sparse)] == [True] * 4 + [False] * 4


def test_few_tokens_run_dense(plan):
    assert set(run(session(plan, min_tokens=1000))) == {"fewer than 1000 tokens"}


def test_rising_schedules_and_calls_outside_a_run_are_served(plan):
    assert not any(isinstance(r, str) for r in run(session(plan), [0.3, 0.6, 0.9]))
    alone = session(plan)
    alone.begin_forward()
    assert isinstance(alone.attend(call(0, 0.5)), torch.Tensor)


def test_a_failing_kernel_turns_its_layer_dense_on_a_gpu_only(plan, monkeypatch):
    told: list = []
    sparse = session(plan, told)
    sparse.begin_run(SIGMAS, MODEL)

    def fails(*_args, **_kwargs):
        raise RuntimeError("misaligned address")

    monkeypatch.setattr("paro_attention.calibration.plan_runtime.sparse_attention", fails)
    with pytest.raises(RuntimeError, match="misaligned"):
        sparse.attend(call(0, 0.9))
    monkeypatch.setattr(SparseSession, "_on_cpu", staticmethod(lambda _device: False))
    assert sparse.attend(call(0, 0.9)) == "the kernel failed"
    assert told[-1][0] == logging.WARNING and "misaligned address" in told[-1][1]
    monkeypatch.undo()
    assert sparse.attend(call(0, 0.6)) == "the kernel failed"
    assert isinstance(sparse.attend(call(1, 0.6)), torch.Tensor)


def test_a_kernel_that_fails_everywhere_is_given_up_with_few_warnings(plan, monkeypatch):
    told: list = []
    sparse = session(plan, told)
    sparse.begin_run(SIGMAS, MODEL)
    monkeypatch.setattr(SparseSession, "_on_cpu", staticmethod(lambda _device: False))
    monkeypatch.setattr("paro_attention.nodes.sparse_session.FAILURES_TO_GIVE_UP", 1)
    tried = []

    def fails(*_args, **_kwargs):
        tried.append(1)
        raise RuntimeError("does not compile")

    monkeypatch.setattr("paro_attention.calibration.plan_runtime.sparse_attention", fails)
    assert {sparse.attend(call(layer, 0.9)) for layer in (0, 1, 0, 1)} == {"the kernel failed"}
    assert len(tried) == 1
    assert sum(level == logging.WARNING for level, _ in told) == 1


def test_what_the_kernels_cannot_serve_is_dense_or_an_error(plan):
    gpu = torch.device("cuda")
    assert session(plan).cannot_serve(torch.device("cpu"), torch.float32, 96) is None
    assert "float32" in (session(plan).cannot_serve(gpu, torch.float32, 128) or "")
    with pytest.raises(RuntimeError, match=r"PARO cannot run here: .*float32"):
        session(plan, on_unsupported="error").cannot_serve(gpu, torch.float32, 128)


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "tolerance"), [(16, 0.01), (8, 0.06)])
def test_the_kernels_read_the_hosts_layout_on_a_gpu(plan, bits, tolerance):
    told: list = []
    sparse = session(plan, told, qk_bits=bits, pv_bits=bits)
    flat = [
        x.transpose(1, 2).reshape(1, GRID.tokens, HEADS * DIM).to("cuda", torch.bfloat16)
        for x in tensors(0)
    ]
    q, k, v = HostCall(*flat, HEADS).heads_first()
    sparse.begin_run(SIGMAS, MODEL)
    result = sparse.attend(VisualCall(0, 0.9, GRID.shape, q, k, v, (0,)))
    sparse.end_run(failed=False)
    assert isinstance(result, torch.Tensor)
    assert result.transpose(1, 2).is_contiguous(), "rows come back in the host's layout"
    expected = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    assert (result.float() - expected).norm() / expected.norm() < tolerance
    assert "Triton" in recent_runs[-1]["kernel"]
    assert "compiles the kernels" in told[0][1]
