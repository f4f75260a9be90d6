"""Which devices the Triton kernels serve, and the sentence a user reads where they do not."""

from __future__ import annotations

import importlib.util
import os

import torch

MIN_CAPABILITY = (8, 0)
MAX_HEAD_DIM = 256
FP8_CAPABILITY = (8, 9)
# Looked up, not imported: that would cost seconds where nothing needs it.
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


def interpreting() -> bool:
    """True where TRITON_INTERPRET runs the kernels on CPU tensors (tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable_reason(
    device: torch.device | str, dtype: torch.dtype | None = None, head_dim: int | None = None
) -> str | None:
    """Why the Triton kernels cannot serve this device, dtype or head_dim; None where they can."""
    device = torch.device(device) if isinstance(device, str) else device
    if dtype is not None and dtype not in (torch.float16, torch.bfloat16):
        return f"the kernels read float16 or bfloat16, not {str(dtype).removeprefix('torch.')}"
    if head_dim is not None and not (0 < head_dim <= MAX_HEAD_DIM and head_dim % 8 == 0):
        return f"the kernels serve head_dim in multiples of 8 up to {MAX_HEAD_DIM}, not {head_dim}"
    if not TRITON_INSTALLED:
        return (
            "Triton is not installed (Linux: it comes with torch; "
            "Windows: pip install triton-windows)"
        )
    if device.type == "cpu" and interpreting():
        return None
    if device.type != "cuda":
        return f"the kernels run on NVIDIA GPUs, not on {device.type}"
    if torch.version.hip is not None:
        return "the kernels run on NVIDIA GPUs, not on AMD (ROCm)"
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return (
            f"the kernels need compute capability 8.0 (RTX 30 or newer), this GPU has "
            f"{capability[0]}.{capability[1]}"
        )
    return None


def _served_capability(device: torch.device, head_dim: int) -> tuple[int, int] | None:
    """Compute capability of a card that the kernels serve; None for any other device."""
    if device.type != "cuda" or unavailable_reason(device, head_dim=head_dim) is not None:
        return None
    return torch.cuda.get_device_capability(device)


def runs_on_int4_units(
    device: torch.device, head_dim: int, block: tuple[int, int], qk_bits: int, pv_bits: int
) -> bool:
    """True where a call in these bits multiplies 4-bit integers natively (sm_80, 86, 87, 89)."""
    capability = _served_capability(device, head_dim)
    if (qk_bits, pv_bits) != (4, 4) or capability is None:
        return False
    from .triton.int4 import int4_available

    return int4_available(capability, head_dim, block)


def runs_on_hopper_kernel(
    device: torch.device,
    head_dim: int,
    block: tuple[int, int],
    qk_bits: int,
    pv_bits: int,
    fp8: bool,
    tail: bool,
) -> bool:
    """True where a call in these bits is the Hopper kernel's of 8-bit values.

    ``head_dim``: of the inputs. Calls whose keys have biases are not.
    """
    capability = _served_capability(device, head_dim)
    if capability is None:
        return False
    from .triton.hopper_support import hopper_available

    return hopper_available(capability, head_dim, block, qk_bits, pv_bits, fp8, tail)


def runs_on_fp4_units(
    device: torch.device, head_dim: int, block: tuple[int, int], qk_bits: int, pv_bits: int
) -> bool:
    """True where a call in these bits multiplies block-scaled FP4 natively (sm_120)."""
    capability = _served_capability(device, head_dim)
    if (qk_bits, pv_bits) != (4, 4) or capability is None:
        return False
    from .triton.fp4 import fp4_available

    return fp4_available(capability, head_dim, block)


def fp8_supported(device: torch.device) -> bool:
    """True where the card multiplies FP8 (sm_89 and newer)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
