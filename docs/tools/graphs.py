"""Builds ComfyUI workflow files: nodes in columns, linked by name, from a host's own nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
COLUMN_GAP, ROW_GAP, TOP = 60, 40, 120
GROUP_COLOURS = ("#3f789e", "#8A8", "#b58b2a", "#A88")


@dataclass(slots=True)
class Node:
    """One node of a workflow.

    Attributes:
        id: number.
        kind: ComfyUI's node id.
        title: shown instead of the kind's own name; None keeps that.
        values: widget values and links, (node, output name), by input name.
        column, width, height, x, y: where it stands, pixels.
        mode: 0 active, 2 muted.
        control: what the page does with the seed after each run.
    """

    id: int
    kind: str
    title: str | None
    values: dict[str, Any]
    column: int
    width: int
    height: int = 0
    x: int = 0
    y: int = 0
    mode: int = 0
    control: str = "fixed"

    def __getitem__(self, output: str | int) -> tuple[Node, str | int]:
        """An output, for the `values` of another node."""
        return (self, output)


@dataclass(slots=True)
class Graph:
    """A workflow under construction.

    Attributes:
        info: a host's /object_info.
        title: of the workflow.
        nodes: in order of creation.
        groups: (title, columns) of the frames around columns.
    """

    info: dict[str, Any]
    title: str
    nodes: list[Node] = field(default_factory=list)
    groups: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def add(
        self, kind: str, column: int, *, title: str | None = None, box: int = 330,
        extra_height: int = 0, **values: Any,
    ) -> Node:  # fmt: skip
        """A node, `box` pixels wide, below the others of its column.

        Inputs that are left out keep their defaults.
        """
        if kind not in self.info:
            raise KeyError(f"{kind} is not a node of this host")
        unknown = set(values) - set(self._inputs(kind))
        if unknown:
            raise KeyError(f"{kind} has no inputs {sorted(unknown)}")
        node = Node(len(self.nodes) + 1, kind, title, values, column, box)
        self._height(node, extra_height)
        self.nodes.append(node)
        return node

    def note(self, text: str, column: int, *, width: int = 330, height: int = 260) -> None:
        """A note in Markdown; it lives in the page alone."""
        node = Node(len(self.nodes) + 1, "MarkdownNote", "Read me", {"text": text}, column, width)
        node.height = height
        self.nodes.append(node)

    def group(self, title: str, *columns: int) -> None:
        """A frame with a title around whole columns."""
        self.groups.append((title, columns))

    def workflow(self) -> dict[str, Any]:
        """The workflow as ComfyUI's page saves it."""
        self._place()
        links: list[list[Any]] = []
        slots = {
            node.id: self._slots(node) for node in self.nodes if node.kind in self.info
        }  # fmt: skip
        outgoing: dict[tuple[int, int], list[int]] = {}
        for node in self.nodes:
            for place, slot in enumerate(slots.get(node.id, ())):
                source = node.values.get(slot["name"])
                if not _is_link(source):
                    continue
                origin, output = self._output(source)
                number = len(links) + 1
                kind = self.info[origin.kind]["output"][output]
                links.append([number, origin.id, output, node.id, place, kind])
                slot["link"] = number
                outgoing.setdefault((origin.id, output), []).append(number)
        return {
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._saved(node, slots.get(node.id, []), outgoing) for node in self.nodes],
            "links": links,
            "groups": self._saved_groups(),
            "config": {},
            "extra": {"ds": {"scale": 0.7, "offset": [0, 0]}},
            "version": 0.4,
        }

    def _inputs(self, kind: str) -> dict[str, tuple[Any, dict[str, Any]]]:
        """(type, options) of every input, in the page's order."""
        declared = self.info[kind]["input"]
        specs = {**declared.get("required", {}), **declared.get("optional", {})}
        return {n: (spec[0], spec[1] if len(spec) > 1 else {}) for n, spec in specs.items()}

    def _slots(self, node: Node) -> list[dict[str, Any]]:
        sockets, widgets = [], []
        for name, (kind, options) in self._inputs(node.kind).items():
            slot: dict[str, Any] = {
                "name": name,
                "type": "COMBO" if isinstance(kind, list) else kind,
                "link": None,
            }
            if is_widget(kind, options):
                widgets.append(slot | {"widget": {"name": name}})
            else:
                sockets.append(slot)
        return sockets + widgets

    def _output(self, source: tuple[Node, str | int]) -> tuple[Node, int]:
        node, output = source
        if isinstance(output, int):
            return node, output
        return node, self.info[node.kind]["output_name"].index(output)

    def _widget_values(self, node: Node) -> list[Any]:
        values: list[Any] = []
        for name, (kind, options) in self._inputs(node.kind).items():
            if not is_widget(kind, options):
                continue
            value = node.values.get(name)
            if value is None or _is_link(value):
                choices = kind if isinstance(kind, list) else options.get("options", [None])
                default = choices[0] if _is_combo(kind) and choices else ""
                value = options.get("default", default)
            values.append(value)
            if has_control(name, options):
                values.append(node.control)
        return values

    def _saved(
        self, node: Node, slots: list[dict[str, Any]], outgoing: dict[tuple[int, int], list[int]]
    ) -> dict[str, Any]:
        known = self.info.get(node.kind)
        outputs = [] if known is None else zip(known["output"], known["output_name"], strict=True)
        values = [node.values["text"]] if known is None else self._widget_values(node)
        saved = {
            "id": node.id,
            "type": node.kind,
            "pos": [node.x, node.y],
            "size": [node.width, node.height],
            "flags": {},
            "order": node.id - 1,
            "mode": node.mode,
            "inputs": slots,
            "outputs": [
                {"name": name, "type": kind, "links": outgoing.get((node.id, place))}
                for place, (kind, name) in enumerate(outputs)
            ],
            "properties": {} if known is None else {"Node name for S&R": node.kind},
            "widgets_values": values,
        }
        if node.title is not None:
            saved["title"] = node.title
        if known is None:
            saved |= {"color": "#432", "bgcolor": "#653"}
        return saved

    def _height(self, node: Node, extra: int) -> None:
        sockets = widgets = 0
        for name, (kind, options) in self._inputs(node.kind).items():
            if is_widget(kind, options):
                widgets += 5 if options.get("multiline") else 1
                widgets += has_control(name, options)
            else:
                sockets += 1
        rows = max(sockets, len(self.info[node.kind]["output"]))
        node.height = 12 + 22 * rows + 25 * widgets + extra

    def _place(self) -> None:
        """Columns from left to right, nodes from top to bottom."""
        left = 40
        for column in range(max(node.column for node in self.nodes) + 1):
            here = [node for node in self.nodes if node.column == column]
            y = TOP
            for node in here:
                node.x, node.y = left, y
                y += node.height + 30 + ROW_GAP  # a node's title stands above its place
            left += max((node.width for node in here), default=0) + COLUMN_GAP

    def _saved_groups(self) -> list[dict[str, Any]]:
        bottom = max(node.y + node.height for node in self.nodes) + 25
        saved = []
        for number, (title, columns) in enumerate(self.groups):
            inside = [node for node in self.nodes if node.column in columns]
            left = min(node.x for node in inside) - 20
            right = max(node.x + node.width for node in inside) + 20
            saved.append(
                {
                    "id": number + 1,
                    "title": title,
                    "bounding": [left, 20, right - left, bottom - 20],
                    "color": GROUP_COLOURS[number % len(GROUP_COLOURS)],
                    "font_size": 24,
                    "flags": {},
                }
            )
        return saved


def is_widget(kind: Any, options: dict[str, Any]) -> bool:
    """Whether an input of this type is a widget, not a socket."""
    return (isinstance(kind, list) or kind in WIDGET_TYPES) and not options.get("forceInput")


def has_control(name: str, options: dict[str, Any]) -> bool:
    """Whether the page adds its own "fixed, randomize, ..." widget behind this one."""
    return bool(options.get("control_after_generate", name in ("seed", "noise_seed")))


def _is_combo(kind: Any) -> bool:
    return isinstance(kind, list) or kind == "COMBO"


def _is_link(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Node)
