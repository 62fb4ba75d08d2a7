"""`why` and `gate`: whether one model's interval is there, what it waits for, and what would end that, as data.

Both answer from the ledger alone, without importing SQLMesh, and write nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, field, frozen

from meshgate.coordinator.causes import Cause, Scene, merged, paused, pruned
from meshgate.errors import ConfigError, IntervalError
from meshgate.interval import Interval, IntervalSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshgate.coordinator.run import Workbench
    from meshgate.gate import Blocked
    from meshgate.graph import ModelNode
    from meshgate.ledger import CoverageRow, LiveRun

ORDINARY: Final = ("late", "missing")
"""The reasons of time that was simply not evaluated yet."""


@frozen
class RunFacts:
    """One run as the ledger remembers it. Instants by the ledger's clock, UTC.

    Attributes:
        run_id: Its id.
        project: Whose.
        purpose: `run`, `deploy` or `maintenance`.
        state: `running`, `done`, `failed`, `lost`, `stopped` or `nothing_to_do`.
        host: Where it runs or ran.
        pid: As which process.
        as_of: Its `--now`, if that was given.
        started_at: When it started.
        ended_at: When it ended, or None.
        lease_until: When its lease ends or ended unless it is renewed.
        live: Whether it holds a lease now. One that runs and does not is taken over by the next run of any project.
        counts: Intervals committed, failed, blocked.
        error: Why it stopped as a whole, if it did.
        promoting: Whether it is a deploy that is about to replace models.
        open: How many ranges it has reserved.
        begun: How many batches it is writing.
    """

    run_id: int
    project: str
    purpose: str
    state: str
    host: str | None
    pid: int | None
    as_of: datetime | None
    started_at: datetime
    ended_at: datetime | None
    lease_until: datetime
    live: bool
    counts: Mapping[str, int]
    error: str | None
    promoting: bool = False
    open: int = 0
    begun: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> RunFacts:
        """From a row of the ledger's query `runs`."""
        holder = row["holder"] or {}
        return cls(
            run_id=row["run_id"], project=row["project"], purpose=row["purpose"], state=row["state"],
            host=holder.get("host"), pid=holder.get("pid"), as_of=_utc(row["as_of"]),
            started_at=row["started_at"].astimezone(UTC), ended_at=_utc(row["ended_at"]),
            lease_until=row["expires_at"].astimezone(UTC), live=row["state"] == "running" and not row["expired"],
            counts=row["counts"] or {}, error=row["error"],
        )  # fmt: skip

    @classmethod
    def of_live(cls, run: LiveRun, now: datetime, as_of: datetime | None) -> RunFacts:
        """From what the ledger says of a run that lives; `now` is the ledger's."""
        return cls(
            run_id=run.run_id, project=run.project, purpose=run.purpose, state="running",
            host=run.holder.get("host"), pid=run.holder.get("pid"), as_of=_utc(as_of),
            started_at=run.started_at, ended_at=None, lease_until=run.expires_at, live=run.expires_at > now,
            counts={}, error=None, promoting=run.promoting, open=run.open, begun=run.begun,
        )  # fmt: skip


def _utc(instant: datetime | None) -> datetime | None:
    return instant.astimezone(UTC) if instant else None


@frozen
class ProjectRuns:
    """Who works on a project, and who did last.

    Attributes:
        project: Its name.
        live_runs: Every run that works now, oldest first; also one whose lease ended and that nobody took over yet.
        last: The newest run that has ended.
    """

    project: str
    live_runs: tuple[RunFacts, ...]
    last: RunFacts | None

    @property
    def live(self) -> RunFacts | None:
        """The oldest run that holds a lease."""
        return next((run for run in self.live_runs if run.live), None)


# Why


@frozen
class Why:
    """What is known of one model's time.

    Attributes:
        environment: SQLMesh's environment.
        now: The instant that counted, UTC.
        model: The model.
        project: Its project.
        kind: Its kind.
        unit: Its interval unit.
        interval: What was asked for, or the oldest interval that is not as it should be; None: all is well.
        state: `recorded`, `accepted` (recorded, but by a person as it was), `ready`, `blocked`, the one reason, or `mixed`; `unrecorded` for kinds without intervals.
        recorded: What of the interval is recorded, and how it came to be.
        causes: Why the rest is not, or has to be computed again; of the model's own time, each with what is behind it.
        roots: Where it all comes from, each with its remedy.
        others: What else of the model is due and not as it should be, where no interval was asked for.
        recorded_upto: Up to where something is recorded, UTC.
        due_upto: Up to where it should be recorded, UTC.
        next_due: When its next interval comes due, UTC.
        runs: The live runs and the last one of its project, and of those where the roots are.
    """

    environment: str
    now: datetime
    model: str
    project: str
    kind: str
    unit: str
    interval: Interval | None
    state: str
    recorded: tuple[CoverageRow, ...] = ()
    causes: tuple[Cause, ...] = ()
    roots: tuple[Cause, ...] = ()
    others: IntervalSet = field(factory=IntervalSet)
    recorded_upto: datetime | None = None
    due_upto: datetime | None = None
    next_due: datetime | None = None
    runs: tuple[ProjectRuns, ...] = ()


def why(
    bench: Workbench,
    model: str,
    interval: Interval | None,
    *,
    environment: str | None = None,
    now: datetime | None = None,
) -> Why:
    """Explain one interval of a model, or the oldest one that is not as it should be.

    Args:
        bench: Configuration and ledger.
        model: Its name, or the last parts of it.
        interval: Whole units of the model, UTC; None for the oldest that is due and not clean.
        environment: SQLMesh's environment; by default that of the projects.
        now: An instant in the past to stand for the present, UTC.

    Raises:
        UnknownModelError: There is no such model; names the nearest.
        IntervalError: The interval is not aligned; names the nearest one that is.
        NotDeployedError: Nothing was deployed in the environment.
    """
    scene = Scene(bench, environment_of(bench, environment), now)
    node = scene.graph[scene.graph.resolve(model)]
    facts: dict[str, Any] = {
        "environment": scene.environment, "now": scene.now, "model": node.name, "project": node.project,
        "kind": node.kind.value, "unit": node.unit.value,
    }  # fmt: skip
    if not node.kind.recorded:
        return Why(**facts, interval=interval, state="unrecorded")
    planned, covered = scene.planned(node.name), scene.standing(node.name).covered
    facts |= {
        "recorded_upto": covered.last.end if covered.last else None, "due_upto": planned.upto,
        "next_due": planned.next_due,
    }  # fmt: skip
    others = IntervalSet()
    if interval is None:
        unclean = scene.unclean(node.name)
        # What is only to be read again for late rows is the last thing that anybody asks about.
        first = (unclean - scene.standing(node.name).clean).first or unclean.first
        if first is None:
            return Why(**facts, interval=None, state="recorded", runs=(runs_of(scene, node.project),))
        # One refresh takes all that there is; everything else is evaluated unit by unit.
        interval = first if node.kind.reads_everything else next(iter(node.unit.split(first)))
        others = unclean - IntervalSet((interval,))
    else:
        require_aligned(node, interval)
    causes = scene.causes(node.name, IntervalSet((interval,)))
    roots = merged(root for cause in causes for root in cause.roots)
    rows = bench.ledger.coverage_rows(scene.manifest.version_id(node.name), interval)
    projects = dict.fromkeys([node.project, *(root.project for root in roots)])
    return Why(
        **facts, interval=interval, state=_state(causes, rows), recorded=rows, causes=pruned(causes), roots=roots,
        others=others, runs=tuple(runs_of(scene, project) for project in projects),
    )  # fmt: skip


def require_aligned(node: ModelNode, interval: Interval) -> None:
    """Refuse an interval that is not made of whole units of a model.

    Raises:
        IntervalError: Names the nearest one that is.
    """
    nearest = node.unit.outward(interval)
    if nearest != interval:
        raise IntervalError(
            f"{interval} is not made of whole intervals of {node.display}, whose unit is {node.unit.value}",
            hint=f"did you mean {nearest.start:%Y-%m-%dT%H:%M}/{nearest.end:%Y-%m-%dT%H:%M} ?",
            model=node.name, nearest=nearest,
        )  # fmt: skip


def environment_of(bench: Workbench, environment: str | None) -> str:
    """The environment that is meant: the one given, or the one that all configured projects share.

    Raises:
        ConfigError: They do not share one, and none was given.
    """
    if environment is not None:
        return environment
    found = sorted({project.environment for project in bench.config.projects})
    if len(found) > 1:
        raise ConfigError(
            f"the projects in {bench.config.path} run in several environments: {', '.join(found)}",
            hint="name one with --environment",
        )
    return found[0]


def _state(causes: tuple[Cause, ...], rows: tuple[CoverageRow, ...]) -> str:
    if not causes:
        return "accepted" if rows and all(row.accepted for row in rows) else "recorded"
    states = {_state_of(cause) for cause in causes}
    return states.pop() if len(states) == 1 else "mixed"


def _state_of(cause: Cause) -> str:
    if cause.reason not in ORDINARY:
        return cause.reason
    if cause.in_order:
        return "ready"
    return "blocked" if cause.because else cause.reason


def runs_of(scene: Scene, project: str) -> ProjectRuns:
    """Every live run of a project, and the newest one that has ended."""
    live = [run for run in scene.live_runs if run.project == project]
    # As many may be newer than the last one that ended, and another one may have started since.
    rows = scene.bench.ledger.runs(project, scene.environment, limit=len(live) + 2)
    as_of = {row["run_id"]: row["as_of"] for row in rows}
    last = next((RunFacts.of(row) for row in rows if row["state"] != "running"), None)
    facts = (RunFacts.of_live(run, scene.clock, as_of.get(run.run_id)) for run in live)
    return ProjectRuns(project, tuple(facts), last)


# Gate


@frozen
class GateAnswer:
    """Whether a model's interval could be evaluated now, whatever is recorded of it.

    Attributes:
        environment: SQLMesh's environment.
        now: The instant that counted, UTC.
        model: The model.
        project: Its project.
        interval: What was asked for, UTC.
        open: The part of it that is ready.
        blocked: What closes the gate for the rest, each stretch of a parent's time with the most telling reason.
    """

    environment: str
    now: datetime
    model: str
    project: str
    interval: Interval
    open: IntervalSet
    blocked: tuple[Blocked, ...]

    @property
    def ready(self) -> bool:
        """Whether all of it is ready."""
        return self.open.covers(self.interval)


def gate(
    bench: Workbench,
    model: str,
    interval: Interval,
    *,
    environment: str | None = None,
    now: datetime | None = None,
) -> GateAnswer:
    """Ask the gate about one interval of a model, by the ledger alone.

    Args:
        bench: Configuration and ledger.
        model: Its name, or the last parts of it.
        interval: Whole units of the model, UTC.
        environment: SQLMesh's environment; by default that of the projects.
        now: An instant in the past to stand for the present, UTC.

    Raises:
        UnknownModelError: There is no such model; names the nearest.
        IntervalError: The interval is not aligned; names the nearest one that is.
        NotDeployedError: Nothing was deployed in the environment.
    """
    scene = Scene(bench, environment_of(bench, environment), now)
    node = scene.graph[scene.graph.resolve(model)]
    require_aligned(node, interval)
    decision = scene.decide(node.name, IntervalSet((interval,)))
    return GateAnswer(
        scene.environment,
        scene.now,
        node.name,
        node.project,
        interval,
        decision.ready,
        tuple(evolve(b, detail=paused(b.detail, scene.now)) for b in _telling(decision.blocked)),
    )


def _telling(entries: tuple[Blocked, ...]) -> tuple[Blocked, ...]:
    """Without "late" and "missing" where something better is known of the same time of the same parent."""
    known = [b for b in entries if b.reason not in (*ORDINARY, "not_due")]
    kept = list(known)
    for entry in entries:
        if entry.reason in (*ORDINARY, "not_due"):
            better = IntervalSet(b.span for b in known if b.parent == entry.parent)
            kept += [evolve(entry, span=span) for span in IntervalSet((entry.span,)) - better]
    return tuple(sorted(kept, key=lambda b: (b.interval, b.parent, b.span, b.reason)))
