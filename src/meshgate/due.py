"""What is due: which units of a model should be recorded by now and are not.

The cron says *when* something is due, the interval unit says *what*. The rules are SQLMesh's own
(`Snapshot.missing_intervals`), except where these would lose or invent work:

* a tick of the cron is never later than now, and none is left out, when clocks change; SQLMesh
  subtracts wall-clock time, and on such days answers with a tick that is an hour off;
* `lookback` follows new units only: filling a hole in the past evaluates nothing else again;
* a model whose refresh reads everything is due from its first missing unit on, as one range;
* a history shorter than one unit is due as soon as that unit is over, and, with `allow_partials`,
  no part of a unit that ends before the start is;
* without a start, a model that has a record is due from its first recorded unit on, however long
  it was not run; SQLMesh goes back one tick.
"""

from __future__ import annotations

from copy import copy
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from zoneinfo import ZoneInfo

from attrs import frozen
from croniter import CroniterError, croniter

from meshgate.errors import GraphError
from meshgate.graph import Kind
from meshgate.interval import Interval, IntervalSet, utc

if TYPE_CHECKING:
    from meshgate.graph import ModelNode


@frozen
class Due:
    """What a model lacks. All times UTC, half-open.

    Attributes:
        fresh: Units that are over, or, with `allow_partials`, begun, and not recorded.
        lookback: Recorded units before the new ones, to be evaluated again for late rows; to be
            taken in batches of their own. Never overlaps `fresh`.
        upto: Up to where the model should be recorded by now.
    """

    fresh: IntervalSet
    lookback: IntervalSet
    upto: datetime


@lru_cache(maxsize=1024)
def _parsed(cron: str) -> croniter:
    """Reading an expression costs several times as much as finding a tick. Copies of it are moved, never itself."""
    return croniter(cron, 0.0)


def _croniter(cron: str, tz: str, instant: datetime) -> croniter:
    try:
        found = copy(_parsed(cron))
        found.set_current(instant.astimezone(ZoneInfo(tz)), force=True)
    except (ValueError, KeyError) as error:
        # croniter's own errors are ValueErrors; an unknown zone is a KeyError.
        raise GraphError(f"the cron {cron!r} in the time zone {tz!r} cannot be read: {error}") from None
    return found


_KEPT: Final = 4
_spans: Final[dict[tuple[str, str], tuple[tuple[datetime, datetime], ...]]] = {}
"""The spans between ticks that were asked for last, of each cron: most questions are about one of them."""


def _span(cron: str, tz: str, now: datetime) -> tuple[datetime, datetime]:
    """The ticks around an instant: the last one at or before it, and the first one after it."""
    known = _spans.get((cron, tz), ())
    for span in known:
        if span[0] <= now < span[1]:
            return span
    span = _span_after(cron, tz, now, known)
    _spans[cron, tz] = (span, *known[: _KEPT - 1])
    return span


def _span_after(
    cron: str, tz: str, now: datetime, known: tuple[tuple[datetime, datetime], ...]
) -> tuple[datetime, datetime]:
    for floor, end in known:
        # As time goes on, it is most often the one after a known one, and half of the search is saved.
        if end <= now < end + (end - floor):
            later = _tick(cron, tz, end, next_one=True)
            if now < later:
                return end, later
    later = _tick(cron, tz, now, next_one=True)
    # The tick before the next one, as `get_prev` of a tick itself would step over it.
    return _tick(cron, tz, later, next_one=False), later


def _tick(cron: str, tz: str, instant: datetime, *, next_one: bool) -> datetime:
    found = _croniter(cron, tz, instant)
    try:
        return datetime.fromtimestamp(found.get_next(float) if next_one else found.get_prev(float), UTC)
    except CroniterError:
        raise GraphError(f"the cron {cron!r} never ticks") from None


def cron_next(cron: str, tz: str, now: datetime) -> datetime:
    """The first tick of a cron strictly after an instant.

    Args:
        cron: An expression or an alias such as `@hourly`.
        tz: The IANA time zone in which the expression is read.
        now: UTC.

    Returns:
        UTC.

    Raises:
        GraphError: The expression or the time zone cannot be read.
    """
    return _span(cron, tz, now)[1]


def cron_floor(cron: str, tz: str, now: datetime) -> datetime:
    """The last tick of a cron at or before an instant.

    Args:
        cron: An expression or an alias such as `@hourly`.
        tz: The IANA time zone in which the expression is read.
        now: UTC.

    Returns:
        UTC.

    Raises:
        GraphError: The expression or the time zone cannot be read.
    """
    return _span(cron, tz, now)[0]


def due(
    node: ModelNode,
    recorded: IntervalSet,
    now: datetime,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
) -> Due:
    """What a model lacks at an instant.

    Args:
        node: The model.
        recorded: What is recorded for its version, UTC; accepted holes included.
        now: The instant that counts, UTC.
        start: Look no further back than the unit that holds this instant (UTC). With a model that
            has no start of its own, this is its start.
        end: Look at nothing that is not over at this instant (UTC, exclusive).

    Returns:
        The missing units and the lookback that comes with them. Nothing for models without
        intervals, nor for a seed that was loaded once.

    Raises:
        IntervalError: An instant is not UTC.
        GraphError: The cron or its time zone cannot be read.
    """
    unit = node.unit
    tick = cron_floor(node.cron, node.cron_tz, utc(now))
    upto = tick if end is None else min(tick, utc(end))
    upto = min(upto if node.allow_partials else unit.floor(upto), node.life.end)
    begin = _begin(node, recorded, tick, start)
    span = IntervalSet.of(unit.floor(begin), upto)
    if not span or begin >= tick or not node.kind.recorded or (node.kind is Kind.SEED and recorded):
        return Due(IntervalSet.empty(), IntervalSet.empty(), upto)
    missing = span - recorded
    if not missing:
        return Due(missing, missing, upto)
    # A unit of which a part is missing is missing as a whole.
    fresh = unit.outward(missing) & span
    if node.kind.reads_everything:
        first = fresh.first
        return Due(IntervalSet.of(first.start, upto) if first else fresh, IntervalSet.empty(), upto)
    return Due(fresh, _lookback(node, recorded, fresh, span - fresh), upto)


def _begin(node: ModelNode, recorded: IntervalSet, tick: datetime, start: datetime | None) -> datetime:
    """The instant from whose unit on the model is looked at."""
    begins = [instant for instant in (node.start, None if start is None else utc(start)) if instant]
    if begins:
        return max(begins)
    first = recorded.first
    return first.start if first else _tick(node.cron, node.cron_tz, tick, next_one=False)


def _lookback(node: ModelNode, recorded: IntervalSet, fresh: IntervalSet, done: IntervalSet) -> IntervalSet:
    """The recorded units among the last `lookback` ones before the frontier, if a unit is beyond it."""
    if not node.lookback or fresh.last is None or recorded.last is None:
        return IntervalSet.empty()
    frontier = node.unit.floor(recorded.last.end)
    if fresh.last.end <= frontier:
        return IntervalSet.empty()
    return done.clip(node.unit.shift(frontier, -node.lookback), frontier)


def next_due(node: ModelNode, now: datetime) -> datetime | None:
    """When a model's next unit becomes due, whatever is recorded.

    Args:
        node: The model.
        now: UTC.

    Returns:
        A tick of its cron later than `now` (UTC), or None: it has no intervals that come due by
        time, or its last one is due already.

    Raises:
        IntervalError: The instant is not UTC.
        GraphError: The cron or its time zone cannot be read.
    """
    if not node.kind.recorded or node.kind is Kind.SEED:
        return None
    tick = cron_floor(node.cron, node.cron_tz, utc(now))
    if (tick if node.allow_partials else node.unit.floor(tick)) >= node.life.end:
        return None
    if node.allow_partials:
        return cron_next(node.cron, node.cron_tz, max(now, node.start) if node.start else now)
    boundary = node.unit.next(max(tick, node.start) if node.start else tick)
    at = cron_floor(node.cron, node.cron_tz, boundary)
    return boundary if at == boundary else cron_next(node.cron, node.cron_tz, boundary)


@frozen
class Ticks:
    """Ticks of an `auto_restatement_cron` that nobody has answered yet. UTC.

    Attributes:
        since: Up to where they had been answered.
        first: The first of them.
        last: The last of them.
        next: The one that comes then.
    """

    since: datetime
    first: datetime
    last: datetime
    next: datetime


def ticked(node: ModelNode, answered: datetime, now: datetime) -> Ticks | None:
    """Whether a model is to be computed again by itself.

    Args:
        node: The model.
        answered: Up to where the ticks were answered, UTC.
        now: The instant that counts, UTC.

    Returns:
        None where its `auto_restatement_cron` has not ticked since, or it has none.

    Raises:
        GraphError: The cron cannot be read, or never ticks.
    """
    if node.restate_cron is None:
        return None
    try:
        last, later = _span(node.restate_cron, "UTC", utc(now))
        if last <= utc(answered):
            return None
        return Ticks(answered, _span(node.restate_cron, "UTC", answered)[1], last, later)
    except GraphError as error:
        raise GraphError(
            f"the auto_restatement_cron of {node.display}: {error.message}",
            hint=f"correct it in the model's file, and run `meshgate deploy {node.project}`",
            model=node.name,
        ) from None


def restated(node: ModelNode, ticks: Ticks, recorded: IntervalSet, now: datetime) -> Interval | None:
    """What of a model its ticks are about: so many units before them.

    SQLMesh counts the units back from its run. Here they are counted back from the first tick that nobody has answered: who
    answers each in time does the same, and what an outage kept from being computed again is made up for.

    Args:
        node: The model.
        ticks: Of its `auto_restatement_cron`.
        recorded: What is recorded for its version, UTC.
        now: The instant that counts, UTC.

    Returns:
        The time, or None where nothing of it is recorded.
    """
    if node.restate_units is None:
        return recorded.hull
    begin = node.unit.shift(node.unit.floor(ticks.first), -node.restate_units)
    (reached,) = IntervalSet.of(begin, node.unit.floor(now))
    return reached if recorded & IntervalSet([reached]) else None
