"""Sources: tables that models of the mesh read and that no model of it makes."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from meshgate.errors import ConfigError, UnknownModelError
from meshgate.graph import Kind, name_parts

if TYPE_CHECKING:
    from meshgate.config import ProjectConfig
    from meshgate.graph import MeshGraph


def spoken(name: str) -> str:
    """A name as people write it."""
    return ".".join(name_parts(name))


def sources_of(graph: MeshGraph) -> tuple[str, ...]:
    """The names of all sources that something reads, in order."""
    nodes = graph.nodes.items()
    return tuple(sorted(n for n, node in nodes if node.kind is Kind.EXTERNAL and graph.children(n)))


def resolve_source(graph: MeshGraph, table: str) -> str:
    """The name, as the graph knows it, of the source that a person means.

    Args:
        graph: The mesh.
        table: Its full name, with or without quotes, or the last parts of it.

    Raises:
        UnknownModelError: No model reads such a table, or it could be several; names the nearest.
    """
    known = sources_of(graph)
    wanted = name_parts(table)
    found = [name for name in known if wanted and name_parts(name)[-len(wanted) :] == wanted]
    found = [name for name in found if name_parts(name) == wanted] or found
    if len(found) == 1:
        return found[0]
    if found:
        names = [spoken(name) for name in found]
        raise UnknownModelError(
            f"{table} could be any of {', '.join(names)}", hint="write more of the name", candidates=names
        )
    made = [
        name for name in graph.order() if name not in known and name_parts(name)[-len(wanted) :] == wanted
    ]
    if wanted and made:
        raise UnknownModelError(
            f"{spoken(table)} is no source: a model of project {graph[made[0]].project!r} makes it",
            hint=f"ask for the model: `meshgate restate {spoken(made[0])}`",
            model=made[0],
        )
    # By as many of its last parts as were given.
    forms = {".".join(name_parts(name)[-len(wanted) :]): name for name in known}
    near = difflib.get_close_matches(".".join(wanted), forms, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the mesh reads {_listed(known)}"
    raise UnknownModelError(
        f"no model of the mesh reads a source {spoken(table)}", hint=hint, candidates=near
    )


def check_sources(graph: MeshGraph, project: ProjectConfig) -> None:
    """Refuse to watch what nobody reads.

    Raises:
        ConfigError: Names the entry and the nearest source.
    """
    for source in project.sources:
        try:
            resolve_source(graph, source.table)
        except UnknownModelError as error:
            said = f"sources of project {project.name!r} names what is not read: {error.message}"
            raise ConfigError(said, hint=error.hint) from None


def _listed(known: tuple[str, ...]) -> str:
    return ", ".join(map(spoken, known)) or "no source that no model makes"
