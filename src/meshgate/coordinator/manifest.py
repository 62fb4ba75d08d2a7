"""From what SQLMesh promotes and what the projects declare to one graph that can be decided on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshgate.errors import ConfigError, UnknownModelError
from meshgate.graph import Edge, Kind, MeshGraph, Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshgate.bridge.translate import Promoted
    from meshgate.config import ProjectConfig
    from meshgate.graph import ModelNode


def declared_edges(project: ProjectConfig) -> list[dict[str, Any]]:
    """A project's declared windows as plain data, for the ledger's copy of its manifest."""
    return [
        {
            "reader": e.reader,
            "parent": e.parent,
            "mode": e.window.mode,
            "from_s": e.window.from_offset.total_seconds(),
            "to_s": e.window.to_offset.total_seconds(),
        }
        for e in project.edges
    ]


def build_graph(
    plan: Promoted,
    manifests: Mapping[str, Mapping[str, Any]],
    elsewhere: Mapping[str, ModelNode],
    environment: str,
    behind: Mapping[str, Iterable[tuple[Edge, ModelNode]]] | None = None,
) -> MeshGraph:
    """The graph of one environment.

    Args:
        plan: What SQLMesh promotes (or is about to).
        manifests: Each project's manifest by its name, as the ledger keeps it.
        elsewhere: Models of projects whose state is another one, by name. A table that is external here and a
            model there is that model: external is ungated only where nobody in the mesh makes it.
        environment: Which environment it is.
        behind: What views among them read, by the view's name: a gate looks through them.

    Raises:
        ConfigError: A declared edge names a model that does not exist, or a pair that does not read each other.
    """
    nodes = dict(plan.nodes)
    for name, node in plan.nodes.items():
        if node.kind is Kind.EXTERNAL and name in elsewhere:
            nodes[name] = elsewhere[name]
    through: list[Edge] = []
    pending = [name for name in nodes if name in elsewhere]
    while pending:
        for edge, parent in (behind or {}).get(pending.pop(), ()):
            through.append(edge)
            if edge.parent not in nodes:
                nodes[edge.parent] = parent
                pending.append(edge.parent)
    graph = MeshGraph(
        nodes,
        [Edge(child, parent) for child, parents in plan.parents.items() for parent in parents] + through,
    )
    windows = _windows(graph, manifests, {n.project for n in plan.nodes.values()}, environment)
    return MeshGraph(
        nodes,
        [
            Edge(child, parent, windows.get((child, parent), Window("interval")))
            for child, parents in plan.parents.items()
            for parent in parents
        ]
        + through,
    )


def _windows(
    graph: MeshGraph, manifests: Mapping[str, Mapping[str, Any]], present: Iterable[str], environment: str
) -> dict[tuple[str, str], Window]:
    from datetime import timedelta

    windows: dict[tuple[str, str], Window] = {}
    for project in sorted(set(present) & set(manifests)):
        # What it declared for another environment is about the models there: what is not there here is no mistake.
        borrowed = manifests[project].get("environment", environment) != environment
        for edge in manifests[project].get("edges", ()):
            where = f"the edge {edge['reader']} ← {edge['parent']} that project {project!r} declares"
            try:
                child, parent = graph.resolve(edge["reader"]), graph.resolve(edge["parent"])
            except UnknownModelError as error:
                if borrowed:
                    continue
                raise ConfigError(
                    f"{where} names a model that does not exist: {error.message}", hint=error.hint
                ) from None
            if graph[child].project != project:
                raise ConfigError(
                    f"{where} is about a reader of project {graph[child].project!r}",
                    hint="windows are declared by the project that reads; move the entry there",
                )
            if parent not in {e.parent for e in graph.parents(child)}:
                if borrowed:
                    continue
                raise ConfigError(
                    f"{where} does not exist: {graph[child].display} does not read {graph[parent].display}",
                    hint="remove the entry from meshgate.yaml, or correct its names",
                )
            windows[child, parent] = Window(
                edge["mode"], timedelta(seconds=edge["from_s"]), timedelta(seconds=edge["to_s"])
            )
    return windows
