"""benchmarks/idle_barriers.py: which barriers it finds that nobody waits for."""

import importlib

import pytest

TILE = "!ttg.memdesc<2x1xi64, #shared, #smem, mutable>"
BEGUN = f"""
    %full = ttg.local_alloc : () -> {TILE} loc(#loc1)
    %one = ttg.memdesc_index %full[%c0_i32] : {TILE} -> !ttg.memdesc<1xi64> loc(#loc2)
    ttng.init_barrier %one, 1 : !ttg.memdesc<1xi64> loc(#loc3)
"""


@pytest.fixture
def found():
    return importlib.import_module("idle_barriers").idle_barriers


@pytest.mark.parametrize(
    "use",
    [
        "ttng.wait_barrier %full, %phase : !ttg.memdesc<1xi64> loc(#loc4)",
        "ttng.barrier_expect %one, 128, %true : !ttg.memdesc<1xi64> loc(#loc4)",
        "ttng.inval_barrier %one : !ttg.memdesc<1xi64> loc(#loc4)",
        "ttg.warp_specialize(%keys, %full) attributes {registers = array<i32: 160>} loc(#loc4)",
        "%it:2 = scf.for %i = %c0 to %n step %c1 iter_args(%a = %full, %b = %c0) -> (i32, i32) {",
        f"%two = ttg.memdesc_index %full[%i] : {TILE} -> !ttg.memdesc<1xi64> loc(#loc4)\n"
        "ttng.arrive_barrier %two, 1, %true : !ttg.memdesc<1xi64> loc(#loc4)",
    ],
    ids=["wait", "expect", "invalidate", "partitions", "carried", "another view"],
)
def test_a_barrier_that_is_used_is_none(found, use):
    assert found(BEGUN + use) == []


@pytest.mark.parametrize(
    "other",
    [
        "",
        f"%two = ttg.memdesc_index %full[%i] : {TILE} -> !ttg.memdesc<1xi64> loc(#loc4)",
        "ttng.wait_barrier %full_1, %phase : !ttg.memdesc<1xi64> loc(#loc4)",
    ],
    ids=["nothing", "a view alone", "another's name"],
)
def test_one_that_is_initialised_alone_is_found(found, other):
    assert found(BEGUN + other) == ["%full"]
