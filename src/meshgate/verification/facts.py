"""What is compared, and what comes of it: one look at a ledger, and a difference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from meshgate.graph import Edge, Kind, MeshGraph
    from meshgate.interval import Interval, IntervalSet
    from meshgate.verification.replay import Dirty, Event, Mark, Piece, Table

What = Literal[
    "coverage",
    "revision",
    "verdict",
    "mark",
    "dirty_span",
    "stale",
    "premature",
    "claim",
    "promotion",
    "kind",
    "edge",
    "sqlmesh",
]


@frozen
class Difference:
    """Something that the ledger says and the derivation does not, or the other way round.

    Attributes:
        what: What it is about: `coverage` (what is recorded), `revision` (when it was made, or up to where it had read),
            `verdict`, `mark`, `dirty_span`, `stale`, `premature` (read before its parents were there), `claim` (of a run that has
            ended), `promotion`, `kind` (what sort of table it is), `edge` (what it reads), `sqlmesh` (the two records).
        project: Of the model.
        model: The model; empty where it is about the ledger as such.
        version: Its version.
        interval: Which time, half-open, UTC; None where it is not about time.
        recorded: What the ledger says.
        derived: What the derivation says.
        environment: Where that is so, if it is so in one environment only.
    """

    what: What
    project: str
    model: str
    version: str
    interval: Interval | None
    recorded: str
    derived: str
    environment: str | None = None


@frozen
class Orphan:
    """A claim that lives though its run has ended."""

    version_id: int
    interval: Interval
    state: str
    run_id: int
    ended: str


@frozen
class Environment:
    """One environment, as the ledger knows it and as it answers about it.

    Attributes:
        name: SQLMesh's environment.
        graph: What it promotes.
        version_ids: The ledger's key of each model's version.
        stale: What the ledger calls stale, by model.
        sqlmesh: What SQLMesh has recorded of versions whose state was looked at.
        elsewhere: Where SQLMesh promotes another version: that one, by model.
        kinds: What sort of table SQLMesh takes a version for.
        edges: What each model reads, and over which windows, by SQLMesh and by what its project declared.
    """

    name: str
    graph: MeshGraph
    version_ids: Mapping[str, int]
    stale: Mapping[str, IntervalSet]
    sqlmesh: Mapping[int, IntervalSet] = field(factory=dict)
    elsewhere: Mapping[str, str] = field(factory=dict)
    kinds: Mapping[int, Kind] = field(factory=dict)
    edges: Mapping[str, frozenset[Edge]] = field(factory=dict)


@frozen
class Facts:
    """One look at a ledger.

    Attributes:
        revision: Its last number.
        forgotten: The history up to this revision is gone; what is older is taken as given.
        tables: Every version.
        events: The history since, oldest first.
        rows: Recorded time by version.
        marks: By version.
        dirty: Dirty spans by version.
        runs: The environment of each run.
        claims: Those of runs that have ended.
        environments: Every environment.
        mirrored_before: What SQLMesh was known to hold before its state was read, by version.
    """

    revision: int
    forgotten: int
    tables: Mapping[int, Table]
    events: Sequence[Event]
    rows: Mapping[int, Sequence[Piece]]
    marks: Mapping[int, Sequence[Mark]]
    dirty: Mapping[int, Mapping[int, Dirty]]
    runs: Mapping[int, str]
    claims: Sequence[Orphan]
    environments: Sequence[Environment]
    mirrored_before: Mapping[int, IntervalSet] = field(factory=dict)


def at(
    facts: Facts,
    key: int,
    what: What,
    interval: Interval | None,
    recorded: str,
    derived: str,
    environment: str | None = None,
) -> Difference:
    """Something about one version of a model."""
    table = facts.tables[key]
    return Difference(
        what, table.project, table.model, table.version, interval, recorded, derived, environment
    )
