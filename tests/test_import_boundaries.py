"""The borders between the layers: nodes -> calibration -> kernels, never back."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What each folder may reach by a relative import, beside itself. kernels/triton is listed apart,
# because the launchers need the plain values of kernels/ and nothing else.
ALLOWED = {
    "kernels/triton": {"kernels"},
    "kernels": set(),
    "calibration": {"kernels"},
    "demo": {"calibration", "kernels"},
    "nodes": {"calibration", "kernels", "demo"},
}

# Runs in a fresh process: loads the pack as ComfyUI does, with some packages hidden as if they were
# not installed (torch itself asks for Triton with find_spec, which must then answer None).
IMPORT_WITHOUT = """
import importlib, importlib.util, sys
root, blocked, wanted = sys.argv[1], sys.argv[2].split(","), sys.argv[3].split(",")

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in blocked
        return None if hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
spec = importlib.util.spec_from_file_location(
    "paro_attention", root + "/__init__.py", submodule_search_locations=[root])
module = importlib.util.module_from_spec(spec)
sys.modules["paro_attention"] = module
spec.loader.exec_module(module)
for name in wanted:
    importlib.import_module(name)
for name in blocked:
    assert name not in sys.modules, name
"""


def _area(path: Path) -> str | None:
    relative = path.relative_to(ROOT).as_posix()
    return next((area for area in ALLOWED if relative.startswith(area + "/")), None)


def _relative_targets(path: Path) -> list[tuple[int, str]]:
    """(line, path from the root) of every relative import in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = path.parent
        for _ in range(node.level - 1):
            base = base.parent
        parts = node.module.split(".") if node.module else []
        # `from .. import kernels` names its targets in the list of names.
        names = [parts] if parts else [[alias.name] for alias in node.names]
        found += [
            (node.lineno, base.joinpath(*name).relative_to(ROOT).as_posix()) for name in names
        ]
    return found


def _sources() -> list[Path]:
    return sorted(
        path
        for area in ("nodes", "calibration", "kernels", "demo")
        for path in (ROOT / area).rglob("*.py")
    )


def _import_without(blocked: list[str], wanted: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_WITHOUT, str(ROOT), ",".join(blocked), ",".join(wanted)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("path", _sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_imports_follow_the_layers(path: Path):
    area = _area(path)
    assert area is not None
    for line, target in _relative_targets(path):
        allowed = {area, *ALLOWED[area]}
        if area == "kernels":
            # The public functions import their launchers lazily.
            allowed.add("kernels/triton")
        if target == ".":
            continue
        assert any(target == ok or target.startswith(ok + "/") for ok in allowed), (
            f"{path.relative_to(ROOT)}:{line} imports {target}; {area} may import {sorted(allowed)}"
        )


def test_absolute_imports_of_the_own_package_are_not_used():
    """ComfyUI loads the pack under a path name, where `import paro_attention` finds nothing."""
    for path in _sources():
        if path == ROOT / "demo" / "run.py":  # a script: it loads the package first
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                assert name.partition(".")[0] != "paro_attention", f"{path}:{node.lineno}"


def test_lower_layers_import_without_triton_and_comfyui():
    result = _import_without(
        ["triton", "comfy", "comfy_api", "folder_paths", "server"],
        ["paro_attention", "paro_attention.kernels", "paro_attention.calibration"],
    )
    assert result.returncode == 0, result.stderr


def test_the_root_loads_no_torch():
    result = _import_without(["torch", "numpy", "safetensors", "comfy"], ["paro_attention"])
    assert result.returncode == 0, result.stderr
