"""Who goes first, where a redo of good time and somebody's waiting work want the same range.

A parent with a lookback reads its last intervals again at each tick, and nobody reads what is being written. Where its
runs take longer than their period, that is nearly always. So its redo stands back for a while for a reader who has lost
patience, and only for a while: a project that is switched off must not hold up late rows for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.due import cron_floor, cron_next, due
from meshgate.gate import Blocked, ParentState, decide
from meshgate.graph import window_of
from meshgate.interval import MIN_INSTANT, IntervalSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime, timedelta

    from meshgate.graph import Edge, MeshGraph, ModelNode
    from meshgate.ledger import VersionState


def goes_first(waited: timedelta, patience: timedelta, period: timedelta) -> bool:
    """Whether a reader's turn has come, and is not over.

    Args:
        waited: Since its oldest ready unit was over.
        patience: How long it waits for unsettled parents.
        period: From one tick of its cron to the next: in each turn it has a chance to run.
    """
    return patience <= waited < patience + max(patience, period)


def stand_back(
    graph: MeshGraph,
    node: ModelNode,
    again: IntervalSet,
    version_ids: Mapping[str, int],
    states: Mapping[int, VersionState],
    known: Mapping[str, ParentState],
    *,
    now: datetime,
    present: datetime,
    patience: Callable[[ModelNode], timedelta | None],
) -> tuple[Blocked, ...]:
    """What of a redo is left for a later run, with the reader for whom.

    Args:
        graph: The mesh.
        node: The model to be computed again.
        again: The range, recorded and clean, UTC.
        version_ids: The ledger's key of each model's promoted version.
        states: What the ledger knows, by version.
        known: The same, as the gate wants to be told it.
        now: The instant that counts, UTC.
        present: By which it is judged when what failed may be tried again, UTC.
        patience: How long a model waits for unsettled parents; None for two of its units.
    """
    told: list[Blocked] = []
    for gate in _gates_on(graph, node):
        reader = graph[gate.child]
        if reader.name not in known:
            continue
        patient = patience(reader)
        limit = 2 * reader.unit.approximate if patient is None else patient
        try:
            latest_end = now - limit
        except OverflowError:
            continue
        wanted = _waiting(node, reader, states[version_ids[reader.name]], now, present)
        wanted = wanted.clip(MIN_INSTANT, reader.unit.floor(latest_end))
        if not wanted:
            continue
        view = {
            g.parent: _without_begun(known[g.parent]) for g in graph.gates(reader.name) if g.parent in known
        }
        view[reader.name] = ParentState(known[reader.name].covered)
        ready = decide(graph, reader.name, wanted, view, {}, now=now, patience=patient).ready
        if ready.first is None:
            continue
        waited = now - reader.unit.next(ready.first.start)
        period = cron_next(reader.cron, reader.cron_tz, now) - cron_floor(reader.cron, reader.cron_tz, now)
        if not goes_first(waited, limit, period):
            continue
        # Two projects of one rhythm would let the other go first for ever.
        yields = again - _waited(states[version_ids[node.name]], present - (limit + max(limit, period)))
        read = IntervalSet(r for piece in ready for r in window_of(reader, node, gate.window, piece))
        facts = {"cause": f"{reader.display} of {reader.project} has waited for it and goes first"}
        told += (
            Blocked(node.name, node.project, piece, node.name, node.project, piece, "marked", facts)
            for piece in (yields if node.kind.as_of and read else yields & read)
        )
    return tuple(told)


def _waited(state: VersionState, since: datetime) -> IntervalSet:
    """What has been waiting to be computed again since an instant."""
    stale = (s.interval for s in state.stale if s.since is not None and s.since <= since)
    return IntervalSet([*stale, *(m.interval for m in state.marks if m.made_at <= since)])


def _gates_on(graph: MeshGraph, node: ModelNode) -> Iterator[Edge]:
    """How a model is read, through views too."""
    pending, seen = [node.name], {node.name}
    while pending:
        for edge in graph.children(pending.pop()):
            if edge.child in seen:
                continue
            seen.add(edge.child)
            if graph[edge.child].kind.transparent:
                pending.append(edge.child)
            yield from (g for g in graph.gates(edge.child) if g.parent == node.name)


def _waiting(
    node: ModelNode, reader: ModelNode, state: VersionState, now: datetime, present: datetime
) -> IntervalSet:
    """What a reader has never computed, and another run than this one could begin."""
    fresh = due(reader, state.covered, now).fresh
    if reader.project == node.project:
        # This very run computes it afterwards, unless another one has reserved it.
        fresh &= IntervalSet(c.interval for c in state.claims if c.state == "open")
    fresh -= IntervalSet(c.interval for c in state.claims if c.state != "open")
    return fresh - IntervalSet(
        m.interval for m in state.marks if m.retry_at is not None and m.retry_at > present
    )


def _without_begun(state: ParentState) -> ParentState:
    """As if nothing were being written: what is good is good again when that is over."""
    left = [o for o in state.obstacles if o.reason != "begun"]
    return ParentState(state.covered, left)  # type: ignore[arg-type]  # mypy cannot type attrs' `tuple` converter
