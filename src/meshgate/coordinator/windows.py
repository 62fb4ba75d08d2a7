"""What the queries of a project's models read, beside what their windows declare."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from meshgate.bridge.project import SqlmeshProject
    from meshgate.bridge.queries import Rendered
    from meshgate.graph import MeshGraph, ModelNode, Window
    from meshgate.windows import ModelQuery, Reading, Side

_DAY = timedelta(days=1)
_ZERO = timedelta(0)


@frozen
class ReadWindow:
    """What a model reads of a parent, and what is declared.

    Attributes:
        model: The reader.
        parent: The table that it reads, behind whatever views.
        through: What its query names: the parent, or a view in front of it.
        declared: The windows that the gate asks about; more than one where several ways lead to the parent.
        reading: What was found in the query.
        before: Where it reads earlier time than is declared, else None.
        after: Where it reads later time than is declared, else None.
        unclear: A side of which that is not known, else None.
    """

    model: ModelNode
    parent: ModelNode
    through: ModelNode
    declared: tuple[Window, ...]
    reading: Reading
    before: Side | None
    after: Side | None
    unclear: Side | None


def read_windows(opened: SqlmeshProject, graph: MeshGraph) -> tuple[ReadWindow, ...]:
    """Look at each model of a project, and at all that it waits for, in order.

    Args:
        opened: The project, with its files loaded.
        graph: What its files say, with the windows that are declared.
    """
    from meshgate.windows import bounds_to_render

    queries = opened.queries(bounds_to_render)
    return windows_of(queries, graph, {n.name for n in graph.nodes.values() if n.project == opened.project})


def windows_of(
    rendered: Mapping[str, Rendered], graph: MeshGraph, readers: AbstractSet[str]
) -> tuple[ReadWindow, ...]:
    """Look at some models, and at all that they wait for, in order.

    Args:
        rendered: The models, and whatever they look through, with their queries, by name.
        graph: Everything that they read, with the windows that are declared.
        readers: Which models.
    """
    from meshgate.windows import beyond, infer, unclear

    queries = _translated(rendered)
    found: list[ReadWindow] = []
    for name in graph.order():
        node = graph[name]
        if name not in readers or name not in queries or not node.kind.recorded:
            continue
        gates: dict[str, tuple[Window, ...]] = {}
        for edge in graph.gates(name):
            gates[edge.parent] = (*gates.get(edge.parent, ()), edge.window)
        for reading in infer(queries[name], graph.nodes, queries):
            parent = graph.nodes.get(reading.parent)
            if parent is None or parent.name not in gates or not parent.kind.time_partitioned:
                continue
            declared = gates[parent.name]
            before, after = beyond(reading, node, parent, declared)
            through = graph.nodes.get(reading.through, parent)
            dark = unclear(reading, node, declared)
            found.append(ReadWindow(node, parent, through, declared, reading, before, after, dark))
    return tuple(found)


def _translated(rendered: Mapping[str, Rendered]) -> Mapping[str, ModelQuery]:
    from meshgate.windows import ModelQuery, Rendering

    return {
        name: ModelQuery(
            name=model.name,
            parents=model.parents,
            renderings=tuple(
                Rendering(interval, execution, query) for interval, execution, query in model.queries
            ),
            time_column=model.time_column,
            columns=model.columns,
            dialect=model.dialect,
            file=model.file,
            text=model.text,
            transparent=model.transparent,
            inlined=model.inlined,
            problem=model.problem,
        )
        for name, model in rendered.items()
    }


def told(found: ReadWindow) -> tuple[str, str]:
    """That a query reads beyond its windows, for people: what, and what to do."""
    who = f"{found.model.display} reads {found.parent.display}"
    if found.through is not found.parent:
        who += f" through {found.through.display}"
    said = [
        f"{_extent(side, found.parent, before=before)}{f' ({side.place})' if side.place else ''}"
        for side, before in ((found.before, True), (found.after, False))
        if side is not None
    ]
    declared = " and ".join(_spoken(window) for window in found.declared)
    message = (
        f"{who} {', and '.join(said)}, but its window is {declared}: the gate does not wait for the rest"
    )
    return message, _advice(found)


def _extent(side: Side, parent: ModelNode, *, before: bool) -> str:
    if side.offset is None:
        return f"without a limit {'before' if before else 'after'} its interval"
    offset = _rounded(side.offset, parent, before=before)
    edge = "start" if before else "end"
    if before:
        return f"from {_length(offset)} {'before' if offset < timedelta(0) else 'after'} its {edge} on"
    return f"up to {_length(offset)} {'before' if offset < timedelta(0) else 'after'} its {edge}"


def _advice(found: ReadWindow) -> str:
    narrow = "limit the query"
    if found.after is not None and found.after.offset is None:
        return (
            f"{narrow} to what lies before the interval's end: what comes later is read as it happens to be"
        )
    edge = f"{{reader: {found.model.display}, parent: {found.through.display}, window: "
    if found.before is not None and found.before.offset is None:
        return (
            f"{narrow} by the parent's time column, or, where all of the past is meant, declare it in meshgate.yaml: "
            f"edges: [{edge}prefix}}]; where the parent is only looked up: latest"
        )
    sides = {"from": found.reading.before.offset, "to": found.reading.after.offset}
    offsets = {
        name: _rounded(offset, found.parent, before=name == "from")
        for name, offset in sides.items()
        if offset is not None
    }
    # What the interval itself holds needs no declaration.
    start, end = min(offsets.get("from", _ZERO), _ZERO), max(offsets.get("to", _ZERO), _ZERO)
    window = ", ".join(
        f"{name}: {'-' if offset < _ZERO else ''}{_length(offset)}"
        for name, offset in (("from", start), ("to", end))
        if offset
    )
    return f"declare it in meshgate.yaml, edges: [{edge}{{{window}}}}}], or {narrow}"


def _rounded(offset: timedelta, parent: ModelNode, *, before: bool) -> timedelta:
    """Outward to whole units of the parent, at most days: as it is read anyway."""
    unit = min(parent.unit.approximate, _DAY)
    return offset // unit * unit if before else -(-offset // unit) * unit


def _length(value: timedelta) -> str:
    minutes = abs(value) // timedelta(minutes=1)
    parts = ((minutes // 1440, "d"), (minutes % 1440 // 60, "h"), (minutes % 60, "m"))
    return "".join(f"{count}{unit}" for count, unit in parts if count) or "0"


def _spoken(window: Window) -> str:
    if window.mode != "interval":
        return window.mode
    if window.is_default:
        return "its interval"
    sign = {
        name: "-" if offset < _ZERO else ""
        for name, offset in (("from", window.from_offset), ("to", window.to_offset))
    }
    return (
        f"{{from: {sign['from']}{_length(window.from_offset)}, to: {sign['to']}{_length(window.to_offset)}}}"
    )
