"""Copies to the device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device. A copy from the CPU to a GPU goes through pinned memory and is only begun.

    What the current stream does next sees the copy; the pinned memory is kept until it is done.
    """
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.contiguous().pin_memory().to(device, non_blocking=True)
