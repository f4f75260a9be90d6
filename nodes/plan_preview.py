"""GET /paro/plan and /paro/preview: what the picture in Load PARO is drawn from.

Both serve plan files of models/paro alone. A name that a client sends is looked up in the list of
these files and never opened as a path.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import folder_paths

from ..calibration import Plan, PlanError, load_plan
from ..calibration.metrics import RECALL_DENSITIES
from . import plan_folder
from .layer_list import parse_layers
from .preview_blocks import LayerPictures
from .preview_budget import shared_budget

logger = logging.getLogger("paro_attention")

AUTO = "auto"
MAX_FILE_BYTES = 1 << 30
# More tokens than any sequence that the kernels index with 16 bits in blocks of 128.
MAX_TOKENS = 1 << 22
KEPT_PLANS = 2
KEPT_ANSWERS_BYTES = 64 << 20
_MAX_DIGITS = 6
_MAX_TEXT = 1000


class RefusedError(Exception):
    """A request that is answered with an HTTP status of 4xx and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


class PlanPreviews:
    """Answers about plan files; parsed plans and packed layers are kept until the file changes.

    Not safe for threads: `add_routes` asks it from one thread of its own.
    """

    def __init__(self) -> None:
        self._plans: OrderedDict[str, tuple[Plan, LayerPictures]] = OrderedDict()
        self._answers: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()

    def describe(self, query: Mapping[str, str]) -> bytes:
        """JSON: the plan's layers, heads, noise bands, orders, grid and recall curves.

        Raises:
            RefusedError: no such plan, or a file that cannot be served.
        """
        name = _plan_name(query)
        _, plan, pictures = self._load(name)
        pictures.prepare()
        recall = plan.recall_profile.mean(2)
        return _json(
            {
                "plan": name,
                "model": plan.identity.description,
                "layers": plan.layers,
                "heads": plan.heads,
                "head_dim": plan.identity.head_dim,
                "grid": plan.grid.shape,
                "tokens": plan.grid.tokens,
                "block": plan.block,
                "band_edges": plan.bands.edges,
                "band_shares": plan.shares,
                "schedule": plan.schedule,
                "orders": [plan.order_names(layer) for layer in range(plan.layers)],
                "candidates": plan.candidates,
                "recall_densities": RECALL_DENSITIES,
                "recall": [[_rounded(c) for c in curves.tolist()] for curves in recall],
                "made_from": asdict(plan.origin),
            }
        )

    def preview(self, query: Mapping[str, str]) -> bytes:
        """One layer at one noise band, binary (see `_packed`).

        Raises:
            RefusedError: no such plan, layer, band or order.
        """
        name = _plan_name(query)
        stamp, plan, pictures = self._load(name)
        layer = _index(query, "layer", plan.layers)
        band = _index(query, "band", plan.bands.count)
        order = query.get("order", "plan")
        if order not in ("plan", "model"):
            raise RefusedError(400, "order must be plan or model")
        try:
            dense = parse_layers(_short(query, "dense_layers"), plan.layers)
        except ValueError as error:
            raise RefusedError(400, str(error)) from None
        key = (stamp, layer, band, order, dense)
        if key not in self._answers:
            self._answers[key] = _packed(plan, pictures, layer, band, order, dense)
            while sum(map(len, self._answers.values())) > KEPT_ANSWERS_BYTES:
                self._answers.popitem(last=False)
        self._answers.move_to_end(key)
        return self._answers[key]

    def _load(self, name: str) -> tuple[str, Plan, LayerPictures]:
        path = served_path(name)
        stamp = f"{name}:{plan_folder.stamp(path)}"
        if stamp not in self._plans:
            plan = _read(path, name)
            self._plans[stamp] = plan, LayerPictures(plan)
            while len(self._plans) > KEPT_PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(stamp)
        return stamp, *self._plans[stamp]


def served_path(name: str) -> Path:
    """The plan file of a name that the plan list of Load PARO holds.

    Raises:
        RefusedError: not in the list, not a file inside models/paro, or too large.
    """
    names = plan_folder.plan_names()
    if name not in names:
        name = name.replace("/", os.sep)  # as Calibrate PARO and /paro/stats write it
    if name not in names:
        raise RefusedError(404, f"there is no such plan in models/{plan_folder.FOLDER}")
    try:
        path = plan_folder.plan_path(name).resolve(strict=True)
        status = path.stat()
    except (OSError, ValueError, RuntimeError):
        raise RefusedError(404, "the plan file cannot be found") from None
    roots = [Path(root).resolve() for root in folder_paths.get_folder_paths(plan_folder.FOLDER)]
    if not any(path.is_relative_to(root) for root in roots):
        raise RefusedError(403, f"the plan file lies outside models/{plan_folder.FOLDER}")
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(422, "the plan is not a file")
    if status.st_size > MAX_FILE_BYTES:
        size = f"{status.st_size / 2**20:.0f} MiB"
        raise RefusedError(413, f"the plan file has {size}, more than any plan needs")
    return path


def add_routes(server: Any) -> None:
    """Register the two routes on ComfyUI's server; the work runs in a thread of its own."""
    from aiohttp import web

    previews = PlanPreviews()
    worker = ThreadPoolExecutor(1, thread_name_prefix="paro-preview")

    async def answer(work: Callable[[Mapping[str, str]], bytes], request: Any, kind: str) -> Any:
        loop = asyncio.get_running_loop()
        headers = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        try:
            body = await loop.run_in_executor(worker, work, dict(request.query))
        except RefusedError as refusal:
            message = {"error": str(refusal)}
            return web.json_response(message, status=refusal.status, headers=headers)
        return web.Response(body=body, content_type=kind, headers=headers)

    @server.routes.get("/paro/plan")
    async def plan(request: web.Request) -> web.Response:
        return await answer(previews.describe, request, "application/json")

    @server.routes.get("/paro/preview")
    async def preview(request: web.Request) -> web.Response:
        return await answer(previews.preview, request, "application/octet-stream")


def _plan_name(query: Mapping[str, str]) -> str:
    """The plan that is asked for; "auto" is the only one there is."""
    name = query.get("plan", "")
    if name != AUTO:
        return name
    names = plan_folder.plan_names()
    if len(names) != 1:
        found = f"models/{plan_folder.FOLDER} holds {len(names) or 'no'} plans"
        raise RefusedError(409 if names else 404, f"{found}: auto picks by the model when it runs")
    return names[0]


def _read(path: Path, name: str) -> Plan:
    try:
        plan = load_plan(path)
    except PlanError as error:
        # What the operating system says holds the full path.
        sentence = str(error).replace(str(path), name).replace(str(path.parent), "")
        raise RefusedError(422, sentence[:500]) from None
    except (MemoryError, RuntimeError):
        logger.warning("PARO: %s cannot be shown", name, exc_info=True)
        raise RefusedError(422, f"plan file {name} cannot be read") from None
    if plan.grid.tokens > MAX_TOKENS:
        raise RefusedError(422, f"plan file {name}: its grid has more than {MAX_TOKENS} tokens")
    return plan


def _index(query: Mapping[str, str], name: str, count: int) -> int:
    text = query.get(name, "0")
    plain = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    if not plain or int(text) >= count:
        raise RefusedError(400, f"{name} must be one of 0..{count - 1}")
    return int(text)


def _short(query: Mapping[str, str], name: str) -> str:
    text = query.get(name, "")
    if len(text) > _MAX_TEXT:
        raise RefusedError(400, f"{name} must have at most {_MAX_TEXT} characters")
    return text


def _packed(
    plan: Plan,
    pictures: LayerPictures,
    layer: int,
    band: int,
    order: str,
    dense_layers: tuple[int, ...],
) -> bytes:
    """uint32 length of the header, the header (JSON), then the arrays that it lists.

    All little-endian; every array begins at a multiple of 4 bytes.
    """
    drawn = pictures.draw(layer, band, order == "model")
    budget = shared_budget(plan, layer, band, dense_layers)
    arrays = {
        "mass": drawn.mass,
        "rank": drawn.rank.astype("<u2"),
        "predicted": drawn.recall.astype("<f4"),
        "recall": plan.recall_profile[layer, band].numpy().astype("<f4"),
        "pieces": budget.pieces,
    }
    header: dict[str, Any] = {
        "layer": layer,
        "band": band,
        "order": order,
        "orders": plan.order_names(layer),
        "every": drawn.every,
        "budget": {
            "grid": budget.grid,
            "first_row": budget.first_row,
            "rows": budget.rows,
            "floor": budget.floor,
            "least": budget.least,
        },
        "arrays": {},
    }
    parts: list[bytes] = []
    place = 0
    for name, array in arrays.items():
        data = array.tobytes()
        header["arrays"][name] = {
            "type": array.dtype.str, "shape": array.shape, "at": place,
        }  # fmt: skip
        parts.append(data + bytes(-len(data) % 4))
        place += len(parts[-1])
    text = _json(header)
    text += b" " * (-len(text) % 4)
    return struct.pack("<I", len(text)) + text + b"".join(parts)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _rounded(curve: list[float]) -> list[float]:
    return [round(value, 4) for value in curve]
