"""The pack is ready for the Comfy registry: its metadata, its pictures, its standards."""

from __future__ import annotations

import ast
import fnmatch
import subprocess
from pathlib import Path
from urllib.parse import urlparse

import pytest
import tomllib
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMFY = PROJECT["tool"]["comfy"]


def tracked() -> list[str]:
    """Files that git tracks, or all where this is no checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return listed.stdout.splitlines()
    return [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file()]


def shipped() -> list[str]:
    """What the registry's archive holds: tracked files that .comfyignore does not name."""
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [name for name in tracked() if not any(_ignored(name, p) for p in patterns)]


def _ignored(name: str, pattern: str) -> bool:
    bare = pattern.rstrip("/")
    return any(
        fnmatch.fnmatch(part, bare)
        for part in (name, *map(str, Path(name).parents), Path(name).name)
    )


def local(url: str) -> Path:
    """The file of this repository that an address of its main branch shows."""
    owner_repo = urlparse(PROJECT["project"]["urls"]["Repository"]).path
    prefix = f"{owner_repo}/main/"
    path = urlparse(url).path
    assert path.startswith(prefix), url
    return ROOT / path.removeprefix(prefix)


def test_registry_metadata_is_complete():
    assert {"PublisherId", "DisplayName", "Icon", "Banner", "requires-comfyui"} <= COMFY.keys()
    assert "web" not in COMFY, "WEB_DIRECTORY declares the JavaScript; both would load it twice"
    project = PROJECT["project"]
    assert len(project["name"]) < 100 and "comfyui" not in project["name"].lower()
    assert project["urls"]["Repository"].startswith("https://github.com/")
    assert project["dependencies"] == [], "ComfyUI brings everything"
    assert len(project["version"].split(".")) == 3


def test_icon_and_banner_have_the_registrys_sizes():
    with Image.open(local(COMFY["Icon"])) as icon:
        assert icon.width == icon.height <= 400
    with Image.open(local(COMFY["Banner"])) as banner:
        assert banner.width * 9 == banner.height * 21


def test_archive_holds_what_a_user_needs_and_nothing_else():
    names = shipped()
    folders = {name.split("/")[0] for name in names}
    assert {
        "__init__.py", "nodes", "kernels", "calibration", "demo", "web", "locales",
        "example_workflows", "pyproject.toml", "requirements.txt", "README.md", "LICENSE",
    } <= folders  # fmt: skip
    assert not {"tests", "benchmarks", ".github", ".ci", "Makefile", "out"} & folders
    size = sum((ROOT / name).stat().st_size for name in names if (ROOT / name).is_file())
    assert size < 100e6, f"{size / 1e6:.0f} MB"


@pytest.mark.parametrize("name", [n for n in shipped() if n.endswith(".py")])
def test_shipped_code_keeps_the_registrys_standards(name):
    """No evaluated code, no shell, nothing installed while running."""
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system", "os.popen", "pickle.loads"), called
            if called.startswith("subprocess."):
                assert not name.startswith(("nodes/", "kernels/", "calibration/", "__init__"))
                assert "pip" not in ast.unparse(node)


def test_of_the_demo_only_what_nodes_need_is_shipped():
    wanted = {"demo/__init__.py", "demo/paro_demo_wan.safetensors"}
    for path in (ROOT / "nodes").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 2 and node.module == "demo":
                names = (f"demo/{alias.name}.py" for alias in node.names)
                wanted |= {name for name in names if (ROOT / name).is_file()}
    assert {name for name in shipped() if name.startswith("demo/")} == wanted


@pytest.mark.parametrize("name", [n for n in shipped() if n.endswith(".py")])
def test_shipped_code_can_be_read_on_a_windows_of_western_europe(name):
    """As comfy-test's first level asks: every character is one of code page 1252."""
    (ROOT / name).read_text(encoding="utf-8").encode("cp1252")


def test_issue_templates_ask_for_what_is_needed():
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")
    for wanted in ("Log", "Model", "GPU", "ComfyUI", "torch", "triton", "Workflow", "Report"):
        assert wanted in text, wanted


def test_publishing_is_triggered_by_a_version_and_by_nothing_in_the_code():
    text = (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    assert "paths: [pyproject.toml]" in text
    assert "secrets.REGISTRY_ACCESS_TOKEN" in text
