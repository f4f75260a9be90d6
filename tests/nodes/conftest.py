"""Real ComfyUI hosts for the tests: each is started once and spoken to over its HTTP API."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_hosts import HOSTS
from paro_attention.demo.wan import WanConfig, WanModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
START_SECONDS = 90
RUN_SECONDS = 120
CONTEXT_ROWS = 16
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}

# A pack of the tests' own, for what ComfyUI has no node for.
TEST_PACK = '''
import torch

class Conditioning:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"seed": ("INT", {"default": 0}), "clip_vision": ("BOOLEAN",),
                             "reference": ("BOOLEAN",)}}
    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "test"

    def make(self, seed, clip_vision, reference):
        generator = torch.Generator().manual_seed(seed)
        extras = {"pooled_output": None, "attention_mask": torch.ones(1, ROWS, dtype=torch.int64)}
        if clip_vision:
            class Output:
                penultimate_hidden_states = torch.randn(1, 257, 1280, generator=generator)
            extras["clip_vision_output"] = Output()
        if reference:
            extras["reference_latents"] = [torch.randn(1, 16, 1, 16, 16, generator=generator)]
        return ([[torch.randn(1, ROWS, 4096, generator=generator), extras]],)

class Override:
    """An attention override of somebody else's, that chains or replaces."""
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "factor": ("FLOAT", {"default": 1.0})}}
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "patch", "test"

    def patch(self, model, factor):
        def override(func, *args, **kwargs):
            return func(*args, **kwargs) * factor
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = override
        return (model,)

class OtherDiT:
    """A diffusion transformer that this pack has not heard of."""
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "make", "test"

    def make(self):
        import sys
        sys.path.append(FAMILIES)
        from cases.case import around
        from unknown_model import MadeUp
        return (around(MadeUp(MadeUp.unet_config)),)

class Latent:
    @classmethod
    def INPUT_TYPES(cls):
        sizes = ("channels", "frames", "height", "width")
        return {"required": {name: ("INT", {"default": 1}) for name in sizes}}
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "make", "test"

    def make(self, channels, frames, height, width):
        return ({"samples": torch.zeros(1, channels, frames, height, width)},)

NODE_CLASS_MAPPINGS = {
    "TestConditioning": Conditioning, "TestOverride": Override, "TestOtherDiT": OtherDiT,
    "TestLatent": Latent}
'''.replace("ROWS", str(CONTEXT_ROWS)).replace("FAMILIES", repr(str(ROOT / "tests" / "families")))


def wan_weights(
    seed: int,
    *,
    layers: int = 2,
    channels: int = 16,
    image: bool = False,
    reference: bool = False,
) -> dict[str, Tensor]:
    """Random weights of a tiny Wan model under the original key names: 2 heads of 128."""
    generator = torch.Generator().manual_seed(seed)
    config = WanConfig(dim=256, ffn_dim=256, layers=layers, channels=channels)
    weights: dict[str, Tensor] = dict(WanModel(config).state_dict())
    if image:
        weights["patch_embedding.weight"] = torch.empty(256, 36, 1, 2, 2)
        for name, shape in {
            "img_emb.proj.0.weight": (1280,),
            "img_emb.proj.0.bias": (1280,),
            "img_emb.proj.1.weight": (1280, 1280),
            "img_emb.proj.1.bias": (1280,),
            "img_emb.proj.3.weight": (256, 1280),
            "img_emb.proj.3.bias": (256,),
            "img_emb.proj.4.weight": (256,),
            "img_emb.proj.4.bias": (256,),
        }.items():
            weights[name] = torch.empty(shape)
        for layer in range(layers):
            prefix = f"blocks.{layer}.cross_attn."
            for name in ("k_img", "v_img"):
                weights[f"{prefix}{name}.weight"] = torch.empty(256, 256)
                weights[f"{prefix}{name}.bias"] = torch.empty(256)
            weights[f"{prefix}norm_k_img.weight"] = torch.empty(256)
    if reference:
        weights["ref_conv.weight"] = torch.empty(256, 16, 2, 2)
        weights["ref_conv.bias"] = torch.empty(256)
    for name, value in weights.items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            fan_in = max(1, value[0].numel())
            scale = 0.5 if "modulation" in name else fan_in**-0.5
            weights[name] = noise * scale
        else:
            is_norm = "norm" in name or "img_emb.proj.0" in name or "img_emb.proj.4" in name
            weights[name] = 0.1 * noise + float(is_norm and name.endswith("weight"))
    return weights


MODELS = {
    "t2v": lambda: wan_weights(1),
    "t2v-other-weights": lambda: wan_weights(2),
    "t2v-three-layers": lambda: wan_weights(3, layers=3),
    "i2v": lambda: wan_weights(4, image=True),
    "fun": lambda: wan_weights(6, reference=True),
    "wan22-5b": lambda: wan_weights(5, channels=48),
}


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a prompt.

    Attributes:
        outputs: node id -> what the node showed.
        error: what ComfyUI reports of the node that failed, None if none did.
        interrupted: the prompt was interrupted.
        cached: ids of the nodes whose outputs were taken from the cache.
        stats: what /paro/stats gained by this prompt.
    """

    outputs: dict[str, Any]
    error: dict[str, Any] | None
    interrupted: bool
    cached: frozenset[str]
    stats: list[dict[str, Any]]

    @property
    def message(self) -> str:
        """The error's text, empty if there was none."""
        return self.error["exception_message"] if self.error else ""


class WebSocket:
    """Receives a server's messages: as much of RFC 6455 as ComfyUI uses."""

    def __init__(self, port: int, path: str):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.sendall(
            (
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            ).encode()
        )
        self._stream = self._socket.makefile("rb")
        while self._stream.readline().strip():
            pass

    def message(self) -> dict[str, Any] | bytes:
        """The next message: decoded JSON, or the bytes of a picture or a text for a node."""
        while True:
            first, second = self._stream.read(2)
            size = second & 127
            if size == 126:
                size = int.from_bytes(self._stream.read(2))
            elif size == 127:
                size = int.from_bytes(self._stream.read(8))
            body = self._stream.read(size)
            if first & 15 == 1:
                return json.loads(body)
            if first & 15 == 2:
                return body

    def close(self) -> None:
        self._stream.close()
        self._socket.close()


class ComfyHost:
    """A running ComfyUI with this pack, the tests' pack and the tiny models."""

    def __init__(self, checkout: Path, base: Path):
        self.checkout = checkout
        self.base = base
        python = checkout / ".venv" / "bin" / "python"
        self.python = str(python) if python.is_file() else sys.executable
        packs = base / "custom_nodes"
        (packs / "test_nodes").mkdir(parents=True)
        (packs / "test_nodes" / "__init__.py").write_text(TEST_PACK)
        (packs / "paro-attention").symlink_to(ROOT, target_is_directory=True)
        models = base / "models" / "diffusion_models"
        models.mkdir(parents=True)
        for name, make in MODELS.items():
            save_file(make(), models / f"{name}.safetensors")
        self.plans = base / "models" / "paro"
        self.log = base / "host.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start the server and wait until it answers."""
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        # One thread: the models are tiny, and threads that wait for each other on a busy machine
        # are many times slower.
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [
            self.python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port),
            "--disable-auto-launch", "--disable-api-nodes", "--disable-metadata",
            "--database-url", "sqlite:///:memory:", "--base-directory", str(self.base),
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self.checkout, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        self.stop()
        raise RuntimeError(f"{self.checkout.name} did not start:\n{self.log_text()[-4000:]}")

    def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def log_text(self) -> str:
        """Everything the server printed."""
        return self.log.read_text(errors="replace")

    def get(self, path: str) -> Any:
        """GET, JSON decoded."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as reply:
            return json.loads(reply.read() or b"null")

    def get_text(self, path: str) -> str:
        """GET, as text."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as reply:
            return reply.read().decode()

    def post(self, path: str, data: dict[str, Any] | None = None) -> Any:
        """POST JSON, JSON decoded; an HTTP error raises with the server's text."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(data or {}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.loads(reply.read() or b"null")
        except urllib.error.HTTPError as error:
            raise ValueError(f"HTTP {error.code}: {error.read().decode()}") from error

    def forget(self) -> None:
        """Drop cached node outputs and loaded models."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(0.3)

    def submit(self, graph: dict[str, Any], client: str = "") -> str:
        """Queue a prompt, return its id."""
        return self.post("/prompt", {"prompt": graph, "client_id": client})["prompt_id"]

    def listen(self, client: str) -> WebSocket:
        """What the server sends to a client while prompts run."""
        return WebSocket(self.port, f"/ws?clientId={client}")

    def runs_seen(self) -> int:
        """Number of the last sampling run that /paro/stats knows."""
        return max((run["number"] for run in self.get("/paro/stats")), default=0)

    def wait(self, prompt_id: str, seen: int = 0) -> Run:
        """Wait for a queued prompt; its statistics are those of the runs behind number `seen`."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                messages = dict(entry["status"]["messages"])
                return Run(
                    outputs=entry["outputs"],
                    error=messages.get("execution_error"),
                    interrupted="execution_interrupted" in messages,
                    cached=frozenset(messages.get("execution_cached", {}).get("nodes", [])),
                    stats=[run for run in self.get("/paro/stats") if run["number"] > seen],
                )
            time.sleep(0.05)
        raise TimeoutError(f"prompt ran over {RUN_SECONDS} s:\n{self.log_text()[-3000:]}")

    def run(self, graph: dict[str, Any]) -> Run:
        """Queue a prompt and wait for it."""
        seen = self.runs_seen()
        return self.wait(self.submit(graph), seen)

    def image(self, shown: dict[str, str]) -> Image.Image:
        """A picture that a node showed."""
        return Image.open(self.base / shown["type"] / shown["subfolder"] / shown["filename"])

    def example(self, name: str) -> dict[str, Any]:
        """An example workflow as the frontend would send it."""
        workflow = json.loads((ROOT / "example_workflows" / name).read_text())
        info = self.get("/object_info")
        sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
        graph: dict[str, Any] = {}
        for entry in workflow["nodes"]:
            if entry["type"] not in info:  # notes live in the frontend alone
                continue
            declared = info[entry["type"]]["input"]
            specs = {**declared.get("required", {}), **declared.get("optional", {})}
            linked = {i["name"]: i["link"] for i in entry["inputs"] if i["link"] is not None}
            inputs: dict[str, Any] = {name: sources[link] for name, link in linked.items()}
            values = iter(entry.get("widgets_values") or [])
            for name, (kind, *options) in specs.items():
                if not isinstance(kind, list) and kind not in WIDGETS:
                    continue
                inputs.setdefault(name, next(values))
                default = name in ("seed", "noise_seed")
                if (options[0] if options else {}).get("control_after_generate", default):
                    next(values)  # the frontend's own widget: fixed, randomize, ...
            graph[str(entry["id"])] = {"class_type": entry["type"], "inputs": inputs}
        return graph

    def refused(self, graph: dict[str, Any]) -> str:
        """Why a prompt is refused, when it is queued or by the node that it reaches first.

        ComfyUI 0.3.64 does not check the combos of V3 nodes, newer versions do.
        """
        try:
            return self.run(graph).message
        except ValueError as error:
            return str(error)

    def latent(self, run: Run, node: str = "save") -> Tensor:
        """The tensor that a SaveLatent node of a run wrote."""
        assert run.error is None, run.message
        saved = run.outputs[node]["latents"][0]
        path = self.base / "output" / saved["subfolder"] / saved["filename"]
        return load_file(path)["latent_tensor"]


@pytest.fixture(
    scope="session",
    params=HOSTS or [None],
    ids=lambda path: path.name if path else "no-ComfyUI",
)
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Each ComfyUI found, running."""
    if request.param is None:
        pytest.skip("no ComfyUI found; set COMFYUI_PATH to one or more checkouts")
    running = ComfyHost(request.param, tmp_path_factory.mktemp("base"))
    running.start()
    yield running
    running.stop()
