"""A diffusion transformer that nobody has heard of, in a real ComfyUI."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.ldm.modules.attention
import comfy.model_base
import comfy.supported_models_base
import torch
from torch import Tensor, nn

HEADS, DIM = 2, 32


class MadeUpBlock(nn.Module):
    def __init__(self, operations: Any, device: Any, dtype: Any):
        super().__init__()
        self.qkv = operations.Linear(DIM, 3 * DIM, device=device, dtype=dtype)
        self.out = operations.Linear(DIM, DIM, device=device, dtype=dtype)

    def forward(self, x: Tensor, transformer_options: dict[str, Any]) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        attention = comfy.ldm.modules.attention.optimized_attention
        return x + self.out(attention(q, k, v, HEADS, transformer_options=transformer_options))


class MadeUpDiT(nn.Module):
    """Each pixel is a token, the text comes first; no wrapper of ComfyUI's is called."""

    def __init__(
        self, device: Any = None, dtype: Any = None, operations: Any = None, **_sizes: Any
    ):
        super().__init__()
        self.dtype = dtype
        self.embed = operations.Linear(4, DIM, device=device, dtype=dtype)
        self.blocks = nn.ModuleList(MadeUpBlock(operations, device, dtype) for _ in range(2))
        self.last = operations.Linear(DIM, 4, device=device, dtype=dtype)

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor, transformer_options: Any, **_: Any
    ) -> Tensor:
        tokens = self.embed(x.flatten(2).transpose(1, 2)) + timesteps.view(-1, 1, 1).to(x)
        tokens = torch.cat([context[..., :DIM], tokens], dim=1)
        for block in self.blocks:
            tokens = block(tokens, transformer_options)
        out = self.last(tokens[:, context.shape[1] :])
        return out.transpose(1, 2).reshape(x.shape)


class MadeUp(comfy.supported_models_base.BASE):
    unet_config = {"in_channels": 4}  # noqa: RUF012, as ComfyUI declares it
    unet_extra_config: dict[str, Any] = {}  # noqa: RUF012
    sampling_settings = {"shift": 1.0}  # noqa: RUF012

    def get_model(self, state_dict: Any, prefix: str = "", device: Any = None) -> Any:
        flow = comfy.model_base.ModelType.FLOW
        return comfy.model_base.BaseModel(self, flow, device=device, unet_model=MadeUpDiT)


def run_unknown() -> dict[str, Any]:
    """What Load PARO and Calibrate PARO do with the model: outputs, lines of the log, errors."""
    from cases.case import around, text
    from paro_attention.nodes.calibrate import ParoCalibrate
    from paro_attention.nodes.load import ParoLoad
    from worker import Sampler

    model = around(MadeUp(MadeUp.unet_config))
    case: Any = SimpleNamespace(
        latent=lambda: torch.zeros(1, 4, 7, 9),
        positive=lambda: text(7, DIM, 1),
        negative=lambda: text(5, DIM, 2),
        noise_mask=None,
    )
    sample = Sampler(case)
    dense = sample(model, 3.0)
    logged, shown = Lines(), []
    logger = logging.getLogger("paro_attention")
    logger.addHandler(logged)
    server = _server_that_shows(shown)
    before = sys.modules.get("server")
    sys.modules["server"] = server
    options = {"plan": "none", "density": 0.3, "qk_bits": "8", "pv_bits": "8", "warmup": 0.0}
    options |= {"dense_layers": "", "min_tokens": 0}
    try:
        loaded = _node(ParoLoad).execute(model, **options, on_unsupported="dense").args[0]
        out = sample(loaded, 3.0)
        strict = _error(_node(ParoLoad).execute, model, **options, on_unsupported="error")
        calibrated = _error(
            _node(ParoCalibrate).execute, model, "unknown", {"samples": case.latent()}, 1, 2, 3.0,
            "euler", "simple", 0.3, 1, "tiles", "output_error", 0, 2, case.positive(),
            case.negative(),
        )  # fmt: skip
    finally:
        logger.removeHandler(logged)
        sys.modules.pop("server")
        if before is not None:
            sys.modules["server"] = before
    return {
        "equal": bool(torch.equal(out, dense)),
        "finite": bool(dense.isfinite().all()),
        "logged": logged.lines,
        "shown": shown,
        "strict": strict,
        "calibrated": calibrated,
    }


class Lines(logging.Handler):
    """Keeps the lines of a log."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _node(kind: Any) -> Any:
    """A node as ComfyUI calls it, with an id."""
    return type(kind.__name__, (kind,), {"hidden": SimpleNamespace(unique_id="7")})


def _server_that_shows(shown: list[list[str]]) -> Any:
    """ComfyUI's server module, as far as text on a node goes."""
    server: Any = ModuleType("server")
    instance = SimpleNamespace(send_progress_text=lambda text, node: shown.append([node, text]))
    server.PromptServer = SimpleNamespace(instance=instance)
    return server


def _error(function: Any, *args: Any, **kwargs: Any) -> str:
    """The message of the error that the call ends with; empty if it does not."""
    try:
        function(*args, **kwargs)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""
