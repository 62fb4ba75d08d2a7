"""What is promoted, what is recorded, and what is wrong with it: the manifest, coverage, marks, history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from meshgate.db import json
from meshgate.errors import NotDeployedError
from meshgate.graph import Edge, Kind, MeshGraph, ModelNode, Window
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet, IntervalUnit
from meshgate.ledger.ranges import to_interval, to_range, to_utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime, timedelta

    from meshgate.db import Database

    Gate = tuple[int, int, timedelta | None, timedelta | None]
    """Version of the child, of the parent, and how far before and after its own time the child reads at most; None for no
    bound."""


@attrs.frozen
class Mark:
    """A reason to compute a range again."""

    version_id: int
    interval: Interval
    kind: str
    revision: int
    run_id: int | None
    attempts: int
    detail: Mapping[str, Any]
    made_at: datetime
    retry_at: datetime | None = None
    batch: Interval | None = None
    """Of a mark on a whole table: what was being written when it went wrong."""


@attrs.frozen
class LiveClaim:
    """A range that a run has reserved (`open`), is writing (`begun`), or may still be writing to (`lost`).

    `written` is the time whose rows a begun one may have changed: less than `interval` where the table is claimed
    whole although its rows stand by time.
    """

    version_id: int
    interval: Interval
    state: str
    run_id: int
    project: str
    holder: Mapping[str, Any]
    until: datetime
    written: Interval | None = None


@attrs.frozen
class Newer:
    """Recorded time, and a range of a parent that is newer than what it read.

    The windows are not applied exactly: whoever asked narrows the time down. UTC, half-open.
    """

    gate: int
    time: IntervalSet
    parent_interval: Interval
    since: datetime | None
    read_at: datetime | None
    read_revision: int = 0


@attrs.frozen
class Stale:
    """A recorded range whose parent was computed again after it had been read. UTC, half-open.

    Attributes:
        interval: The child's time.
        parent: Who is newer: its name.
        parent_interval: The parent's time.
        since: When the parent was recorded; None where it held rows that nobody had judged.
        read_at: When the child's time was read; None if that is not known.
        again_at: Not to be computed again before; None: at once.
        accepted: Policy does not compute it again: it is only shown, and closes no gate.
        read_revision: Up to which revision its parents were read.
    """

    interval: Interval
    parent: str
    parent_interval: Interval
    since: datetime | None = None
    read_at: datetime | None = None
    again_at: datetime | None = None
    accepted: bool = False
    read_revision: int = attrs.field(default=0, eq=False, repr=False)


@attrs.frozen
class Hold:
    """A range that a person keeps from the readers of a model; its own evaluation goes on."""

    interval: Interval
    reason: str
    by: str
    since: datetime
    hold_id: int | None = None


@attrs.frozen
class VersionState:
    """What the ledger knows of one model version; `stale` only where somebody has asked for it."""

    covered: IntervalSet = attrs.field(factory=IntervalSet)
    marks: tuple[Mark, ...] = ()
    claims: tuple[LiveClaim, ...] = ()
    last_commit: datetime | None = None
    rows: int | None = None
    stale: tuple[Stale, ...] = ()
    last_read: datetime | None = None
    """When something of it was read last."""
    holds: tuple[Hold, ...] = ()
    accepted: IntervalSet = attrs.field(factory=IntervalSet)
    """The part of `covered` that a person took as it was."""
    warned: IntervalSet = attrs.field(factory=IntervalSet)
    """The part of `covered` that a non-blocking audit rejected."""


@attrs.frozen
class Manifest:
    """What one environment promotes, as the ledger knows it: enough to decide without SQLMesh.

    `borrowed`: models that are read there and that no deploy brought there. They are of projects with a SQLMesh state of their
    own, and as these have them in their own environment, which is where a name leads from another state.
    """

    environment: str
    plan_id: str | None
    fingerprint: str | None
    graph: MeshGraph
    version_ids: Mapping[str, int]
    borrowed: frozenset[str] = frozenset()
    answered: Mapping[str, datetime] = attrs.field(factory=dict)
    """Up to where the ticks of each `auto_restatement_cron` are answered, UTC."""

    def version_id(self, name: str) -> int:
        """The ledger's key of the version that the environment promotes."""
        return self.version_ids[name]


@attrs.frozen
class CoverageRow:
    """One recorded range and what is known of how it came to be."""

    interval: Interval
    revision: int
    read_revision: int
    run_id: int | None
    verdict: str
    audits: tuple[Mapping[str, Any], ...]
    duration: timedelta | None
    rows: int | None
    committed_at: datetime
    accepted: Mapping[str, Any] | None = None
    """Of the verdict `accepted`: `by` whom, for which `reason`, and what it `was`: `missing`, `failed`, ..."""
    merged: int = 1
    """How many commits the row stands for; the numbers and times of several are those of the last, counts are sums."""


def _node(row: Mapping[str, Any]) -> ModelNode:
    return ModelNode(
        name=row["name"], project=row["project"], version=row["version"], kind=Kind(row["kind"]),
        unit=IntervalUnit(row["unit"]), cron=row["cron"], cron_tz=row["cron_tz"],
        start=to_utc(row["start_at"]) if row["start_at"] else None,
        end=to_utc(row["end_at"]) if row["end_at"] else None,
        lookback=row["lookback"], batch_size=row["batch_size"],
        depends_on_past=row["depends_on_past"], allow_partials=row["allow_partials"],
        restate_cron=row["restate_cron"], restate_units=row["restate_units"],
    )  # fmt: skip


def _edge(row: Mapping[str, Any]) -> Edge:
    return Edge(row["child"], row["parent"], Window(row["mode"], row["from_offset"], row["to_offset"]))


def _settled(settled: Mapping[str, IntervalSet], ids: Mapping[str, int]) -> Any:
    """As `settle_models` takes it."""
    return json(_spans(settled, ids))


def _spans(settled: Mapping[str, IntervalSet], ids: Mapping[str, int]) -> list[dict[str, Any]]:
    return [
        {
            "model": name,
            "version_id": ids[name],
            "spans": [[_instant(i.start), _instant(i.end)] for i in spans],
        }
        for name, spans in settled.items()
        if name in ids
    ]


def _declared_in(manifest: Mapping[str, Any], environment: str | None) -> Mapping[str, Any]:
    found: Mapping[str, Any] = manifest.get("environments", {}).get(environment, manifest)
    return found


def _times(row: Mapping[str, Any], name: str) -> IntervalSet:
    return IntervalSet(to_interval(span) for span in row.get(name, ()))


def _instant(instant: datetime) -> str | None:
    return None if instant in (MIN_INSTANT, MAX_INSTANT) else instant.isoformat()


class RecordLedger:
    """The ledger as those use it who decide and explain: manifest, coverage, marks, history."""

    database: Database

    # The manifest and what SQLMesh recorded

    def register_version(self, node: ModelNode) -> int:
        """The ledger's key of a model version, registered when it is first met."""
        return int(
            self.database.one(
                "register_version", project=node.project, model=node.name, version=node.version,
                kind=node.kind.value, as_of=node.kind.as_of, again=True,
            )["version_id"]
        )  # fmt: skip

    def save_manifest(
        self,
        project: str,
        manifest: Mapping[str, Any],
        *,
        sqlmesh: str,
        sqlglot: str,
        environment: str | None = None,
    ) -> None:
        """Keep what the project's `meshgate.yaml` declares, for the runs of the others.

        Args:
            project: The project.
            manifest: What it declares.
            sqlmesh: The version that it was deployed with.
            sqlglot: The same.
            environment: Where it is deployed, if not in its own environment: there alone it counts.
        """
        self.database.rows(
            "save_manifest", project=project, manifest=json(dict(manifest)), sqlmesh=sqlmesh, sqlglot=sqlglot,
            environment=environment,
        )  # fmt: skip

    def manifests(self, environment: str | None = None) -> dict[str, Mapping[str, Any]]:
        """What each project declared at its last deploy, by name: in an environment, else in its own."""
        return {
            name: _declared_in(row["manifest"] or {}, environment) for name, row in self.projects().items()
        }

    def projects(self) -> dict[str, dict[str, Any]]:
        """Every project the ledger knows, by name: manifest, deployed_at, sqlmesh_version, sqlglot_version."""
        return {row["name"]: row for row in self.database.rows("projects", again=True)}

    def sync_environment(
        self,
        environment: str,
        plan_id: str | None,
        graph: MeshGraph,
        projects: Iterable[str],
        settled: Mapping[str, IntervalSet] | None = None,
        at: int = 0,
        others: Mapping[str, Mapping[str, IntervalSet]] | None = None,
        seen_at: datetime | None = None,
    ) -> tuple[str, ...] | None:
        """Make the ledger's picture of an environment what SQLMesh promotes; the models whose version changed.

        Args:
            environment: SQLMesh's environment.
            plan_id: The plan that made it.
            graph: Its models and windows.
            projects: Whose models this SQLMesh state holds; external tables belong to nobody and come along.
            settled: For a change of versions or windows: what is not stale by what is promoted now, by model.
            at: The revision by which that was found.
            others: What is not stale in other environments, which a promotion here does not change.
            seen_at: From when on the ticks of an `auto_restatement_cron` count that was not known before, UTC; None: from now.

        Returns:
            None where the ledger has gone on since that revision: nothing was done, and it has to be found again.
        """
        held = {*projects, ""}
        nodes = [n for n in graph.nodes.values() if n.project in held]
        ids = {node.name: self.register_version(node) for node in nodes}
        known = (
            self.manifest(environment).version_ids if settled and environment in self.environments() else {}
        )
        models = [
            {
                "name": n.name, "version": n.version, "unit": n.unit.value, "cron": n.cron, "cron_tz": n.cron_tz,
                "start_at": n.start.isoformat() if n.start else None, "end_at": n.end.isoformat() if n.end else None,
                "lookback": n.lookback, "batch_size": n.batch_size, "depends_on_past": n.depends_on_past,
                "allow_partials": n.allow_partials, "restate_cron": n.restate_cron, "restate_units": n.restate_units,
                "seen_at": seen_at.isoformat() if seen_at else None,
            }
            for n in nodes
        ]  # fmt: skip
        edges = [
            {
                "child": e.child, "parent": e.parent, "mode": e.window.mode,
                "from_offset": f"{e.window.from_offset.total_seconds()} seconds",
                "to_offset": f"{e.window.to_offset.total_seconds()} seconds",
            }
            for n in nodes
            for e in graph.parents(n.name)
        ]  # fmt: skip
        rows = self.database.rows(
            "sync_environment", environment=environment, plan_id=plan_id, projects=sorted(held - {""}),
            models=json(models), edges=json(edges), settled=None if settled is None else _settled(settled, {**known, **ids}), at=at,
            others=json([
                {"environment": name, "settled": _spans(kept, self.manifest(name).version_ids)}
                for name, kept in (others or {}).items()
            ]),
        )  # fmt: skip
        return None if rows and rows[0]["model"] is None else tuple(row["model"] for row in rows)

    def environments(self) -> tuple[str, ...]:
        """The environments that the ledger has a manifest of."""
        return tuple(row["environment"] for row in self.database.rows("environments", again=True))

    def manifest(self, environment: str) -> Manifest:
        """What the environment promotes.

        Raises:
            NotDeployedError: Nothing was deployed there through meshgate.
        """
        found = self.database.rows("environment", environment=environment, again=True)
        if not found:
            raise NotDeployedError(
                f"environment {environment!r} is not known to the ledger: nothing was deployed there",
                hint=f"run `meshgate deploy PROJECT --environment {environment}`",
                environment=environment,
            )
        promoted = self.database.rows("promotions", environment=environment, again=True)
        ids = {row["name"]: row["version_id"] for row in promoted}
        nodes = {row["name"]: _node(row) for row in promoted}
        edges = [_edge(row) for row in self.database.rows("edges", environment=environment, again=True)]
        borrowed: set[str] = set()
        while missing := {edge.parent for edge in edges} - nodes.keys():
            for row in self.database.rows("borrowed", names=sorted(missing), again=True):
                ids[row["name"]], nodes[row["name"]] = row["version_id"], _node(row)
            borrowed |= missing
            through = [name for name in missing if nodes[name].kind.transparent]
            if through:
                edges += [
                    _edge(row) for row in self.database.rows("borrowed_edges", names=through, again=True)
                ]
        return Manifest(
            environment, found[0]["plan_id"], found[0]["fingerprint"], MeshGraph(nodes, edges), ids, frozenset(borrowed),
            {row["name"]: to_utc(row["answered_at"]) for row in promoted if row["answered_at"]},
        )  # fmt: skip

    def homes(self) -> tuple[str, ...]:
        """The environments that are some project's own, once it was deployed there."""
        own = {
            declared.get("environment")
            for row in self.projects().values()
            if (declared := row["manifest"] or {}).get("environment") not in declared.get("environments", {})
        }
        return tuple(sorted(name for name in own if name))

    # Reading

    def states(self, version_ids: Iterable[int]) -> dict[int, VersionState]:
        """Coverage, marks and live claims of versions, by key."""
        wanted = sorted(set(version_ids))
        covered = {
            row["version_id"]: row for row in self.database.rows("covered", versions=wanted, again=True)
        }
        marks: dict[int, list[Mark]] = {}
        for row in self.database.rows("marks", versions=wanted, again=True):
            marks.setdefault(row["version_id"], []).append(
                Mark(
                    row["version_id"], to_interval(row["span"]), row["kind"], row["revision"], row["run_id"],
                    row["attempts"], row["detail"], to_utc(row["made_at"]),
                    to_utc(row["retry_at"]) if row["retry_at"] else None,
                    to_interval(row["batch"]) if row["batch"] is not None else None,
                )
            )  # fmt: skip
        claims: dict[int, list[LiveClaim]] = {}
        for row in self.database.rows("live_claims", versions=wanted, again=True):
            claims.setdefault(row["version_id"], []).append(
                LiveClaim(
                    row["version_id"], to_interval(row["span"]), row["state"], row["run_id"], row["project"],
                    row["holder"], to_utc(row["quarantined_until"] or row["expires_at"]),
                    to_interval(row["written"]) if row["written"] is not None else None,
                )
            )  # fmt: skip
        holds: dict[int, list[Hold]] = {}
        for row in self.database.rows("holds", versions=wanted, again=True):
            found = Hold(
                to_interval(row["span"]),
                row["reason"],
                row["made_by"],
                to_utc(row["made_at"]),
                row["hold_id"],
            )
            holds.setdefault(row["version_id"], []).append(found)
        return {
            key: VersionState(
                covered=_times(covered.get(key, {}), "spans"),
                accepted=_times(covered.get(key, {}), "accepted"),
                warned=_times(covered.get(key, {}), "warned"),
                holds=tuple(holds.get(key, ())),
                marks=tuple(marks.get(key, ())),
                claims=tuple(claims.get(key, ())),
                last_commit=to_utc(covered[key]["last_commit"]) if key in covered else None,
                rows=covered[key]["rows"] if key in covered else None,
                last_read=to_utc(covered[key]["last_read"])
                if key in covered and covered[key]["last_read"]
                else None,
            )
            for key in wanted
        }

    def revision(self) -> int:
        """The ledger's present number."""
        return int(self.database.one("revision", again=True)["revision"])

    def newer(
        self, environment: str, gates: Sequence[Gate], beyonds: Sequence[timedelta | None], lives: Sequence[Interval]
    ) -> tuple[Newer, ...]:  # fmt: skip
        """What is recorded of children, and newer of their parents than they read; time so far beyond a newer range is told once."""
        rows = self.database.rows(
            "stale", environment=environment, children=[g[0] for g in gates], parents=[g[1] for g in gates],
            lows=[g[2] for g in gates], highs=[g[3] for g in gates],
            beyonds=list(beyonds), lives=list(map(to_range, lives)), again=True,
        )  # fmt: skip
        return tuple(
            Newer(
                row["gate"] - 1, IntervalSet(map(to_interval, row["spans"])), to_interval(row["parent_span"]),
                to_utc(row["since"]) if row["since"] else None, to_utc(row["read_at"]) if row["read_at"] else None,
                row["read_revision"],
            )
            for row in rows
        )  # fmt: skip

    def read_lately(self, version_id: int, instant: datetime) -> IntervalSet:
        """What of a version was read after an instant, UTC."""
        rows = self.database.rows("read_lately", version_id=version_id, instant=instant, again=True)
        return IntervalSet(to_interval(row["span"]) for row in rows)

    def settle(
        self, environment: str, settled: Mapping[str, IntervalSet], ids: Mapping[str, int], revision: int
    ) -> None:
        """Remember what was not stale at a revision, by model: it need not be looked at again for what was older."""
        self.database.rows(
            "settle_models", environment=environment, settled=_settled(settled, ids), revision=revision
        )

    def merge(self, project: str, gates: Sequence[tuple[str, Gate]], cold: timedelta) -> int:
        """Merge neighbouring coverage of a project's models where nobody can tell the difference; how many rows that saved.

        Args:
            project: Its name.
            gates: Of all environments, with the environment: who may tell.
            cold: What was committed less than that long ago stays as it is.
        """
        rows = self.database.rows(
            "merge_coverage", project=project, cold=cold, environments=[e for e, _ in gates],
            children=[g[0] for _, g in gates], parents=[g[1] for _, g in gates],
            lows=[g[2] for _, g in gates], highs=[g[3] for _, g in gates],
        )  # fmt: skip
        return int(rows[0]["saved"])

    def coverage_rows(self, version_id: int, interval: Interval) -> tuple[CoverageRow, ...]:
        """The recorded ranges that meet an interval, with how they came to be."""
        return tuple(
            CoverageRow(
                to_interval(row["span"]), row["revision"], row["read_revision"], row["run_id"], row["verdict"],
                () if row["verdict"] == "accepted" else tuple(row["audits"]), row["duration"], row["rows"],
                to_utc(row["committed_at"]), row["audits"][0] if row["verdict"] == "accepted" else None, row["merged"],
            )
            for row in self.database.rows("coverage_rows", version_id=version_id, span=to_range(interval), again=True)
        )  # fmt: skip

    def runs(
        self, project: str | None = None, environment: str | None = None, *, limit: int = 20
    ) -> list[dict[str, Any]]:
        """The newest runs and deploys, newest first."""
        return self.database.rows("runs", project=project, environment=environment, limit=limit, again=True)

    def events(
        self, *, after: int = 0, run_id: int | None = None, version_id: int | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """The newest events, newest first."""
        return self.database.rows(
            "events", after=after, run_id=run_id, version_id=version_id, limit=limit, again=True
        )
