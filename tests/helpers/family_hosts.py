"""One process per ComfyUI that runs the cases of tests/families."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).resolve().parent.parent / "families" / "worker.py"


class Worker:
    """A ComfyUI without its server that answers for one case at a time."""

    def __init__(self, checkout: Path, device: str, log: Path):
        python = checkout / ".venv" / "bin" / "python"
        self.device = device
        self._log = log
        # One thread: the models are tiny, and waiting threads cost more than they give.
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [str(python) if python.is_file() else sys.executable, str(WORKER), str(checkout)]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [*command, *(["--cpu"] if device == "cpu" else [])],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=environment,
            )  # fmt: skip

    def run(self, case: str, kind: str = "case") -> dict[str, Any]:
        """What the case gives; skips the test where this ComfyUI does not have the model."""
        answer = self.ask(case, kind)
        assert "error" not in answer, answer["error"]
        if "skip" in answer:
            pytest.skip(answer["skip"])
        return answer

    def ask(self, case: str, kind: str = "case") -> dict[str, Any]:
        """The answer as it is: what was seen, or {"skip": why} or {"error": traceback}."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({kind: case}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the host ended:\n{self._log.read_text(errors='replace')[-4000:]}"
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
