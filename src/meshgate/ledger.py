"""The ledger, typed: what may be asked of it and told to it. The only caller of `sql/queries.sql`.

Each method that changes something is one SQL function, one statement, one transaction; the rules are in
`sql/schema.sql`. Instants are aware UTC datetimes, intervals half-open; a claim or a mark on a whole table
has the interval `[MIN_INSTANT, MAX_INSTANT)`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs

from meshgate.db import Database, json, timestamp_range
from meshgate.errors import ConfigError, LeaseLostError, LedgerError, NotDeployedError, SchemaVersionError
from meshgate.graph import Edge, Kind, MeshGraph, ModelNode, Window
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet, IntervalUnit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

WHOLE = Interval(MIN_INSTANT, MAX_INSTANT)
"""The claim or mark of an as-of table: all of time."""


@attrs.frozen
class Lease:
    """A run that may work: its id is the fence of everything that it writes.

    Attributes:
        run_id: The run's id.
        started_at: By the database's clock, UTC.
        expires_at: By the database's clock, UTC; a renewal moves it.
        ttl: How long a renewal lasts.
    """

    run_id: int
    started_at: datetime
    expires_at: datetime
    ttl: timedelta


@attrs.frozen
class Busy:
    """Another run of the project lives, so this one may not start."""

    run_id: int
    purpose: str
    holder: Mapping[str, Any]
    started_at: datetime
    expires_at: datetime


@attrs.frozen
class ClaimAnswer:
    """What became of one range that was asked for.

    Attributes:
        interval: The range.
        refused_by: The run that has it, or None: it is reserved.
        free_at: When that run's lease or quarantine ends unless it is renewed, UTC.
    """

    interval: Interval
    refused_by: int | None = None
    free_at: datetime | None = None


@attrs.frozen
class Refusal:
    """Why a batch may not begin: a range of a version that is not clean."""

    version_id: int
    reason: str
    interval: Interval
    detail: Mapping[str, Any]


@attrs.frozen
class Begun:
    """The answer to `begin`: the revision read, or what stands in the way."""

    read_revision: int | None
    refused: tuple[Refusal, ...] = ()


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


@attrs.frozen
class LiveClaim:
    """A range that a run has reserved (`open`), is writing (`begun`), or may still be writing to (`lost`)."""

    version_id: int
    interval: Interval
    state: str
    run_id: int
    project: str
    holder: Mapping[str, Any]
    until: datetime


@attrs.frozen
class VersionState:
    """What the ledger knows of one model version."""

    covered: IntervalSet = attrs.field(factory=IntervalSet)
    marks: tuple[Mark, ...] = ()
    claims: tuple[LiveClaim, ...] = ()
    last_commit: datetime | None = None
    rows: int | None = None


@attrs.frozen
class Manifest:
    """What one environment promotes, as the ledger knows it: enough to decide without SQLMesh."""

    environment: str
    plan_id: str | None
    fingerprint: str | None
    graph: MeshGraph
    version_ids: Mapping[str, int]

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


def _range(interval: Interval | None) -> Any:
    if interval is None:
        return None
    return timestamp_range(
        None if interval.start == MIN_INSTANT else interval.start,
        None if interval.end == MAX_INSTANT else interval.end,
    )


def _utc(instant: datetime) -> datetime:
    return instant.astimezone(UTC)


def _interval(found: Any) -> Interval:
    return Interval(
        _utc(found.lower) if found.lower is not None else MIN_INSTANT,
        _utc(found.upper) if found.upper is not None else MAX_INSTANT,
    )


def _instant(text: str | None, default: datetime) -> datetime:
    return _utc(datetime.fromisoformat(text)) if text else default


class Ledger:
    """One ledger in one database.

    Args:
        database: Where it is; `Database.check_schema` is the caller's to call, once.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    def server(self) -> tuple[int, datetime]:
        """The server's version number (140005 is 14.5) and its own clock, UTC; also where there is no ledger yet."""
        row = self.database.one("server", again=True)
        return int(row["version"]), _utc(row["now"])

    def clock(self) -> datetime:
        """The database's present instant, UTC: the only clock that decides."""
        return _utc(self.database.one("clock", again=True)["now"])

    def revision(self) -> int:
        """The ledger's present revision."""
        return int(self.database.one("revision", again=True)["revision"])

    # Runs

    def acquire(
        self,
        project: str,
        environment: str,
        purpose: str,
        holder: Mapping[str, Any],
        *,
        ttl: timedelta,
        grace: timedelta,
        as_of: datetime | None = None,
    ) -> Lease | Busy:
        """Start a run of the project, or say which other one lives. Takes over what has expired.

        Args:
            project: The `project:` key.
            environment: SQLMesh's environment.
            purpose: `run` or `deploy`.
            holder: Who asks: host, pid, and what proves the process's end.
            ttl: How long the lease lasts without a renewal.
            grace: How long after expiry a write of this run may still land.
            as_of: The `--now` of the run, UTC.
        """
        answer = self.database.one(
            "acquire_run", project=project, environment=environment, purpose=purpose, holder=json(dict(holder)),
            ttl=ttl, grace=grace, as_of=as_of,
        )["answer"]  # fmt: skip
        if busy := answer.get("busy"):
            return Busy(
                run_id=busy["run_id"],
                purpose=busy["purpose"],
                holder=busy["holder"],
                started_at=_instant(busy["started_at"], MIN_INSTANT),
                expires_at=_instant(busy["expires_at"], MAX_INSTANT),
            )
        return Lease(
            run_id=answer["run_id"],
            started_at=_instant(answer["started_at"], MIN_INSTANT),
            expires_at=_instant(answer["expires_at"], MAX_INSTANT),
            ttl=ttl,
        )

    def renew(self, run_id: int) -> datetime:
        """Lengthen the lease; its new end, UTC.

        Raises:
            LeaseLostError: It has ended or was taken over.
        """
        return _utc(self.database.one("renew_run", run_id=run_id, again=True)["expires_at"])

    def finish(self, run_id: int, state: str, counts: Mapping[str, Any], error: str | None = None) -> str:
        """End the run; the state in which it really ended (`lost` where it had been taken over)."""
        return str(
            self.database.one(
                "finish_run", run_id=run_id, state=state, counts=json(dict(counts)), error=error
            )["state"]
        )

    def bury(self, run_id: int, *, engine_gone: bool) -> None:
        """Take over a run whose process is proven to be gone, without waiting for its lease to end."""
        self.database.rows("bury_run", run_id=run_id, engine_gone=engine_gone)

    def prune(self, keep: timedelta) -> None:
        """Forget ended claims, events and unnamed runs older than `keep`."""
        self.database.rows("prune", keep=keep)

    # Claims

    def open_claims(
        self, run_id: int, version_id: int, intervals: Iterable[Interval]
    ) -> tuple[ClaimAnswer, ...]:
        """Reserve ranges of one version (the whole of it, for as-of models).

        Raises:
            LeaseLostError: The run may not write any more.
        """
        rows = self.database.rows(
            "open_claims", run_id=run_id, version_id=version_id, spans=[_range(i) for i in intervals]
        )
        return tuple(
            ClaimAnswer(
                _interval(row["span"]),
                row["refused_by"] if row["claim_id"] is None else None,
                _utc(row["free_at"]) if row["free_at"] and row["claim_id"] is None else None,
            )
            for row in rows
        )

    def begin(
        self,
        run_id: int,
        version_id: int,
        interval: Interval,
        *,
        needs: Sequence[tuple[int, Interval]],
        loaded: Sequence[int],
        environment: str | None,
    ) -> Begun:
        """Before a batch reads anything: check fence, promotion and gate once more, and note what it will have read.

        Args:
            run_id: The fence.
            version_id: What will be written.
            interval: The batch.
            needs: The parents' versions and the time of them that the batch reads.
            loaded: Versions that only need to have been loaded (seeds).
            environment: Where all of them must still be promoted; None for a deploy.

        Raises:
            LeaseLostError: The run may not write any more.
            LedgerError: The run holds no claim on the batch.
        """
        answer = self.database.one(
            "begin_claim", run_id=run_id, version_id=version_id, span=_range(interval),
            parents=[v for v, _ in needs], spans=[_range(i) for _, i in needs], loaded=list(loaded),
            environment=environment, again=True,
        )["answer"]  # fmt: skip
        return Begun(
            answer.get("read_revision"),
            tuple(
                Refusal(
                    r["version_id"],
                    r["reason"],
                    Interval(_instant(r["start"], MIN_INSTANT), _instant(r["end"], MAX_INSTANT)),
                    r["detail"] or {},
                )
                for r in answer.get("refused", ())
            ),
        )

    def commit(
        self,
        run_id: int,
        version_id: int,
        interval: Interval,
        *,
        verdict: str,
        audits: Sequence[Mapping[str, Any]] = (),
        duration: timedelta | None = None,
        rows: int | None = None,
        lookback: Interval | None = None,
    ) -> int:
        """Record a batch under the fence; the revision of its data.

        Args:
            run_id: The fence.
            version_id: What was written.
            interval: The batch.
            verdict: `passed` or `warned` (a non-blocking audit failed).
            audits: `{"audit", "count", "blocking"}` each.
            duration: How long the evaluation took.
            rows: How many rows it wrote, if the engine said.
            lookback: The units before it that have to be read again because of it.

        Raises:
            LeaseLostError: Nothing was recorded; the batch is suspect.
            LedgerError: The run had not begun it.
        """
        revision = self.database.one(
            "commit_claim", run_id=run_id, version_id=version_id, span=_range(interval), verdict=verdict,
            audits=json([dict(a) for a in audits]), duration=duration, rows=rows, lookback=_range(lookback), again=True,
        )["revision"]  # fmt: skip
        if revision is None:
            raise LeaseLostError(
                f"run {run_id} has lost its lease: {interval} was not recorded and will be evaluated again",
                run_id=run_id,
            )
        return int(revision)

    def fail(self, run_id: int, version_id: int, interval: Interval, detail: Mapping[str, Any]) -> None:
        """Record that an evaluation failed, with the facts (audit, count, error).

        Raises:
            LeaseLostError: The range is suspect instead.
            LedgerError: The run had not begun it.
        """
        recorded = self.database.one(
            "fail_claim",
            run_id=run_id,
            version_id=version_id,
            span=_range(interval),
            detail=json(dict(detail)),
        )["recorded"]
        if not recorded:
            raise LeaseLostError(
                f"run {run_id} has lost its lease: {interval} will be evaluated again", run_id=run_id
            )

    def abandon(self, run_id: int, version_id: int | None = None, interval: Interval | None = None) -> int:
        """Give back what was reserved and never begun; how many claims that were."""
        return int(
            self.database.one("abandon_claims", run_id=run_id, version_id=version_id, span=_range(interval))[
                "ended"
            ]
        )

    def note_mirrored(self, run_id: int, version_id: int, interval: Interval) -> None:
        """Remember that SQLMesh's own record holds what was committed."""
        self.database.rows(
            "note_mirrored", run_id=run_id, version_id=version_id, span=_range(interval), again=True
        )

    # The manifest and what SQLMesh recorded

    def register_version(self, node: ModelNode) -> int:
        """The ledger's key of a model version, registered when it is first met."""
        return int(
            self.database.one(
                "register_version", project=node.project, model=node.name, version=node.version,
                kind=node.kind.value, as_of=node.kind.as_of, again=True,
            )["version_id"]
        )  # fmt: skip

    def save_manifest(self, project: str, manifest: Mapping[str, Any], *, sqlmesh: str, sqlglot: str) -> None:
        """Keep what the project's `meshgate.yaml` declares, for the runs of the others."""
        self.database.rows(
            "save_manifest", project=project, manifest=json(dict(manifest)), sqlmesh=sqlmesh, sqlglot=sqlglot
        )

    def projects(self) -> dict[str, dict[str, Any]]:
        """Every project the ledger knows, by name: manifest, deployed_at, sqlmesh_version, sqlglot_version."""
        return {row["name"]: row for row in self.database.rows("projects", again=True)}

    def sync_environment(
        self, environment: str, plan_id: str | None, graph: MeshGraph, projects: Iterable[str]
    ) -> tuple[str, ...]:
        """Make the ledger's picture of an environment what SQLMesh promotes; the models whose version changed.

        Args:
            environment: SQLMesh's environment.
            plan_id: The plan that made it.
            graph: Its models and windows.
            projects: Whose models this SQLMesh state holds; external tables belong to nobody and come along.
        """
        held = {*projects, ""}
        nodes = [n for n in graph.nodes.values() if n.project in held]
        for node in nodes:
            self.register_version(node)
        models = [
            {
                "name": n.name, "version": n.version, "unit": n.unit.value, "cron": n.cron, "cron_tz": n.cron_tz,
                "start_at": n.start.isoformat() if n.start else None, "end_at": n.end.isoformat() if n.end else None,
                "lookback": n.lookback, "batch_size": n.batch_size, "depends_on_past": n.depends_on_past,
                "allow_partials": n.allow_partials,
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
            models=json(models), edges=json(edges),
        )  # fmt: skip
        return tuple(row["model"] for row in rows)

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
        nodes: dict[str, ModelNode] = {}
        ids: dict[str, int] = {}
        for row in self.database.rows("promotions", environment=environment, again=True):
            ids[row["name"]] = row["version_id"]
            nodes[row["name"]] = ModelNode(
                name=row["name"], project=row["project"], version=row["version"], kind=Kind(row["kind"]),
                unit=IntervalUnit(row["unit"]), cron=row["cron"], cron_tz=row["cron_tz"],
                start=_utc(row["start_at"]) if row["start_at"] else None,
                end=_utc(row["end_at"]) if row["end_at"] else None,
                lookback=row["lookback"], batch_size=row["batch_size"],
                depends_on_past=row["depends_on_past"], allow_partials=row["allow_partials"],
            )  # fmt: skip
        edges = [
            Edge(row["child"], row["parent"], Window(row["mode"], row["from_offset"], row["to_offset"]))
            for row in self.database.rows("edges", environment=environment, again=True)
        ]
        return Manifest(
            environment,
            found[0]["plan_id"],
            found[0]["fingerprint"],
            MeshGraph(nodes, edges),
            ids,
        )

    def reconcile_version(
        self, version_id: int, state: IntervalSet, *, trusted: IntervalSet, gated: bool, read_at: datetime
    ) -> tuple[tuple[str, Interval], ...]:
        """Compare SQLMesh's record of one version, read at `read_at`, with the ledger's; what was found.

        Args:
            version_id: The version.
            state: What SQLMesh has recorded.
            trusted: What of it is taken as it is.
            gated: Whether it has gated parents.
            read_at: The database's instant just before `state` was read, UTC.

        Returns:
            Pairs of `added`, `suspect`, `removed` or `unmirrored`, and the range.
        """
        rows = self.database.rows(
            "reconcile_version", version_id=version_id, state=[_range(i) for i in state],
            trusted=[_range(i) for i in trusted], gated=gated, read_at=read_at,
        )  # fmt: skip
        return tuple((row["finding"], _interval(row["span"])) for row in rows)

    def has_unmirrored(self, environment: str) -> bool:
        """Whether a run ended between its record here and SQLMesh's."""
        return bool(self.database.one("has_unmirrored", environment=environment, again=True)["found"])

    def sqlmesh_fingerprint(self, schema: str, environment: str) -> str | None:
        """A cheap sign of SQLMesh's own tables in this database, or None where they are not here."""
        if not schema.replace("_", "").isalnum():
            return None
        sql = self.database_query("sqlmesh_fingerprint").replace("{schema}", f'"{schema}"')
        try:
            return str(self.database.execute(sql, {"environment": environment}, again=True)[0]["fingerprint"])
        except (LedgerError, SchemaVersionError, ConfigError):  # they are in another database, or not for this role
            return None

    @staticmethod
    def database_query(name: str) -> str:
        """The text of a named query, for the one that carries a schema's name."""
        from meshgate.db import queries

        return queries()[name]

    def set_fingerprint(self, environment: str, fingerprint: str | None) -> None:
        """Remember up to which state of SQLMesh's tables the environment was reconciled."""
        self.database.rows("set_fingerprint", environment=environment, fingerprint=fingerprint)

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
                    row["version_id"], _interval(row["span"]), row["kind"], row["revision"], row["run_id"],
                    row["attempts"], row["detail"], _utc(row["made_at"]),
                )
            )  # fmt: skip
        claims: dict[int, list[LiveClaim]] = {}
        for row in self.database.rows("live_claims", versions=wanted, again=True):
            claims.setdefault(row["version_id"], []).append(
                LiveClaim(
                    row["version_id"], _interval(row["span"]), row["state"], row["run_id"], row["project"],
                    row["holder"], _utc(row["quarantined_until"] or row["expires_at"]),
                )
            )  # fmt: skip
        return {
            key: VersionState(
                covered=IntervalSet(_interval(s) for s in covered[key]["spans"])
                if key in covered
                else IntervalSet(),
                marks=tuple(marks.get(key, ())),
                claims=tuple(claims.get(key, ())),
                last_commit=_utc(covered[key]["last_commit"]) if key in covered else None,
                rows=covered[key]["rows"] if key in covered else None,
            )
            for key in wanted
        }

    def coverage_rows(self, version_id: int, interval: Interval) -> tuple[CoverageRow, ...]:
        """The recorded ranges that meet an interval, with how they came to be."""
        return tuple(
            CoverageRow(
                _interval(row["span"]), row["revision"], row["read_revision"], row["run_id"], row["verdict"],
                tuple(row["audits"]), row["duration"], row["rows"], _utc(row["committed_at"]),
            )
            for row in self.database.rows("coverage_rows", version_id=version_id, span=_range(interval), again=True)
        )  # fmt: skip

    def runs(
        self, project: str | None = None, environment: str | None = None, *, limit: int = 20
    ) -> list[dict[str, Any]]:
        """The newest runs, newest first."""
        return self.database.rows("runs", project=project, environment=environment, limit=limit, again=True)

    def events(
        self, *, after: int = 0, run_id: int | None = None, version_id: int | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """The newest events, newest first."""
        return self.database.rows(
            "events", after=after, run_id=run_id, version_id=version_id, limit=limit, again=True
        )
