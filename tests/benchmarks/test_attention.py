"""The attention benchmark's masks, gates and peers, as far as they go without a GPU."""

from __future__ import annotations

import importlib
import os

import pytest
import torch
from paro_attention.kernels import sparse_attention, unavailable_reason
from paro_attention.kernels.launch_table import LaunchConfig


@pytest.fixture(scope="module")
def cases():
    return importlib.import_module("bench_cases")


@pytest.fixture(scope="module")
def peers():
    return importlib.import_module("peers")


def test_random_rows_differ_and_hold_the_density(cases):
    mask = cases.random_mask(3, 4096, (64, 128), 0.3, "cpu")
    counts = mask.to_dense().sum(-1)
    assert abs(mask.density() - 0.3) < 0.02
    assert int(counts.min()) >= 1 and int(counts.max()) > 1.2 * counts.float().mean()
    assert cases.random_mask(2, 300, (64, 128), 1.0, "cpu").density() == 1.0


@pytest.mark.parametrize("tail", [True, False])
def test_the_gate_is_the_reference(cases, tail):
    shape = cases.Shape(2, 330, 64, extra_tokens=30)
    inputs = cases.random_inputs(shape, "cpu", torch.float32)
    mask = cases.random_mask(2, 300, (64, 128), 0.4, "cpu")
    out = sparse_attention(
        inputs.q, inputs.k, inputs.v, mask, inputs.permutation, tail=tail,
        implementation="reference",
    )  # fmt: skip
    given = inputs.q, inputs.k, inputs.v, mask, inputs.permutation
    assert cases.relative_error(out, *given, tail) < 1e-5
    out[0, 1, -1] += 0.1  # an extra token's row
    assert cases.relative_error(out, *given, tail) > 1e-3


def test_dense_error_is_that_of_full_attention(cases):
    inputs = cases.random_inputs(cases.Shape(2, 200, 64), "cpu", torch.float32)
    out = torch.nn.functional.scaled_dot_product_attention(inputs.q, inputs.k, inputs.v)
    assert cases.dense_error(out, inputs.q, inputs.k, inputs.v) < 1e-5
    assert cases.dense_error(out * 1.1, inputs.q, inputs.k, inputs.v) > 0.09


def test_flex_attention_gets_the_same_blocks(cases, peers):
    mask = cases.random_mask(2, 500, (128, 128), 0.4, "cpu")
    blocks = peers.flex_mask(mask)
    assert torch.equal(blocks.to_dense()[0].bool(), mask.to_dense())
    assert int(blocks.kv_num_blocks.sum()) == 0, "whole blocks need no mask inside"
    assert blocks.BLOCK_SIZE == (128, 128)


def test_every_peer_says_whether_it_can_run(peers):
    keys = [peer.key for peer in peers.PEERS]
    assert len(set(keys)) == len(keys) and keys[0] == "sdpa"
    for peer in peers.PEERS:
        if peer.key in ("sdpa", "cudnn", "fa2", "flex"):
            assert peer.available((9, 0), 128) is None
        else:
            reason = peer.available((9, 0), 128)
            assert reason is None or reason, peer.key
    assert peers.installed("no_such_package") == "not installed"
    assert peers.installed("pytest", lambda version: version == "0").startswith(
        "installed in another version"
    )


def test_a_peer_names_the_card_and_head_dim_that_it_lacks(peers):
    by_key = {peer.key: peer for peer in peers.PEERS}
    assert by_key["fa3"].available((8, 9), 128) == "needs sm_90"
    assert by_key["sol"].available((9, 0), 64) == "serves head_dim 128, not 64"


def test_peers_are_chosen_by_name(peers):
    assert [peer.key for peer in peers.selected("none")] == ["sdpa"]
    assert [peer.key for peer in peers.selected("sol,fa2")] == ["sdpa", "fa2", "sol"]
    assert len(peers.selected("all")) == len(peers.PEERS)
    with pytest.raises(ValueError, match="peers must be all, some, none or names out of"):
        peers.selected("fa4")


def test_the_gate_of_a_dense_peer_sees_errors(cases, peers):
    inputs = cases.random_inputs(cases.Shape(2, 200, 64), "cpu")
    peer = peers.PEERS[0]
    out = peer.bind(inputs.q, inputs.k, inputs.v, None, 1.0)()
    error, shown = peer.error(out, inputs.q, inputs.k, inputs.v, None)
    assert error == shown < peer.budget
    assert peer.error(out.roll(1, 2), inputs.q, inputs.k, inputs.v, None)[0] > peer.budget


interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1" or unavailable_reason("cpu") is not None,
    reason="needs Triton under TRITON_INTERPRET=1 (set where there is no GPU)",
)


@interpreted
def test_a_call_is_taken_apart(cases):
    taken_apart = importlib.import_module("kernel_parts")
    overhead = importlib.import_module("overhead")
    shape = cases.Shape(1, 128, 64)
    inputs = cases.random_inputs(shape, "cpu", torch.float16)
    mask = cases.random_mask(1, 128, (64, 64), 0.5, "cpu")
    run = taken_apart.call(inputs, mask, (8, 16))
    run()  # a shape that was called before is taken apart as well
    taken = taken_apart.parts(run)
    want = taken.out.clone()
    taken.out.fill_(float("nan"))
    taken.prepare()
    assert torch.isnan(taken.out).all(), "the pre-pass writes no output"
    taken.attend()
    assert torch.equal(taken.out, want)
    rows = overhead._row_numbers(inputs)
    stored = inputs.q.transpose(1, 2).reshape(-1, 64)
    assert torch.equal(stored[rows].view(128, 64), inputs.q[0, 0, inputs.permutation[0].long()])


@interpreted
def test_a_launch_is_taken_inside_and_forgotten_outside(cases):
    taken_apart = importlib.import_module("kernel_parts")
    call_plan = importlib.import_module("paro_attention.kernels.triton.call_plan")
    inputs = cases.random_inputs(cases.Shape(1, 128, 64), "cpu", torch.float16)
    mask = cases.random_mask(1, 128, (64, 64), 0.5, "cpu")
    launch = LaunchConfig(32, 64, 8, 1)
    before = list(call_plan._plans)
    with taken_apart.with_launch(launch):
        want = taken_apart.call(inputs, mask, (8, 16))()
        assert [plan.launch for plan in call_plan._plans.values()] == [launch]
    assert list(call_plan._plans) == before
    got = taken_apart.call(inputs, mask, (8, 16))()
    assert launch not in [plan.launch for plan in call_plan._plans.values()]
    assert torch.allclose(got, want, atol=2e-3)


def test_overhead_is_a_share_of_dense_attention():
    overhead = importlib.import_module("overhead")
    names = (
        "pre-pass", "pre-pass in the model's order", "kernel", "kernel in the model's order",
        "gather", "copy",
    )  # fmt: skip
    times = dict(
        zip([overhead.PREFIX + n for n in names], (0.2, 0.18, 3.0, 2.9, 0.2, 0.15), strict=True)
    )
    row = overhead.overhead_row(times, 10.0)
    assert row["prepass_and_epilogue_share"] == pytest.approx(0.03)
    assert row["reorder_in_call_share"] == pytest.approx(0.012)
    assert row["reorder_alone_share"] == pytest.approx(0.005)


def test_masks_of_the_demo_model_are_uneven_and_transfer(cases):
    demo = importlib.import_module("demo_masks")
    small = demo.replace(
        demo.TWO_PROMPTS, grid=(2, 8, 8), block=(32, 32), steps=4, videos=1, probe_steps=1
    )
    heads = demo.DemoHeads(demo.record(torch.device("cpu"), (32, 32), small))
    shape = cases.Shape(5, 3 * 16 * 14 + 10, 64, extra_tokens=10, grid=(3, 16, 14))
    mask = heads.mask(shape, (32, 64), 0.4, "cpu")
    assert mask.heads == 5 and mask.block == (32, 64) and mask.tokens == 3 * 16 * 14
    assert abs(mask.density() - 0.4) < 0.02
    computed = mask.to_dense()
    per_head = computed.float().mean((1, 2))
    per_row = computed.sum(-1)
    assert per_head.max() > per_head.min() and per_row.max() > per_row.min()
    order = heads.permutation(shape, "cpu")
    assert order.dtype == torch.int32
    assert torch.equal(order.sort(-1).values, torch.arange(682).int().expand(5, -1))
    assert torch.equal(order[:, -10:], torch.arange(672, 682).int().expand(5, -1))
    assert len({place[:2] for place in heads.places(12)}) > 3


def test_settings_cover_what_is_asked_for():
    attention = importlib.import_module("attention")
    main = attention.SHAPES["main"][0]
    full = attention.settings_of(main, "main", ("random", "demo"), quick=False)
    assert {s.block for s in full} == {(64, 128), (128, 128), (64, 64), (128, 64)}
    assert {s.bits for s in full} == {(8, 8), (8, 16), (16, 16), (4, 4)}
    assert {s.masks for s in full} == {"random", "demo"} and len(set(map(str, full))) == len(full)
    quick = attention.settings_of(main, "main", ("random",), quick=True)
    assert len(quick) == 5 and all(s.alone for s in quick)
    for shapes in attention.SHAPES.values():
        for shape in shapes:
            if shape.grid is not None:
                assert shape.grid[0] * shape.grid[1] * shape.grid[2] == shape.grid_tokens
