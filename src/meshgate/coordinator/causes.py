"""What keeps a model's time back, down to the roots: the tree behind `status` and `why`.

A cause is a stretch of one model's time that is not as it should be, and what keeps that back in turn. The leaves
are the roots: what somebody has to do, or to wait for. Everything is computed from one look at the ledger, with the
gate's own decisions, so what is explained is what a run would decide; it decides nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, field, frozen

from meshgate.coordinator.run import plan_of
from meshgate.coordinator.staleness import states_of
from meshgate.due import cron_floor, cron_next
from meshgate.gate import ParentState, decide
from meshgate.graph import Kind, name_parts, readers_of, window_of
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

    from meshgate.coordinator.plan import ModelPlan
    from meshgate.coordinator.run import Workbench
    from meshgate.gate import Decision
    from meshgate.graph import ModelNode
    from meshgate.ledger import VersionState

# Where several things are wrong with one stretch, the first of these is what to tell. What a person holds is told beside
# it: releasing it mends nothing else.
_TELLING: Final = ("failed", "removed", "suspect", "stale", "marked")
_UNRECORDED: Final = ("late", "missing", "not_due")
NEVER_DUE: Final = "it lies before what is recorded, and the model has no start"
NEVER_LOADED: Final = "it was never loaded"
OUTSIDE: Final = "it lies outside the model's history"
# A window on thousands of scattered pieces is asked for once, on their hull.
_EXACT_PIECES: Final = 64
# Of models one behind the other; Python's own limit is not far above.
_DEEPEST: Final = 100


@frozen(eq=False)
class Cause:
    """A stretch of one model's time that is not as it should be, and what keeps that back.

    Attributes:
        model: Whose time.
        project: Its project.
        time: Which time, UTC; all of it has the same cause.
        reason: As in `gate.Obstacle`.
        detail: The facts: audits with counts, error, attempts, run_id, since, due_at; retry_at while it is left alone.
        ready: Whether a run of its project that started now would evaluate it, by the ledger alone.
        because: What keeps it back; empty for a root.
        remedy: For a root: what would end it.
        above: Already explained elsewhere in the same answer, so `because` is left out here.
    """

    model: str
    project: str
    time: IntervalSet
    reason: str
    detail: Mapping[str, Any] = field(factory=dict)
    ready: bool = False
    because: tuple[Cause, ...] = ()
    remedy: str | None = None
    above: bool = False

    @property
    def roots(self) -> tuple[Cause, ...]:
        """What it all comes from, each problem once; itself, if nothing is behind it."""
        return merged(self._leaves({}))

    def _leaves(self, known: dict[int, tuple[Cause, ...]]) -> tuple[Cause, ...]:
        if not self.because:
            return () if self.above else (self,)
        if id(self) not in known:
            found = (leaf for cause in self.because for leaf in cause._leaves(known))  # noqa: SLF001
            known[id(self)] = tuple({id(leaf): leaf for leaf in found}.values())
        return known[id(self)]

    @property
    def in_order(self) -> bool:
        """Whether the next run of its project evaluates it, together with everything that it waits for."""
        return all(r.ready and r.reason in _UNRECORDED and r.project == self.project for r in self.roots)

    @property
    def signature(self) -> tuple[str, ...]:
        """Equal for causes that a person would call one problem: same model, reason, audits or error."""
        told = self.detail
        audits = ",".join(sorted(a["audit"] for a in told.get("audits", ())))
        run = str(told.get("run_id")) if self.reason == "begun" else ""
        pause = "paused" if told.get("retry_at") else ""
        facts = (*map(told.get, ("error", "cause", "mark", "claim", "reason", "by")), pause)
        return (self.model, self.reason, audits, run, *(str(f or "") for f in facts))


def merged(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """Causes that are one problem, kept back by the same things, put together; in order of appearance."""
    groups: dict[tuple[object, ...], list[Cause]] = {}
    for cause in causes:
        groups.setdefault((*cause.signature, *map(id, cause.because)), []).append(cause)
    return tuple(_merge(group) for group in groups.values())


def _merge(group: list[Cause]) -> Cause:
    if len(group) == 1:
        return group[0]
    # One mark is met again in each of its parts, and counts once.
    parts = {str(sorted((k, str(v)) for k, v in c.detail.items())): c for c in group}
    time = IntervalSet(piece for cause in group for piece in cause.time)
    detail = _merge_details([c.detail for c in parts.values()])
    return evolve(group[-1], time=time, detail=detail, ready=all(c.ready for c in group))


def _merge_details(details: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The newest facts; counts of audits summed, the most attempts, the earliest due and the next try."""
    newest = max(details, key=lambda d: str(d.get("since") or ""))
    merged_detail = dict(newest)
    counts: dict[str, int] = {}
    for detail in details:
        for audit in detail.get("audits", ()):
            counts[audit["audit"]] = counts.get(audit["audit"], 0) + (audit.get("count") or 0)
    if counts:
        merged_detail["audits"] = [{"audit": name, "count": count} for name, count in counts.items()]
    if any("attempts" in d for d in details):
        merged_detail["attempts"] = max(d.get("attempts") or 1 for d in details)
    for key in ("due_at", "retry_at"):
        if any(d.get(key) for d in details):
            merged_detail[key] = min(d[key] for d in details if d.get(key))
    return merged_detail


def paused(detail: Mapping[str, Any], now: datetime) -> Mapping[str, Any]:
    """The facts of what went wrong; when it is tried again only where that is still to come."""
    if detail.get("retry_at") and detail["retry_at"] <= now:
        return {key: value for key, value in detail.items() if key != "retry_at"}
    return detail


class Scene:
    """One look at an environment: what the ledger knows at one instant, and what follows from it.

    Args:
        bench: Configuration and ledger.
        environment: SQLMesh's environment.
        now: An instant in the past to stand for the present, UTC; the ledger's clock by default.

    Attributes:
        now: The instant that counts, UTC.
        clock: What the ledger's clock says, UTC: leases end by it, whatever instant counts.
        live_runs: Every run that lives in the environment, oldest first.

    Raises:
        NotDeployedError: Nothing was deployed in the environment.
        ConfigError: The instant is in the future.
    """

    def __init__(self, bench: Workbench, environment: str, now: datetime | None) -> None:
        self.bench = bench
        self.environment = environment
        self.now = bench.instant(now)
        self.manifest = bench.ledger.manifest(environment)
        self.graph = self.manifest.graph
        policies = bench.policies(self.manifest)
        self._patience = policies.patience
        self._states = states_of(bench.ledger, self.manifest, self.now, policies.stale)
        self.plan = plan_of(bench, self.manifest, None, self.now, policies=policies, states=self._states)
        self._planned = {planned.name: planned for planned in self.plan.models}
        self.clock = bench.ledger.clock()
        self.live_runs = [run for run in bench.ledger.live_runs() if run.environment == environment]
        self._depth = 0
        self._told: dict[tuple[str, IntervalSet], tuple[Cause, ...]] = {}

    def state(self, name: str) -> VersionState:
        """What the ledger knows of the version that is promoted."""
        return self._states[self.manifest.version_ids[name]]

    def standing(self, name: str) -> ParentState:
        """What is recorded of a model and what is wrong with its time."""
        return self.plan.standings[name]

    def planned(self, name: str) -> ModelPlan:
        """What a run of its own project would do with a model."""
        return self._planned[name]

    def wanted(self, name: str) -> IntervalSet:
        """All that a run of its project would evaluate, if nothing kept it back."""
        planned = self.planned(name)
        blocked = (b.interval for b in planned.blocked if not (b.reason == "held" and b.parent == name))
        return planned.ready | IntervalSet(blocked)

    def unclean(self, name: str) -> IntervalSet:
        """What should be recorded and settled by now, and is not."""
        node, state = self.graph[name], self.standing(name)
        if node.kind.as_of or node.kind is Kind.SEED:
            return self.wanted(name) | (
                state.covered & IntervalSet(h.interval for h in self.state(name).holds)
            )
        begin = node.life.start
        if node.start is None:
            begins = [piece.start for piece in (state.covered.first, self.wanted(name).first) if piece]
            begin = min(begins, default=MAX_INSTANT)
        return node.unit.outward(IntervalSet.of(begin, self.planned(name).upto) - state.settled)

    def decide(self, name: str, time: IntervalSet) -> Decision:
        """What the gate says by the ledger alone: nothing that a run is going to produce counts."""
        node = self.graph[name]
        view = self.plan.standings
        if node.kind.as_of and name in view:
            # As a run decides: its whole table may be in doubt, but its history has no hole.
            view = {**view, name: ParentState(view[name].covered)}
        return decide(self.graph, name, time, view, {}, now=self.now, patience=self._patience(node))

    def due_at(self, node: ModelNode, end: datetime) -> datetime:
        """When a unit that ends at an instant becomes due: at the first tick of the cron from then on."""
        if end >= MAX_INSTANT:
            return end
        floor = cron_floor(node.cron, node.cron_tz, end)
        return end if floor == end else cron_next(node.cron, node.cron_tz, end)

    # The tree

    def causes(self, name: str, time: IntervalSet) -> tuple[Cause, ...]:
        """Why a stretch of a model's time is not cleanly recorded; nothing where it is.

        Args:
            name: The model.
            time: UTC, whole units of the model.
        """
        key = (name, time)
        if key not in self._told:
            if self._depth == _DEEPEST:
                return ()
            self._told[key] = ()  # a model that waits for its own earlier time does not go round in circles
            self._depth += 1
            found = sorted(self._causes(self.graph[name], time), key=_by_time)
            self._depth -= 1
            self._told[key] = merged(found)
        return self._told[key]

    def _causes(self, node: ModelNode, time: IntervalSet) -> Iterator[Cause]:
        if not node.kind.recorded:
            return
        state = self.standing(node.name)
        if outside := time - IntervalSet((node.life,)):
            detail = {"cause": OUTSIDE, "start": node.start, "end": node.end}
            yield self._root(node, outside, "not_due", detail)
        rest = time & IntervalSet((node.life,))
        for obstacle in state.obstacles:
            if obstacle.reason == "held" and (kept := rest & IntervalSet((obstacle.span,))):
                yield self._root(node, kept, "held", obstacle.detail)
        rest -= state.unheld.settled
        upto = self.planned(node.name).upto
        if node.kind is not Kind.SEED and (future := rest.clip(upto, MAX_INSTANT) - state.covered):
            first = next(iter(node.unit.split(next(iter(future)))))
            yield self._root(node, future, "not_due", {"due_at": self.due_at(node, first.end)})
            rest -= future
        for claim in self.state(node.name).claims:
            if taken := rest & IntervalSet((claim.interval,)):
                yield self._root(node, taken, "begun", {
                    "claim": claim.state, "run_id": claim.run_id, "project": claim.project,
                    "host": claim.holder.get("host"), "pid": claim.holder.get("pid"), "lease_until": claim.until,
                        "expired": claim.until <= self.clock,
                })  # fmt: skip
                rest -= taken
        for obstacle in sorted(state.obstacles, key=_telling):
            if obstacle.reason in _TELLING and (spoilt := rest & IntervalSet((obstacle.span,))):
                yield self._spoilt(node, spoilt, obstacle.reason, paused(obstacle.detail, self.now))
                rest -= spoilt
        frontier = state.covered.last.end if state.covered.last else MIN_INSTANT
        yield from self._unrecorded(node, "missing", rest.clip(MIN_INSTANT, frontier))
        yield from self._unrecorded(node, "late", rest.clip(frontier, MAX_INSTANT))

    def _spoilt(self, node: ModelNode, time: IntervalSet, reason: str, detail: Mapping[str, Any]) -> Cause:
        """What was evaluated and has to be evaluated again: perhaps that is kept back in turn."""
        if not node.kind.redoable and reason not in ("stale", "marked"):
            was = detail.get("cause") or detail.get("message") or "its evaluation failed"
            cause = f"{reason} ({was}), and evaluating it twice would double its rows"
            return self._root(node, time, "held", {**detail, "was": reason, "cause": cause})
        again = self.wanted(node.name)
        if not node.kind.as_of:
            again &= node.unit.outward(time)
        blocks = tuple(cause for _, cause in self._blocks(node, again)) if again else ()
        # What its own run brings up to date before is no reason why it is as it is.
        because = tuple(c for c in blocks if not (c.project == node.project and c.in_order))
        ready = bool(again) and not because and not detail.get("retry_at")
        return self._cause(Cause(node.name, node.project, time, reason, detail, ready, because))

    def _unrecorded(self, node: ModelNode, reason: str, time: IntervalSet) -> Iterator[Cause]:
        """Time without a record, cut by what keeps it back."""
        if not time:
            return
        wanted = self.wanted(node.name)
        if node.kind is Kind.SEED:
            detail: dict[str, Any] = {"cause": NEVER_LOADED}
            yield self._cause(Cause(node.name, node.project, time, "missing", detail, ready=bool(wanted)))
            return
        due = node.unit.outward(time) & wanted
        if never := time - due:
            yield self._root(node, never, "missing", {"cause": NEVER_DUE})
        kept: dict[IntervalSet, list[Cause]] = {}
        for affected, cause in self._blocks(node, due) if due else ():
            kept.setdefault(affected, []).append(cause)
        ready = due - IntervalSet(piece for affected in kept for piece in affected)
        for part, because in ((ready, []), *kept.items()):
            if part.first is not None:
                first = next(iter(node.unit.split(part.first)))
                detail = {"due_at": self.due_at(node, first.end)}
                cause = Cause(node.name, node.project, part, reason, detail, not because, tuple(because))
                yield self._cause(cause)

    def _blocks(self, node: ModelNode, time: IntervalSet) -> Iterator[tuple[IntervalSet, Cause]]:
        """Each cause that closes the gate for a part of a model's time, with that part."""
        entries = self.decide(node.name, time).blocked
        for parent in dict.fromkeys(entry.parent for entry in entries):
            mine = [entry for entry in entries if entry.parent == parent]
            waits = IntervalSet(entry.interval for entry in mine)
            asked = IntervalSet(entry.span for entry in mine) & self._read(node, parent, waits)
            causes = self.causes(parent, asked)
            if not causes:  # what the gate itself says is the best that can be said
                told = (
                    Cause(parent, e.parent_project, IntervalSet((e.span,)), e.reason, e.detail) for e in mine
                )
                more = f"`meshgate why {self.graph[parent].display}` tells more"
                causes = tuple(evolve(cause, remedy=more) for cause in merged(told))
            for cause in causes:
                affected = self._readers(node, parent, cause.time, waits)
                yield (affected or waits), cause

    def _read(self, node: ModelNode, parent: str, time: IntervalSet) -> IntervalSet:
        """What a model's time reads of a parent; everything, where no window says."""
        gates = [g for g in self.graph.gates(node.name) if g.parent == parent]
        if not gates or any(g.window.mode == "loaded" for g in gates) or time.hull is None:
            return IntervalSet.everything()
        pieces = tuple(time) if len(time) <= _EXACT_PIECES else (time.hull,)
        windows = (window_of(node, self.graph[parent], g.window, piece) for g in gates for piece in pieces)
        return IntervalSet(piece for window in windows for piece in window)

    def _readers(self, node: ModelNode, parent: str, time: IntervalSet, within: IntervalSet) -> IntervalSet:
        """Which part of a model's time reads a stretch of a parent's."""
        found = IntervalSet()
        for gate in self.graph.gates(node.name):
            if gate.parent == parent:
                found |= readers_of(node, self.graph[parent], gate.window, time, within)
        return found

    def _root(self, node: ModelNode, time: IntervalSet, reason: str, detail: Mapping[str, Any]) -> Cause:
        return self._cause(Cause(node.name, node.project, time, reason, detail))

    def _cause(self, cause: Cause) -> Cause:
        return cause if cause.because else evolve(cause, remedy=_remedy(cause))


def _by_time(cause: Cause) -> tuple[Interval, str, str]:
    first = cause.time.first
    return (first or Interval(MIN_INSTANT, MAX_INSTANT), cause.model, cause.reason)


def _telling(obstacle: Any) -> int:
    return _TELLING.index(obstacle.reason) if obstacle.reason in _TELLING else len(_TELLING)


def _remedy(cause: Cause) -> str:
    """What would end a root: a command to type, or what to wait for."""
    run, told = f"`meshgate run {cause.project}`", cause.detail
    mend = "repair the rows that the audit rejects" if told.get("audits") else "mend what the error names"
    again = f"the next {run} evaluates it again"
    name = ".".join(name_parts(cause.model)[-2:])
    retry = f"`meshgate retry {name}`"
    if told.get("retry_at") and cause.reason == "stale":
        again = f"{run} evaluates it again then, once for all that has changed"
    elif told.get("retry_at"):
        again = f"{run} evaluates it again after the pause, or at once after {retry}"
    wait = f"wait for run {told.get('run_id')} to end"
    if told.get("expired"):
        wait = f"{run} takes over"
    elif told.get("claim") == "lost":
        wait = f"a statement of the lost run may still write until then; afterwards {run} evaluates it again"
    remedies = {
        "failed": f"{mend}; {again}" if told.get("retry_at") else f"{mend}, then {run} evaluates it again",
        "held": f"`meshgate release {name}` lets its readers have it"
        if told.get("hold_id")
        else "meshgate does not evaluate it by itself: check its rows, and repair them by hand; then `meshgate accept "
        f"{name} --reason WHY` says that they are right",
        "begun": wait,
        "not_due": "give the model an earlier start or a later end"
        if told.get("cause")
        else "wait until it is due",
        "late": f"{run} evaluates it",
        "missing": f"{run} evaluates it",
    }
    if told.get("cause") == NEVER_DUE:
        return "give the model a `start`: by itself nothing evaluates time before what is recorded"
    if told.get("cause") == NEVER_LOADED and not cause.ready:
        return f"`meshgate deploy {cause.project}` loads it"
    return remedies.get(cause.reason, again)


def pruned(causes: Iterable[Cause]) -> tuple[Cause, ...]:
    """The same trees, with the reasons of whatever was explained before left out: no larger than what there is to say."""
    told: set[int] = set()

    def prune(cause: Cause) -> Cause:
        if id(cause) in told:
            return evolve(cause, because=(), above=True)
        told.add(id(cause))
        return evolve(cause, because=tuple(prune(b) for b in cause.because)) if cause.because else cause

    return tuple(prune(cause) for cause in causes)
