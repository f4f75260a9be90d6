"""The scripts of benchmarks/ can be imported by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from benchmark_scripts import importable


@pytest.fixture(scope="package", autouse=True)
def _scripts() -> Iterator[None]:
    with importable():
        yield
