"""Writing safetensors files so that an interruption leaves no broken one."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], key: str, description: Any
) -> None:
    """Writes tensors beside their destination and renames; an existing file is replaced.

    Args:
        path: the destination.
        tensors: by name, any device.
        key: name of the metadata entry.
        description: what stands there, as JSON.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    target = Path(path)
    kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    handle, temporary = tempfile.mkstemp(
        prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
    )
    os.close(handle)
    try:
        save_file(kept, temporary, metadata={key: json.dumps(description)})
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except SafetensorError as error:
        raise OSError(f"{target} cannot be written: {error}") from error
    finally:  # an interrupted calibration as well
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
