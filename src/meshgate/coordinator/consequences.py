"""What follows from a plan: what is evaluated, by whom, what keeps it, what is left as it is, and what it meets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from meshgate.analysis import Boundary, Collision, Hindrance, Left, Reason, Refusal, Task, Work, reasons_of
from meshgate.coordinator.policies import policies_of
from meshgate.coordinator.restate import expected
from meshgate.due import due
from meshgate.gate import decide
from meshgate.graph import name_parts
from meshgate.interval import MAX_INSTANT, IntervalSet
from meshgate.restatement import disabled_models, follow

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from datetime import datetime

    from meshgate.analysis import Change, Order
    from meshgate.bridge.proposal import Proposal
    from meshgate.coordinator.proposed import Scene
    from meshgate.coordinator.run import Workbench
    from meshgate.gate import Blocked
    from meshgate.graph import ModelNode

_SPOKEN = ("query", "code", "seed", "kind", "statements")


def spoken(name: str) -> str:
    """A model's name for people."""
    return ".".join(name_parts(name)[-2:])


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
        self._changes = {change.model: change for change in changes}
        self._order = order
        self._graph = scene.after.graph
        self._policies = policies_of(self._graph, scene.manifests)
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
        for name in self._graph.order():
            node, time = self._graph[name], self._scene.wanted.get(name)
            mine = node.project in self._scene.projects
            # As a deploy does it: of other projects' models only those that the plan changes.
            if not time or name not in self._view or not (mine or self._scene.replaced(name)):
                continue
            ready = self._decide(name, time)
            change = self._changes.get(name)
            if change is None or change.how == "removed":
                continue
            caused = time if self._scene.replaced(name) else time - self._due_anyway(name)
            if caused:
                why = "rebuilt" if self._scene.replaced(name) else "extended"
                self._work.append(
                    self._one(node, why, "deploy", self._doer(change), caused, ready, change.because)
                )

    def _due_anyway(self, name: str) -> IntervalSet:
        """What would be evaluated without the change."""
        before = self._scene.before
        answer = due(before.graph[name], before.recorded.get(name, IntervalSet()), self._scene.now)
        return answer.fresh | answer.lookback

    def _doer(self, change: Change) -> str:
        """The last of the projects whose changes make it what it will be."""
        causes = [self._changes[m].project for m in change.because if m in self._changes]
        causes += [change.project] if change.how != "indirect" else []
        mine = [p for p in self._order.projects if p in causes]
        return mine[-1] if mine else (self._order.projects or (change.project,))[-1]

    def _decide(self, name: str, time: IntervalSet) -> IntervalSet:
        decision = decide(
            self._graph, name, time, self._view, self._produced, now=self._scene.now, patience=None
        )
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
        steps, self._stops = follow(
            self._graph, changed, recorded,
            disabled=disabled_models(self._graph, scene.manifests),
            left=lambda node: self._policies(node).leaves(node, scene.now),
        )  # fmt: skip
        for step in steps:
            node = self._graph[step.name]
            ready = self._decide(step.name, step.range)
            self._work.append(self._one(node, "stale", "run", node.project, step.range, ready, step.because))
        self._again({step.name: step.changed for step in steps})

    def _again(self, later: Mapping[str, IntervalSet]) -> None:
        """What the deploy rebuilds on what is computed again only by later runs: it is stale then, and follows."""
        made = {w.model: w.ready for w in self._work if w.by == "deploy"}
        steps, _ = follow(
            self._graph, later, made,
            disabled=disabled_models(self._graph, self._scene.manifests),
            left=lambda node: self._policies(node).leaves(node, self._scene.now),
        )  # fmt: skip
        for step in steps:
            node = self._graph[step.name]
            one = self._one(node, "stale", "run", node.project, step.range, step.range, step.because)
            self._work.append(evolve(one, again=True, hindrances=()))

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
        place = {name: number for number, name in enumerate(self._graph.order())}
        return tuple(sorted(found, key=lambda one: (place[one.model], one.reason)))

    def _left(self, name: str, reason: str, because: tuple[str, ...] = ()) -> Left:
        return Left(name, self._graph[name].project, reason, self._view[name].covered, because)

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


# Beside the work


def boundaries(
    scene: Scene, changes: Iterable[Change], work: Iterable[Work], left: Iterable[Left]
) -> tuple[Boundary, ...]:
    """The edges between projects that the change crosses."""
    by_name = {change.model: change for change in changes}
    told = {n: c.differences for n, c in by_name.items() if c.differences}
    effects: dict[str, str] = {one.model: "left" for one in left}
    for one in work:
        effects[one.model] = (
            "rebuilt" if one.by == "deploy" or effects.get(one.model) == "rebuilt" else "stale"
        )
    moved = {n for n, c in by_name.items() if c.how != "metadata" and not c.keeps_data} | set(effects)
    rows = {n for n, c in by_name.items() if c.category == "indirect_breaking"}
    rows |= {n for n, effect in effects.items() if effect == "stale"}
    forward = {one.model for one in left if one.reason == "forward_only"}
    found: list[Boundary] = []
    for child, own, parent, other in crossings(scene):
        was, now = (_reads(side, child, parent) for side in (scene.before, scene.after))
        if parent not in moved and not (child in moved and was != now):
            continue
        reads = scene.after.reads.get(child, {}) if now else scene.before.reads.get(child, {})
        reason = next(iter(reasons_of({parent: reads.get(parent, frozenset())}, told, rows)), Reason(parent))
        if scene.after.owner(parent) is None:
            effect = "broken" if now else "gone"
        elif was != now:
            effect = "new" if now else "gone"
        else:
            effect = effects.get(child, "left" if parent in forward else "none")
        found.append(Boundary(parent, other, child, own, scene.owners.get(child), effect, reason))
    return tuple(found)


def crossings(scene: Scene) -> list[tuple[str, str, str, str]]:
    """Every edge between two projects, so far or then; a model that is gone still counts as its project's."""
    found: dict[tuple[str, str, str, str], None] = {}
    for side in (scene.after, scene.before):
        for child in side.graph.order():
            own = side.owner(child)
            for edge in side.graph.parents(child) if own else ():
                other = scene.after.owner(edge.parent) or scene.before.owner(edge.parent)
                if own and other and other != own:
                    found[child, own, edge.parent, other] = None
    return list(found)


def _reads(side: Any, child: str, parent: str) -> bool:
    return side.owner(child) is not None and parent in {e.parent for e in side.graph.parents(child)}


def collisions(bench: Workbench, scene: Scene, work: Sequence[Work]) -> tuple[Collision, ...]:
    """What is in flight, or asked for, where something is replaced or computed."""
    if scene.manifest is None:
        return ()
    times = {one.model: one.range for one in work}
    found: list[Collision] = [
        Collision("run", run.run_id, run.project, None, "deploying", IntervalSet(), run.expires_at)
        for run in bench.ledger.live_runs()
        if run.environment == scene.environment and run.purpose == "deploy"
    ]
    for name, state in sorted(scene.states.items()):
        replaced = scene.before.version(name) is not None and scene.replaced(name)
        for claim in state.claims:
            # Who writes to the table that is replaced is waited for, whatever the time.
            met = IntervalSet([claim.interval]) & (
                IntervalSet.everything() if replaced else times.get(name, IntervalSet())
            )
            if met:
                found.append(
                    Collision("run", claim.run_id, claim.project, name, claim.state, met, claim.until)
                )
    found += [
        Collision("request", asked.request_id, asked.project, asked.model, "open", met)
        for asked in bench.ledger.requests(scene.environment)
        if asked.state == "open" and (met := asked.open & times.get(asked.model, IntervalSet()))
    ]
    return tuple(found)


def refusals(scene: Scene, proposals: Iterable[Proposal]) -> tuple[Refusal, ...]:
    """Why the change must not be deployed as it is."""
    found = [*scene.refusals, *_owned_twice(scene), *_removed(scene), *_missing(scene)]
    for proposal in proposals:
        ours = ", ".join(proposal.projects)
        for one in proposal.dropped:
            whose = f" of project {one.project}" if one.project else ""
            what = {
                "model": f"model {spoken(one.name)}{whose}",
                "statements": f"the statements before and after runs{whose}",
                "requirement": f"the requirement {one.name}, and other projects' models may need it",
            }[one.what]
            found.append(
                Refusal(
                    f"foreign_{one.what}", one.name if one.what == "model" else None, one.project,
                    f"the plan of {ours} drops {what}", "give the checkouts of all projects of this state to one plan",
                )
            )  # fmt: skip
    return tuple(found)


def _owned_twice(scene: Scene) -> Iterable[Refusal]:
    for name in scene.after.graph.order():
        was, now = scene.before.owner(name), scene.after.owner(name)
        if was and now and was != now:
            yield Refusal(
                "owned_twice", name, now,
                f"{spoken(name)} is owned twice: by {was!r} in environment {scene.environment!r} and by the files of {now!r}",
                f"rename it in one of the two, or remove it from {was!r} and deploy that first",
            )  # fmt: skip


def _removed(scene: Scene) -> Iterable[Refusal]:
    """Models and columns that are gone and still read."""
    before, after = scene.before, scene.after
    for child in after.graph.order():
        own = after.owner(child)
        for edge in after.graph.parents(child) if own else ():
            parent, was = edge.parent, before.owner(edge.parent)
            if not was or own is None:
                continue
            first = f"change {spoken(child)} and deploy {own} first"
            if after.owner(parent) is None:
                said = f"{spoken(parent)} of {was} is removed, and {spoken(child)} of {own} reads it"
                yield Refusal("removed_model", parent, was, said, first)
                continue
            for column in _gone(scene, parent) & _read_of(after, child, parent):
                said = (
                    f"column {column} of {spoken(parent)} is removed, and {spoken(child)} of {own} reads it"
                )
                yield Refusal("removed_column", parent, was, said, first)


def _missing(scene: Scene) -> Iterable[Refusal]:
    """Columns that are newly read, and that what is read does not have."""
    after = scene.after
    for name in sorted(a.model for a in scene.altered if a.how in ("added", "direct")):
        for parent, read in sorted(after.reads.get(name, {}).items()):
            whose, has = after.owner(parent), set(after.columns.get(parent, ()))
            if not whose or not has or parent == name:
                continue
            known = set(_read_of(scene.before, name, parent)) | has | {"*"}
            for column in sorted(set(read) - known):
                yield Refusal(
                    "missing_column", parent, whose,
                    f"{spoken(name)} of {after.owner(name)} reads column {column} of {spoken(parent)}, which has none of that name",
                    f"add it to {spoken(parent)}, or give the checkout of {whose} that does",
                )  # fmt: skip


def strangers(scene: Scene) -> tuple[str, ...]:
    """Tables that are newly read and that nobody makes: sources, or models of a checkout that is missing."""
    found: dict[str, str] = {}
    for name in scene.after.graph.order():
        own, was = scene.after.owner(name), scene.before.graph
        known = {e.parent for e in was.parents(name)} if name in was else set()
        for edge in scene.after.graph.parents(name) if own else ():
            parent = edge.parent
            if (
                scene.after.owner(parent) is None
                and parent not in known
                and scene.before.owner(parent) is None
            ):
                found[parent] = (
                    f"{spoken(name)} of {own} reads {spoken(parent)}, which no model of the mesh makes"
                )
    return tuple(f"{said}: is it a source, or is a checkout missing?" for _, said in sorted(found.items()))


def _gone(scene: Scene, name: str) -> Collection[str]:
    was, now = (set(side.columns.get(name, ())) for side in (scene.before, scene.after))
    return frozenset(was - now) if now else frozenset()


def _read_of(side: Any, child: str, parent: str) -> Any:
    found: Mapping[str, frozenset[str]] = side.reads.get(child, {})
    return frozenset(found.get(parent, ()))
