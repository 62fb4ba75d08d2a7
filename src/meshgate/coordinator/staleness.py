"""What was read before its parents were computed again (G5), and what is to become of it.

A recorded range is stale where a parent's range in its window has a newer revision than it had read, or where it read
an as-of parent while rows stood there that nobody had judged. The ledger finds the pairs in one query over wide windows;
here they are cut to the windows as they are. Nothing is written down: what follows transitively follows by itself, as
each recomputation makes its own readers stale.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import attrs
from attrs import frozen

from meshgate.due import cron_floor, cron_next
from meshgate.graph import Edge, Kind, MeshGraph, Window, readers_of
from meshgate.interval import MIN_INSTANT, IntervalSet
from meshgate.ledger import Stale

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping
    from datetime import datetime

    from meshgate.graph import ModelNode
    from meshgate.ledger import Change, Ledger, Manifest, VersionState
    from meshgate.ledger.record import Gate

_ZERO = timedelta(0)
_COLD = timedelta(days=1)


@frozen
class Policy:
    """What a project does about its stale time.

    Attributes:
        reprocess: Whether it is computed again; else it is only shown.
        throttle: How long after its own last read it is left alone; None for one period of the model's cron, of a standalone
            audit for no time.
        horizon: How long after its end time is still computed again; None for ever.
    """

    reprocess: bool = True
    throttle: timedelta | None = None
    horizon: timedelta | None = None

    def redoes(self, node: ModelNode) -> bool:
        """Whether a model's stale time is computed again by itself."""
        return self.reprocess and _redone(node.kind)

    def behind(self, node: ModelNode, at: datetime) -> IntervalSet:
        """What of a model's time lay behind the horizon at an instant: the units whose ends did."""
        if self.horizon is None:
            return IntervalSet()
        return IntervalSet.of(MIN_INSTANT, node.unit.previous(node.unit.ceil(at - self.horizon)))

    def too_old(self, node: ModelNode, stale: Stale) -> IntervalSet:
        """What of stale time lay behind the horizon when its parent was computed again.

        Not when the work gets its turn: a backlog must not age into silence.
        """
        if stale.since is None:
            return IntervalSet()
        return IntervalSet([stale.interval]) & self.behind(node, stale.since)

    def leaves(self, node: ModelNode, now: datetime) -> IntervalSet:
        """What of a model's time is not computed again by itself, if its parents were computed again now."""
        return self.behind(node, now) if self.redoes(node) else IntervalSet.everything()

    def again_at(self, node: ModelNode, read_at: datetime | None, now: datetime) -> datetime | None:
        """Before when stale time is not computed again; None: at once."""
        if read_at is None or (self.throttle is None and node.kind is Kind.AUDIT):
            return None  # what it rejects may be held until it is asked again
        at = read_at + (period(node, now) if self.throttle is None else self.throttle)
        return at if at > now else None


def _redone(kind: Kind) -> bool:
    """Whether any policy has a table computed again because a parent was.

    Not those which merge: they read only the new part, and a rebuild of their whole history is nothing that happens
    because one parent's hour changed.
    """
    return kind.time_partitioned or kind.reads_everything


def period(node: ModelNode, now: datetime) -> timedelta:
    """From the last tick of a model's cron to the next one."""
    return cron_next(node.cron, node.cron_tz, now) - cron_floor(node.cron, node.cron_tz, now)


def find(
    ledger: Ledger, environment: str, graph: MeshGraph, version_ids: Mapping[str, int]
) -> dict[str, tuple[Stale, ...]]:
    """What is stale of each model of a graph; those of which nothing is are left out.

    Args:
        ledger: Holds revisions.
        environment: Where the versions are promoted: what was settled there is not looked at again.
        graph: The mesh.
        version_ids: The ledger's key of each model's version.
    """
    gates = _gates(graph, version_ids)
    if not gates:
        return {}
    found: dict[str, list[Stale]] = {}
    beyonds = [_beyond(graph, gate) for gate in gates]
    lives = [graph[gate.parent].life for gate in gates]
    for pair in ledger.newer(environment, _asked(graph, version_ids, gates), beyonds, lives):
        gate = gates[pair.gate]
        child, parent = graph[gate.child], graph[gate.parent]
        span = IntervalSet([pair.parent_interval]).clip(parent.life.start, parent.life.end)
        for piece in readers_of(child, parent, gate.window, span, pair.time):
            found.setdefault(child.name, []).append(
                Stale(
                    piece,
                    parent.name,
                    pair.parent_interval,
                    pair.since,
                    pair.read_at,
                    read_revision=pair.read_revision,
                )
            )
    return {name: tuple(pairs) for name, pairs in found.items()}


def settle(ledger: Ledger, environment: str, projects: Container[str] | None) -> list[Gate]:
    """Remember what is not stale of some projects (None: of all) now: the next look begins from here.

    Returns:
        Every gate of the environment, as `Ledger.merge` takes them.
    """
    at = ledger.revision()
    manifest = ledger.manifest(environment)
    graph, ids = manifest.graph, manifest.version_ids
    stale = find(ledger, environment, graph, ids)
    mine = [
        name
        for name, node in graph.nodes.items()
        if (projects is None or node.project in projects) and node.kind.recorded
    ]
    ledger.settle(environment, settled(stale, mine), ids, at)
    return _asked(graph, ids, _gates(graph, ids))


def tidy(ledger: Ledger, project: str, *, cold: timedelta = _COLD) -> int:
    """Merge what neighbouring commits of a project recorded, where nobody needs them one by one; how many rows that saved.

    Args:
        ledger: The ledger.
        project: Whose models; its readers may be anybody's, in any environment.
        cold: What was committed less than that long ago stays as it is.
    """
    gates: list[tuple[str, Gate]] = []
    for environment in ledger.environments():
        gates += [(environment, gate) for gate in settle(ledger, environment, None)]
    return ledger.merge(project, gates, cold)


def _gates(graph: MeshGraph, version_ids: Mapping[str, int]) -> list[Edge]:
    return [
        gate
        for name in graph.order()
        if name in version_ids
        for gate in (*graph.gates(name), *_itself(graph[name]))
        if gate.window.mode != "loaded" and gate.parent in version_ids
    ]


def _asked(graph: MeshGraph, version_ids: Mapping[str, int], gates: Iterable[Edge]) -> list[Gate]:
    return [
        (version_ids[g.child], version_ids[g.parent], *_reach(graph[g.child], graph[g.parent], g))
        for g in gates
    ]


def _itself(node: ModelNode) -> Iterator[Edge]:
    """How a model reads its own past: all of it before the interval, as far as anybody can tell."""
    if node.depends_on_past and node.kind.time_partitioned:
        yield Edge(node.name, node.name, Window("prefix", to_offset=-node.unit.approximate))


def _reach(child: ModelNode, parent: ModelNode, gate: Edge) -> tuple[timedelta | None, timedelta | None]:
    """How far before and after its own time a child reads at most; None for no bound."""
    window = gate.window
    slack = 2 * (child.unit.approximate + parent.unit.approximate)
    if window.mode == "latest":
        # After the end of the parent's life its last unit goes on to be read.
        return (None if parent.end is not None else window.to_offset - slack), window.to_offset + slack
    if window.mode == "prefix" and parent.start is not None:
        return None, window.to_offset + slack
    begin = window.from_offset if window.mode == "interval" else min(_ZERO, window.to_offset)
    return begin - slack, window.to_offset + slack


def _beyond(graph: MeshGraph, gate: Edge) -> timedelta | None:
    """From how far after a range of the parent on a child surely reads it, and nobody computes the child again because of that.

    None: it does not read all of its parent's past, or is computed again.
    """
    child, parent = graph[gate.child], graph[gate.parent]
    if _redone(child.kind) or gate.window.mode != "prefix" or parent.start is None:
        return None
    return gate.window.to_offset - 2 * (child.unit.approximate + parent.unit.approximate)


def judged(
    stale: Iterable[Stale],
    node: ModelNode,
    policy: Policy,
    present: datetime,
    refreshed_at: datetime | None,
    spared: Callable[[Stale], IntervalSet] = lambda _: IntervalSet(),
) -> tuple[Stale, ...]:
    """What a policy makes of a model's stale time.

    Args:
        stale: As it was found.
        node: The model.
        policy: Of its project.
        present: By which it is judged when it may be computed again, UTC.
        refreshed_at: When a table that is computed as a whole was read last, UTC.
        spared: What of it was within the horizon when its parent was computed again before that.
    """
    whole = node.kind.as_of
    found: list[Stale] = []
    for s in stale:
        if not policy.redoes(node):
            found.append(attrs.evolve(s, accepted=True))
            continue
        left = policy.too_old(node, s) - spared(s)
        again_at = policy.again_at(node, refreshed_at if whole else s.read_at, present)
        found += [attrs.evolve(s, interval=piece, accepted=True) for piece in left]
        rest = IntervalSet([s.interval]) - left
        found += [attrs.evolve(s, interval=piece, again_at=again_at) for piece in rest]
    return tuple(found)


def _spared(
    ledger: Ledger, manifest: Manifest, node: ModelNode, policy: Policy, stale: Iterable[Stale]
) -> Callable[[Stale], IntervalSet]:
    """What of stale time was within the horizon when a parent was computed again that was computed once more since.

    What is recorded of the parent tells only the last time. The history tells the others, as long as it goes back.
    """
    graph = manifest.graph
    old = [s for s in stale if policy.redoes(node) and policy.too_old(node, s)]
    made: dict[str, tuple[Change, ...]] = {}
    for name in {s.parent for s in old}:
        hull = IntervalSet(s.parent_interval for s in old if s.parent == name).hull
        assert hull is not None  # noqa: S101 - each has an interval
        first = min(s.read_revision for s in old if s.parent == name)
        made[name] = ledger.changes(manifest.version_ids[name], hull, first)

    def spared(s: Stale) -> IntervalSet:
        parent, found, time = graph[s.parent], IntervalSet(), IntervalSet([s.interval])
        for gate in (*graph.gates(node.name), *_itself(node)):
            for change in made.get(s.parent, ()) if gate.parent == s.parent else ():
                if change.revision > s.read_revision:
                    span = (change.time & IntervalSet([s.parent_interval])).clip(
                        parent.life.start, parent.life.end
                    )
                    found |= readers_of(node, parent, gate.window, span, time) - policy.behind(
                        node, change.at
                    )
        return found

    return spared


def states_of(
    ledger: Ledger,
    manifest: Manifest,
    present: datetime,
    policies: Callable[[ModelNode], Policy] = lambda _: Policy(),
) -> dict[int, VersionState]:
    """What the ledger knows of everything that an environment promotes, with what is stale of it.

    Args:
        ledger: The ledger.
        manifest: What the environment promotes.
        present: By which it is judged when stale time may be computed again, UTC.
        policies: What each model's project does about stale time.
    """
    states = ledger.states(manifest.version_ids.values())
    for name, found in find(ledger, manifest.environment, manifest.graph, manifest.version_ids).items():
        key, node = manifest.version_ids[name], manifest.graph[name]
        refreshed = max((s.read_at for s in found if s.read_at), default=None)
        if node.kind.as_of:
            refreshed = states[key].last_read or refreshed
        policy = policies(node)
        spared = _spared(ledger, manifest, node, policy, found)
        states[key] = attrs.evolve(states[key], stale=judged(found, node, policy, present, refreshed, spared))
    return states


def rested_by(
    ledger: Ledger, manifest: Manifest, present: datetime, policies: Callable[[ModelNode], Policy]
) -> Callable[[ModelNode, IntervalSet], IntervalSet]:
    """For `make_plan`: which part of a model's time, that a run makes stale, policy lets that run compute again."""

    def rested(node: ModelNode, time: IntervalSet) -> IntervalSet:
        policy = policies(node)
        if not policy.redoes(node):
            return IntervalSet()
        time -= policy.behind(node, present)
        throttle = period(node, present) if policy.throttle is None else policy.throttle
        lately = ledger.read_lately(manifest.version_ids[node.name], present - throttle)
        return (IntervalSet() if lately else time) if node.kind.as_of else time - lately

    return rested


def settled(stale: Mapping[str, Iterable[Stale]], names: Iterable[str]) -> dict[str, IntervalSet]:
    """What is not stale of some models: all other time, recorded or not."""
    return {
        name: IntervalSet.everything() - IntervalSet(s.interval for s in stale.get(name, ()))
        for name in names
    }


def settled_elsewhere(
    ledger: Ledger, environment: str, graph: MeshGraph
) -> dict[str, dict[str, IntervalSet]]:
    """What is not stale in the other environments that promote some of a graph's versions, by environment and model."""
    found: dict[str, dict[str, IntervalSet]] = {}
    for name in ledger.environments():
        manifest = ledger.manifest(name)
        nodes = manifest.graph.nodes
        shared = [n for n in nodes if n in graph and nodes[n].version == graph[n].version]
        if name != environment and shared:
            stale = find(ledger, name, manifest.graph, manifest.version_ids)
            found[name] = settled(stale, [n for n, node in nodes.items() if node.kind.recorded])
    return found


def after_promotion(
    ledger: Ledger, environment: str, graph: MeshGraph, unbroken: Mapping[str, frozenset[str]]
) -> dict[str, IntervalSet] | None:
    """What will not be stale when an environment promotes a graph; None where that changes nothing about it.

    A promotion gives everything that a new version holds a new revision: whoever has read the old one is stale then.
    Not where the change breaks nothing and the old version held the same: computed from the same parents, with nothing
    known to be wrong with it. What the new version itself, and its readers in the same plan, had read is judged by the
    new graph, before the revisions are gone. What is new to the environment, and the same in another one, is as settled
    as it is there.

    Args:
        ledger: Holds revisions and what is promoted so far.
        environment: The environment.
        graph: What it is going to promote.
        unbroken: By model: the older versions of which the present one is no breaking change.
    """
    old = ledger.manifest(environment) if environment in ledger.environments() else None
    was = MeshGraph({}, []) if old is None else old.graph
    was_ids = {} if old is None else old.version_ids
    held = set() if old is None else set(was_ids) - old.borrowed
    changed = {n for n, node in graph.nodes.items() if n in held and was[n].version != node.version}
    # Readers of another state, who had something else under the name of what is new.
    elsewhere = [n for n in was.nodes if n in held and n not in graph]
    fresh = {e.parent for n in elsewhere for e in was.parents(n)} & (set(graph.nodes) - held)
    others = {n for n in graph.nodes if n in held and set(graph.gates(n)) != set(was.gates(n))}
    met = changed | {n for n, node in graph.nodes.items() if n not in held and node.kind.recorded}
    known = _stale_elsewhere(ledger, environment, graph, met)
    if not changed and not others and not fresh and not known:
        return None
    ids = {n: ledger.register_version(node) for n, node in graph.nodes.items() if node.kind.recorded}
    before = find(ledger, environment, was, was_ids)
    now = find(ledger, environment, graph, ids)
    states = ledger.states({*ids.values(), *was_ids.values()})
    kept: dict[str, IntervalSet] = {}
    for name in changed & set(ids):
        was_it = states[was_ids[name]]
        wrong = [s.interval for s in before.get(name, ())] + [m.interval for m in was_it.marks]
        same = was[name].version in unbroken.get(name, ())
        now_is = states[ids[name]]
        # What a person took as it was is no result of the query, of whichever version.
        taken = was_it.accepted | now_is.accepted
        kept[name] = (was_it.covered & now_is.covered) - IntervalSet(wrong) - taken if same else IntervalSet()
    found: dict[str, IntervalSet] = {}
    for name in ids:
        if name in changed or name not in held:
            stale = IntervalSet(s.interval for s in now.get(name, ()))
            found[name] = IntervalSet.everything() - (stale & known.get(name, stale))
        elif name not in others:
            found[name] = _still(graph, name, before, kept, states[ids[name]].covered)
    if elsewhere:
        whole = MeshGraph(
            {**was.nodes, **graph.nodes},
            [e for n in elsewhere for e in was.parents(n)]
            + [e for n in graph.nodes for e in graph.parents(n)],
        )
        kept |= dict.fromkeys(fresh, IntervalSet())
        for name in elsewhere:
            if whole[name].kind.recorded:
                covered = states[was_ids[name]].covered
                found[name] = _still(whole, name, before, kept, covered)
    return found


def _still(
    graph: MeshGraph,
    name: str,
    before: Mapping[str, tuple[Stale, ...]],
    kept: Mapping[str, IntervalSet],
    covered: IntervalSet,
) -> IntervalSet:
    """What of a model is not stale: not before, and not by what its parents do not hold as before."""
    stale = IntervalSet(s.interval for s in before.get(name, ()))
    for gate in graph.gates(name):
        if gate.parent in kept:
            parent = graph[gate.parent]
            other = IntervalSet([parent.life]) - kept[gate.parent]
            stale |= readers_of(graph[name], parent, gate.window, other, covered)
    return IntervalSet.everything() - stale


def _stale_elsewhere(
    ledger: Ledger, environment: str, graph: MeshGraph, names: set[str]
) -> dict[str, IntervalSet]:
    """What is stale of some models in another environment that has the same of them and of all that they read.

    Whether data are what would be computed from what is read now has nothing to do with who looks: what is settled
    there is settled for whoever promotes the same. Models that are the same nowhere else are left out.
    """
    found: dict[str, IntervalSet] = {}
    for name in ledger.environments() if names else ():
        manifest = ledger.manifest(name)
        same = [
            n
            for n in graph.order()
            if n in names and n in manifest.version_ids and _same(graph, manifest.graph, n)
        ]
        if name == environment or not same:
            continue
        stale = find(ledger, name, manifest.graph, manifest.version_ids)
        for n in same:
            there = IntervalSet(s.interval for s in stale.get(n, ()))
            found[n] = found.get(n, there) & there
    return found


def _same(graph: MeshGraph, other: MeshGraph, name: str) -> bool:
    """Whether a model reads the same as in another graph, and is the same there."""
    gates = graph.gates(name)
    if set(gates) != set(other.gates(name)):
        return False
    here, there = graph[name], other[name]
    return here.depends_on_past == there.depends_on_past and all(
        graph[n].version == other[n].version and other[n].life.contains(graph[n].life)
        for n in (name, *(gate.parent for gate in gates))
    )
