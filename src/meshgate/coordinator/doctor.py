"""`doctor`: everything that has to be right before a run can be, checked one by one, whatever fails on the way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

from meshgate.bridge.contract import TESTED_RANGE, check_hooks, check_version, installed_versions, minor
from meshgate.config import load
from meshgate.coordinator.allowance import declared_allowance
from meshgate.coordinator.diagnosis import Check, Diagnosis, failed, guarded
from meshgate.coordinator.doctor_projects import Looked, look, together
from meshgate.coordinator.manifest import declared_edges
from meshgate.coordinator.policies import declared_settings
from meshgate.coordinator.reconcile import graph_of
from meshgate.coordinator.windows import read_windows, told
from meshgate.errors import MeshgateError, NotDeployedError
from meshgate.yaml_source import nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from meshgate.config import MeshConfig, ProjectConfig
    from meshgate.coordinator.run import Workbench

_OLDEST_POSTGRES: Final = 140000
_SKEW_WORTH_TELLING: Final = timedelta(seconds=5)
_RUNS: Final = 200
_FEW: Final = 3
# What the copy of a project that declared nothing means, and what the file calls what the copy keeps.
_UNDECLARED: Final[Mapping[str, Any]] = {
    "warehouse": "default", "model_limits": {}, "exclusive": [], "validity": {}, "on_audit_warning": "pass", "stale": "reprocess",
    "foreign_rewrite": "report", "models": {},
}  # fmt: skip
_KEYS: Final = {
    "patience_s": "patience",
    "stale_throttle_s": "stale_throttle",
    "stale_horizon_s": "stale_horizon",
    "warehouse_limit": "limits.warehouse",
    "model_limits": "limits.models",
}


def examine(path: Path | None, connect: Callable[[MeshConfig], Workbench]) -> Diagnosis:
    """Look at everything; nothing that is found stops the looking, and nothing is written.

    Args:
        path: `meshgate.yaml` or its folder; None looks for it.
        connect: Opens the ledger of a configuration without looking at it.
    """
    checks: list[Check] = [*guarded("sqlmesh", "", _sqlmesh)]
    try:
        config = load(path)
    except MeshgateError as error:
        return Diagnosis((failed("config", "", error), *checks))
    names = ", ".join(project.name for project in config.projects)
    checks.insert(0, Check("config", "", "ok", f"{config.path} is in order; its projects: {names}"))
    bench: Workbench | None = None
    try:
        bench = connect(config)
    except MeshgateError as error:
        checks.append(failed("ledger", "", error))
    known: dict[str, dict[str, Any]] | None = None
    if bench is not None:
        found = _ledger(bench, config)
        checks += found
        if all(check.outcome != "fail" for check in found):
            known = bench.ledger.projects()
    by_name = {project.name: project for project in config.projects}
    looked = {name: look(project, by_name) for name, project in by_name.items()}
    for one in looked.values():
        checks += one.checks
    if bench is None or known is None:
        checks += together(by_name, looked, {})
    else:
        checks += _beside_the_ledger(bench, by_name, looked, known)
    return Diagnosis(tuple(checks))


def _beside_the_ledger(
    bench: Workbench,
    projects: Mapping[str, ProjectConfig],
    looked: Mapping[str, Looked],
    known: Mapping[str, Mapping[str, Any]],
) -> list[Check]:
    checks: list[Check] = []
    deployed = {n: known[n]["deployed_at"] for n in projects if known.get(n, {}).get("deployed_at")}
    for name, when in deployed.items():
        # Opening SQLMesh's state makes its tables where there are none: not a doctor's business.
        if looked[name].settings is not None:
            checks += guarded("environment", name, _environment, bench, projects[name], when)
    promoted = {e: bench.ledger.manifest(e).graph for e in bench.ledger.environments()}
    checks += together(projects, looked, promoted)
    checks += guarded("versions", "", _versions, known)
    for name, project in projects.items():
        checks += guarded("manifest", name, _manifest, project, known)
        if name in deployed and looked[name].models is not None:
            checks += guarded("windows", name, _windows, bench, project)
    for environment in sorted({project.environment for project in projects.values()}):
        checks += guarded("runs", environment, _runs, bench, environment)
    return checks


def _sqlmesh() -> Iterator[Check]:
    sqlmesh, sqlglot = installed_versions()
    check_version()
    check_hooks()
    yield Check("sqlmesh", "", "ok", f"SQLMesh {sqlmesh} with SQLGlot {sqlglot}; tested range {TESTED_RANGE}")


# The ledger


def _ledger(bench: Workbench, config: MeshConfig) -> list[Check]:
    checks = guarded("ledger", "", _server, bench, config)
    if not any(check.outcome == "fail" for check in checks):
        checks += guarded("ledger", "", _schema, bench)
        checks += guarded("notifications", "", _notifications, bench)
    return checks


def _server(bench: Workbench, config: MeshConfig) -> Iterator[Check]:
    before = datetime.now(UTC)
    version, there = bench.ledger.server()
    after = datetime.now(UTC)
    where = (
        bench.ledger.database.shown_url
        if config.ledger.local_folder is None
        else f"in {config.ledger.local_folder}"
    )
    shown = f"{version // 10000}.{version % 10000}"
    if version < _OLDEST_POSTGRES:
        yield Check("ledger", "", "fail", f"the ledger's Postgres is {shown}", "use Postgres 14 or later")
    else:
        yield Check("ledger", "", "ok", f"Postgres {shown} answers, {where}")
    # A bound, not a guess: the server read its clock at some moment between the two readings of ours.
    skew = max(before - there, there - after, timedelta(0))
    if skew > _SKEW_WORTH_TELLING:
        message = f"this machine's clock and the ledger's differ by {skew.total_seconds():.0f} s or more"
        hint = "the ledger's decides, so nothing goes wrong; correct this machine's for the sake of who reads its logs"
        yield Check("clock", "", "warn", message, hint)
    else:
        yield Check("clock", "", "ok", "this machine's clock agrees with the ledger's")


def _schema(bench: Workbench) -> Iterator[Check]:
    bench.ledger.database.check_schema()
    yield Check("ledger", "", "ok", "its schema is this meshgate's")


def _notifications(bench: Workbench) -> Iterator[Check]:
    with bench.ledger.listen() as bell:
        heard = bell.listening
    if heard:
        yield Check("notifications", "", "ok", "they get through: a run that waits is woken at once")
    else:
        message = "they do not get through: a run that waits asks the ledger every 5 s instead"
        hint = (
            "nothing goes wrong by it; a pooler in transaction mode swallows LISTEN, so let ledger.url "
            "name the server itself, or a pool of sessions"
        )
        yield Check("notifications", "", "warn", message, hint)


# Projects


def _environment(bench: Workbench, project: ProjectConfig, deployed_at: datetime) -> Iterator[Check]:
    promoted = bench.open_project(project, load=False).promoted(project.environment, bench.ledger.clock())
    deploy = f"run `meshgate deploy {project.name} --environment {project.environment}`"
    where = f"environment {project.environment!r}"
    known = bench.ledger.environments()
    if promoted is None and project.environment not in known:
        hint = f"{nearest(project.environment, known)} Else {deploy}"
        yield Check("environment", project.name, "warn", f"nothing was deployed in {where}", hint)
    elif promoted is None:
        message = f"SQLMesh's state has no {where}, though the project was deployed at {_at(deployed_at)}: it was another state"
        hint = f"correct the `state_connection` in its config.yaml, or what that reads from the environment; if it is new, {deploy}"
        yield Check("environment", project.name, "warn", message, hint)
    elif not promoted.finalized:
        yield _half_changed(bench, project, where, deploy)
    else:
        yield Check("environment", project.name, "ok", f"SQLMesh's state answers, and {where} is finalized")


def _half_changed(bench: Workbench, project: ProjectConfig, where: str, deploy: str) -> Check:
    """Of an environment that SQLMesh began to change and did not finish: who is at it, or was."""
    rows = bench.ledger.runs(None, project.environment, limit=_RUNS)
    since = list(takewhile(lambda r: r["state"] != "done", (r for r in rows if r["purpose"] == "deploy")))
    live = [r for r in since if r["state"] == "running" and not r["expired"]]
    died = [r for r in since if r["state"] in ("lost", "running")]
    row = next(iter(live or died or since), None)
    if row is None:
        message = f"{where} is in the middle of a plan that did not end"
        return Check(
            "environment", project.name, "warn", message, f"wait for the plan that works on it, or {deploy}"
        )
    name = f"deploy {row['run_id']} of {row['project']!r}"
    if live:
        return Check("environment", project.name, "ok", f"{where} is being changed by {name}, which is live")
    how = {"failed": "failed", "stopped": "was stopped"}.get(row["state"], "died")
    message = f"{where} is half changed: {name} {how} while it replaced models"
    again = f"run `meshgate deploy {row['project']} --environment {project.environment}`: it goes on where that one ended"
    return Check("environment", project.name, "warn", message, again)


def _versions(known: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    """All projects of a mesh need one minor version of each: SQLMesh's state and its fingerprints depend on it."""
    agree = True
    for what, installed in zip(("sqlmesh", "sqlglot"), installed_versions(), strict=True):
        for name, row in sorted(known.items()):
            theirs = row[f"{what}_version"]
            if theirs and minor(theirs) != minor(installed):
                agree = False
                title = {"sqlmesh": "SQLMesh", "sqlglot": "SQLGlot"}[what]
                message = f"project {name!r} was deployed with {title} {theirs}, here is {installed}"
                hint = f"install {what} {theirs} here, or deploy {name!r} with {installed}: all projects need one minor version"
                yield Check("versions", name, "fail", message, hint)
    if agree:
        yield Check(
            "versions",
            "",
            "ok",
            "every deployed project uses the SQLMesh and SQLGlot that are installed here",
        )


def _manifest(project: ProjectConfig, known: Mapping[str, Mapping[str, Any]]) -> Iterator[Check]:
    row = known.get(project.name)
    deploy = f"run `meshgate deploy {project.name}`"
    if row is None or row["deployed_at"] is None:
        yield Check("manifest", project.name, "warn", "it was never deployed through meshgate", deploy)
        return
    differences = manifest_differences(project, row["manifest"] or {})
    if differences:
        message = f"meshgate.yaml differs from the ledger's copy: {'; '.join(differences)}"
        hint = f"{deploy}: until then runs decide from the copy; only schedule and overlap count at once"
        yield Check("manifest", project.name, "warn", message, hint)
    else:
        yield Check(
            "manifest", project.name, "ok", f"meshgate.yaml is what was deployed at {_at(row['deployed_at'])}"
        )


def _at(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"


def manifest_differences(project: ProjectConfig, copy: Mapping[str, Any]) -> list[str]:
    """Where a project's configuration is not what the ledger keeps of it, in words."""
    found: list[str] = []
    declared = {**declared_settings(project), **declared_allowance(project)}
    for key, here in declared.items():
        there = copy.get(key, _UNDECLARED.get(key))
        if there != here:
            found.append(f"{_KEYS.get(key, key)} is {_value(key, here)}, was {_value(key, there)}")
    here_edges = {(e["reader"], e["parent"]): e for e in declared_edges(project)}
    copied_edges = {(e["reader"], e["parent"]): e for e in copy.get("edges", ())}
    for pair in sorted(here_edges.keys() | copied_edges.keys()):
        here_edge, copied_edge = here_edges.get(pair), copied_edges.get(pair)
        if here_edge != copied_edge:
            how = (
                "is new" if copied_edge is None else "is gone" if here_edge is None else "has another window"
            )
            found.append(f"the edge {pair[0]} reads {pair[1]} {how}")
    return found


def _value(key: str, value: Any) -> str:
    """A value of `meshgate.yaml` as a person writes it."""
    if value in (None, {}, []):
        return "not given"
    if key.endswith("_s"):
        return f"{value:g}s"
    if isinstance(value, dict):
        return ", ".join(
            f"{_KEYS.get(name, name)}: {{{_value(name, one)}}}"
            if isinstance(one, dict)
            else f"{_KEYS.get(name, name)}: {_value(name, one)}"
            for name, one in sorted(value.items())
        )
    return ", ".join(value) if isinstance(value, list) else str(value)


def _windows(bench: Workbench, project: ProjectConfig) -> Iterator[Check]:
    """What the queries in the project's files read, beside the windows that meshgate.yaml declares."""
    opened = bench.open_project(project, load=True)
    plan = opened.loaded(bench.ledger.clock())
    declared = {project.name: {"edges": declared_edges(project), "environment": project.environment}}
    found = read_windows(opened, graph_of(bench.ledger, project.environment, plan, declared))
    wider = [one for one in found if one.before is not None or one.after is not None]
    for one in wider:
        message, hint = told(one)
        yield Check("windows", project.name, "warn", message, hint)
    unclear = [(one, one.unclear) for one in found if one not in wider and one.unclear is not None]
    some = "; ".join(
        f"{one.model.display} reads {one.parent.display}: {side.reason}{f' ({side.place})' if side.place else ''}"
        for one, side in unclear[:_FEW]
    )
    more = f"; and {len(unclear) - _FEW} more" if len(unclear) > _FEW else ""
    message = (
        f"of {len(found)} windows {len(found) - len(wider) - len(unclear)} hold all that the queries read"
    )
    if unclear:
        message += f"; {len(unclear)} cannot be told: {some}{more}"
    yield Check("windows", project.name, "ok", message)


# What goes on


def _runs(bench: Workbench, environment: str) -> Iterator[Check]:
    try:
        manifest = bench.ledger.manifest(environment)
    except NotDeployedError as error:
        yield Check("runs", environment, "warn", error.message, error.hint)
        return
    quiet = True
    clock = bench.ledger.clock()
    for run in bench.ledger.live_runs():
        if run.environment != environment:
            continue
        who = f"{run.purpose} {run.run_id} of {run.project!r} (pid {run.holder.get('pid')} on {run.holder.get('host')})"
        quiet = False
        if run.expires_at <= clock:
            message = f"{who} lost its lease at {run.expires_at:%Y-%m-%d %H:%M:%SZ}, and nobody took over yet"
            hint = "the next run of any project takes over what it had begun"
            yield Check("runs", environment, "warn", message, hint)
        else:
            yield Check("runs", environment, "ok", f"{who} is live")
    states = bench.ledger.states(manifest.version_ids.values())
    for name, version in manifest.version_ids.items():
        marks = [mark for mark in states[version].marks if mark.kind == "suspect"]
        if marks:
            quiet = False
            node = manifest.graph[name]
            message = f"{node.display} of project {node.project!r} has suspect time: {marks[0].detail.get('cause', '')}"
            hint = f"the next `meshgate run {node.project}` evaluates it again; `meshgate why {node.display}` tells which"
            yield Check("runs", environment, "warn", message, hint)
    if quiet:
        yield Check("runs", environment, "ok", "no run is live, none was lost, nothing is suspect")
