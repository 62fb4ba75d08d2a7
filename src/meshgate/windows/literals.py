"""Which literals of a rendered query move with the interval that it is rendered for, and how.

A query is rendered for a few intervals that differ in where they lie, in their length, and in the time of execution. A
literal that follows the start in all of them is the start; one that follows the end, the end; and so on. So it does not
matter by which macro, or by whose, it came about.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import frozen
from sqlglot import exp

from meshgate.interval import Interval, IntervalUnit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MICROSECOND: Final = timedelta(microseconds=1)
"""Engines tell no finer instants apart; SQLMesh's inclusive ends are one of these before the next interval."""

_INSTANT: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[ T](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6})\d*)?)?\s*(Z|UTC|[+-]\d\d(?::?\d\d)?)?)?"
)
_COMPACT: Final = re.compile(r"(\d{4})(\d\d)(\d\d)")
# In the second half of an hour: else the start of an hour and that of a shorter interval could not be told apart.
_SPANS: Final = (
    (datetime(2025, 3, 18, 13, 35, tzinfo=UTC), 1, datetime(2025, 6, 3, 1, 2, 3, 40506, tzinfo=UTC)),
    (datetime(2025, 5, 9, 7, 50, tzinfo=UTC), 2, datetime(2025, 6, 20, 22, 4, 59, 800001, tzinfo=UTC)),
    (datetime(2026, 10, 28, 20, 40, tzinfo=UTC), 4, datetime(2027, 2, 11, 9, 31, 7, 77, tzinfo=UTC)),
)

Anchor = Literal["start", "end", "execution"]
Step = Literal["none", "hour", "day", "month", "year"]


@frozen
class Rendering:
    """A query as it is evaluated for one interval.

    Attributes:
        interval: Half-open, UTC.
        execution: The time of execution, UTC.
        query: SQLGlot's tree.
    """

    interval: Interval
    execution: datetime
    query: Any


@frozen
class Law:
    """How a literal follows the interval: rounded down to a step, then shifted.

    The end is taken as SQLMesh renders it: the last instant of the interval, a microsecond before the next one begins.
    """

    anchor: Anchor
    step: Step
    shift: timedelta

    def value(self, interval: Interval) -> datetime:
        """What the literal is for an interval; UTC."""
        return floor(self.step, _anchor(self.anchor, interval, interval.start)) + self.shift


class ShapeError(Exception):
    """The query itself changes with the interval, not only its literals."""


def bounds_to_render(unit: IntervalUnit) -> tuple[tuple[Interval, datetime], ...]:
    """For which intervals, and which times of execution, a model is to be rendered: three are enough to tell laws apart.

    Args:
        unit: The model's grid.
    """
    return tuple(
        (Interval(unit.floor(start), unit.shift(unit.floor(start), units)), execution)
        for start, units, execution in _SPANS
    )


def parse(text: str) -> datetime | None:
    """The instant that a literal names, UTC; None where it is none."""
    found = _INSTANT.fullmatch(text.strip())
    if found is None:
        found = _COMPACT.fullmatch(text.strip())
        if found is None:
            return None
    parts = found.groups()
    numbers = [int(part or 0) for part in parts[:6]]
    fraction = int((parts[6] or "0").ljust(6, "0")) if len(parts) > 6 else 0
    zone = parts[7] if len(parts) > 7 else None
    try:
        instant = datetime(*numbers[:3], *numbers[3:6], microsecond=fraction, tzinfo=UTC)  # type: ignore[misc, arg-type]
    except ValueError:
        return None
    if zone in (None, "Z", "UTC"):
        return instant
    sign = -1 if zone[0] == "-" else 1
    digits = zone[1:].replace(":", "").ljust(4, "0")
    return instant - sign * timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))


def floor(step: str, instant: datetime) -> datetime:
    """An instant rounded down to a calendar step: `hour`, `day`, `week` (Monday), `month`, `quarter`, `year`; UTC."""
    if step == "none":
        return instant
    if step in ("minute", "second"):
        return instant.replace(second=0 if step == "minute" else instant.second, microsecond=0)
    hour = instant.replace(minute=0, second=0, microsecond=0)
    day = hour.replace(hour=0)
    month = day.replace(day=1)
    found = {
        "hour": hour,
        "week": day - timedelta(days=day.weekday()),
        "month": month,
        "quarter": month.replace(month=(day.month - 1) // 3 * 3 + 1),
        "year": month.replace(month=1),
    }
    return found.get(step, day)


def laws_of(renderings: Sequence[Rendering]) -> Mapping[int, Law | None]:
    """The law of each literal of the first rendering that moves, by its `id`; None: it follows none that is known.

    Raises:
        ShapeError: The trees differ in more than literals.
    """
    found: dict[int, Law | None] = {}
    for nodes in _aligned([r.query for r in renderings]):
        texts = [str(node.this) for node in nodes]
        if len(set(texts)) > 1:
            found[id(nodes[0])] = _law(texts, renderings)
    return found


def samples(unit: IntervalUnit) -> tuple[Interval, ...]:
    """Intervals of one unit in which everything that is rounded to calendar steps comes to its extremes.

    The first, a middle and the last unit of days at the ends of weeks, months, quarters and years, leap years among them.
    """
    days = {datetime(year, month, day, tzinfo=UTC) for year in (2023, 2024) for month, day in _DAYS}
    week = {datetime(2024, 5, 12, tzinfo=UTC) + timedelta(days=n) for n in range(9)}
    last = timedelta(days=1) - MICROSECOND
    starts = {
        unit.floor(day + of_day)
        for day in (days | week)
        for of_day in (timedelta(0), timedelta(hours=13, minutes=20), last)
    }
    return tuple(Interval(start, unit.next(start)) for start in sorted(starts))


_DAYS: Final = (
    *((1, 1), (1, 31), (2, 1), (2, 28), (3, 1), (3, 31), (4, 1), (4, 30)),
    *((6, 30), (7, 1), (7, 31), (8, 31), (9, 30), (10, 1), (12, 1), (12, 31)),
)


def _aligned(trees: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The literals of trees of one shape, side by side."""
    walks = [list(tree.walk(bfs=False)) for tree in trees]
    if len({len(walk) for walk in walks}) > 1:
        raise ShapeError
    for nodes in zip(*walks, strict=True):
        first = nodes[0]
        if any(type(node) is not type(first) or node.arg_key != first.arg_key for node in nodes):
            raise ShapeError
        if isinstance(first, exp.Literal):
            if len({node.is_string for node in nodes}) > 1:
                raise ShapeError
            yield nodes
        elif len({_own(node) for node in nodes}) > 1:
            raise ShapeError


def _own(node: Any) -> str:
    """What a node says besides its children."""
    plain = (f"{key}={value}" for key, value in sorted(node.args.items()) if not _holds_nodes(value))
    return ";".join(plain)


def _holds_nodes(value: Any) -> bool:
    return isinstance(value, list) or hasattr(value, "sql")


def _anchor(anchor: Anchor, interval: Interval, execution: datetime) -> datetime:
    if anchor == "execution":
        return execution
    return interval.start if anchor == "start" else interval.end - MICROSECOND


def _law(texts: Sequence[str], renderings: Sequence[Rendering]) -> Law | None:
    values = [parse(text) for text in texts]
    instants = [value for value in values if value is not None]
    if len(instants) < len(values) or len(values) < len(_SPANS):
        return None
    anchors: tuple[Anchor, ...] = ("start", "end", "execution")
    steps: tuple[Step, ...] = ("none", "hour", "day", "month", "year")
    for anchor in anchors:
        for step in steps:
            shifts = {
                value - floor(step, _anchor(anchor, r.interval, r.execution))
                for value, r in zip(instants, renderings, strict=True)
            }
            if len(shifts) == 1:
                return Law(anchor, step, shifts.pop())
    return None
