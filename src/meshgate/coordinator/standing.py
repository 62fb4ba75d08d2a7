"""What the ledger knows, as the gate wants to be told it.

Where the two meet: marks, claims and holds become obstacles, and time without coverage is told apart by why it has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshgate.due import cron_floor, cron_next, due
from meshgate.gate import Obstacle, ParentState
from meshgate.interval import MIN_INSTANT, Interval, IntervalSet
from meshgate.ledger import WHOLE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from meshgate.graph import MeshGraph, ModelNode
    from meshgate.ledger import Hold, LiveClaim, Mark, Stale, VersionState

_UNSETTLED_MARKS = ("requested", "lookback")


def standing(node: ModelNode, known: VersionState, now: datetime) -> ParentState:
    """One model version's coverage and everything that is wrong with its time.

    Args:
        node: The model.
        known: What the ledger says of its version.
        now: The instant that counts, UTC.
    """
    obstacles: list[Obstacle] = [_of_mark(mark) for mark in known.marks]
    obstacles += [_of_claim(claim) for claim in known.claims if claim.state == "begun"]
    obstacles += [_of_stale(stale) for stale in known.stale if not stale.accepted]
    obstacles += [_of_hold(hold) for hold in known.holds]
    obstacles += _uncovered(node, known.covered, now)
    return ParentState(known.covered, obstacles)  # type: ignore[arg-type]  # mypy cannot type attrs' `tuple` converter


def standings(
    graph: MeshGraph, version_ids: Mapping[str, int], states: Mapping[int, VersionState], now: datetime
) -> dict[str, ParentState]:
    """The standing of every recorded model of a graph, by name."""
    return {
        name: standing(graph[name], states[version_ids[name]], now)
        for name in graph.order()
        if graph[name].kind.recorded and version_ids[name] in states
    }


def _of_mark(mark: Mark) -> Obstacle:
    detail: dict[str, Any] = {
        **mark.detail,
        "attempts": mark.attempts,
        "since": mark.made_at,
        **({"retry_at": mark.retry_at} if mark.retry_at else {}),
        **({"run_id": mark.run_id} if mark.run_id else {}),
    }
    if mark.kind in _UNSETTLED_MARKS:
        return Obstacle(mark.interval, "marked", {"mark": mark.kind, **detail})
    return Obstacle(mark.interval, mark.kind, detail)  # type: ignore[arg-type]  # the schema names the kinds


def _of_stale(stale: Stale) -> Obstacle:
    return Obstacle(stale.interval, "stale", stale_facts(stale))


def read_time(state: VersionState) -> IntervalSet:
    """What is recorded, and what is being evaluated: that has read before whoever asks now, and may be recorded yet."""
    return state.covered | IntervalSet(c.written for c in state.claims if c.written not in (None, WHOLE))


def stale_facts(stale: Stale) -> dict[str, Any]:
    """Why a range is stale, as data."""
    return {
        "parent": stale.parent,
        "parent_interval": stale.parent_interval,
        **({"since": stale.since} if stale.since else {}),
        **({"read_at": stale.read_at} if stale.read_at else {}),
        **({"retry_at": stale.again_at} if stale.again_at else {}),
    }


def _of_claim(claim: LiveClaim) -> Obstacle:
    return Obstacle(
        claim.written or claim.interval,
        "begun",
        {"run_id": claim.run_id, "project": claim.project, "lease_until": claim.until},
    )


def _of_hold(hold: Hold) -> Obstacle:
    facts = {"hold_id": hold.hold_id, "reason": hold.reason, "by": hold.by, "since": hold.since}
    return Obstacle(hold.interval, "held", facts)


def _uncovered(node: ModelNode, covered: IntervalSet, now: datetime) -> list[Obstacle]:
    """Late, missing and not due are different answers to "why is it not there?"."""
    if not node.kind.recorded:
        return []
    answer = due(node, covered, now)
    frontier = covered.last.end if covered.last else MIN_INSTANT
    obstacles = [
        Obstacle(piece, "late", {"due_since": _due_at(node, piece)})
        for piece in answer.fresh
        if piece.start >= frontier
    ]
    if answer.upto < node.life.end and node.kind.time_partitioned:
        obstacles.append(
            Obstacle(
                Interval(max(answer.upto, node.life.start), node.life.end),
                "not_due",
                {"due_up_to": answer.upto},
            )
        )
    return obstacles


def _due_at(node: ModelNode, piece: Interval) -> datetime:
    """The first tick of the cron at or after the end of the first unit."""
    end = node.unit.next(piece.start)
    floor = cron_floor(node.cron, node.cron_tz, end)
    return end if floor == end else cron_next(node.cron, node.cron_tz, end)
