"""Restatement: what computing some time of a model again comes to, asking for it, and how far that is.

The preview reads one look at the ledger and writes nothing. A request marks; the ordinary runs of each project do the
work on their own schedule, parents first, so that nothing has to outlive a run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve, field, frozen

from meshgate.coordinator.explain import environment_of
from meshgate.coordinator.sources import resolve_source
from meshgate.coordinator.standing import read_time
from meshgate.errors import ConfigError, IntervalError
from meshgate.interval import IntervalSet
from meshgate.restatement import Stop, disabled_models, expand

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

    from meshgate.coordinator.run import Workbench
    from meshgate.graph import ModelNode
    from meshgate.interval import Interval
    from meshgate.ledger import LiveClaim, Manifest, Mark, Pace, Request, VersionState
    from meshgate.restatement import Step, Widening

_WITHOUT_REASON = "no reason given"


@frozen
class Collision:
    """What is in flight where something is to be computed again.

    Attributes:
        run_id: The run that has claimed it.
        project: Whose run.
        state: `open` (reserved), `begun` (being written) or `lost` (may still be written to).
        time: The part of the step that it is about.
        until: When its lease or its grace ends unless it is renewed, UTC.
    """

    run_id: int
    project: str
    state: str
    time: IntervalSet
    until: datetime


@frozen
class Redo:
    """One model that is computed again: as in `restatement.Step`, and what the ledger knows about it.

    Attributes:
        model: The model.
        project: Its project, whose runs do it.
        kind: Its kind.
        unit: Its interval unit.
        asked: Whether it gets a mark of its own; else it follows its parents.
        because: The parents whose change it reads.
        range: What of it is evaluated again, UTC.
        changed: What of it its readers have to read again, UTC.
        widened: Why that is wider than what was asked, or than the change of a parent.
        expected: How long that takes, by its last evaluations; None where there is nothing to go by.
        collisions: What is in flight there.
        pending: Requests that are open and about some of the same time.
    """

    model: str
    project: str
    kind: str
    unit: str
    asked: bool
    because: tuple[str, ...]
    range: IntervalSet
    changed: IntervalSet
    widened: tuple[Widening, ...]
    expected: timedelta | None
    collisions: tuple[Collision, ...]
    pending: tuple[int, ...]


@frozen
class Preview:
    """What a request comes to, or came to when it was made.

    Attributes:
        environment: SQLMesh's environment.
        now: By the ledger's clock, UTC.
        model: Whose time is asked for.
        project: Its project.
        interval: Which time of it, as it was asked, UTC.
        only_downstream: Whether only what was derived from it is asked for.
        rebuild: Whether tables that merge rows are asked for too.
        steps: What is computed again, parents first.
        stops: Where the cascade ends, and why.
        requests: What has to be requested, or was: models, and the time of each.
        made: The requests that were made; none for a preview.
    """

    environment: str
    now: datetime
    model: str
    project: str
    interval: Interval
    only_downstream: bool
    rebuild: bool
    steps: tuple[Redo, ...]
    stops: tuple[Stop, ...]
    requests: tuple[tuple[str, Interval], ...]
    made: tuple[int, ...] = field(default=())

    @property
    def expected(self) -> timedelta | None:
        """How long all that can be estimated takes, one after the other; None where nothing can."""
        known = [step.expected for step in self.steps if step.expected is not None]
        return sum(known[1:], known[0]) if known else None

    @property
    def projects(self) -> tuple[str, ...]:
        """Whose runs do it, those of parents first; twice where a project reads what another makes of its own models."""
        left = list(self.steps)
        turns: list[str] = []
        while left:
            project, waiting = left[0].project, {step.model for step in left}
            turns.append(project)
            for step in [s for s in left if s.project == project]:
                if waiting.isdisjoint(step.because):
                    waiting.remove(step.model)
            left = [step for step in left if step.model in waiting]
        return tuple(turns)


@frozen
class RequestStanding:
    """One request, how far it is, and what follows it.

    Attributes:
        request: What was asked for, and its progress.
        now: By the ledger's clock, UTC.
        environment: SQLMesh's environment.
        failed: What of it is in doubt or failed, which may be why it does not go on.
        collisions: What is in flight in the open part.
        follows: What is computed again because of it, parents first, if it were asked for now.
    """

    request: Request
    now: datetime
    environment: str
    failed: tuple[Mark, ...]
    collisions: tuple[Collision, ...]
    follows: tuple[Redo, ...]


def preview(
    bench: Workbench,
    model: str,
    interval: Interval,
    *,
    only_downstream: bool = False,
    rebuild: bool = False,
    source: bool = False,
    environment: str | None = None,
) -> Preview:
    """Tell what computing some time of a model again comes to; nothing is written.

    Args:
        bench: Configuration and ledger.
        model: Its name, or the last parts of it.
        interval: Which time of it, UTC; it is widened to whole units.
        only_downstream: Whether the model is right, and only what was derived from it is asked for.
        rebuild: Whether tables that merge rows are asked for too where they read what is changed.
        source: Whether `model` is a table that no model of the mesh makes: all that read it are asked for.
        environment: SQLMesh's environment; by default the one that the configured projects share.

    Raises:
        UnknownModelError: There is no such model, or source; names the nearest.
        IntervalError: The interval lies in the future.
        NotDeployedError: Nothing was deployed in the environment.
    """
    manifest = bench.ledger.manifest(environment_of(bench, environment))
    name = resolve_source(manifest.graph, model) if source else manifest.graph.resolve(model)
    now = bench.ledger.clock()
    if interval.start >= now:
        raise IntervalError(
            f"{interval} lies in the future: the ledger's clock says {now:%Y-%m-%dT%H:%M:%SZ}",
            hint="give a range that was evaluated before; what is not is due anyway",
        )
    return _preview(bench, manifest, name, interval, now, only_downstream=only_downstream, rebuild=rebuild)


def _preview(
    bench: Workbench,
    manifest: Manifest,
    name: str,
    interval: Interval,
    now: datetime,
    *,
    only_downstream: bool,
    rebuild: bool,
) -> Preview:
    graph = manifest.graph
    states = bench.ledger.states(manifest.version_ids.values())
    policies = bench.policies(manifest)
    found = expand(
        graph, name, interval,
        {model: read_time(states[key]) for model, key in manifest.version_ids.items()},
        disabled=disabled_models(graph, bench.ledger.manifests(manifest.environment)), only_downstream=only_downstream, rebuild=rebuild,
        left=lambda node: policies.stale(node).leaves(node, now),
    )  # fmt: skip
    paces = bench.ledger.paces(manifest.version_id(step.name) for step in found.steps)
    pending = [r for r in bench.ledger.requests(manifest.environment) if r.state == "open"]
    steps = (
        _redo(
            graph[step.name],
            step,
            states[manifest.version_id(step.name)],
            paces.get(manifest.version_id(step.name)),
            pending,
        )
        for step in found.steps
    )
    return Preview(
        manifest.environment, now, name, graph[name].project, interval, only_downstream, rebuild, tuple(steps),
        found.stops, found.requests,
    )  # fmt: skip


def _redo(
    node: ModelNode, step: Step, state: VersionState, pace: Pace | None, pending: Iterable[Request]
) -> Redo:
    return Redo(
        step.name, step.project, node.kind.value, node.unit.value, step.asked, step.because, step.range, step.changed,
        step.widened, expected(node, step.range, pace), _collisions(state.claims, step.range),
        tuple(r.request_id for r in pending if r.model == step.name and r.open & step.range),
    )  # fmt: skip


def expected(node: ModelNode, time: IntervalSet, pace: Pace | None) -> timedelta | None:
    """How long evaluating some time of a model takes, if it goes as it did last.

    A refresh takes what a refresh took, however much time it is about; all else takes its share.
    """
    if pace is None:
        return None
    if node.kind.reads_everything:
        return pace.took / pace.evaluations
    return pace.took * (time.duration / pace.time)


def _collisions(claims: Iterable[LiveClaim], time: IntervalSet) -> tuple[Collision, ...]:
    met = ((claim, time & IntervalSet((claim.interval,))) for claim in claims)
    return tuple(Collision(c.run_id, c.project, c.state, part, c.until) for c, part in met if part)


def request(bench: Workbench, found: Preview, *, reason: str | None = None, by: str | None = None) -> Preview:
    """Make the requests that a preview tells: durable, all or none.

    Args:
        bench: Configuration and ledger.
        found: The preview.
        reason: Why: for the history.
        by: Who asks: for the history.

    Raises:
        ConfigError: Nothing can be computed again; says why.
    """
    if not found.requests:
        why = {stop.reason for stop in found.stops if not stop.because}
        hints = {
            "unrecorded": "what was never evaluated is due anyway; see `meshgate status`",
            "disabled": "the model declares `disable_restatement`, or its kind does: change that and deploy first",
            "seed": "change the seed's file and deploy; to compute its readers again, add --only-downstream",
            "not_redoable": "evaluating it twice doubles rows: mend the table by hand",
        }
        raise ConfigError(
            f"nothing of {found.model.replace(chr(34), '')} in {found.interval} can be computed again",
            hint=next(
                (hint for key, hint in hints.items() if key in why), "nothing that is recorded reads it"
            ),
            model=found.model,
            stops=[stop.reason for stop in found.stops],
        )
    made = bench.ledger.request(found.requests, reason=reason or _WITHOUT_REASON, by=by or "unknown")
    return evolve(found, made=made)


def requests(bench: Workbench, environment: str | None = None) -> tuple[Request, ...]:
    """The newest requests, and all that are open, newest first.

    Raises:
        NotDeployedError: Nothing was deployed in the environment.
    """
    return bench.ledger.requests(bench.ledger.manifest(environment_of(bench, environment)).environment)


def _one(bench: Workbench, request_id: int, environment: str) -> Request:
    found = bench.ledger.requests(environment, request_id)
    if not found:
        raise ConfigError(
            f"there is no request {request_id} for a model that {environment!r} promotes",
            hint="`meshgate restate list` shows them",
        )
    return found[0]


def standing_of(bench: Workbench, request_id: int, environment: str | None = None) -> RequestStanding:
    """One request: how far it is, what is in its way, and what follows it.

    Args:
        bench: Configuration and ledger.
        request_id: The request.
        environment: SQLMesh's environment; by default the one that the configured projects share.

    Raises:
        ConfigError: There is no such request.
        NotDeployedError: Nothing was deployed in the environment.
    """
    manifest = bench.ledger.manifest(environment_of(bench, environment))
    found = _one(bench, request_id, manifest.environment)
    key = manifest.version_id(found.model)
    state = bench.ledger.states([key])[key]
    now = bench.ledger.clock()
    failed = (
        m
        for m in state.marks
        if m.kind in ("failed", "suspect") and found.open & IntervalSet((m.batch or m.interval,))
    )
    cascade = _preview(
        bench, manifest, found.model, found.interval, now, only_downstream=False, rebuild=False
    )
    return RequestStanding(
        found, now, manifest.environment, tuple(failed), _collisions(state.claims, found.open),
        tuple(step for step in cascade.steps if not step.asked),
    )  # fmt: skip


def cancel(
    bench: Workbench, request_id: int, by: str, environment: str | None = None
) -> tuple[Request, bool]:
    """Take back what of a request is not done; the request, and False where it had been taken back before.

    An evaluation that is under way goes on.

    Args:
        bench: Configuration and ledger.
        request_id: The request.
        by: Who takes it back: for the history.
        environment: SQLMesh's environment; by default the one that the configured projects share.

    Raises:
        ConfigError: There is no such request.
        NotDeployedError: Nothing was deployed in the environment.
    """
    target = bench.ledger.manifest(environment_of(bench, environment)).environment
    _one(bench, request_id, target)
    ended = bench.ledger.cancel_request(request_id, by)
    return _one(bench, request_id, target), ended
