"""The gate: which of a model's wanted time is ready, and what exactly keeps the rest.

An interval is ready when, for every parent, the time that it reads is cleanly covered. It is
decided by set arithmetic on ranges: what a parent lacks is mapped to the child's units that read
it, and these are blocked. So nothing depends on how coverage is cut into rows, on batch sizes or
on any cron, and a year of 5-minute units costs the same as an hour.
"""

from __future__ import annotations

# At run time too: whoever turns these records into JSON resolves their annotations.
from collections.abc import Mapping  # noqa: TC003
from datetime import datetime, timedelta  # noqa: TC003
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import field, frozen

from meshgate.graph import Kind, reach_of, readers_of
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meshgate.graph import Edge, MeshGraph, ModelNode

Grade = Literal["unclean", "unsettled"]

Reason = Literal[
    "missing",
    "failed",
    "suspect",
    "removed",
    "held",
    "begun",
    "stale",
    "marked",
    "late",
    "not_due",
]

_UNSETTLED: Final = ("stale", "marked")
# Why nothing is recorded. Where something is, they say nothing: a cron that became slower makes
# recorded time "not due", and that must not close a gate.
_EXPLAINING: Final = ("missing", "late", "not_due")
# What this very run is going to recompute heals everything else, but neither of these two.
_NOT_HEALED: Final = ("held", "begun")


@frozen
class Obstacle:
    """Why some of a model's time is not as it should be.

    Attributes:
        span: Of the model's own time, UTC, covered or not.
        reason: `missing`, `late` and `not_due` tell why nothing is recorded, and mean nothing where
            something is; `failed`, `suspect`, `removed`, `held` and `begun` (by another run) close
            the gate all the same; `stale` and `marked` do until the child's patience runs out.
        detail: The cause as data: audit, count, run_id, error, retry_at.
    """

    span: Interval
    reason: Reason
    detail: Mapping[str, Any] = field(factory=dict, hash=False)

    @property
    def grade(self) -> Grade:
        """`unclean` always closes the gate, `unsettled` for at most the child's patience."""
        return "unsettled" if self.reason in _UNSETTLED else "unclean"

    @property
    def closes(self) -> bool:
        """Whether it closes the gate for time that is recorded, and does not only explain a hole."""
        return self.reason not in _EXPLAINING


@frozen
class ParentState:
    """What is known of one model version.

    Attributes:
        covered: What is recorded or accepted, UTC.
        obstacles: What is wrong with its time, covered or not.
    """

    covered: IntervalSet = field(factory=IntervalSet.empty)
    obstacles: tuple[Obstacle, ...] = field(default=(), converter=tuple)

    @property
    def unheld(self) -> ParentState:
        """The same without holds: they keep readers back, not the model's own evaluation."""
        kept = [o for o in self.obstacles if o.reason != "held"]
        return ParentState(self.covered, kept)  # type: ignore[arg-type]  # mypy cannot type attrs' `tuple` converter

    @property
    def clean(self) -> IntervalSet:
        """Covered, and nothing that always closes the gate."""
        return self.covered - IntervalSet(o.span for o in self.obstacles if o.closes and o.grade == "unclean")

    @property
    def settled(self) -> IntervalSet:
        """Clean, and neither stale nor marked."""
        return self.covered - IntervalSet(o.span for o in self.obstacles if o.closes)


@frozen
class Blocked:
    """One cause that keeps one stretch of a model from being evaluated.

    Attributes:
        model: Who waits.
        project: Whose project waits.
        interval: The model's time that waits, UTC.
        parent: What it waits for; the model itself, where it waits for its own earlier intervals.
        parent_project: The project of that parent.
        span: The parent's time that is not ready, UTC, as far as this interval reads it.
        reason: As in `Obstacle`.
        detail: The cause as data.
    """

    model: str
    project: str
    interval: Interval
    parent: str
    parent_project: str
    span: Interval
    reason: Reason
    detail: Mapping[str, Any] = field(factory=dict, hash=False)


@frozen
class Decision:
    """What the gate says about one model.

    Attributes:
        model: Its name.
        ready: The part of what was wanted that may begin, UTC.
        blocked: Every cause that keeps the rest.
    """

    model: str
    ready: IntervalSet
    blocked: tuple[Blocked, ...] = ()

    @property
    def blocked_set(self) -> IntervalSet:
        """The part of what was wanted that may not begin, UTC."""
        return IntervalSet(entry.interval for entry in self.blocked)


@frozen
class _Lack:
    """What a parent lacks, by cause, when this run's own production is counted in."""

    unclean: tuple[Obstacle, ...]
    unsettled: tuple[Obstacle, ...]

    @classmethod
    def of(cls, life: Interval, state: ParentState, produced: IntervalSet) -> _Lack:
        there = IntervalSet((life,)) & (state.covered | produced)
        unclean: list[Obstacle] = []
        for o in (o for o in state.obstacles if o.grade == "unclean"):
            healed = produced if o.closes else there
            unclean += _cut(o, life, IntervalSet.empty() if o.reason in _NOT_HEALED else healed)
        unexplained = IntervalSet((life,)) - there - IntervalSet(o.span for o in unclean)
        unclean += (Obstacle(span, "missing") for span in unexplained)
        # Where something worse is known, that is the cause.
        hidden = produced | IntervalSet(o.span for o in unclean)
        unsettled = [
            piece for o in state.obstacles if o.grade == "unsettled" for piece in _cut(o, life, hidden)
        ]
        return cls(tuple(unclean), tuple(unsettled))


def _is_open(reach: IntervalSet, state: ParentState, produced: IntervalSet) -> bool:
    """Whether all that may be read is there and nothing is wrong with it: the usual case, for little."""
    return reach <= (state.covered | produced) and not any(
        o.closes and piece.overlaps(o.span) for piece in reach for o in state.obstacles
    )


def _cut(obstacle: Obstacle, life: Interval, healed: IntervalSet) -> Iterator[Obstacle]:
    for span in IntervalSet((obstacle.span,)).clip(life.start, life.end) - healed:
        yield Obstacle(span, obstacle.reason, obstacle.detail)


def decide(
    graph: MeshGraph,
    name: str,
    wanted: IntervalSet,
    state: Mapping[str, ParentState],
    produced: Mapping[str, IntervalSet],
    *,
    now: datetime,
    patience: timedelta | None,
    impatient: IntervalSet | None = None,
) -> Decision:
    """Decide which of a model's wanted time is ready.

    Args:
        graph: The mesh.
        name: The model.
        wanted: Its time that somebody wants evaluated, UTC.
        state: What is known of its parents, and of itself if it is sequential; a model that is not
            there has nothing covered.
        produced: What this same run has accepted to evaluate before, by model, UTC. It counts as
            covered, and as the end of what was wrong there, unless held or begun by another run.
        now: The instant that counts, UTC.
        patience: How long after its end a unit waits for stale and marked parents; None for two
            units of the child.
        impatient: The part of `wanted` whose patience is over, where the caller knows better than
            the ends of the units: redone work counts from its own last read.

    Returns:
        The ready part and, for each stretch of the rest, every cause. Both together are `wanted`.

    Raises:
        UnknownModelError: The model is not in the graph.
    """
    child, hull = graph[name], wanted.hull
    if hull is None:
        return Decision(name, wanted)
    if impatient is None:
        impatient = out_of_patience(child, wanted, now, patience)
    patient = wanted - impatient
    entries: list[Blocked] = []
    for gate in graph.gates(name):
        known = state.get(gate.parent, ParentState())
        if child.kind is Kind.AUDIT:
            # It judges what is held, and may be why it is.
            known = known.unheld
        made = produced.get(gate.parent, IntervalSet.empty())
        if gate.window.mode == "loaded":
            entries += _unloaded(graph, gate, known, made, wanted)
            continue
        parent = graph[gate.parent]
        if _is_open(reach_of(child, parent, gate.window, hull), known, made):
            continue
        lack = _Lack.of(parent.life, known, made)
        entries += _closed(graph, gate, lack.unclean, wanted)
        entries += _closed(graph, gate, lack.unsettled, patient)
    closed = IntervalSet(entry.interval for entry in entries)
    if child.kind.as_of or graph.sequential(name):
        own = state.get(name) if graph.sequential(name) else None
        queue = _queued(child, wanted, closed, own, produced.get(name, IntervalSet.empty()))
        entries += queue
        closed |= IntervalSet(entry.interval for entry in queue)
    entries.sort(key=lambda entry: (entry.interval, entry.parent, entry.span, entry.reason))
    return Decision(name, wanted - closed, tuple(entries))


def out_of_patience(
    child: ModelNode, wanted: IntervalSet, now: datetime, patience: timedelta | None
) -> IntervalSet:
    """The wanted units that ended so long ago that clean parents must do.

    Args:
        child: Who waits.
        wanted: Its time, UTC.
        now: The instant that counts, UTC.
        patience: How long after its end a unit waits; None for two units.
    """
    if patience is None:
        cut = child.unit.shift(now, -2)
        return wanted.clip(MIN_INSTANT, cut)
    try:
        latest_end = now - patience
    except OverflowError:
        return IntervalSet.empty()
    cut = child.unit.floor(latest_end)
    # A part of a unit ends where it ends; a unit that goes on is not over.
    parts = [piece for piece in wanted.clip(cut, child.unit.next(cut)) if piece.end <= latest_end]
    return wanted.clip(MIN_INSTANT, cut) | IntervalSet(parts)


def _closed(
    graph: MeshGraph, gate: Edge, lacking: Iterable[Obstacle], wanted: IntervalSet
) -> Iterator[Blocked]:
    """One entry for each cause and each stretch of the child that reads it."""
    child, parent = graph[gate.child], graph[gate.parent]
    hull = wanted.hull
    if hull is None:
        return
    reach = reach_of(child, parent, gate.window, hull)
    for obstacle in lacking:
        for span in reach & IntervalSet((obstacle.span,)):
            for interval in readers_of(child, parent, gate.window, IntervalSet((span,)), wanted):
                yield _blocked(child, parent, interval, Obstacle(span, obstacle.reason, obstacle.detail))


def _unloaded(
    graph: MeshGraph, gate: Edge, known: ParentState, made: IntervalSet, wanted: IntervalSet
) -> Iterator[Blocked]:
    """The whole of `wanted`, if the parent was never loaded or something is wrong with any of it."""
    child, parent = graph[gate.child], graph[gate.parent]
    causes = [o for o in known.obstacles if o.grade == "unclean" and (o.reason in _NOT_HEALED or not made)]
    causes = [o for o in causes if o.closes or not (known.covered or made)]
    if not causes and not known.covered and not made:
        causes = [Obstacle(parent.life, "missing")]
    for cause in causes:
        for interval in wanted:
            yield _blocked(child, parent, interval, cause)


def _queued(
    child: ModelNode,
    wanted: IntervalSet,
    closed: IntervalSet,
    own: ParentState | None,
    produced: IntervalSet,
) -> list[Blocked]:
    """What must wait because an earlier interval of the model itself is not there."""
    if wanted.hull is None:
        return []
    first = closed
    if own is not None:
        begin = child.life.start
        if child.start is None:
            begin = min(i.start for i in (own.covered.first, wanted.first) if i is not None)
        history = IntervalSet.of(begin, wanted.hull.end)
        first |= history - own.unheld.clean - wanted - produced
    if first.first is None:
        return []
    hole = first.first
    waiting = wanted.clip(hole.start, MAX_INSTANT) - closed
    detail = {"waits_for": "its own earlier interval"}
    return [_blocked(child, child, interval, Obstacle(hole, "missing", detail)) for interval in waiting]


def _blocked(child: ModelNode, parent: ModelNode, interval: Interval, cause: Obstacle) -> Blocked:
    return Blocked(
        model=child.name,
        project=child.project,
        interval=interval,
        parent=parent.name,
        parent_project=parent.project,
        span=cause.span,
        reason=cause.reason,
        detail=cause.detail,
    )
