"""PARO Attention: faster visual attention for ComfyUI's video and image diffusion models.

Importing the root loads neither torch nor ComfyUI: the nodes are imported when ComfyUI asks for
them, so that `kernels` and `calibration` can be used and tested without a host.
"""

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    """Return the extension that holds this pack's nodes (ComfyUI calls this)."""
    import logging

    try:
        from .nodes.extension import ParoExtension
    except Exception:
        # ComfyUI logs only str(error); the trace is what a bug report needs.
        logging.getLogger("paro_attention").exception("PARO Attention could not load its nodes")
        raise
    return ParoExtension()
