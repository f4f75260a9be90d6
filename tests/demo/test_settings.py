"""The demo's table holds every comparison that its report is read for."""

from __future__ import annotations

from itertools import product

import pytest
from paro_attention.demo.settings import (
    DENSITIES,
    FULL_SCALE,
    QUICK_SCALE,
    Scale,
    full_table,
    plain,
    quick_table,
    recipe,
)


@pytest.mark.parametrize("table", [full_table(), quick_table()], ids=["full", "quick"])
def test_no_setting_is_run_twice(table):
    assert len(set(table)) == len(table)


def test_full_table_compares_orders_all_else_equal():
    table = set(full_table())
    for density, orders in product(DENSITIES, ("fhw", "axes", "tiles")):
        assert plain(density, orders=orders) in table
    for density, orders in product(DENSITIES, ("fhw", "tiles")):
        assert plain(density, orders=orders, tail=True) in table
        assert recipe(density, orders=orders) in table


def test_full_table_covers_what_was_asked_for():
    table = full_table()
    assert {s.density for s in table} == {1.0, 0.5, 0.3, 0.2, 0.1}
    assert {s.orders for s in table} == {"fhw", "axes", "tiles"}
    assert {s.qk_bits for s in table} == {s.pv_bits for s in table} == {16, 8, 4}
    assert {s.warmup for s in table} == {0.0, 0.2}
    for name in ("tail", "shares"):
        assert {getattr(s, name) for s in table} == {True, False}
    assert {s.budget for s in table} == {"head", "global"}
    # The paper's pairs.
    assert plain(0.5, orders="axes", qk_bits=4, pv_bits=4) in table
    assert plain(0.3, orders="axes", qk_bits=8, pv_bits=8) in table


def test_quick_table_is_part_of_the_full_one():
    assert set(quick_table()) <= set(full_table())


@pytest.mark.parametrize("scale", [FULL_SCALE, QUICK_SCALE], ids=["full", "quick"])
def test_probed_steps_weigh_the_noise_bands_alike(scale: Scale):
    # Four bands of equal numbers of steps, with equal numbers of probes in each.
    bands = [step * 4 // scale.steps for step in scale.probed]
    assert sorted(bands) == bands
    assert len({bands.count(band) for band in range(4)}) == 1
    assert scale.steps % 4 == 0


def test_recipe_and_plain_are_told_apart():
    assert recipe(0.3).is_recipe and not recipe(0.3).is_plain
    assert plain(0.3).is_plain and not plain(0.3).is_recipe
    assert not recipe(0.3, tail=False).is_recipe
