"""One run of one project: lease, reconcile, plan, claim, evaluate, finish."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import structlog

from meshgate.config import environment_name
from meshgate.coordinator.allowance import allowance
from meshgate.coordinator.journal import RunJournal
from meshgate.coordinator.leased import leased
from meshgate.coordinator.observe import watch_before_planning
from meshgate.coordinator.outcome import Failure, Outcome
from meshgate.coordinator.plan import Plan, make_plan
from meshgate.coordinator.policies import Policies, policies_of
from meshgate.coordinator.progress import Planned
from meshgate.coordinator.reconcile import Finding, reconcile, unchanged
from meshgate.coordinator.staleness import rested_by, settle, states_of, tidy
from meshgate.coordinator.ticks import answer_own, postpone
from meshgate.coordinator.waiting import until_free, until_ready
from meshgate.errors import (
    ConfigError,
    LeaseLostError,
    MeshgateError,
    RunInProgressError,
    StoppedError,
    UnknownProjectError,
)
from meshgate.interval import IntervalSet
from meshgate.lease import proven_gone
from meshgate.ledger import Busy
from meshgate.stop import Stop
from meshgate.yaml_source import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from datetime import datetime

    from meshgate.bridge.project import SqlmeshProject
    from meshgate.config import MeshConfig, ProjectConfig
    from meshgate.coordinator.progress import Progress
    from meshgate.gate import Blocked
    from meshgate.lease import LeaseKeeper
    from meshgate.ledger import Lease, Ledger, Manifest, VersionState

log = structlog.get_logger("meshgate")

_HISTORY = timedelta(days=30)
"""How long ended claims, events and the rows of runs that nothing names are kept."""
_TIDY_EVERY = timedelta(hours=1)


@attrs.frozen
class RunReport:
    """What a run did, or would do.

    Attributes:
        project: Whose run.
        environment: SQLMesh's environment.
        now: The instant that counted, UTC.
        state: `done`, `nothing_to_do`, `failed`, `lost`, `stopped`, `skipped` or `planned` (a dry run).
        run_id: The ledger's key, None where no run was started.
        committed: Recorded, by model.
        failed: Intervals that failed, with the facts.
        blocked: Every cause that keeps due work back.
        warned: Non-blocking audits that failed.
        unchanged: What was computed again and holds the rows that it held before, where early cut-off looks at that.
        uncompared: Why early cut-off could not look at that, by model.
        findings: What somebody else did.
        unmirrored: Recorded here, but not yet in SQLMesh's own record: model, interval, problem.
        plan: What was decided, for `planned`.
        busy: The run that lives, for `skipped`.
        error: Why the run as a whole stopped, for `failed` and `lost`.
    """

    project: str
    environment: str
    now: datetime
    state: str
    run_id: int | None = None
    committed: Mapping[str, IntervalSet] = attrs.field(factory=dict)
    failed: tuple[Failure, ...] = ()
    blocked: tuple[Blocked, ...] = ()
    warned: tuple[Failure, ...] = ()
    unchanged: Mapping[str, IntervalSet] = attrs.field(factory=dict)
    uncompared: Mapping[str, str] = attrs.field(factory=dict)
    findings: tuple[Finding, ...] = ()
    unmirrored: tuple[tuple[str, Any, str], ...] = ()
    plan: Plan | None = None
    busy: Busy | None = None
    error: str | None = None

    @property
    def exit_code(self) -> int:
        """0 done, 1 something failed or the run was stopped, 4 skipped."""
        return {"failed": 1, "lost": 1, "stopped": 1, "skipped": 4}.get(self.state, 0)


class ProjectOpener(Protocol):
    """Opens a project's SQLMesh side; `load`: with its files, not only its state."""

    def __call__(self, project: ProjectConfig, *, load: bool) -> SqlmeshProject:
        """Open it."""


@attrs.frozen
class Workbench:
    """What every use case needs: configuration, ledger, and how to open a SQLMesh project.

    Attributes:
        config: Of `meshgate.yaml`.
        ledger: Opened, its schema checked.
        open_project: Opens the SQLMesh project of a project; keeps it open where the caller is a long-lived process.
        stop: Whether work was asked to end.
        tell: Is told what happens while a run works and waits; called from several threads.
    """

    config: MeshConfig
    ledger: Ledger
    open_project: ProjectOpener
    stop: Stop = attrs.field(factory=Stop)
    tell: Callable[[Progress], None] = lambda _: None

    def project(self, name: str) -> ProjectConfig:
        """The configuration of a project.

        Raises:
            UnknownProjectError: `meshgate.yaml` does not have it.
        """
        for project in self.config.projects:
            if project.name == name:
                return project
        raise UnknownProjectError(
            f"there is no project {name!r} in {self.config.path}",
            hint=nearest(name, [p.name for p in self.config.projects]), project=name,
        )  # fmt: skip

    def instant(self, now: datetime | None) -> datetime:
        """The instant that counts: the database's clock, or an instant in the past.

        Raises:
            ConfigError: It is in the future.
        """
        present = self.ledger.clock()
        if now is None:
            return present
        if now > present:
            raise ConfigError(
                f"--now {now:%Y-%m-%dT%H:%M:%SZ} is in the future: the ledger's clock says {present:%Y-%m-%dT%H:%M:%SZ}",
                hint="give an instant in the past, or leave --now away",
            )
        return now

    def target(self, project: ProjectConfig, environment: str | None) -> str:
        """The environment that is meant.

        Raises:
            ConfigError: It is not a name that SQLMesh keeps.
        """
        return environment_name(project.environment if environment is None else environment)

    def bury_the_gone(self) -> None:
        """Take over runs whose process is proven to be gone, before their leases end.

        Also those that were lost by expiry: if their engine is gone with them, nobody waits for their late writes.
        """
        for run_id, holder in self.ledger.watched().items():
            if proven_gone(holder):
                log.warning("run.buried", run_id=run_id, pid=holder.get("pid"))
                self.ledger.bury(run_id, engine_gone=bool(holder.get("engine_in_process")))

    def policies(self, manifest: Manifest) -> Policies:
        """What the projects declared when they were deployed, as far as a plan goes by it."""
        return policies_of(manifest.graph, self.ledger.manifests(manifest.environment))


def plan_of(
    bench: Workbench,
    manifest: Manifest,
    projects: set[str] | None,
    now: datetime,
    present: datetime | None = None,
    only: Collection[str] | None = None,
    *,
    in_rounds: bool = False,
    policies: Policies | None = None,
    states: Mapping[int, VersionState] | None = None,
    previews: Collection[str] = (),
) -> Plan:
    """What a run of these projects would do now, by the ledger alone.

    Args:
        bench: The ledger.
        manifest: Of the environment.
        projects: As in `make_plan`, like `now`, `present` and `only`.
        now: The instant that counts, UTC.
        present: By which it is judged what may be tried again, UTC.
        only: The models that it is about.
        in_rounds: Without what reads the models that are compared, see `make_plan`.
        policies: Where the caller has read them.
        states: What the ledger knows, where the caller has read it.
        previews: As in `make_plan`; the ledger does not know them.
    """
    policies = policies or bench.policies(manifest)
    if states is None:
        states = states_of(bench.ledger, manifest, present or now, policies.stale)
    return make_plan(
        manifest.graph, manifest.version_ids, states, projects,
        environment=manifest.environment, now=now, patience=policies.patience, present=present,
        rested=rested_by(bench.ledger, manifest, present or now, policies.stale), only=only, budgets=policies.budgets,
        cut_off=policies.compared if in_rounds else (), previews=previews,
    )  # fmt: skip


def run(
    bench: Workbench,
    name: str,
    *,
    environment: str | None = None,
    now: datetime | None = None,
    dry_run: bool = False,
    overlap: str | None = None,
    wait: timedelta | None = None,
    only: Collection[str] | None = None,
) -> RunReport:
    """Run a project: evaluate whatever of its own models is due and ready.

    Args:
        bench: Configuration, ledger, projects.
        name: The project.
        environment: SQLMesh's environment; the project's own by default.
        now: An instant in the past to stand for the present, UTC; the database's clock by default.
        dry_run: Decide and do nothing; what plain SQLMesh did since the last run is not looked at.
        overlap: `skip`, `wait`, `share` or `fail`, instead of the project's policy.
        wait: How long to wait for what is due when the run starts and not ready yet.
        only: The models that the run is about, by full name; None for all of the project's.

    Raises:
        UnknownProjectError: No such project.
        NotDeployedError: Nothing was deployed in the environment.
        RunInProgressError: Another run lives and the policy is `fail`.
        MeshgateError: The ledger, the project or the configuration is unusable.
    """
    project = bench.project(name)
    target = bench.target(project, environment)
    if dry_run:
        instant = bench.instant(now)
        manifest, _ = _promoted(bench, name, target)
        plan = plan_of(bench, manifest, {name}, instant, only=only)
        return RunReport(name, target, instant, "planned", blocked=plan.blocked, plan=plan)
    policy = overlap or project.overlap

    def once(instant: datetime | None = None) -> RunReport:
        # Who has waited for data is not refused because somebody else was quicker: the work is done.
        meeting = "skip" if instant is not None and policy == "fail" else policy
        return _once(bench, project, target, now, instant or bench.instant(now), meeting, only)

    report = once()
    if policy == "wait":
        report = until_free(bench, report, project.overlap_limit, once)
    if wait:
        report = until_ready(bench, report, wait, simulated=now is not None, again=once)
    return report


def _promoted(bench: Workbench, name: str, target: str) -> tuple[Manifest, Mapping[str, Any]]:
    """What the environment promotes, and what the project declared when it was deployed."""
    manifest = bench.ledger.manifest(target)
    if name not in {n.project for n in manifest.graph.nodes.values()}:
        raise UnknownProjectError(
            f"project {name!r} has no models in environment {target!r}",
            hint=f"run `meshgate deploy {name}`",
            project=name,
        )
    return manifest, bench.ledger.manifests(target).get(name, {})


def _once(
    bench: Workbench,
    project: ProjectConfig,
    target: str,
    now: datetime | None,
    instant: datetime,
    policy: str,
    only: Collection[str] | None,
) -> RunReport:
    """One lease, one plan, and what comes of it."""
    name = project.name
    manifest, facts = _promoted(bench, name, target)
    with leased(
        bench, project, target, "run", now,
        engine_in_process=bool(facts.get("engine_in_process")), share=policy == "share",
        warehouse=str(facts.get("warehouse", project.warehouse)),
    ) as held:  # fmt: skip
        if isinstance(held, Busy):
            if policy == "fail":
                raise _in_progress(name, held)
            return RunReport(name, target, instant, "skipped", busy=held)
        lease, keeper = held
        present = instant if now is not None else lease.started_at
        with structlog.contextvars.bound_contextvars(run_id=lease.run_id, project=name):
            return _work(bench, project, manifest, facts, lease, keeper, instant, present, only)


def _in_progress(name: str, busy: Busy) -> RunInProgressError:
    holder = busy.holder
    what = f"{busy.purpose} {busy.run_id} of {busy.project!r}"
    return RunInProgressError(
        f"{what} keeps {name!r} out: pid {holder.get('pid')} on {holder.get('host')}, since "
        f"{busy.started_at:%Y-%m-%d %H:%M:%SZ}, its lease until {busy.expires_at:%H:%M:%SZ} unless it is renewed",
        hint="wait for it, or see `meshgate lease`",
        run_id=busy.run_id,
    )


def _work(
    bench: Workbench,
    project: ProjectConfig,
    manifest: Manifest,
    facts: Mapping[str, Any],
    lease: Lease,
    keeper: LeaseKeeper,
    now: datetime,
    present: datetime,
    only: Collection[str] | None,
) -> RunReport:
    target = manifest.environment
    findings: tuple[Finding, ...] = ()
    outcome = Outcome()
    error: str | None = None
    state = "failed"
    plan: Plan | None = None
    try:
        opened: SqlmeshProject | None = None
        if not unchanged(bench.ledger, manifest, facts):
            opened = bench.open_project(project, load=False)
            findings = reconcile(bench.ledger, opened, target, now, run_id=lease.run_id)
            manifest = bench.ledger.manifest(target)
        if until := answer_own(bench.ledger, manifest, project.name, only, now):
            opened = opened or bench.open_project(project, load=False)
            postpone(opened, target, until)
        if project.sources:
            opened = opened or bench.open_project(project, load=False)
            watch_before_planning(bench, project, opened, manifest, now)
        plan = plan_of(bench, manifest, {project.name}, now, present, only, in_rounds=True)
        if plan.is_empty:
            state = "nothing_to_do"
        else:
            opened = opened or bench.open_project(project, load=False)
            plan = _evaluate(
                bench, opened, project, plan, manifest, lease, keeper, outcome, now, present, only
            )
            findings += reconcile(bench.ledger, opened, target, now, run_id=lease.run_id)
            state = "failed" if outcome.failed else "done"
            settle(bench.ledger, target, {project.name})
            if bench.ledger.turn_to_tidy(project.name, _TIDY_EVERY):
                tidy(bench.ledger, project.name)
                bench.ledger.prune(_HISTORY)
    except LeaseLostError as lost:
        state, error = "lost", lost.message
    except StoppedError as stopped:
        state, error = "stopped", stopped.message
    except MeshgateError as problem:
        error = problem.message
        raise
    except BaseException as problem:
        error = f"{type(problem).__name__}: {problem}"[:500]
        raise
    finally:
        state = _finish(bench, lease, state, outcome, plan, error)
    report = _report(project, target, now, state, lease, outcome, findings, plan, error)
    log.info("run.finished", **_counts(outcome, plan), state=state)
    return report


def _evaluate(
    bench: Workbench,
    opened: SqlmeshProject,
    project: ProjectConfig,
    plan: Plan,
    manifest: Manifest,
    lease: Lease,
    keeper: LeaseKeeper,
    outcome: Outcome,
    now: datetime,
    present: datetime,
    only: Collection[str] | None,
) -> Plan:
    """Everything that is planned, and then what reads what was compared: the whole plan, as far as it came."""
    target, graph = manifest.environment, manifest.graph
    previews = opened.previews(target)
    if any(model.ready and model.name in previews for model in plan.models):
        plan = plan_of(bench, manifest, {project.name}, now, present, only, in_rounds=True, previews=previews)
    todo = plan
    while not todo.is_empty:
        journal = RunJournal(
            bench, lease.run_id, project.name, keeper, graph, manifest.version_ids,
            environment=target, now=now, outcome=outcome,
            allow=lambda graph: allowance(graph, bench.ledger.manifests(target), project.name),
        )  # fmt: skip
        _execute(bench, opened, todo, manifest, journal, now)
        if not todo.later:
            break
        todo = plan_of(
            bench, manifest, {project.name}, now, present, todo.later, in_rounds=True, previews=previews
        )
        plan = attrs.evolve(plan, models=(*plan.models, *todo.models), standings=todo.standings)
    return plan


def _execute(
    bench: Workbench,
    opened: SqlmeshProject,
    plan: Plan,
    manifest: Manifest,
    journal: RunJournal,
    now: datetime,
) -> None:
    work: dict[str, IntervalSet] = {}
    journal.stale_from = {m.name: m.stale_from for m in plan.models if m.stale_from is not None}
    for model in plan.models:
        if model.ready:
            held = journal.claim(model.name, model.pieces, plan.standings[model.name].covered)
            work[model.name] = IntervalSet(held) & model.ready
            if model.rebuild and (whole := work[model.name].hull) is not None:
                journal.rebuild[model.name] = whole
    # The plan was made before the claims were held: what another environment's run recorded meanwhile is done.
    for name, done in journal.recorded_since().items():
        work[name] -= done
    units = ((name, manifest.graph[name].unit.count(pieces)) for name, pieces in work.items())
    bench.tell(Planned(journal.project, tuple((name, count) for name, count in units if count)))
    opened.execute(manifest.environment, work, journal, now=now)
    journal.explain_the_rest()


def _report(
    project: ProjectConfig,
    target: str,
    now: datetime,
    state: str,
    lease: Lease,
    outcome: Outcome,
    findings: tuple[Finding, ...],
    plan: Plan | None,
    error: str | None,
) -> RunReport:
    """What a run or a deploy did, from what its journal kept."""
    return RunReport(
        project.name, target, now, state,
        run_id=lease.run_id,
        committed=dict(outcome.committed),
        failed=tuple(outcome.failed),
        blocked=(*(plan.blocked if plan else ()), *outcome.blocked),
        warned=tuple(outcome.warned),
        unchanged=dict(outcome.unchanged),
        uncompared=dict(outcome.uncompared),
        findings=findings,
        unmirrored=tuple(outcome.unmirrored),
        plan=plan,
        error=error,
    )  # fmt: skip


def _counts(outcome: Outcome, plan: Plan | None) -> dict[str, int]:
    blocked = (*(plan.blocked if plan else ()), *outcome.blocked)
    return {
        "committed": sum(len(s) for s in outcome.committed.values()),
        "failed": len(outcome.failed),
        "blocked": len({(b.model, b.interval) for b in blocked}),
    }


def _finish(
    bench: Workbench, lease: Lease, state: str, outcome: Outcome, plan: Plan | None, error: str | None
) -> str:
    """End the run in the ledger; if even that fails, the lease ends by itself."""
    try:
        return bench.ledger.finish(
            lease.run_id, "failed" if state == "lost" else state, _counts(outcome, plan), error
        )
    except MeshgateError as problem:
        log.warning("run.unfinished", error=problem.message)
        return state
