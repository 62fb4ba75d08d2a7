"""`doctor`: everything that has to be right before a run can be, checked one by one, whatever fails on the way."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import evolve, frozen

from meshgate.bridge.contract import TESTED_RANGE, check_hooks, check_version, installed_versions, minor
from meshgate.config import load
from meshgate.coordinator.allowance import check_names, declared_allowance
from meshgate.coordinator.manifest import declared_edges
from meshgate.coordinator.policies import declared_settings
from meshgate.coordinator.reconcile import graph_of
from meshgate.coordinator.windows import read_windows, told
from meshgate.errors import MeshgateError, NotDeployedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from meshgate.config import MeshConfig, ProjectConfig
    from meshgate.coordinator.run import Workbench

Outcome = Literal["ok", "warn", "fail"]

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


@frozen
class Check:
    """One thing that was looked at.

    Attributes:
        name: What kind of thing: `config`, `sqlmesh`, `ledger`, `clock`, `notifications`, `project`, `versions`,
            `manifest`, `limits`, `windows`, `environment`, `runs`.
        subject: Which one of them: a project, an environment; empty where there is only one.
        outcome: `ok`, `warn` or `fail`.
        message: What was found.
        hint: What to do about it.
    """

    name: str
    subject: str
    outcome: Outcome
    message: str
    hint: str | None = None


@frozen
class Diagnosis:
    """Everything that was looked at, in the order in which it matters."""

    checks: tuple[Check, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst outcome."""
        found = {check.outcome for check in self.checks}
        return "fail" if "fail" in found else "warn" if "warn" in found else "ok"

    @property
    def exit_code(self) -> int:
        """2 where anything fails, else 0."""
        return 2 if self.outcome == "fail" else 0


def examine(path: Path | None, connect: Callable[[MeshConfig], Workbench]) -> Diagnosis:
    """Look at everything; nothing that is found stops the looking, and nothing is written.

    Args:
        path: `meshgate.yaml` or its folder; None looks for it.
        connect: Opens the ledger of a configuration without looking at it.
    """
    checks: list[Check] = [*_guarded("sqlmesh", "", _sqlmesh)]
    try:
        config = load(path)
    except MeshgateError as error:
        return Diagnosis((_failed("config", "", error), *checks))
    names = ", ".join(project.name for project in config.projects)
    checks.insert(0, Check("config", "", "ok", f"{config.path} is in order; its projects: {names}"))
    bench: Workbench | None = None
    try:
        bench = connect(config)
    except MeshgateError as error:
        checks.append(_failed("ledger", "", error))
    known: dict[str, dict[str, Any]] | None = None
    if bench is not None:
        found = _ledger(bench, config)
        checks += found
        if all(check.outcome != "fail" for check in found):
            known = bench.ledger.projects()
    for project in config.projects:
        row = (known or {}).get(project.name, {})
        checks += _guarded(
            "project", project.name, _project, bench, project, deployed=bool(row.get("deployed_at"))
        )
    if bench is not None and known is not None:
        checks += _guarded("versions", "", _versions, known)
        for project in config.projects:
            checks += _guarded("manifest", project.name, _manifest, project, known)
            checks += _guarded("limits", project.name, _limits, bench, project)
            if known.get(project.name, {}).get("deployed_at"):
                checks += _guarded("windows", project.name, _windows, bench, project)
        for environment in sorted({project.environment for project in config.projects}):
            checks += _guarded("runs", environment, _runs, bench, environment)
    return Diagnosis(tuple(checks))


def _failed(name: str, subject: str, error: MeshgateError) -> Check:
    return Check(name, subject, "fail", error.message, error.hint)


def _guarded(
    name: str, subject: str, look: Callable[..., Iterator[Check]], *args: Any, **kwargs: Any
) -> list[Check]:
    """What a look finds, and what it stumbles over as a finding of its own."""
    found: list[Check] = []
    try:
        found.extend(look(*args, **kwargs))
    except MeshgateError as error:
        found.append(_failed(name, subject, error))
    except Exception as error:  # noqa: BLE001 - the other checks are worth more than a traceback
        found.append(Check(name, subject, "fail", f"could not be looked at: {type(error).__name__}"))
    return found


def _sqlmesh() -> Iterator[Check]:
    sqlmesh, sqlglot = installed_versions()
    check_version()
    check_hooks()
    yield Check("sqlmesh", "", "ok", f"SQLMesh {sqlmesh} with SQLGlot {sqlglot}; tested range {TESTED_RANGE}")


# The ledger


def _ledger(bench: Workbench, config: MeshConfig) -> list[Check]:
    checks = _guarded("ledger", "", _server, bench, config)
    if not any(check.outcome == "fail" for check in checks):
        checks += _guarded("ledger", "", _schema, bench)
        checks += _guarded("notifications", "", _notifications, bench)
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


def _project(bench: Workbench | None, project: ProjectConfig, *, deployed: bool) -> Iterator[Check]:
    from meshgate.bridge.settings import read_settings

    name = project.name
    settings = read_settings(project.path)
    wrong: list[Check] = []
    if settings.key != name:
        found = f"`project: {settings.key}`" if settings.key else "no `project:` key"
        hint = f"write `project: {name}` into its config.yaml, or change the name in meshgate.yaml"
        wrong.append(
            Check("project", name, "fail", f"the SQLMesh project in {project.path} has {found}", hint)
        )
    if project.gateway is not None and project.gateway.lower() not in settings.gateways:
        has = ", ".join(settings.gateways) or "none with a name"
        message = f"gateway {project.gateway!r} is not configured in {project.path}"
        wrong.append(Check("project", name, "fail", message, f"it has: {has}"))
    yield from wrong or [Check("project", name, "ok", f"{project.path} has `project: {name}`")]
    # Opening SQLMesh's state makes its tables where there are none: not a doctor's business.
    if deployed and not wrong and bench is not None:
        yield from _guarded("environment", name, _environment, bench, project)


def _environment(bench: Workbench, project: ProjectConfig) -> Iterator[Check]:
    promoted = bench.open_project(project, load=False).promoted(project.environment, bench.ledger.clock())
    deploy = f"run `meshgate deploy {project.name} --environment {project.environment}`"
    where = f"environment {project.environment!r}"
    if promoted is None:
        yield Check("environment", project.name, "warn", f"SQLMesh's state has no {where}", deploy)
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
        message = (
            f"meshgate.yaml is what was deployed at {row['deployed_at'].astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
        )
        yield Check("manifest", project.name, "ok", message)


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


def _limits(bench: Workbench, project: ProjectConfig) -> Iterator[Check]:
    """What limits, exclusive and validity name has to be there; a deploy would refuse it."""
    if not project.model_limits and not project.exclusive and not project.validity:
        return
    if project.environment not in bench.ledger.environments():
        return
    graph = bench.ledger.manifest(project.environment).graph
    bare = evolve(project, model_limits={}, exclusive=(), validity={})
    single = [evolve(bare, model_limits={name: 1}) for name in project.model_limits]
    single += [evolve(bare, exclusive=(name,)) for name in project.exclusive]
    single += [evolve(bare, validity={name: columns}) for name, columns in project.validity.items()]
    wrong = False
    for one in single:
        try:
            check_names(graph, one)
        except MeshgateError as error:
            wrong = True
            hint = f"{error.hint}; if it is new, deploy it" if error.hint else "if it is new, deploy it"
            yield Check("limits", project.name, "warn", error.message, hint)
    if not wrong:
        yield Check(
            "limits", project.name, "ok", "every model that limits, exclusive and validity name is there"
        )


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
