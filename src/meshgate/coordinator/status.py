"""`status`: where each project and model of an environment is, and every root cause of what does not move, as data.

It answers from the ledger alone, without importing SQLMesh, and writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from meshgate.coordinator.causes import Cause, Scene, merged
from meshgate.coordinator.explain import ORDINARY, environment_of, runs_of
from meshgate.interval import IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime, timedelta

    from meshgate.coordinator.explain import ProjectRuns
    from meshgate.coordinator.run import Workbench
    from meshgate.ledger import Hold, Stale


@frozen
class ModelStatus:
    """Where one model is. All times UTC; sets hold only what should be recorded by now.

    Attributes:
        model: Its name.
        project: Its project.
        kind: Its kind.
        unit: Its interval unit.
        recorded_upto: Up to where something is recorded.
        due_upto: Up to where it should be recorded.
        next_due: When its next interval comes due.
        late: How long ago the oldest interval that is missing became due; None if none is.
        missing: Due and never recorded.
        ready: What the next run of its project evaluates; not what failed and is left alone for a while.
        blocked: What waits for something else than that run.
        failing: What failed when it was evaluated last.
        suspect: What has to be evaluated again, as nobody knows what it holds.
        held: What a person keeps from its readers, or only a person can decide on.
        requested: Recorded, and to be read again: for late rows, because somebody asked, or as it is stale.
        stale: Recorded before something that it read was computed again; also where policy leaves it so.
        begun: What a run has claimed.
        warned: Recorded, and rejected by a non-blocking audit: it was only a warning.
        last_commit: When something of it was recorded last.
        units: How many intervals each of the sets holds, by name.
    """

    model: str
    project: str
    kind: str
    unit: str
    recorded_upto: datetime | None
    due_upto: datetime
    next_due: datetime | None
    late: timedelta | None
    missing: IntervalSet
    ready: IntervalSet
    blocked: IntervalSet
    failing: IntervalSet
    suspect: IntervalSet
    held: IntervalSet
    requested: IntervalSet
    stale: IntervalSet
    begun: IntervalSet
    warned: IntervalSet
    last_commit: datetime | None
    units: Mapping[str, int]


@frozen
class ProjectStatus:
    """Where one project is.

    Attributes:
        project: Its name.
        deployed: Whether the environment promotes any model of it.
        schedule: When its orchestrator runs it, as far as its `meshgate.yaml` says.
        runs: Its live runs, and the newest one that has ended.
        models: Its models, parents first.
    """

    project: str
    deployed: bool
    schedule: str | None
    runs: ProjectRuns
    models: tuple[ModelStatus, ...] = ()


@frozen
class Wait:
    """One root cause, and everything that it keeps back.

    Attributes:
        causes: The root; several where one run of one project would end them all.
        waiting: What waits for it: model, project and time.
    """

    causes: tuple[Cause, ...]
    waiting: tuple[tuple[str, str, IntervalSet], ...]


@frozen
class Staleness:
    """What of a model had read one of its parents before that was computed again, and what becomes of it.

    Attributes:
        model: The model.
        project: Its project.
        time: What of it, UTC.
        parent: What was computed again.
        parent_time: What of that; all of it where it held rows that nobody had judged.
        since: When the first of that was recorded, UTC; None where that is not known.
        again_at: When it may be computed again, UTC; None: at once, or never.
        accepted: Policy leaves it so.
    """

    model: str
    project: str
    time: IntervalSet
    parent: str
    parent_time: IntervalSet
    since: datetime | None
    again_at: datetime | None
    accepted: bool


@frozen
class Status:
    """Where an environment is.

    Attributes:
        environment: SQLMesh's environment.
        now: The instant that counted, UTC.
        projects: Each configured project, and those that others deployed there.
        waits: Every root cause once, with what it keeps back; what the next run evaluates anyway is not one.
        holds: What people keep from readers, also of time to come: model, project, and the hold.
        stale: What was read too early, as it turned out, model by model, parents first.
    """

    environment: str
    now: datetime
    projects: tuple[ProjectStatus, ...]
    waits: tuple[Wait, ...]
    holds: tuple[tuple[str, str, Hold], ...] = ()
    stale: tuple[Staleness, ...] = ()


def status(bench: Workbench, *, environment: str | None = None, now: datetime | None = None) -> Status:
    """Look at every project of an environment.

    Args:
        bench: Configuration and ledger.
        environment: SQLMesh's environment; by default that of the projects.
        now: An instant in the past to stand for the present, UTC.

    Raises:
        NotDeployedError: Nothing was deployed in the environment.
    """
    scene = Scene(bench, environment_of(bench, environment), now)
    known = bench.ledger.projects()
    schedules = {name: (row["manifest"] or {}).get("schedule") for name, row in known.items()}
    names = {p.name for p in bench.config.projects} | {
        n.project for n in scene.graph.nodes.values() if n.project
    }
    found = {name: _why_not(scene, name) for name in scene.graph.order() if scene.graph[name].kind.recorded}
    projects: list[ProjectStatus] = []
    for name in _parents_first(scene, names):
        models = tuple(
            _model(scene, m, causes) for m, causes in found.items() if scene.graph[m].project == name
        )
        deployed = any(node.project == name for node in scene.graph.nodes.values())
        projects.append(ProjectStatus(name, deployed, schedules.get(name), runs_of(scene, name), models))
    holds = tuple((m, scene.graph[m].project, hold) for m in found for hold in scene.state(m).holds)
    stale = tuple(one for name in found for one in _stale(scene, name))
    return Status(scene.environment, scene.now, tuple(projects), _waits(scene, found), holds, stale)


def _stale(scene: Scene, name: str) -> Iterator[Staleness]:
    groups: dict[tuple[str, bool], list[Stale]] = {}
    for one in scene.state(name).stale:
        groups.setdefault((one.parent, one.accepted), []).append(one)
    for (parent, accepted), group in groups.items():
        yield Staleness(
            name, scene.graph[name].project, IntervalSet(s.interval for s in group),
            parent, IntervalSet(s.parent_interval for s in group),
            since=min((s.since for s in group if s.since), default=None),
            again_at=None if any(s.again_at is None for s in group) else min(s.again_at for s in group if s.again_at),
            accepted=accepted,
        )  # fmt: skip


def waits(bench: Workbench, project: str, environment: str, now: datetime | None = None) -> tuple[Wait, ...]:
    """Every root cause that keeps back something of one project."""
    scene = Scene(bench, environment, now)
    mine = [
        n for n in scene.graph.order() if scene.graph[n].project == project and scene.graph[n].kind.recorded
    ]
    return _waits(scene, {name: _why_not(scene, name) for name in mine})


def _parents_first(scene: Scene, names: set[str]) -> list[str]:
    """Projects in the order of their first models; those without any at the end."""
    order = list(dict.fromkeys(scene.graph[m].project for m in scene.graph.order()))
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _why_not(scene: Scene, name: str) -> tuple[Cause, ...]:
    unclean = scene.unclean(name)
    return scene.causes(name, unclean) if unclean else ()


def _model(scene: Scene, name: str, causes: tuple[Cause, ...]) -> ModelStatus:
    node, state, planned = scene.graph[name], scene.standing(name), scene.planned(name)
    covered = state.covered
    missing = IntervalSet(p for c in causes if c.reason in ORDINARY for p in c.time) - covered
    sets = {
        "missing": missing | (_time(causes, "failed", "removed", "suspect", "begun", "held") - covered),
        "blocked": IntervalSet(p for c in causes if not c.in_order and c.because for p in c.time),
        "failing": _time(causes, "failed"),
        "suspect": _time(causes, "suspect", "removed"),
        "held": _time(causes, "held"),
        "requested": _time(causes, "marked", "stale"),
        "stale": IntervalSet(s.interval for s in scene.state(name).stale),
        "begun": _time(causes, "begun"),
        "warned": scene.state(name).warned,
    }
    sets["ready"] = planned.ready - sets["blocked"] - sets["begun"]
    first = sets["missing"].first
    late = scene.now - scene.due_at(node, next(iter(node.unit.split(first))).end) if first else None
    return ModelStatus(
        model=name, project=node.project, kind=node.kind.value, unit=node.unit.value,
        recorded_upto=covered.last.end if covered.last else None, due_upto=planned.upto, next_due=planned.next_due,
        late=late, last_commit=scene.state(name).last_commit,
        units={key: node.unit.count(found) for key, found in sets.items()}, **sets,
    )  # fmt: skip


def _time(causes: tuple[Cause, ...], *reasons: str) -> IntervalSet:
    return IntervalSet(piece for cause in causes if cause.reason in reasons for piece in cause.time)


def _waits(scene: Scene, found: Mapping[str, tuple[Cause, ...]]) -> tuple[Wait, ...]:
    """The other way round: from each root to all that it keeps back."""
    roots: dict[tuple[str, ...], list[Cause]] = {}
    waiting: dict[tuple[str, ...], dict[str, IntervalSet]] = {}
    for name, causes in found.items():
        for cause in causes:
            again = cause.reason == "marked" and cause.ready
            if cause.in_order or again or (cause.reason == "stale" and not cause.because):
                continue  # nobody has to do anything about it
            for root in cause.roots:
                key = _errand(root)
                roots.setdefault(key, []).append(root)
                own = waiting.setdefault(key, {})
                own[name] = own.get(name, IntervalSet()) | cause.time
    order = {name: at for at, name in enumerate(scene.graph.order())}
    answers: list[Wait] = []
    for key, group in roots.items():
        causes = tuple(sorted(merged(group), key=lambda c: order[c.model]))
        own_models = {c.model for c in causes}
        readers = tuple(
            (m, scene.graph[m].project, t) for m, t in waiting[key].items() if m not in own_models
        )
        if readers or not all(c.reason == "begun" for c in causes):
            answers.append(Wait(causes, readers))
    return tuple(sorted(answers, key=lambda w: (w.causes[0].reason in ORDINARY, order[w.causes[0].model])))


def _errand(root: Cause) -> tuple[str, ...]:
    """What is one thing to do for a person: all that one run of a project would end is one."""
    if root.ready and root.reason in (*ORDINARY, "suspect", "removed", "marked"):
        return (root.project, "late" if root.reason in ORDINARY else root.reason)
    if root.reason == "begun":
        return (root.project, "begun", str(root.detail.get("run_id")))
    return root.signature
