"""A deploy: SQLMesh's plan of one project, applied under lease, gate and ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from attrs import frozen

from meshgate.coordinator.allowance import allowance, check_names, declared_allowance
from meshgate.coordinator.journal import RunJournal
from meshgate.coordinator.leased import leased
from meshgate.coordinator.manifest import declared_edges
from meshgate.coordinator.objections import takings
from meshgate.coordinator.observe import look_before_deploying
from meshgate.coordinator.outcome import Outcome
from meshgate.coordinator.policies import declared_settings
from meshgate.coordinator.reconcile import Finding, graph_of, reconcile
from meshgate.coordinator.run import RunReport, Workbench, _counts, _finish, _in_progress, _report
from meshgate.coordinator.sources import check_sources
from meshgate.coordinator.ticks import check_ticks
from meshgate.coordinator.waiting import until_free
from meshgate.coordinator.world import APART, DEFINED_AT, DEFINITION, project_digest, taken_back
from meshgate.errors import LeaseLostError, MeshgateError, ProjectError, StoppedError
from meshgate.graph import MeshGraph
from meshgate.interval import IntervalSet
from meshgate.ledger import Busy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from datetime import datetime

    from meshgate.bridge.dropped import Dropped
    from meshgate.bridge.project import SqlmeshProject
    from meshgate.bridge.translate import Promoted
    from meshgate.config import ProjectConfig
    from meshgate.interval import Interval
    from meshgate.lease import LeaseKeeper
    from meshgate.ledger import Lease

log = structlog.get_logger("meshgate")


def deploy(
    bench: Workbench,
    name: str,
    *,
    environment: str | None = None,
    now: datetime | None = None,
    restating: Mapping[str, Interval] | None = None,
    dropping: bool = False,
    expecting: Callable[[SqlmeshProject, str], None] | None = None,
) -> RunReport:
    """Make an environment promote a project's files, and the ledger know it.

    SQLMesh plans; each interval that its plan wants is evaluated only where its parents are there or are made by
    the same plan. What is not ready yet is left to the ordinary runs; what fails, fails the deploy, and the
    environment keeps promoting what it did.

    Args:
        bench: Configuration, ledger, projects.
        name: The project.
        environment: SQLMesh's environment; the project's own by default.
        now: An instant in the past to stand for the present, UTC.
        restating: What the plan computes again, by model: it is asked for before, so that a crash does not forget it.
        dropping: Whether the plan may take away what belongs to projects whose files are not there.
        expecting: Is asked with the opened project and the environment, under the lease and before anything is changed;
            raises to stop the deploy.

    Another deploy in the environment is waited for; runs work on beside it until it replaces what they write.

    Raises:
        RunInProgressError: Another deploy lived for longer than the project's `overlap_limit`.
        EvaluationError: The plan failed.
        ProjectError: The project cannot be loaded, owns a model of another one, or its plan takes something away of others.
        MeshgateError: The ledger or the configuration is unusable.
    """
    project = bench.project(name)
    target = bench.target(project, environment)
    instant = bench.instant(now)
    opened = bench.open_project(project, load=True)
    _refuse_double_owners(bench, opened, target, instant)
    asked = _Asked(restating or {}, dropping, expecting)

    def once() -> RunReport:
        with leased(
            bench, project, target, "deploy", now,
            engine_in_process=opened.engine_in_process, warehouse=project.warehouse,
        ) as held:  # fmt: skip
            if isinstance(held, Busy):
                return RunReport(name, target, instant, "skipped", busy=held)
            lease, keeper = held
            with structlog.contextvars.bound_contextvars(run_id=lease.run_id, project=name):
                return _apply(bench, project, opened, lease, keeper, target, instant, asked)

    report = until_free(bench, once(), project.overlap_limit, once)
    if report.busy is not None:
        if bench.stop.requested:
            raise StoppedError(f"stopped by {bench.stop.reason} while it waited; nothing was deployed")
        raise _in_progress(name, report.busy)
    return report


def _refuse_double_owners(bench: Workbench, opened: SqlmeshProject, target: str, now: datetime) -> None:
    ours = set(opened.local_models())
    owners: dict[str, str] = {}
    plan = opened.promoted(target, now)
    if plan is not None:
        owners = {n: node.project for n, node in plan.nodes.items() if node.version}
    if target in bench.ledger.environments():
        # A project with a state of its own is known to the ledger only.
        known = bench.ledger.manifest(target).graph.nodes
        owners = {n: node.project for n, node in known.items() if node.version} | owners
    for model in sorted(ours & set(owners)):
        if owners[model] and owners[model] != opened.project:
            raise ProjectError(
                f"model {model.replace(chr(34), '')} is owned twice: by {owners[model]!r} in environment {target!r} and by "
                f"the files of {opened.project!r}",
                hint=f"rename it in one of the two, or remove it from {owners[model]!r} and deploy that first",
                model=model,
            )
    for other in bench.config.projects:
        if other.name != opened.project and other.path == opened.path:
            raise ProjectError(
                f"projects {other.name!r} and {opened.project!r} have the same path {other.path}"
            )


@frozen
class _Asked:
    """What a deploy was asked for besides: as in `deploy`."""

    restating: Mapping[str, Interval]
    dropping: bool
    expecting: Callable[[SqlmeshProject, str], None] | None


def _apply(
    bench: Workbench,
    project: ProjectConfig,
    opened: SqlmeshProject,
    lease: Lease,
    keeper: LeaseKeeper,
    target: str,
    now: datetime,
    asked: _Asked,
) -> RunReport:
    ledger = bench.ledger
    findings: tuple[Finding, ...] = ()
    outcome = Outcome()
    error: str | None = None
    state = "failed"
    declared = _declared(project)
    deploying = {project.name: declared}
    try:
        if asked.expecting is not None:
            asked.expecting(opened, target)
        current = opened.promoted(target, now)
        if current is not None:
            # What was there before the first deploy is the baseline; later, foreign work is looked at as ever.
            findings = reconcile(
                ledger, opened, target, now, run_id=lease.run_id, baseline=True, deploying={}
            )
        journal = RunJournal(
            bench, lease.run_id, project.name, keeper, MeshGraph({}, []), {},
            environment=None, now=now, build=lambda plan: _build(bench, project, opened, target, plan, deploying, now),
            promoted=_versions(current or opened.promoted("prod", now)),
            allow=lambda graph: allowance(graph, {**bench.ledger.manifests(target), project.name: declared}, project.name),
        )  # fmt: skip
        outcome = journal.outcome
        _ask_for(bench, target, asked.restating)
        judge = _let_go if asked.dropping else _refuse_takings
        back = _taken_back(bench, opened, target)
        changed = opened.deploy(
            target, journal, now=now, judge=lambda taken: judge(project.name, (*taken, *back))
        )
        found = reconcile(ledger, opened, target, now, run_id=lease.run_id, deploying=deploying)
        findings += tuple(f for f in found if f.what != "promoted")  # that was this deploy
        sqlmesh, sqlglot = opened.versions
        manifest = {
            **declared,
            "environment": target,
            **_defined(opened, target),
            DEFINED_AT: ledger.revision(),
            **_state_facts(bench, opened, target),
            **_kept(opened.promoted(target, now), project),
        }
        ledger.save_manifest(
            project.name, manifest, sqlmesh=sqlmesh, sqlglot=sqlglot,
            environment=None if target == project.environment else target,
        )  # fmt: skip
        state = "failed" if outcome.failed else ("done" if changed else "nothing_to_do")
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
        state = _finish(bench, lease, state, outcome, None, error)
    log.info("deploy.finished", **_counts(outcome, None), state=state)
    return _report(project, target, now, state, lease, outcome, findings, None, error)


def _refuse_takings(name: str, taken: Collection[Dropped]) -> None:
    """Refuse what an analysis refuses, in its words.

    Raises:
        ProjectError: The plan takes something away of projects whose files are not there.
    """
    if found := takings([name], taken):
        raise ProjectError(
            "; ".join(one.message for one in found),
            hint=f"{found[0].hint}, or add --allow-dropping if it is to go",
            refusals=[{"what": one.what, "model": one.model, "project": one.project} for one in found],
        )


def _let_go(name: str, taken: Collection[Dropped]) -> None:
    """Take it away, and say so."""
    for one in takings([name], taken):
        log.warning("deploy.dropped", what=one.what, model=one.model, of=one.project)


def _ask_for(bench: Workbench, target: str, restating: Mapping[str, Interval]) -> None:
    """Ask for what a plan restates, as far as it is recorded: what is not is due anyway."""
    if not restating:
        return
    ids = bench.ledger.manifest(target).version_ids
    states = bench.ledger.states(ids[name] for name in restating if name in ids)
    asked = [
        (name, span)
        for name, span in restating.items()
        if name in ids
        if states[ids[name]].covered & IntervalSet([span])
    ]
    if asked:
        bench.ledger.request(asked, reason="restated by sqlmesh plan", by="sqlmesh plan")


def _build(
    bench: Workbench,
    project: ProjectConfig,
    opened: SqlmeshProject,
    target: str,
    plan: Promoted,
    deploying: Mapping[str, Mapping[str, Any]],
    now: datetime,
) -> MeshGraph:
    """The graph of what the plan holds, and whatever the project declares about its models is about models of it.

    It is built before anything is evaluated: from then on changes of the project's sources are seen.
    """
    graph = graph_of(bench.ledger, target, plan, deploying)
    check_names(graph, project)
    check_sources(graph, project)
    check_ticks(graph, project.name, now)
    look_before_deploying(bench, project, opened, graph, target, now)
    return graph


def _state_facts(bench: Workbench, opened: SqlmeshProject, target: str) -> dict[str, Any]:
    """What lets a later run look at SQLMesh's tables without importing SQLMesh: only if they are in this database."""
    here = bench.ledger.sqlmesh_fingerprint(opened.state_schema, target) is not None
    return {
        "engine_in_process": opened.engine_in_process,
        "state_schema": opened.state_schema if here else None,
    }


def _taken_back(bench: Workbench, opened: SqlmeshProject, target: str) -> tuple[Dropped, ...]:
    if target == "prod":
        return ()
    (_, before), (_, after) = (opened.promoted_definitions(name) for name in (target, "prod"))
    return taken_back((opened.project,), target, before, after, bench.ledger.manifests(target))


def _defined(opened: SqlmeshProject, target: str) -> dict[str, Any]:
    """What the environment promotes of the project's files: the next deploys, and whoever asks for what they leave, go by it."""
    here, *elsewhere = (
        project_digest({n: said for n, (owner, said) in promoted.items() if owner == opened.project})
        for _, promoted in (opened.promoted_definitions(name) for name in dict.fromkeys((target, "prod")))
    )
    return {DEFINITION: here, APART: here not in (elsewhere or [here])}


def _kept(promoted: Promoted | None, project: ProjectConfig) -> dict[str, Any]:
    """The project's models that must not be computed again: previews and policies need it without SQLMesh."""
    kept = sorted(promoted.disable_restatement) if promoted else ()
    return {
        "disable_restatement": [n for n in kept if promoted and promoted.nodes[n].project == project.name]
    }


def _versions(promoted: Promoted | None) -> dict[str, str]:
    """What each model's version is so far: an environment that is new starts from production."""
    return {name: node.version for name, node in promoted.nodes.items()} if promoted else {}


def _declared(project: ProjectConfig) -> dict[str, Any]:
    """What `meshgate.yaml` says of a project, for the runs of the others."""
    return {
        "edges": declared_edges(project),
        **declared_allowance(project),
        **declared_settings(project),
    }
