"""What a run would do now, as data: `run` does it, `--dry-run`, `status` and `why` show it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import attrs

from meshgate.coordinator.standing import stale_facts, standings
from meshgate.coordinator.turns import stand_back
from meshgate.due import due, next_due
from meshgate.gate import Blocked, ParentState, decide, out_of_patience
from meshgate.graph import readers_of
from meshgate.interval import MAX_INSTANT, Interval, IntervalSet
from meshgate.ledger import WHOLE
from meshgate.restatement import merges

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from datetime import datetime, timedelta

    from meshgate.graph import MeshGraph, ModelNode
    from meshgate.ledger import LiveClaim, Mark, VersionState

_REDONE = ("failed", "suspect", "removed", "requested")


@attrs.frozen
class ModelPlan:
    """One model's share of a run. Times UTC, half-open.

    Attributes:
        name: The model.
        project: Its project.
        fresh: Ready, and never recorded.
        redo: Ready, and recorded before: failed, suspect, removed or requested since.
        lookback: Ready, and to be read again for late rows.
        blocked: Every cause that keeps the rest of what is wanted.
        upto: Up to where the model should be recorded by now.
        next_due: When the next unit becomes due, or None if never.
        deferred: Recorded, and to be computed again later: because a reader goes first, or because it was read not long
            ago; nobody waits for that.
        stale_from: Of a table that is refreshed: from which instant on its history is stale.
    """

    name: str
    project: str
    fresh: IntervalSet
    redo: IntervalSet
    lookback: IntervalSet
    blocked: tuple[Blocked, ...]
    upto: datetime
    next_due: datetime | None
    deferred: tuple[Blocked, ...] = ()
    stale_from: datetime | None = None
    rebuild: bool = False
    """Whether a table that merges rows is emptied first: all of it that is recorded is ready, or none."""

    def without(self, deferred: tuple[Blocked, ...]) -> ModelPlan:
        """The same with a part of what would be computed again left for later."""
        left = IntervalSet(b.interval for b in deferred)
        if self.rebuild and left & self.redo:
            left |= self.redo
        return attrs.evolve(
            self,
            rebuild=self.rebuild and not left & self.redo,
            redo=self.redo - left,
            lookback=self.lookback - left,
            deferred=(*self.deferred, *deferred),
        )

    def previewed(self) -> ModelPlan:
        """The same of a model that an environment only previews."""
        cause = "this environment shows a preview of it, which its deploy made; runs advance it once it is promoted"
        told = tuple(
            Blocked(self.name, self.project, piece, self.name, self.project, piece, "held", {"cause": cause})
            for piece in self.ready
        )
        none = IntervalSet()
        return attrs.evolve(
            self,
            fresh=none,
            redo=none,
            lookback=none,
            rebuild=False,
            stale_from=None,
            blocked=(*self.blocked, *told),
        )

    @property
    def ready(self) -> IntervalSet:
        """All that may be evaluated."""
        return self.fresh | self.redo | self.lookback

    @property
    def pieces(self) -> tuple[Interval, ...]:
        """The ranges to claim, in order: redone and looked-back time apart from fresh time."""
        return tuple(
            sorted([*self.fresh, *(self.redo - self.fresh), *(self.lookback - self.fresh - self.redo)])
        )


@attrs.frozen
class Plan:
    """What a run of some projects would do, parents first.

    Attributes:
        environment: SQLMesh's environment.
        now: The instant that counts, UTC.
        models: One for each model of the asked projects.
        standings: What is known of every model of the mesh, by name.
        later: What reads, directly or not, a model that is compared, and is planned when that is done.
    """

    environment: str
    now: datetime
    models: tuple[ModelPlan, ...]
    standings: Mapping[str, ParentState] = attrs.field(repr=False)
    later: frozenset[str] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is ready."""
        return not any(m.ready for m in self.models)

    @property
    def blocked(self) -> tuple[Blocked, ...]:
        """Every cause, in the order of the models."""
        return tuple(b for m in self.models for b in m.blocked)


def make_plan(
    graph: MeshGraph,
    version_ids: Mapping[str, int],
    states: Mapping[int, VersionState],
    projects: set[str] | None,
    *,
    environment: str,
    now: datetime,
    patience: Callable[[ModelNode], timedelta | None],
    present: datetime | None = None,
    rested: Callable[[ModelNode, IntervalSet], IntervalSet] = lambda _, time: time,
    budgets: Mapping[str, int] | None = None,
    only: Collection[str] | None = None,
    cut_off: Collection[str] = (),
    previews: Collection[str] = (),
) -> Plan:
    """Decide, parents first, what may be evaluated now.

    Args:
        graph: The mesh.
        version_ids: The ledger's key of each model's promoted version.
        states: What the ledger knows, by version.
        projects: Whose models are planned; None for each as if its own project ran alone.
        environment: SQLMesh's environment.
        now: The instant that counts, UTC.
        patience: How long a model waits for stale and marked parents; None for two of its units.
        present: When what failed may be tried again is judged by this instant, UTC; by `now` by default.
        rested: Which part of a model's recorded time policy lets be computed again at once, if this run makes it stale.
        budgets: By project: how many intervals of each model a run computes again at most that are stale or were asked for.
        only: The models that the run is about; None for all of the projects'.
        cut_off: The models of which only the evaluation tells whether it changes anything for their readers: who reads them
            is planned when they are done.
        previews: The models that the environment only previews: no run evaluates them, and so nothing follows from them.
    """
    known = standings(graph, version_ids, states, now)
    produced: dict[str, dict[str, IntervalSet]] = {}
    restamped: dict[str, dict[str, IntervalSet]] = {}
    models: list[ModelPlan] = []
    compared: set[str] = set()
    later: set[str] = set()
    for name in graph.order():
        node = graph[name]
        if name not in known or (projects is not None and node.project not in projects):
            continue
        if only is not None and name not in only:
            continue
        if any(gate.parent in compared or gate.parent in later for gate in graph.gates(name)):
            later.add(name)
            continue
        # What a run produces counts for its own project's models only.
        made = produced.setdefault(node.project, {})
        again = restamped.setdefault(node.project, {})
        state = states[version_ids[name]]
        follows = _follows(graph, node, state.covered, again)
        planned = _model(
            graph, node, state, known, made, now, patience(node), present or now,
            rested(node, follows) if follows else follows,
        )  # fmt: skip
        redone = (planned.redo | planned.lookback) & known[name].clean
        if redone:
            deferred = stand_back(
                graph, node, redone, version_ids, states, known,
                now=now, present=present or now, patience=patience,
            )  # fmt: skip
            planned = planned.without(deferred)
        if not planned.rebuild:  # which is done whole or not at all
            budget = (budgets or {}).get(node.project)
            planned = planned.without(_beyond(node, planned.redo & known[name].clean, budget))
        if name in previews:
            planned = planned.previewed()
        models.append(planned)
        if planned.ready:
            # A refresh makes a whole table good again.
            made[name] = planned.ready | known[name].covered if node.kind.as_of else planned.ready
            again[name] = _restamped(node, planned, state)
            if name in cut_off and again[name]:
                compared.add(name)
    return Plan(environment, now, tuple(models), known, frozenset(later))


def _beyond(node: ModelNode, redone: IntervalSet, budget: int | None) -> tuple[Blocked, ...]:
    """What of clean time is left for later runs, the oldest first: fresh work must not wait for a whole year."""
    if budget is None or node.unit.count(redone) <= budget:
        return ()
    units = (unit for piece in redone for unit in node.unit.split(piece))
    rest = redone - IntervalSet(islice(units, budget))
    facts = {"cause": f"a run computes {budget} such intervals of a model again at most (`stale_budget`)"}
    return tuple(
        Blocked(node.name, node.project, piece, node.name, node.project, piece, "stale", facts)
        for piece in rest
    )


def _follows(
    graph: MeshGraph, node: ModelNode, covered: IntervalSet, restamped: Mapping[str, IntervalSet]
) -> IntervalSet:
    """What of a model becomes stale by what this run computes again before it."""
    found = IntervalSet()
    for gate in graph.gates(node.name):
        if again := restamped.get(gate.parent):
            found |= readers_of(node, graph[gate.parent], gate.window, again, covered)
    return found


def _restamped(node: ModelNode, planned: ModelPlan, state: VersionState) -> IntervalSet:
    """What of its recorded time gets a new revision: of a table that is refreshed, by no means all that is written."""
    if not node.kind.reads_everything:
        return (planned.redo | planned.lookback) & state.covered
    starts = [m.interval.start for m in state.marks if m.kind in ("requested", "removed")]
    starts += [] if planned.stale_from is None else [planned.stale_from]
    return state.covered.clip(min(starts), MAX_INSTANT) if starts else IntervalSet()


def _model(
    graph: MeshGraph,
    node: ModelNode,
    state: VersionState,
    known: Mapping[str, ParentState],
    produced: Mapping[str, IntervalSet],
    now: datetime,
    patience: timedelta | None,
    present: datetime,
    follows: IntervalSet,
) -> ModelPlan:
    answer = due(node, state.covered, now)
    unsure = _maybe_appended(node, state.marks, answer.fresh)
    answer = attrs.evolve(answer, fresh=answer.fresh - IntervalSet(b.interval for b in unsure))
    stale = IntervalSet(s.interval for s in state.stale if not s.accepted and s.again_at is None) | follows
    redo, refused = _redo(node, state, answer.fresh, answer.upto, stale)
    lookback = (answer.lookback | _marked(state.marks, ("lookback",))) & state.covered
    lookback = node.unit.outward(lookback.clip(node.life.start, answer.upto)) - answer.fresh - redo
    lookback -= state.accepted  # what a person took as it is stays so until somebody asks for it
    taken, claimed = _claimed(node, state.claims, answer.fresh | redo | lookback)
    paused, backed_off = _backed_off(node, state.marks, (answer.fresh | redo | lookback) - taken, present)
    taken |= paused
    view = dict(known)
    if node.kind.as_of:
        # Its whole table may be in doubt; whether its history has a hole is another question.
        view[node.name] = ParentState(known[node.name].covered)
    wanted = (answer.fresh | redo | lookback) - taken
    # Redone work has waited since its own last read, not since its unit was over.
    limit = 2 * node.unit.approximate if patience is None else patience
    lately = IntervalSet(
        s.interval for s in state.stale if s.read_at is not None and present - s.read_at < limit
    )
    impatient = (
        out_of_patience(node, wanted, now, patience) - (redo & node.unit.outward(lately)) if lately else None
    )
    decision = decide(
        graph, node.name, wanted, view, produced, now=now, patience=patience, impatient=impatient
    )
    rebuild, ready, causes = (
        _rebuilt(node, state),
        decision.ready,
        (*refused, *unsure, *claimed, *backed_off, *decision.blocked),
    )
    if rebuild and redo - ready:
        # What was emptied and could not be made again would be gone: it waits for the last of what it reads.
        causes += tuple(attrs.evolve(causes[0], interval=piece) for piece in redo & ready)
        rebuild, ready = False, ready - redo
    refreshed = [piece.start for piece in (stale | IntervalSet(s.interval for s in state.stale))]
    return ModelPlan(
        name=node.name,
        project=node.project,
        fresh=answer.fresh & ready,
        redo=redo & ready,
        lookback=lookback & ready,
        blocked=causes,
        upto=answer.upto,
        next_due=next_due(node, now),
        deferred=_throttled(node, state, answer.fresh | redo | lookback),
        stale_from=min(refreshed, default=None) if node.kind.reads_everything else None,
        rebuild=rebuild,
    )


def _throttled(node: ModelNode, state: VersionState, wanted: IntervalSet) -> tuple[Blocked, ...]:
    """What is stale and was read not long ago: it is computed again once, when more has come together."""
    return tuple(
        Blocked(node.name, node.project, piece, node.name, node.project, piece, "stale", stale_facts(s))
        for s in state.stale
        if not s.accepted and s.again_at is not None
        for piece in IntervalSet([s.interval]) - wanted
    )


def _maybe_appended(node: ModelNode, marks: tuple[Mark, ...], fresh: IntervalSet) -> tuple[Blocked, ...]:
    """What of a table that only grows may hold rows though nothing is recorded: its evaluation did not end well."""
    if node.kind.redoable:
        return ()
    return tuple(
        Blocked(node.name, node.project, piece, node.name, node.project, piece, m.kind, m.detail)  # type: ignore[arg-type]
        for m in marks
        if m.kind in ("failed", "suspect")
        for piece in fresh & node.unit.outward(IntervalSet([m.batch or m.interval]))
    )


def _rebuilt(node: ModelNode, state: VersionState) -> bool:
    """Whether somebody asked for all of a table that merges, and its first batch has not been made anew yet."""
    first = state.covered.first
    return (
        merges(node)
        and node.kind.redoable
        and first is not None
        and any(
            m.kind == "requested" and m.interval.start <= first.start < m.interval.end for m in state.marks
        )
    )


def _marked(marks: tuple[Mark, ...], kinds: tuple[str, ...]) -> IntervalSet:
    return IntervalSet(m.interval for m in marks if m.kind in kinds)


def _redo(
    node: ModelNode, state: VersionState, fresh: IntervalSet, upto: datetime, stale: IntervalSet
) -> tuple[IntervalSet, tuple[Blocked, ...]]:
    """What was recorded and has to be computed again; and what of it must not be, with the reason."""
    marks = [m for m in state.marks if m.kind in _REDONE]
    if not marks and not stale:
        return IntervalSet(), ()
    if not node.kind.redoable:
        # Appending twice doubles rows: a person decides.
        return IntervalSet(), tuple(
            Blocked(
                node.name, node.project, m.interval, node.name, node.project, m.interval, "held",
                {**m.detail, "cause": f"{m.kind}, and a {node.kind.value} model cannot be evaluated twice"},
            )
            for m in marks
        )  # fmt: skip
    if not node.kind.as_of:
        inside = (_marked(state.marks, _REDONE) | stale) & state.covered
        if inside.first is not None and node.depends_on_past:
            inside = state.covered.clip(
                inside.first.start, MAX_INSTANT
            )  # each interval reads the one before it
        return node.unit.outward(inside.clip(node.life.start, upto)) - fresh, ()
    if not node.kind.reads_everything:
        # Merging again is done interval by interval: those that somebody named, and those that went wrong.
        named = _marked(state.marks, ("removed", "requested")) & state.covered
        wrong = [m.batch for m in marks if m.kind in ("failed", "suspect") and m.batch not in (None, WHOLE)]
        named |= IntervalSet(b for b in wrong if b is not None) & state.covered
        if _rebuilt(node, state):
            named = state.covered
        if named:
            return node.unit.outward(named.clip(node.life.start, upto)) - fresh, ()
    if fresh or state.covered.last is None:
        return IntervalSet(), ()  # the next refresh discharges the marks anyway
    end = state.covered.last.end
    return IntervalSet.of(max(node.unit.previous(end), state.covered.last.start), end), ()


def _backed_off(
    node: ModelNode, marks: tuple[Mark, ...], wanted: IntervalSet, present: datetime
) -> tuple[IntervalSet, tuple[Blocked, ...]]:
    """What failed not long ago, and is left alone for a while: it would burn every tick."""
    paused: list[Interval] = []
    blocked: list[Blocked] = []
    for mark in marks:
        if mark.retry_at is None or mark.retry_at <= present:
            continue
        facts = {
            **mark.detail,
            "attempts": mark.attempts,
            "since": mark.made_at,
            "run_id": mark.run_id,
            "retry_at": mark.retry_at,
        }
        for piece in wanted & IntervalSet([mark.interval]):
            paused.append(piece)
            blocked.append(
                Blocked(node.name, node.project, piece, node.name, node.project, piece, mark.kind, facts)  # type: ignore[arg-type]
            )
    return IntervalSet(paused), tuple(blocked)


def _claimed(
    node: ModelNode, claims: tuple[LiveClaim, ...], wanted: IntervalSet
) -> tuple[IntervalSet, tuple[Blocked, ...]]:
    """What another run has reserved, is writing, or may still be writing to."""
    taken: list[Interval] = []
    blocked: list[Blocked] = []
    for claim in claims:
        for piece in wanted & IntervalSet([claim.interval]):
            taken.append(piece)
            blocked.append(
                Blocked(
                    node.name, node.project, piece, node.name, node.project, piece, "begun",
                    {"run_id": claim.run_id, "project": claim.project, "claim": claim.state, "lease_until": claim.until},
                )
            )  # fmt: skip
    return IntervalSet(taken), tuple(blocked)
