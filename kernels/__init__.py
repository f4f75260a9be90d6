"""Block-sparse low-bit attention: PyTorch reference and Triton kernels behind one function."""

from .api import sparse_attention
from .block_mask import BlockMask
from .block_mass_api import block_mass_of
from .device import runs_on_fp4_units, runs_on_int4_units, unavailable_reason

__all__ = [
    "BlockMask",
    "block_mass_of",
    "runs_on_fp4_units",
    "runs_on_int4_units",
    "sparse_attention",
    "unavailable_reason",
]
