"""models/paro: where plan files live."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import folder_paths

FOLDER = "paro"
EXTENSION = ".safetensors"
_BAD_CHARACTERS = re.compile(r'[<>:"|?*\x00-\x1f]')


def register() -> None:
    """Tell ComfyUI about the folder, beside any that extra_model_paths.yaml names for it."""
    default = os.path.join(folder_paths.models_dir, FOLDER)
    paths, _ = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    paths = list(paths)
    if default not in paths:
        paths.append(default)
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {EXTENSION})
    with contextlib.suppress(OSError):  # a read-only models folder: Calibrate PARO will say so
        os.makedirs(default, exist_ok=True)


def plan_names() -> list[str]:
    """Names of the plan files, relative to their folder, in ComfyUI's order."""
    return folder_paths.get_filename_list(FOLDER)


def plan_path(name: str) -> Path:
    """Full path of an existing plan file.

    Raises:
        FileNotFoundError: no plan of that name.
    """
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        have = ", ".join(plan_names()) or "none"
        raise FileNotFoundError(
            f"no plan named {name!r} in models/{FOLDER}; there are: {have}. "
            "Run Calibrate PARO, or put the plan file there and refresh with R."
        )
    return Path(path)


def new_plan_path(name: str) -> Path:
    """Where a plan of this name is written; an existing plan of the name keeps its folder.

    Raises:
        ValueError: the name is empty or would leave the folder.
    """
    stem = name.strip().removesuffix(EXTENSION).strip()
    parts = Path(stem.replace("\\", "/")).parts
    if not stem or any(p in ("..", "/") or _BAD_CHARACTERS.search(p) for p in parts):
        raise ValueError(
            f"name must be a file name such as 'wan-14b' (subfolders are allowed), got {name!r}"
        )
    relative = "/".join(parts) + EXTENSION
    existing = folder_paths.get_full_path(FOLDER, relative)
    root = Path(folder_paths.get_folder_paths(FOLDER)[0])
    path = Path(existing) if existing else root / relative
    if not existing and not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"name must stay inside models/{FOLDER}, got {name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def relative_name(path: Path) -> str:
    """The name under which the plan combo lists this file."""
    for root in folder_paths.get_folder_paths(FOLDER):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return path.name


def stamp(path: Path) -> str:
    """Changes whenever the file is written again."""
    status = path.stat()
    return f"{path.name}:{status.st_mtime_ns}:{status.st_size}:{status.st_ino}"
