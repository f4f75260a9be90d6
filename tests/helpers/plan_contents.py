"""What stands in a plan file, but for the date, so that two files can be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor


def plan_contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a plan file."""
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()["paro_plan"])
        del description["made_from"]["created"]
        return description, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
