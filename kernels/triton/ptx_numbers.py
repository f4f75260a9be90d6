"""Numbers as PTX writes them."""

from __future__ import annotations

import struct


def ptx_float(x: float) -> str:
    """A float32 by its bits."""
    return "0f" + struct.pack(">f", x).hex().upper()
