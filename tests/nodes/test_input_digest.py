"""Digests of what a calibration is made from: equal content, equal digest, in every process."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from paro_attention.nodes.input_digest import digest, model_digest


class Adapter:
    """As ComfyUI's: weights, and what is of no account."""

    def __init__(self, weight: torch.Tensor, strength: float = 1.0):
        self.weights = (weight, None, strength)
        self.loaded_keys = {"b", "a", "c"}
        self.model = torch.nn.Linear(2, 2)  # random numbers
        self.myself = object()


def conditioning(**changes):
    extras = {"pooled_output": torch.ones(1, 4), "strength": 1.0, "hook": len} | changes
    return [[torch.arange(6.0).view(1, 2, 3), extras]]


def test_equal_content_has_one_digest():
    assert digest(conditioning()) == digest(conditioning())
    assert digest(Adapter(torch.ones(3))) == digest(Adapter(torch.ones(3)))
    strided = torch.arange(8.0)[::2]
    assert digest(strided) == digest(strided.clone())
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "other",
    [
        conditioning(strength=0.5), conditioning(hook=max), conditioning(area=(1, 2)),
        conditioning(pooled_output=torch.zeros(1, 4)),
        conditioning(pooled_output=torch.ones(1, 4, dtype=torch.bfloat16)),
        conditioning(pooled_output=torch.ones(4, 1)), conditioning() * 2,
    ],
)  # fmt: skip
def test_whatever_differs_changes_the_digest(other):
    assert digest(other) != digest(conditioning())


def test_large_tensors_count_by_an_even_sample():
    large = torch.zeros(1000, 1000)
    changed = large.clone()
    changed[::2] = 1
    assert digest(large) != digest(changed)
    assert digest(torch.zeros(4, device="meta")) == digest(torch.zeros(4, device="meta"))


def test_a_model_is_known_by_its_patches_and_options():
    def model(strength=1.0, weight=1.0, options=None):
        patch = (strength, Adapter(torch.full((3,), weight)), 1.0, None, None)
        return SimpleNamespace(
            patches={"blocks.0.q.weight": [patch]}, object_patches={}, model_options=options or {},
            get_model_object=lambda _name: SimpleNamespace(dtype=torch.float16),
        )  # fmt: skip

    same = model_digest(model())
    assert model_digest(model()) == same
    assert model_digest(model(strength=0.5)) != same
    assert model_digest(model(weight=2.0)) != same
    assert model_digest(model(options={"sampler_cfg_function": lambda args: args})) != same


def test_another_process_gives_the_same():
    code = (
        "import sys, torch; sys.path.insert(0, 'tests'); import conftest;"
        "from paro_attention.nodes.input_digest import digest;"
        "print(digest([[torch.arange(6.0), {'b': {'x', 'y', 'z'}, 'a': torch.float16}]]))"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"},
        ).stdout
        for seed in (1, 2)
    }  # fmt: skip
    assert digests == {
        digest([[torch.arange(6.0), {"b": {"x", "y", "z"}, "a": torch.float16}]]) + "\n"
    }
