"""Plan files: what goes in comes out, and nothing else does."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paro_attention.calibration import (
    ModelIdentity,
    PlanError,
    PlanMismatchError,
    load_plan,
    read_description,
    save_plan,
)
from safetensors import safe_open
from safetensors.torch import save_file


def parts(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}, json.loads(  # noqa: SIM118
            file.metadata()["paro_plan"]
        )


def write(path, tensors, description):
    save_file(tensors, path, metadata={"paro_plan": json.dumps(description)})


def test_saved_and_loaded_plans_are_equal(plan, tmp_path):
    path = tmp_path / "a plan.safetensors"
    save_plan(plan, path)
    save_plan(plan, path)  # replaces
    loaded = load_plan(path)
    for field in dataclasses.fields(plan):
        one, two = getattr(plan, field.name), getattr(loaded, field.name)
        if isinstance(one, torch.Tensor):
            assert one.dtype == two.dtype and torch.equal(one, two), field.name
        else:
            assert one == two, field.name
    assert [file.name for file in tmp_path.iterdir()] == ["a plan.safetensors"]
    description = read_description(path)
    assert description["schema"] == 1 and description["made_from"]["note"] == "from a test"


def test_an_interrupted_save_leaves_the_old_file(plan, tmp_path, monkeypatch):
    path = tmp_path / "plan.safetensors"
    save_plan(plan, path)
    before = path.read_bytes()

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_plan(plan, path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_foreign_and_truncated_files(plan, tmp_path):
    path = tmp_path / "plan.safetensors"
    with pytest.raises(PlanError, match=r"plan file plan.safetensors: expected a readable"):
        load_plan(path)
    path.write_bytes(b"not a plan at all")
    with pytest.raises(PlanError, match="expected a readable safetensors file, found"):
        load_plan(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(PlanError, match=r"expected the metadata entry 'paro_plan'.*not a"):
        load_plan(path)
    save_plan(plan, path)
    whole = path.read_bytes()
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(PlanError, match="expected a readable safetensors file, found"):
            load_plan(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1), value=st.integers(0, 255))
def test_a_damaged_header_is_a_plan_error_or_harmless(plan, tmp_path, place, value):
    path = tmp_path / "plan.safetensors"
    save_plan(plan, path)
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    data[int(place * (header - 1))] = value
    path.write_bytes(data)
    with contextlib.suppress(PlanError, PlanMismatchError):
        load_plan(path).check_model(plan.identity)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(schema=2), "expected plan schema 1, found 2"),
        (dict(schema="1"), "expected plan schema 1, found '1'"),
        (dict(grid=[0, 1, 1]), "frames must be at least 1"),
        (dict(block=[48, 48]), "block must be two of"),
        (dict(orders=["FHW", "sideways"]), "order must be one of"),
        (dict(band_shares=[1]), "shares must be 4 positive numbers"),
        (dict(band_edges=[0.2, 0.5, 0.7]), "strictly descending"),
        (dict(offset_bins=[[0], [1], [0]]), "contain 0"),
        (dict(recall_densities=[0.5]), "recall densities must be those of schema 1"),
        (dict(identity={}), "found KeyError"),
        (dict(made_from=None), "expected a complete description of a plan"),
        (dict(schema=True), "expected plan schema 1, found True"),
        (dict(schedule="fast"), "expected a list"),
        (dict(schedule=[]), "schedule must hold at least one positive sigma"),
        (dict(schedule=[0.1, 0.5]), "schedule must be in descending order"),
    ],
)
def test_bad_descriptions_are_named(plan, tmp_path, change, message):
    path = tmp_path / "plan.safetensors"
    save_plan(plan, path)
    tensors, description = parts(path)
    write(path, tensors, description | change)
    with pytest.raises(PlanError, match=message):
        load_plan(path)


def with_value(tensor, value):
    changed = tensor.clone()
    changed.view(-1)[0] = value
    return changed


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "order_of_head",
            lambda x: with_value(x, 200),
            "order_of_head must be finite and lie in 0",
        ),
        ("order_of_head", lambda x: x[:1], r"order_of_head must be torch.uint8 \[2, 3\]"),
        ("profile", lambda x: x.int(), "profile must be torch.uint8"),
        ("tail_bias", lambda x: with_value(x, float("nan")), "tail_bias must be finite"),
        ("recall_true", lambda x: x + 2, "recall_true must be finite and lie in 0..1.001"),
        (
            "correction",
            lambda x: torch.where(x == 0, 9, x),
            "correction must be finite and lie in 0..2",
        ),
        ("coarse", lambda x: torch.zeros(99, 4, 4, dtype=torch.uint8), "coarse must be"),
        ("popularity", lambda x: None, "expected the tensors"),
    ],
)
def test_crafted_tensors_are_refused(plan, tmp_path, name, change, message):
    path = tmp_path / "plan.safetensors"
    save_plan(plan, path)
    tensors, description = parts(path)
    tensors[name] = change(tensors[name])
    write(path, {key: value for key, value in tensors.items() if value is not None}, description)
    with pytest.raises(PlanError, match=message):
        load_plan(path)


def test_models_are_compared(plan):
    same = plan.identity
    assert plan.check_model(same) == []
    (warning,) = plan.check_model(dataclasses.replace(same, weights="others"))
    assert "other weights" in warning and "others" in warning
    with pytest.raises(PlanMismatchError, match=r"layers 2 \(plan\) and 30 \(model\)") as error:
        plan.check_model(ModelIdentity("b", "w", 30, 12, 128, "Wan 2.1 1.3B"))
    assert "synthetic model (2 layers x 3 heads x 96)" in str(error.value)
    assert "Wan 2.1 1.3B (30 layers x 12 heads x 128)" in str(error.value)
    with pytest.raises(PlanMismatchError, match="architecture architecture"):
        plan.check_model(dataclasses.replace(same, architecture="b"))
