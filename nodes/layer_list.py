"""The "0,1,-1" and "0-3" notation for layers."""

from __future__ import annotations

import re

_ITEM = re.compile(r"(-?\d+)(?:\s*-\s*(\d+))?\Z")


def parse_layers(text: str, layers: int) -> tuple[int, ...]:
    """Layers named by a list such as "0,1,-1" or "0-3, 12"; negative ones count from the end.

    Args:
        text: the list; empty means no layer.
        layers: number of layers of the model.

    Returns:
        Ascending indices, each once.

    Raises:
        ValueError: something that is not a layer of this model.
    """
    found: set[int] = set()
    for item in filter(None, (part.strip() for part in text.split(","))):
        match = _ITEM.match(item)
        first = int(match[1]) if match else layers
        last = int(match[2]) if match and match[2] else first
        if not -layers <= first < layers or not -layers <= last < layers or last < first:
            raise ValueError(
                f"dense_layers must name layers 0 to {layers - 1} such as '0,1,-1' or '0-3', "
                f"got {item!r}"
            )
        found.update(i % layers for i in range(first, last + 1))
    return tuple(sorted(found))
