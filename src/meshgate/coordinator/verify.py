"""Verification: the ledger against what is derived from its history, and against SQLMesh's own record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from meshgate.coordinator.reconcile import graph_of
from meshgate.coordinator.staleness import find
from meshgate.errors import ConfigError, GraphError
from meshgate.graph import Kind
from meshgate.interval import IntervalSet
from meshgate.verification import (
    Difference,
    Dirty,
    Environment,
    Event,
    Facts,
    Mark,
    Orphan,
    Piece,
    Table,
    compare,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from meshgate.bridge.translate import Promoted
    from meshgate.coordinator.run import Workbench
    from meshgate.graph import Edge
    from meshgate.ledger import Ledger


@frozen
class Verification:
    """What was compared, and what differs.

    Attributes:
        now: By the ledger's clock, UTC.
        revision: The ledger's number at that moment.
        versions: How many tables were derived anew.
        events: From how many events.
        forgotten: The history up to this revision is gone; what is older was taken as given. 0: nothing is.
        sqlmesh: The projects whose SQLMesh state was compared.
        differences: What differs; nothing, if all is well.
    """

    now: datetime
    revision: int
    versions: int
    events: int
    forgotten: int
    sqlmesh: tuple[str, ...]
    differences: tuple[Difference, ...]


def verify(bench: Workbench, *, ledger_only: bool = False) -> Verification:
    """Derive the ledger from its history, and name what differs; nothing is written.

    Runs may go on meanwhile: the ledger is looked at as it is at one instant.

    Args:
        bench: Configuration, ledger, projects.
        ledger_only: Whether to leave SQLMesh's own record out, which needs the projects' folders and SQLMesh.

    Raises:
        ProjectError: SQLMesh's state of a project cannot be read.
    """
    opened = [] if ledger_only else [bench.open_project(p, load=False) for p in bench.config.projects]
    now = bench.ledger.clock()
    with bench.ledger.still() as before:
        mirrored = _mirrored(before)
        known = before.environments()
    # What is committed here comes to SQLMesh afterwards: so its record is read between two looks at the ledger.
    looked: dict[str, list[Promoted]] = {}
    for project in opened:
        for environment in known:
            found = project.promoted(environment, now)
            if found is not None:
                looked.setdefault(environment, []).append(found)
    with bench.ledger.still() as ledger:
        facts = collect(ledger)
    facts = evolve(
        facts,
        mirrored_before=mirrored,
        environments=[
            evolve(
                _with_sqlmesh(e, looked.get(e.name, ())),
                edges=_declared(bench, e.name, looked.get(e.name, ())),
            )
            for e in facts.environments
        ],
    )
    return Verification(
        now, facts.revision, len(facts.tables), len(facts.events), facts.forgotten,
        tuple(project.project for project in opened), compare(facts),
    )  # fmt: skip


def collect(ledger: Ledger) -> Facts:
    """Everything that a ledger holds and remembers; give one that is still."""
    tables = {row["version_id"]: Table(**{**row, "kind": Kind(row["kind"])}) for row in ledger.versions()}
    rows = _by_version(
        (row["version_id"], Piece(**{k: v for k, v in row.items() if k != "version_id"}))
        for row in ledger.everything_recorded()
    )
    marks = {
        key: [Mark(m.interval, m.kind, m.revision, m.batch) for m in state.marks]
        for key, state in ledger.states(tables).items()
    }
    dirty = {
        key: dict(spans)
        for key, spans in _by_version(
            (row["version_id"], (row["from_revision"], Dirty(row["to_revision"], row["accepted_revision"])))
            for row in ledger.dirty_spans()
        ).items()
    }
    return Facts(
        ledger.revision(), ledger.forgotten(), tables, [Event(**row) for row in ledger.history()], rows, marks, dirty,
        ledger.run_environments(), [Orphan(**row) for row in ledger.orphaned_claims()],
        [_environment(ledger, name) for name in ledger.environments()],
    )  # fmt: skip


def _environment(ledger: Ledger, name: str) -> Environment:
    manifest = ledger.manifest(name)
    stale = find(ledger, name, manifest.graph, manifest.version_ids)
    return Environment(
        name,
        manifest.graph,
        manifest.version_ids,
        {model: IntervalSet(s.interval for s in found) for model, found in stale.items()},
    )


def _with_sqlmesh(environment: Environment, looked: Iterable[Promoted]) -> Environment:
    """With what SQLMesh has recorded of what the environment promotes."""
    recorded: dict[int, IntervalSet] = {}
    kinds: dict[int, Kind] = {}
    elsewhere: dict[str, str] = {}
    for state in looked:
        for name, time in state.recorded.items():
            node = state.nodes[name]
            ours = environment.graph.nodes.get(name)
            # A table that is external in one state may be a model of another.
            if ours is None or not node.kind.recorded or node.project != ours.project:
                continue
            if ours.version == node.version:
                recorded[environment.version_ids[name]] = time
                kinds[environment.version_ids[name]] = node.kind
            else:
                elsewhere[name] = node.version
    return evolve(environment, sqlmesh=recorded, elsewhere=elsewhere, kinds=kinds)


def _declared(bench: Workbench, name: str, looked: Iterable[Promoted]) -> dict[str, frozenset[Edge]]:
    """What the models of an environment read, by SQLMesh, over the windows that their projects declared."""
    found: dict[str, frozenset[Edge]] = {}
    for state in looked:
        owned = {n.project for n in state.nodes.values() if n.version}
        try:
            graph = graph_of(bench.ledger, name, state)
        except (ConfigError, GraphError):
            continue  # no run and no deploy goes by it either, and each of them says why
        found |= {
            n: frozenset(graph.parents(n))
            for n in graph.nodes
            if graph[n].version and graph[n].project in owned
        }
    return found


def _mirrored(ledger: Ledger) -> dict[int, IntervalSet]:
    """What SQLMesh is known to hold, and nobody to have taken away."""
    found = _by_version(
        (row["version_id"], row["interval"]) for row in ledger.everything_recorded() if row["mirrored"]
    )
    return {key: IntervalSet(pieces) for key, pieces in found.items()}


def _by_version(pairs: Iterable[tuple[int, Any]]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return found
