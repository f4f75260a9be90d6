"""Living with others: each neighbour in every ComfyUI, before and after Load PARO.

The scenarios are in neighbours_*.py, by the same names. `survives` of a scenario ran a way of
sampling without and with Load PARO; `both_orders` put a neighbour before and after it.
"""

from __future__ import annotations

from typing import Any

import pytest
from family_hosts import Worker

pytestmark = pytest.mark.comfy
EXACT = 1e-3
LAYERS = 2
CROSS = 2  # cross-attention calls of a forward of the tiny Wan


@pytest.fixture
def seen(worker: Worker, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the scenario named as the test gave."""
    if worker.device != "cpu":
        pytest.skip("exact comparisons need float32, which the kernels decline")
    name = request.node.originalname.removeprefix("test_")
    return worker.run(getattr(request, "param", name), "neighbour")


def every_call_is_ours(stats: dict[str, Any], layers: int = LAYERS, cross: int = CROSS) -> None:
    assert stats["dense"] == {}
    assert stats["forwards"] > 0
    assert stats["handled"] == layers * stats["forwards"]
    assert stats["other"] == cross * stats["forwards"]


def survived(seen: dict[str, Any], layers: int = LAYERS, cross: int = CROSS) -> None:
    for kind in ("exact", "sparse"):
        every_call_is_ours(seen[kind], layers, cross)
    assert seen["exact"]["error"] < EXACT
    assert seen["sparse"]["differs"]
    assert seen["sparse"]["error"] > EXACT
    assert seen["removed_is_equal"]


def survived_both_orders(seen: dict[str, Any]) -> None:
    for order in ("after", "before"):
        stats = seen[order]
        assert stats["dense"] == {}
        assert stats["handled"] > 0
        assert stats["runs"] == 1
        assert stats["error"] < EXACT
        assert stats["sparse_handled"] == stats["handled"]
        assert stats["sparse_differs"]
        assert stats["declining_is_equal"]
    assert seen["after"]["handled"] == seen["before"]["handled"]
    assert seen["bypassed_is_equal"]
    assert seen["removed_is_equal"]


def test_cfg_in_one_batch(seen):
    survived(seen)
    assert seen["batches"] == [2]


def test_cfg_in_separate_calls(seen):
    survived(seen)
    assert seen["batches"] == [1]


def test_batch_of_two(seen):
    survived(seen)
    assert seen["batches"] == [4]


def test_joint_text_of_other_length(seen):
    for run in ("first", "second"):
        survived(seen[run], layers=4, cross=0)


def test_areas_and_ranges(seen):
    survived(seen)
    assert len(seen["heights"]) == 2, "a part of the picture is a grid of its own"


def test_context_windows(seen):
    survived(seen)
    assert max(seen["frames"]) < 7
    assert seen["other_order_error"] < EXACT


def test_two_grids_in_one_session(seen):
    every_call_is_ours(seen)
    assert max(seen["errors"]) < EXACT


def test_two_experts(seen):
    for kind in ("exact", "sparse"):
        for run in seen[kind]["runs"]:
            every_call_is_ours(run)
    assert seen["exact"]["error"] < EXACT < seen["sparse"]["error"]
    assert seen["removed_is_equal"]
    assert seen["warnings"] == 1, "the other expert's plan is noticed"


def test_sage_attention(seen):
    survived_both_orders(seen)
    assert seen["acts"]
    every_call_is_ours(seen["after"])


def test_attention_backend_node(seen):
    survived_both_orders(seen)
    every_call_is_ours(seen["before"])


def test_sparse_attention_node(seen):
    survived_both_orders(seen)
    assert seen["acts"]
    assert seen["taken_beside_ours"] == 0
    for order in ("after", "before"):
        every_call_is_ours(seen[order])


def test_sparse_attention_node_declining(seen):
    survived_both_orders(seen)
    for order in ("after", "before"):
        every_call_is_ours(seen[order])


def test_second_load(seen):
    for name in ("in_a_row", "with_another_between"):
        stats = seen[name]
        assert stats["runs"] == 1
        assert stats["handled"] == stats["forwards"]
        assert stats["dense"] == {"dense layer": stats["forwards"]}
        assert stats["other"] == CROSS * stats["forwards"]
        assert stats["error"] < EXACT
    assert seen["removed_is_equal"]


def test_tensor_containers(seen):
    survived_both_orders(seen)
    every_call_is_ours(seen["after"])


def test_tensor_containers_beside_a_backend_that_takes_them(seen):
    survived_both_orders(seen)
    every_call_is_ours(seen["before"])


def test_lora_patches(seen):
    survived_both_orders(seen)
    assert seen["acts"]
    assert seen["warnings"] == []


def test_low_vram_with_lora(seen):
    survived(seen)
    assert seen["cast_modules"] > 0, "a part of the model was not loaded"
    assert seen["dense_error"] < EXACT


def test_block_swap(seen):
    survived(seen["before"])
    survived(seen["after"])
    assert seen["dense_is_equal"]


def test_fp8_weights(seen):
    survived(seen)
    assert seen["stored"] == "torch.float8_e4m3fn"
    assert seen["warnings"] == []


def test_gguf_weights(seen):
    survived(seen)
    assert seen["kept"]
    assert seen["warnings"] == []


def test_caching_of_forwards(seen):
    survived_both_orders(seen)
    assert seen["acts"]
    every_call_is_ours(seen["after"])
    assert seen["layers"] == [[0, 1]] * seen["after"]["forwards"]


def test_caching_of_blocks(seen):
    survived_both_orders(seen)
    assert seen["acts"]
    assert sorted(map(tuple, seen["layers"])) == [(0, 1)] * 4 + [(1,)] * 2


def test_replaced_blocks_of_all_layers(seen):
    survived_both_orders(seen)
    assert seen["acts"]
    assert seen["layers"] == [[0, 0, 1, 1]] * seen["after"]["forwards"]


def test_skip_layer_guidance(seen):
    survived_both_orders(seen)
    assert seen["acts"]
    assert seen["layers"] == [[0, 1], [0, 1], [1]] * 3


def test_forwards_in_threads(seen):
    survived_both_orders(seen)
    every_call_is_ours(seen["after"])


def test_copied_options(seen):
    every_call_is_ours(seen)
    assert seen["shared"]
    assert seen["relative"] < EXACT
    assert seen["equal"]


def test_copied_model(seen):
    every_call_is_ours(seen)
    assert seen["relative"] < EXACT
    assert set(seen["all_handled"]) == {seen["handled"]}
    assert seen["hooks"] == [1, 1]


def failed_and_recovered(seen: dict[str, Any], error: str) -> None:
    assert seen["ended"] == error
    assert seen["failed"]
    assert seen["clean"]
    every_call_is_ours(seen["next"])
    assert seen["next_is_equal"]
    assert seen["removed_is_equal"]


def test_error_in_our_path(seen):
    failed_and_recovered(seen, "ZeroDivisionError")


def test_interrupt_in_a_forward(seen):
    failed_and_recovered(seen, "InterruptProcessingException")


def test_error_of_a_neighbour(seen):
    failed_and_recovered(seen, "KeyError")


def compiled_well(run: dict[str, Any], wrapped: bool = False) -> None:
    """A wrapped model is left once a forward for our wrapper, before anything is computed."""
    assert run["same_calls"]
    assert run["handled"] > 0
    assert run["error"] < 1e-6
    first_step = run["graphs"][:2]  # the positive and the negative prompt
    assert set(run["graphs"][2:]) == {first_step[-1]}, "nothing is compiled after the first step"
    assert run["graphs"][-1] == run["graphs_alone"], "no graph is cut in two"
    assert all(wrapped and "forward_wrapper" in reason for reason in run["breaks"]), run["breaks"]


def test_compile_model(seen):
    for order in ("after", "before"):
        compiled_well(seen[order], wrapped=True)


def test_compile_joint_sequence(seen):
    for order in ("after", "before"):
        compiled_well(seen[order], wrapped=True)
        every_call_is_ours(seen[order], layers=4, cross=0)


def test_compile_heads_apart(seen):
    for order in ("after", "before"):
        compiled_well(seen[order], wrapped=True)
        every_call_is_ours(seen[order], layers=5, cross=0)


def test_compile_shared_heads(seen):
    for order in ("after", "before"):
        compiled_well(seen[order], wrapped=True)
        every_call_is_ours(seen[order], cross=0)


def test_compile_blocks(seen):
    for order in ("after", "before"):
        compiled_well(seen[order])
        assert seen[order]["dense"] == {}


def test_compile_sparse(seen):
    for order in ("after", "before"):
        compiled_well(seen[order])
        assert set(seen[order]["dense"]) == {"dense layer"}


def test_compile_without_guards(seen):
    """Graphs from before Load PARO are thrown away once; those with it serve both from then on."""
    for order in ("after", "before"):
        for run in seen[order]["runs"]:
            every_call_is_ours(run, cross=0)  # compiled, they are not seen
            assert run["alone"] == 0
            assert run["result"] < 1e-6
        assert seen[order]["runs"][1]["graphs"] == seen[order]["runs"][2]["graphs"]
