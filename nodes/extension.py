"""What ComfyUI gets from this pack: the list of nodes and one route."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import plan_folder, plan_preview
from .calibrate import ParoCalibrate
from .compare import ParoCompare
from .demo_model import ParoDemoModel
from .load import ParoLoad
from .probe import ParoProbe
from .record import ParoRecord
from .report import ParoReport
from .run_stats import recent_runs


class ParoExtension(ComfyExtension):
    """The nodes of PARO Attention."""

    def __init__(self) -> None:
        plan_folder.register()
        _add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            ParoCalibrate,
            ParoRecord,
            ParoLoad,
            ParoReport,
            ParoProbe,
            ParoCompare,
            ParoDemoModel,
        ]


def _add_routes() -> None:
    """GET /paro/stats: what the last sampling runs did, oldest first; GET /paro/plan, /preview."""
    from aiohttp import web
    from server import PromptServer

    server = getattr(PromptServer, "instance", None)
    if server is None:  # in-process use without a server
        return

    @server.routes.get("/paro/stats")
    async def stats(_request: web.Request) -> web.Response:
        return web.json_response(list(recent_runs))

    plan_preview.add_routes(server)
