"""Wan 2.1 text-to-video diffusion transformer in plain PyTorch, with the original key names.

Written for the bundled demo model and for running it without a host. The architecture follows "Wan:
Open and Advanced Large-Scale Video Generative Models" (arXiv 2503.20314); its state dict is the one
that ComfyUI detects and loads, and its outputs equal ComfyUI's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from . import MODEL_FILE

AttentionHook = Callable[[int, Tensor, Tensor, Tensor], Tensor]
PATCH = (1, 2, 2)


@dataclass(frozen=True, slots=True)
class WanConfig:
    """Sizes of a Wan 2.1 text-to-video model; every head has 128 channels."""

    dim: int = 384
    ffn_dim: int = 1024
    layers: int = 8
    channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.dim % 128 or self.dim <= 0:
            raise ValueError(f"dim must be a multiple of 128, got {self.dim}; pick 128, 256, ...")
        if self.layers < 1 or self.ffn_dim < 1:
            raise ValueError(
                f"layers and ffn_dim must be positive, got {self.layers} and {self.ffn_dim}"
            )

    @property
    def heads(self) -> int:
        """Heads per layer."""
        return self.dim // 128

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> WanConfig:
        """Read the sizes off the shapes of a state dict.

        Raises:
            ValueError: The state dict is not a Wan 2.1 text-to-video model's.
        """
        if "head.modulation" not in state or "blocks.0.ffn.0.weight" not in state:
            raise ValueError("state dict must be a Wan 2.1 t2v model's, got other keys")
        layers = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        return cls(
            dim=state["head.modulation"].shape[-1],
            ffn_dim=state["blocks.0.ffn.0.weight"].shape[0],
            layers=layers,
            channels=state["patch_embedding.weight"].shape[1],
            text_dim=state["text_embedding.0.weight"].shape[1],
            freq_dim=state["time_embedding.0.weight"].shape[1],
        )


@lru_cache(maxsize=16)
def rope_tables(
    grid: tuple[int, int, int], head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of Wan's three-axis rotary embedding.

    Args:
        grid: token grid (frames, height, width).
        head_dim: channels of a head, shared out as (d - 4 * (d // 6), 2 * (d // 6), 2 * (d // 6)).
        device: where the tables go.

    Returns:
        Two float32 tensors ``[S, head_dim / 2]``; pair i holds channels 2i and 2i + 1.
    """
    small = 2 * (head_dim // 6)
    angles = []
    for axis, dim in enumerate((head_dim - 2 * small, small, small)):
        frequency = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angle = torch.arange(grid[axis], dtype=torch.float64)[:, None] * frequency
        shape = [1, 1, 1, dim // 2]
        shape[axis] = grid[axis]
        angles.append(angle.view(shape).expand(*grid, dim // 2))
    table = torch.cat(angles, dim=-1).reshape(-1, head_dim // 2)
    return table.cos().float().to(device), table.sin().float().to(device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding to ``[B, S, H, D]`` in float32; result in the dtype of ``x``."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)


def _dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


class SelfAttention(nn.Module):
    """Visual self-attention with RMS-normalised queries and keys and rotary positions."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(dim, eps=config.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """``[B, S, C]`` -> ``[B, S, C]``; ``attend`` maps q, k, v ``[B, H, S, D]`` to the same."""
        shape = (*x.shape[:2], self.heads, -1)
        q = rotate(self.norm_q(self.q(x)).view(shape), cos, sin).transpose(1, 2)
        k = rotate(self.norm_k(self.k(x)).view(shape), cos, sin).transpose(1, 2)
        v = self.v(x).view(shape).transpose(1, 2)
        return self.o(attend(q, k, v).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention from visual tokens to the few text tokens."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q = nn.RMSNorm(dim, eps=config.eps)
        self.norm_k = nn.RMSNorm(dim, eps=config.eps)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``[B, S, C]`` and ``[B, L, C]`` -> ``[B, S, C]``."""
        q = self.norm_q(self.q(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.norm_k(self.k(context)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = self.v(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # Sixteen keys: the logits are smaller than q, so plain products beat a fused kernel whose
        # backward pass has one block of keys to spread over the whole GPU.
        logits = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5)
        out = torch.softmax(logits, dim=-1, dtype=torch.float32).to(q.dtype) @ v
        return self.o(out.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One transformer layer: modulated self-attention, cross-attention, modulated MLP."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, config.eps, elementwise_affine=False)
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(dim, config.eps)
        self.cross_attn = CrossAttention(config)
        self.norm2 = nn.LayerNorm(dim, config.eps, elementwise_affine=False)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim)
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        cos: Tensor,
        sin: Tensor,
        context: Tensor,
        attend: Callable[..., Tensor] = _dense_attention,
    ) -> Tensor:
        """``x`` ``[B, S, C]``, ``e`` ``[B, 6, C]``, ``context`` ``[B, L, C]`` -> ``[B, S, C]``."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation + e).chunk(6, dim=1)
        y = self.self_attn(shift1 + self.norm1(x) * (1 + scale1), cos, sin, attend)
        x = x + y * gate1
        x = x + self.cross_attn(self.norm3(x), context)
        y = self.ffn(shift2 + self.norm2(x) * (1 + scale2))
        return x + y * gate2


class Head(nn.Module):
    """Modulated projection of the tokens to the patches of the velocity."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, config.eps, elementwise_affine=False)
        self.head = nn.Linear(config.dim, 4 * config.channels)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """``x`` ``[B, S, C]``, ``e`` ``[B, C]`` -> ``[B, S, 4 * channels]``."""
        shift, scale = (self.modulation + e[:, None]).chunk(2, dim=1)
        return self.head(shift + self.norm(x) * (1 + scale))


class WanModel(nn.Module):
    """The whole model; predicts the rectified-flow velocity ``noise - x0``."""

    def __init__(self, config: WanConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or WanConfig()
        dim = config.dim
        self.patch_embedding = nn.Conv3d(config.channels, dim, PATCH, stride=PATCH)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise for training: residual branches start small, the output at zero."""
        for name, parameter in self.named_parameters():
            if name.endswith("modulation"):
                nn.init.normal_(parameter, std=0.02)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter) if "norm" in name and name.endswith(
                    "weight"
                ) else nn.init.zeros_(parameter)
            elif name.startswith("head."):
                nn.init.zeros_(parameter)
            else:
                fan_in = parameter[0].numel()
                residual = name.endswith((".o.weight", "ffn.2.weight", "time_projection.1.weight"))
                nn.init.normal_(parameter, std=(0.3 if residual else 1.0) * fan_in**-0.5)

    def token_grid(self, latent: Tensor) -> tuple[int, int, int]:
        """Token grid (frames, height, width) of a latent ``[B, C, F, H, W]``."""
        frames, height, width = latent.shape[-3:]
        return frames, height // 2, width // 2

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor, attention: AttentionHook | None = None
    ) -> Tensor:
        """Predict the velocity.

        Args:
            x: noisy latent ``[B, 16, F, H, W]``, H and W even; the dtype the model computes in.
            t: ``[B]``, sigma * 1000.
            context: ``[B, L, 4096]`` text rows, zeros where there is no word.
            attention: replaces visual self-attention: called as ``attention(layer, q, k, v)`` with
                ``[B, heads, S, 128]`` tensors after rotary embedding, returns the same shape.

        Returns:
            Velocity ``[B, 16, F, H, W]`` in the dtype of ``x``.

        Raises:
            ValueError: ``x``, ``t`` or ``context`` have shapes that do not fit together.
        """
        config = self.config
        if x.ndim != 5 or x.shape[1] != config.channels or x.shape[3] % 2 or x.shape[4] % 2:
            raise ValueError(
                f"x must have shape [B, {config.channels}, F, H, W] with even H and W, "
                f"got {list(x.shape)}"
            )
        b = x.shape[0]
        if t.shape != (b,) or context.ndim != 3 or context.shape[::2] != (b, config.text_dim):
            raise ValueError(
                f"t and context must have shapes [{b}] and [{b}, L, {config.text_dim}], "
                f"got {list(t.shape)} and {list(context.shape)}"
            )
        grid = self.token_grid(x)
        cos, sin = rope_tables(grid, config.dim // config.heads, x.device)
        tokens = self._patchify(x, grid)
        e = self.time_embedding(_sinusoids(config.freq_dim, t).to(x.dtype))
        e6 = self.time_projection(e).unflatten(1, (6, config.dim))
        text = self.text_embedding(context.to(x.dtype))
        for layer, block in enumerate(self.blocks):
            if attention is None:
                tokens = block(tokens, e6, cos, sin, text)
            else:
                tokens = block(tokens, e6, cos, sin, text, partial(attention, layer))
        out = self.head(tokens, e).view(b, *grid, 2, 2, config.channels)
        return out.permute(0, 6, 1, 2, 4, 3, 5).reshape(x.shape)

    def _patchify(self, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
        # A convolution whose stride is its kernel is a matrix product over patches; in float32, as
        # the host runs this layer whatever the model's dtype.
        b, channels, frames = x.shape[:3]
        patches = x.float().view(b, channels, frames, grid[1], 2, grid[2], 2)
        patches = patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(b, -1, 4 * channels)
        weight, bias = self.patch_embedding.weight, self.patch_embedding.bias
        assert bias is not None
        return F.linear(patches, weight.flatten(1).float(), bias.float()).to(x.dtype)


def _sinusoids(dim: int, t: Tensor) -> Tensor:
    half = dim // 2
    frequency = 10000.0 ** -(torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def read_metadata(path: Path | str = MODEL_FILE) -> dict[str, str]:
    """What the file says about its own making (config, words, training)."""
    with safe_open(str(path), framework="pt") as file:
        return file.metadata() or {}


def load_demo_model(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    path: Path | str = MODEL_FILE,
) -> WanModel:
    """Load the bundled demo model.

    Args:
        device: where it goes.
        dtype: what it computes in; the stored float8 weights are widened to it without loss.
        path: another file of the same architecture.

    Returns:
        The model in evaluation mode, without gradients.

    Raises:
        RuntimeError: The file is missing, unreadable or not a Wan 2.1 t2v model.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = WanConfig.from_state_dict(state)
    except Exception as error:
        raise RuntimeError(
            f"{path} must be a demo model, got {error}; make it with python -m demo.train"
        ) from error
    model = WanModel(config)
    model.load_state_dict({key: value.to(torch.float32) for key, value in state.items()})
    return model.to(device=device, dtype=dtype).eval().requires_grad_(False)


def describe(config: WanConfig) -> str:
    """The config as one JSON line, for a file's metadata."""
    return json.dumps(asdict(config))
