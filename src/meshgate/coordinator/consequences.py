"""What follows from a plan: what is evaluated, by whom, what keeps it, what is left as it is, and what it meets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from meshgate.analysis import (
    BREAKING,
    Hindrance,
    Left,
    Task,
    Work,
)
from meshgate.coordinator.policies import policies_of
from meshgate.coordinator.restate import expected
from meshgate.due import due
from meshgate.gate import decide
from meshgate.interval import MAX_INSTANT, IntervalSet
from meshgate.restatement import disabled_models, follow

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from meshgate.analysis import Change, Order
    from meshgate.coordinator.proposed import Scene
    from meshgate.coordinator.run import Workbench
    from meshgate.gate import Blocked, ParentState
    from meshgate.graph import ModelNode

_ITSELF = ("forward_only", "star", "seed")  # left because of what it is, not of what it reads
_SPOKEN = ("query", "code", "seed", "kind", "statements")


class Consequences:
    """What is evaluated because of a change, and what is left.

    Args:
        bench: The ledger, at one instant.
        scene: The mesh so far, and as it would be.
        changes: What changes.
        order: In which order it is deployed.
    """

    def __init__(self, bench: Workbench, scene: Scene, changes: Sequence[Change], order: Order) -> None:
        self._scene = scene
        self._disabled = disabled_models(scene.after.graph, scene.manifests)
        # What one project removes and another adds is there.
        self._changes = {c.model: c for c in sorted(changes, key=lambda c: c.how != "removed")}
        self._order = order
        self._graph = scene.after.graph
        self._policies = policies_of(self._graph, scene.manifests).stale
        ids = scene.manifest.version_ids if scene.manifest else {}
        paces = bench.ledger.paces(ids.values())
        self._paces = {name: paces[key] for name, key in ids.items() if key in paces}
        self._view = {
            name: scene.standing(name)
            for name in self._graph.order()
            if self._graph[name].kind.recorded and name in scene.after.recorded
        }
        self._produced: dict[str, IntervalSet] = {}
        self._blocked: dict[str, tuple[Blocked, ...]] = {}
        self._work: list[Work] = []
        self._stops: tuple[Any, ...] = ()
        self._deployed()
        self._followed()

    def work(self) -> tuple[Work, ...]:
        """What is evaluated, parents first, without when."""
        place = {name: number for number, name in enumerate(self._graph.order())}
        return tuple(sorted(self._work, key=lambda w: (place[w.model], w.by)))

    # What deploys evaluate

    def _deployed(self) -> None:
        """Deploy after deploy: what a later one replaces is, for an earlier one, what it was."""
        scene, projects = self._scene, self._order.projects
        doers = self._doers()
        turns = {name: projects.index(doer) for name, doer in doers.items()}
        for turn, project in enumerate(projects):
            view = dict(self._view)
            for name, later in turns.items():
                so_far = scene.standing_so_far(name) if later > turn else None
                if so_far is not None:
                    view[name] = so_far
            for name in self._graph.order():
                if doers.get(name, self._graph[name].project) == project:
                    self._deploy(name, project, view)

    def _deploy(self, name: str, doer: str, view: Mapping[str, ParentState]) -> None:
        scene, time = self._scene, self._scene.wanted.get(name)
        change = self._changes.get(name)
        # As a deploy does it: of other projects' models only those that the plan changes.
        mine = self._graph[name].project in scene.projects
        if not time or name not in self._view or not (mine or scene.replaced(name)):
            return
        ready = self._decide(name, time, view)
        if change is None:
            return
        caused = time if scene.replaced(name) else time - self._due_anyway(name)
        if caused:
            why = "rebuilt" if scene.replaced(name) else "extended"
            self._work.append(
                self._one(self._graph[name], why, "deploy", doer, caused, ready, change.because)
            )

    def _doers(self) -> dict[str, str]:
        """By model that changes: the last of the projects whose deploys make it what it will be."""
        place = {project: number for number, project in enumerate(self._order.projects)}
        causes: dict[str, set[str]] = {}
        for name in self._graph.order():
            change = self._changes.get(name)
            if change is None:
                continue
            mine = {change.project} if change.how != "indirect" else set()
            for edge in self._graph.parents(name):
                above = self._changes.get(edge.parent)
                if (
                    above is not None
                    and edge.parent != name
                    and above.category in BREAKING
                    and above.how != "added"
                ):
                    mine |= causes.get(edge.parent, set())
            told = {self._changes[m].project for m in change.because if m in self._changes}
            able = self._scene.together.get(change.project, frozenset())
            causes[name] = {p for p in mine or told if p in place and p in able} or {
                p for p in self._order.projects if p in able
            }
        return {name: max(projects, key=lambda p: place[p]) for name, projects in causes.items() if projects}

    def _due_anyway(self, name: str) -> IntervalSet:
        """What would be evaluated without the change."""
        before = self._scene.before
        answer = due(before.graph[name], before.recorded.get(name, IntervalSet()), self._scene.now)
        return answer.fresh | answer.lookback

    def _decide(self, name: str, time: IntervalSet, view: Mapping[str, ParentState]) -> IntervalSet:
        decision = decide(self._graph, name, time, view, self._produced, now=self._scene.now, patience=None)
        node = self._graph[name]
        made = decision.ready | self._view[name].covered if node.kind.as_of else decision.ready
        if decision.ready:
            self._produced[name] = made
        self._blocked[name] = decision.blocked
        return decision.ready

    def _one(
        self,
        node: ModelNode,
        why: Any,
        by: Any,
        doer: str,
        time: IntervalSet,
        ready: IntervalSet,
        because: tuple[str, ...],
    ) -> Work:
        return Work(
            node.name, node.project, why, by, doer, time, time & ready,
            _hindrances(self._blocked.get(node.name, ()), time), expected=expected(node, time, self._paces.get(node.name)),
            rows=self._rows(node, time), because=because,
        )  # fmt: skip

    def _rows(self, node: ModelNode, time: IntervalSet) -> int | None:
        state = self._scene.states.get(node.name)
        if state is None or state.rows is None or not state.covered:
            return None
        share = 1.0 if node.kind.as_of else time.duration / state.covered.duration
        return round(state.rows * share)

    # What follows by staleness

    def _followed(self) -> None:
        scene, changed = self._scene, {}
        for name in self._graph.order():
            if name in self._view and scene.replaced(name) and scene.before.version(name) is not None:
                # As a promotion judges it: a new version's data are new, unless nothing is broken and the old one's held.
                kept = self._kept(name)
                changed[name] = IntervalSet([self._graph[name].life]) - kept
        recorded = {n: s.covered for n, s in self._view.items()}
        steps, self._stops = self._follow(changed, recorded)
        for step in steps:
            node = self._graph[step.name]
            ready = self._decide(step.name, step.range, self._view)
            self._work.append(self._one(node, "stale", "run", node.project, step.range, ready, step.because))
        self._again({step.name: step.changed for step in steps}, changed)

    def _again(self, later: dict[str, IntervalSet], changed: Mapping[str, IntervalSet]) -> None:
        """What a deploy rebuilds on what changes only after it, by later deploys or runs: it is stale then, and follows."""
        made = {w.model: w for w in self._work if w.by == "deploy" and w.why == "rebuilt"}
        place = {project: number for number, project in enumerate(self._order.projects)}
        for name in [n for n in self._graph.order() if n in made]:
            mine = made[name]
            given = {
                gate.parent: later.get(gate.parent) or changed[gate.parent]
                for gate in self._graph.gates(name)
                if gate.parent in later
                or (
                    gate.parent in made
                    and gate.parent in changed
                    and place[made[gate.parent].doer] > place[mine.doer]
                )
            }
            steps = self._follow(given, {name: mine.ready})[0] if given else ()
            for step in steps:
                one = self._one(
                    self._graph[name], "stale", "run", mine.project, step.range, step.range, step.because
                )
                self._work.append(evolve(one, again=True, hindrances=()))
                later[name] = step.changed

    def _follow(self, changed: Mapping[str, IntervalSet], recorded: Mapping[str, IntervalSet]) -> Any:
        return follow(
            self._graph, changed, recorded,
            disabled=self._disabled,
            left=lambda node: self._policies(node).leaves(node, self._scene.now),
        )  # fmt: skip

    def _kept(self, name: str) -> IntervalSet:
        change = self._changes.get(name)
        was = self._scene.states.get(name)
        if (
            change is None
            or was is None
            or change.category not in ("non_breaking", "indirect_non_breaking", "metadata")
        ):
            return IntervalSet()
        wrong = [s.interval for s in was.stale] + [m.interval for m in was.marks]
        there = self._view[name].covered | self._produced.get(name, IntervalSet())
        return (was.covered & there) - IntervalSet(wrong) - was.accepted

    # What is left

    def left(self) -> tuple[Left, ...]:
        """What nobody computes again by itself, in order of models."""
        found = [
            Left(stop.name, stop.project, stop.reason, stop.reached, stop.because) for stop in self._stops
        ]
        told = {one.model for one in found} | {one.model for one in self._work}
        for change in self._changes.values():
            name = change.model
            if change.forward_only and change.how == "direct" and _data_differ(change):
                found.append(self._left(name, "forward_only"))
        for name in self._graph.order():
            node = self._graph[name]
            if name in told or name not in self._view or self._scene.replaced(name):
                continue
            if star := self._stars(name):
                found.append(self._left(name, "star", star))
            seeds = tuple(
                gate.parent
                for gate in self._graph.gates(name)
                if gate.window.mode == "loaded" and self._scene.replaced(gate.parent)
            )
            if seeds and node.kind.recorded:
                found.append(self._left(name, "seed", seeds))
        found += self._beyond([one for one in found if one.reason in _ITSELF])
        place = {name: number for number, name in enumerate(self._graph.order())}
        return tuple(sorted(found, key=lambda one: (place[one.model], one.reason)))

    def _beyond(self, left: Sequence[Left]) -> list[Left]:
        """Where what follows ends once somebody asks for what is left: who merges rows of it does not follow by itself."""
        told = (
            {one.model for one in left} | {stop.name for stop in self._stops} | {w.model for w in self._work}
        )
        recorded = {n: s.covered for n, s in self._view.items()}
        stops = self._follow({one.model: one.range for one in left}, recorded)[1] if left else ()
        return [
            Left(stop.name, stop.project, stop.reason, stop.reached, stop.because)
            for stop in stops
            if stop.name not in told and stop.reached
        ]

    def _left(self, name: str, reason: str, because: tuple[str, ...] = ()) -> Left:
        node = self._graph[name]
        final = name in self._disabled or not node.kind.redoable
        return Left(name, node.project, reason, self._view[name].covered, because, final)

    def _stars(self, name: str) -> tuple[str, ...]:
        """Parents of which it would select other columns than its table has."""
        change = self._changes.get(name)
        if change is not None and change.how != "indirect":
            return ()
        was, now = (side.reads.get(name, {}) for side in (self._scene.before, self._scene.after))
        return tuple(p for p in sorted(now) if p in was and now[p] != was[p])

    # When

    def tasks(self) -> tuple[Task, ...]:
        """What `earliest` takes."""
        reads = {w.model: tuple(g.parent for g in self._graph.gates(w.model)) for w in self._work}
        return tuple(
            Task(
                w.model,
                w.project,
                w.by == "deploy",
                bool(w.ready),
                w.hindrances,
                reads[w.model],
                self._rests(w),
            )
            for w in self.work()
        )

    def _rests(self, work: Work) -> datetime | None:
        state = self._scene.states.get(work.model)
        if work.by == "deploy" or state is None:
            return None
        node = self._graph[work.model]
        return self._policies(node).again_at(node, state.last_read, self._scene.now)

    @staticmethod
    def timed(work: Work, when: Any) -> Work:
        """The work with when it can be done."""
        return evolve(work, hindrances=when.hindrances, first_at=when.first_at, complete_at=when.complete_at)


def _data_differ(change: Change) -> bool:
    return any(d.is_column or d.what in _SPOKEN for d in change.differences)


def _hindrances(blocked: Iterable[Blocked], time: IntervalSet) -> tuple[Hindrance, ...]:
    """What keeps some time, each cause of each parent once."""
    found: dict[tuple[str, str], list[Blocked]] = {}
    for entry in blocked:
        if IntervalSet([entry.interval]) & time:
            found.setdefault((entry.reason, entry.parent), []).append(entry)
    return tuple(
        Hindrance(
            reason, parent, entries[0].parent_project, IntervalSet(e.interval for e in entries) & time,
            IntervalSet(e.span for e in entries), _until(entries),
        )
        for (reason, parent), entries in found.items()
    )  # fmt: skip


def _until(entries: Sequence[Blocked]) -> datetime | None:
    """When the cause itself may be gone, by what the ledger knows; None: it depends on runs, or on people."""
    told = [e.detail["retry_at"] for e in entries if e.detail.get("retry_at")]
    told += [e.span.end for e in entries if e.reason == "not_due" and e.span.end != MAX_INSTANT]
    return max(told, default=None)
