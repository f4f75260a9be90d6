"""Small differences between ComfyUI versions, and what the user sees while a node works."""

from __future__ import annotations

import inspect
import logging
from typing import Any

from comfy_api.latest import io

logger = logging.getLogger("paro_attention")


def schema(**values: Any) -> io.Schema:
    """An `io.Schema`; fields that this ComfyUI does not know yet are left out."""
    known = inspect.signature(io.Schema).parameters
    return io.Schema(**{name: value for name, value in values.items() if name in known})


def advanced(input_type: Any, *args: Any, **values: Any) -> Any:
    """An input that newer versions fold away under "advanced"."""
    if "advanced" in inspect.signature(input_type.Input.__init__).parameters:
        values["advanced"] = True
    return input_type.Input(*args, **values)


def slider() -> dict[str, Any]:
    """Keyword arguments that make a number input a slider."""
    return {"display_mode": io.NumberDisplay.slider}


def show_text(text: str, node_id: str | None) -> None:
    """Show one line of text on the node; nothing happens where the host cannot do that."""
    if node_id is None:
        return
    try:
        from server import PromptServer

        send = getattr(PromptServer.instance, "send_progress_text", None)
    except (ImportError, AttributeError):
        return
    if send is not None:
        send(text, str(node_id))


def tell(text: str, node_id: str | None, level: int = logging.INFO) -> None:
    """Log one line and show it on the node."""
    logger.log(level, "PARO: %s", text)
    show_text(text, node_id)
