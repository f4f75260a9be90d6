"""Block-sparse low-bit attention: PyTorch reference and Triton kernels behind one function."""

from .api import sparse_attention
from .block_mask import BlockMask
from .device import unavailable_reason

__all__ = ["BlockMask", "sparse_attention", "unavailable_reason"]
