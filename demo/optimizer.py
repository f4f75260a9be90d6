"""Training weights of the demo model in flat buffers: master copy, averages, float8, Muon and Adam.

All parameters live in a few contiguous buffers, so that averaging, float8 rounding, clipping and
the gradient exchange between GPUs are one operation each. Hidden matrices of equal shape lie side
by side and are updated with Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural
networks", 2024) as one batch, scaled to Adam's update size (Liu et al., "Muon is Scalable for LLM
Training", arXiv 2502.16982, eq. 4); everything else is updated with Adam.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

FLOAT8 = torch.float8_e4m3fn
# A step of one entry of this matrix moves a word by up to 4096 entries' worth, as rows are +-1.
_TEXT_INPUT = "text_embedding.0.weight"
_TEXT_RATE = 1 / 256


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """Rates are multiplied by the schedule's 0..1 factor at each step."""

    muon_rate: float = 4e-3
    adam_rate: float = 2e-3
    muon_momentum: float = 0.95
    adam_betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.02
    clip: float = 1.0
    ema: float = 0.995


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest semi-orthogonal matrices.

    Args:
        matrices: ``[N, R, C]``; computed in bfloat16 on a GPU.
        steps: iterations of the quintic of the Muon reference.

    Returns:
        ``[N, R, C]`` with singular values near 1, float32.
    """
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    transposed = x.shape[1] > x.shape[2]
    x = x.mT if transposed else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (2.0315 * (gram @ gram) - 4.7750 * gram) @ x
    return (x.mT if transposed else x).float()


class FlatTrainer:
    """Owns a model's weights during training and updates them.

    Attributes:
        master: float32 weights, flat.
        average: float32 exponential moving average of ``master``.
        gradient: flat gradients in the model's dtype; the parameters' ``.grad`` are views of it.
    """

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        self.settings = settings
        named = dict(model.named_parameters())
        hidden = sorted(
            (name for name, p in named.items() if name.startswith("blocks.") and p.ndim == 2),
            key=lambda name: (tuple(named[name].shape), name),
        )
        rest = [name for name in named if name not in hidden and name != _TEXT_INPUT]
        self.names = [*hidden, *rest, _TEXT_INPUT]
        first = next(iter(named.values()))
        device, dtype = first.device, first.dtype
        total = sum(p.numel() for p in named.values())
        self.master = torch.cat([named[name].detach().float().flatten() for name in self.names])
        self.average = self.master.clone()
        self.momentum = torch.zeros(total, device=device)
        self.gradient = torch.zeros(total, device=device, dtype=dtype)
        self._weights = torch.zeros(total, device=device, dtype=dtype)
        self._slices: dict[str, slice] = {}
        offset = 0
        for name in self.names:
            parameter = named[name]
            part = slice(offset, offset := offset + parameter.numel())
            self._slices[name] = part
            parameter.data = self._weights[part].view(parameter.shape)
            parameter.grad = self.gradient[part].view(parameter.shape)
        self._shapes = {name: named[name].shape for name in self.names}
        self._muon: list[tuple[slice, tuple[int, ...]]] = []
        for shape, group in groupby(hidden, key=lambda name: named[name].shape):
            members = list(group)
            part = slice(self._slices[members[0]].start, self._slices[members[-1]].stop)
            self._muon.append((part, (len(members), *shape)))
        start = self._slices[rest[0]].start
        text = self._slices[_TEXT_INPUT]
        self._adam = ((slice(start, text.start), 1.0), (text, _TEXT_RATE))
        self._adam_start = start
        self.variance = torch.zeros(total - start, device=device)
        self.steps = 0
        self.publish(float8=False)

    def publish(self, float8: bool, source: Tensor | None = None) -> None:
        """Write weights into the model, rounded to float8 values where asked.

        Gradients taken at the rounded weights are applied to the master copy, which is the
        straight-through estimator.
        """
        weights = self.master if source is None else source
        self._weights.copy_(weights.clamp(-448, 448).to(FLOAT8) if float8 else weights)

    def step(self, factor: float, float8: bool) -> Tensor:
        """Apply the gradients and publish the new weights.

        Args:
            factor: 0..1, from the schedule.
            float8: round the published weights.

        Returns:
            Gradient norm (a tensor: reading it would wait for the GPU).
        """
        s = self.settings
        self.steps += 1
        gradient = self.gradient.float().nan_to_num_(0.0, 0.0, 0.0)
        norm = gradient.norm()
        gradient.mul_((s.clip / (norm + 1e-6)).clamp_max(1.0))
        for part, shape in self._muon:
            momentum = self.momentum[part]
            momentum.lerp_(gradient[part], 1 - s.muon_momentum)
            nesterov = gradient[part].lerp(momentum, s.muon_momentum)
            update = orthogonalise(nesterov.view(shape)).flatten()
            scale = 0.2 * max(shape[1:]) ** 0.5
            master = self.master[part]
            master.mul_(1 - factor * s.muon_rate * s.weight_decay)
            master.add_(update, alpha=-factor * s.muon_rate * scale)
        beta1, beta2 = s.adam_betas
        for part, rate in self._adam:
            grad = gradient[part]
            variance = self.variance[part.start - self._adam_start : part.stop - self._adam_start]
            momentum = self.momentum[part]
            momentum.lerp_(grad, 1 - beta1)
            variance.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            size = factor * s.adam_rate * rate / (1 - beta1**self.steps)
            root = (variance / (1 - beta2**self.steps)).sqrt_().add_(1e-8)
            self.master[part].addcdiv_(momentum, root, value=-size)
        keep = min(s.ema, (1 + self.steps) / (10 + self.steps))
        self.average.lerp_(self.master, 1 - keep)
        self.publish(float8)
        self.gradient.zero_()
        return norm

    def export(self, source: Tensor) -> dict[str, Tensor]:
        """The state dict of a flat copy, stored as float8 on the CPU."""
        flat = source.clamp(-448, 448).to(FLOAT8).cpu()
        return {name: flat[self._slices[name]].view(self._shapes[name]) for name in self.names}

    def state(self) -> dict[str, object]:
        """What a checkpoint needs to go on."""
        return {
            "names": self.names,
            "steps": self.steps,
            "master": self.master,
            "average": self.average,
            "momentum": self.momentum,
            "variance": self.variance,
        }

    def restore(self, state: dict[str, object]) -> None:
        """Take up a checkpoint's state.

        Raises:
            ValueError: The checkpoint is another model's.
        """
        if state["names"] != self.names:
            raise ValueError("checkpoint must hold this model's parameters, got other names")
        self.steps = int(state["steps"])  # type: ignore[call-overload]
        for name in ("master", "average", "momentum", "variance"):
            value = state[name]
            assert isinstance(value, Tensor)
            getattr(self, name).copy_(value)
        self.publish(float8=False)
