"""Time as meshgate counts it: half-open, in UTC, always normalised.

`Interval` is one `[start, end)`. `IntervalSet` is any number of them, kept sorted, disjoint and
merged where they touch, so that two sets are equal exactly when they hold the same time; its
operations are linear merges. `IntervalUnit` is SQLMesh's grid: seven units on the UTC calendar.

Nothing here reads a clock, and nothing takes an instant that is not UTC.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from datetime import UTC, datetime, timedelta
from enum import Enum
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Self, overload

from attrs import field, frozen

from meshgate.errors import IntervalError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MIN_INSTANT: Final = datetime(1, 1, 1, tzinfo=UTC)
"""The beginning of time: stands for "no start". A boundary of every unit."""

MAX_INSTANT: Final = datetime(9999, 1, 1, tzinfo=UTC)
"""The end of time: stands for "no end". A boundary of every unit, so that aligning keeps it."""


def utc(value: datetime) -> datetime:
    """Check that an instant is UTC, and give it the one spelling that this package uses.

    Raises:
        IntervalError: It is naive, has another offset than zero, or lies after `MAX_INSTANT`.
    """
    if not isinstance(value, datetime):
        raise IntervalError(f"{value!r} is not an instant")
    if value.tzinfo is not UTC:
        offset = value.utcoffset()
        if offset is None:
            raise IntervalError(f"{value.isoformat()} has no time zone", hint="attach datetime.UTC")
        if offset:
            raise IntervalError(
                f"{value.isoformat()} is not in UTC",
                hint=f"write it as {value.astimezone(UTC).isoformat()}",
            )
        value = value.replace(tzinfo=UTC, fold=0)
    if value > MAX_INSTANT:
        raise IntervalError(f"{value.isoformat()} lies after {MAX_INSTANT.isoformat()}, the end of time")
    return value


def parse_instant(text: str) -> datetime:
    """Read an ISO 8601 instant; without an offset it is UTC.

    Args:
        text: For example `2026-01-01`, `2026-01-01 03:00`, `2026-01-01T03:00:00Z`.

    Returns:
        An aware UTC instant.

    Raises:
        IntervalError: It cannot be read, or it has another offset than UTC.

    Example:
        >>> parse_instant("2026-01-01 03:00").isoformat()
        '2026-01-01T03:00:00+00:00'
    """
    try:
        value = datetime.fromisoformat(text.strip())
    except ValueError:
        raise IntervalError(
            f"{text.strip()!r} is not an instant", hint="write it as 2026-01-01 or 2026-01-01T03:00"
        ) from None
    return utc(value.replace(tzinfo=UTC) if value.tzinfo is None else value)


def offset_by(value: datetime, delta: timedelta) -> datetime:
    """Add a duration, but never leave [`MIN_INSTANT`, `MAX_INSTANT`], which themselves stay put.

    "No start" moved by an hour is still "no start".
    """
    if value in (MIN_INSTANT, MAX_INSTANT):
        return value
    try:
        return min(value + delta, MAX_INSTANT)
    except OverflowError:
        return MIN_INSTANT if delta < timedelta(0) else MAX_INSTANT


def _format_instant(value: datetime, *, date: bool = True) -> str:
    text = value.strftime("%H:%M")
    if value.second or value.microsecond:
        text += value.strftime(":%S")
    if value.microsecond:
        text += value.strftime(".%f")
    # strftime does not pad years below 1000 on every platform.
    return f"{value.date().isoformat()} {text}" if date else text


_TIME_ONLY: Final = re.compile(r"\d{2}:\d{2}(:\d{2}(\.\d+)?)?")


@frozen(order=True)
class Interval:
    """A stretch of time `[start, end)`: the start belongs to it, the end does not.

    Attributes:
        start: Aware UTC instant, inclusive.
        end: Aware UTC instant, exclusive; later than `start`.

    Raises:
        IntervalError: An instant is not UTC, or the interval is empty.

    Example:
        >>> str(Interval.parse("2026-01-01T03:00/2026-01-01T04:00"))
        '[2026-01-01 03:00, 04:00)'
    """

    start: datetime = field(converter=utc)
    end: datetime = field(converter=utc)

    def __attrs_post_init__(self) -> None:
        if self.start >= self.end:
            raise IntervalError(
                f"[{self.start.isoformat()}, {self.end.isoformat()}) is empty",
                hint="the end is exclusive and must be later than the start",
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `START/END`, `START..END` or `[START, END)`, the last also as printed by `str`.

        Args:
            text: Instants as in `parse_instant`; an end that is only a time is on the day of the start.

        Returns:
            The interval, in UTC.

        Raises:
            IntervalError: It cannot be read, is not UTC, or is empty.
        """
        inner = text.strip()
        if inner.startswith("[") and inner.endswith(")"):
            parts = inner[1:-1].split(",")
        else:
            parts = inner.split("..") if ".." in inner else inner.split("/")
        if len(parts) != 2:
            raise IntervalError(f"{text!r} is not an interval", hint="write it as START/END")
        start = parse_instant(parts[0])
        end = parts[1].strip()
        if _TIME_ONLY.fullmatch(end):
            end = f"{start.date().isoformat()}T{end}"
        return cls(start, parse_instant(end))

    @property
    def duration(self) -> timedelta:
        """How long it is."""
        return self.end - self.start

    def overlaps(self, other: Interval) -> bool:
        """Whether the two share any time; touching is not sharing."""
        return self.start < other.end and other.start < self.end

    def contains(self, other: datetime | Interval) -> bool:
        """Whether an instant, or all of another interval, lies inside."""
        if isinstance(other, Interval):
            return self.start <= other.start and other.end <= self.end
        return self.start <= other < self.end

    def intersect(self, other: Interval) -> Interval | None:
        """The time that both hold, or None."""
        start, end = max(self.start, other.start), min(self.end, other.end)
        return _piece(start, end) if start < end else None

    def __str__(self) -> str:
        same_day = self.start.date() == self.end.date()
        return f"[{_format_instant(self.start)}, {_format_instant(self.end, date=not same_day)})"


def _piece(start: datetime, end: datetime) -> Interval:
    """An interval from bounds that are known to be good: set operations make them by the thousand."""
    new = object.__new__(Interval)
    object.__setattr__(new, "start", start)
    object.__setattr__(new, "end", end)
    return new


_start_of: Final = attrgetter("start")
_end_of: Final = attrgetter("end")


def _merged(pieces: Iterable[Interval]) -> tuple[Interval, ...]:
    """Merge what overlaps or touches. The pieces must come sorted by their start."""
    merged: list[Interval] = []
    last: Interval | None = None
    for piece in pieces:
        if last is None or piece.start > last.end:
            merged.append(piece)
            last = piece
        elif piece.end > last.end:
            last = merged[-1] = _piece(last.start, piece.end)
    return tuple(merged)


def _normalised(pieces: Iterable[Interval]) -> tuple[Interval, ...]:
    if isinstance(pieces, tuple) and len(pieces) == 1:
        return pieces
    if isinstance(pieces, IntervalSet):
        return tuple(pieces)
    return _merged(sorted(pieces, key=_start_of))


@frozen(repr=False)
class IntervalSet:
    """A set of instants, held as sorted, disjoint intervals of which no two touch. Immutable.

    `|`, `&`, `-` are union, intersection, difference; `a <= b` asks whether a is a subset of b.
    Iterating gives the intervals in order, `len` counts them.

    Example:
        >>> str(IntervalSet([Interval.parse("2026-01-01/2026-01-02"), Interval.parse("2026-01-02/2026-01-03")]))
        '[2026-01-01 00:00, 2026-01-03 00:00)'
    """

    _pieces: tuple[Interval, ...] = field(converter=_normalised, default=())

    @classmethod
    def of(cls, start: datetime, end: datetime) -> IntervalSet:
        """The set of one interval `[start, end)`; the empty set if the end is not after the start.

        Raises:
            IntervalError: An instant is not UTC.
        """
        start, end = utc(start), utc(end)
        return _sorted_set((_piece(start, end),)) if start < end else _EMPTY

    @classmethod
    def empty(cls) -> IntervalSet:
        """The set that holds no time."""
        return _EMPTY

    @classmethod
    def everything(cls) -> IntervalSet:
        """The whole line of time, [`MIN_INSTANT`, `MAX_INSTANT`)."""
        return _EVERYTHING

    @property
    def first(self) -> Interval | None:
        """The earliest interval, or None."""
        return self._pieces[0] if self._pieces else None

    @property
    def last(self) -> Interval | None:
        """The latest interval, or None."""
        return self._pieces[-1] if self._pieces else None

    @property
    def hull(self) -> Interval | None:
        """The shortest interval that holds the whole set, or None."""
        return _piece(self._pieces[0].start, self._pieces[-1].end) if self._pieces else None

    @property
    def duration(self) -> timedelta:
        """How much time the set holds."""
        return sum((piece.duration for piece in self._pieces), timedelta())

    def contains(self, instant: datetime) -> bool:
        """Whether an instant lies in the set."""
        at = bisect_right(self._pieces, instant, key=_start_of)
        return at > 0 and instant < self._pieces[at - 1].end

    def covers(self, other: Interval | IntervalSet) -> bool:
        """Whether all of the other lies in this set."""
        if isinstance(other, IntervalSet):
            return other <= self
        at = bisect_right(self._pieces, other.start, key=_start_of)
        return at > 0 and other.end <= self._pieces[at - 1].end

    def clip(self, start: datetime, end: datetime) -> IntervalSet:
        """The part in `[start, end)`: `& of(start, end)`, in logarithmic time plus the result."""
        if start >= end:
            return _EMPTY
        pieces = self._touching(start, end)
        if not pieces:
            return _EMPTY
        if pieces[0].start >= start and pieces[-1].end <= end:
            return _sorted_set(pieces)
        clipped = list(pieces)
        clipped[0] = _piece(max(start, clipped[0].start), clipped[0].end)
        clipped[-1] = _piece(clipped[-1].start, min(end, clipped[-1].end))
        return _sorted_set(tuple(clipped))

    def _touching(self, start: datetime, end: datetime) -> tuple[Interval, ...]:
        if len(self._pieces) == 1:
            return self._pieces if start < self._pieces[0].end and self._pieces[0].start < end else ()
        low = bisect_right(self._pieces, start, key=_end_of)
        return self._pieces[low : bisect_left(self._pieces, end, lo=low, key=_start_of)]

    def __iter__(self) -> Iterator[Interval]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __or__(self, other: IntervalSet) -> IntervalSet:
        if not self._pieces or not other._pieces:
            return self if self._pieces else other
        # Sorting two sorted runs is one linear merge.
        return _sorted_set(_merged(sorted(self._pieces + other._pieces, key=_start_of)))

    def __and__(self, other: IntervalSet) -> IntervalSet:
        if not self._pieces or not other._pieces:
            return _EMPTY
        left = self._touching(other._pieces[0].start, other._pieces[-1].end)
        right = other._touching(self._pieces[0].start, self._pieces[-1].end)
        common: list[Interval] = []
        i = j = 0
        while i < len(left) and j < len(right):
            start, end = max(left[i].start, right[j].start), min(left[i].end, right[j].end)
            if start < end:
                common.append(_piece(start, end))
            if left[i].end <= right[j].end:
                i += 1
            else:
                j += 1
        return _sorted_set(tuple(common))

    def __sub__(self, other: IntervalSet) -> IntervalSet:
        if not self._pieces or not other._pieces:
            return self
        cuts = other._touching(self._pieces[0].start, self._pieces[-1].end)
        if not cuts:
            return self
        rest: list[Interval] = []
        j = 0
        for piece in self._pieces:
            start = piece.start
            while j < len(cuts) and cuts[j].end <= start:
                j += 1
            k = j
            while k < len(cuts) and cuts[k].start < piece.end:
                if start < cuts[k].start:
                    rest.append(_piece(start, cuts[k].start))
                start = cuts[k].end
                k += 1
            if start < piece.end:
                rest.append(piece if start == piece.start else _piece(start, piece.end))
            # The last cut may reach into the next piece.
            j = max(j, k - 1)
        return _sorted_set(tuple(rest))

    def __le__(self, other: IntervalSet) -> bool:
        if len(self._pieces) * 8 < len(other._pieces):
            return all(other.covers(piece) for piece in self._pieces)
        j = 0
        for piece in self._pieces:
            while j < len(other._pieces) and other._pieces[j].end < piece.end:
                j += 1
            if j == len(other._pieces) or other._pieces[j].start > piece.start:
                return False
        return True

    def __str__(self) -> str:
        return ", ".join(map(str, self._pieces)) or "nothing"

    def __repr__(self) -> str:
        return f"IntervalSet({self})"


def _sorted_set(pieces: tuple[Interval, ...]) -> IntervalSet:
    """A set from pieces that are normalised already."""
    new = object.__new__(IntervalSet)
    object.__setattr__(new, "_pieces", pieces)
    return new


_EMPTY: Final = IntervalSet()
_EVERYTHING: Final = IntervalSet((Interval(MIN_INSTANT, MAX_INSTANT),))


_LENGTH: Final = {
    "year": timedelta(days=365),
    "month": timedelta(days=28),
    "day": timedelta(days=1),
    "hour": timedelta(hours=1),
    "half_hour": timedelta(minutes=30),
    "quarter_hour": timedelta(minutes=15),
    "five_minute": timedelta(minutes=5),
}


class IntervalUnit(Enum):
    """The grid of a model: its intervals are whole units, on the UTC calendar. Values as in SQLMesh.

    A *boundary* is an instant at which a unit begins. `MIN_INSTANT` and `MAX_INSTANT` are
    boundaries of every unit, and moving beyond them stops there.
    """

    YEAR = "year"
    MONTH = "month"
    DAY = "day"
    HOUR = "hour"
    HALF_HOUR = "half_hour"
    QUARTER_HOUR = "quarter_hour"
    FIVE_MINUTE = "five_minute"

    def __init__(self, value: str) -> None:
        # Kept by the member: every decision asks hundreds of times, and a dictionary would hash the member in Python.
        self._length = _LENGTH[value]
        self._months = {"year": 12, "month": 1}.get(value, 0)
        self._last = self._index(MAX_INSTANT)

    @property
    def approximate(self) -> timedelta:
        """How long a unit is, as SQLMesh counts: exact up to a day, 28 days a month, 365 a year."""
        return self._length

    def floor(self, instant: datetime) -> datetime:
        """The last boundary at or before an instant (UTC)."""
        if self._months or instant > MAX_INSTANT:
            return self._boundary(self._index(instant))
        return instant - (instant - MIN_INSTANT) % self._length

    def ceil(self, instant: datetime) -> datetime:
        """The first boundary at or after an instant (UTC)."""
        floor = self.floor(instant)
        return floor if floor == instant else self.shift(floor, 1)

    def next(self, instant: datetime) -> datetime:
        """The first boundary strictly after an instant (UTC)."""
        return self.shift(instant, 1)

    def previous(self, instant: datetime) -> datetime:
        """The last boundary strictly before an instant (UTC)."""
        index = self._index(instant)
        return self._boundary(index - 1 if self._boundary(index) == instant else index)

    def shift(self, instant: datetime, units: int) -> datetime:
        """The boundary so many units after (negative: before) the last one at or before an instant (UTC)."""
        return self._boundary(self._index(instant) + units)

    def is_aligned(self, instant: datetime) -> bool:
        """Whether an instant is a boundary."""
        return self.floor(instant) == instant

    @overload
    def outward(self, time: Interval) -> Interval: ...
    @overload
    def outward(self, time: IntervalSet) -> IntervalSet: ...
    def outward(self, time: Interval | IntervalSet) -> Interval | IntervalSet:
        """All units that the time touches."""
        if isinstance(time, Interval):
            return _piece(self.floor(time.start), self.ceil(time.end))
        return _sorted_set(_merged(_piece(self.floor(piece.start), self.ceil(piece.end)) for piece in time))

    def inward(self, time: Interval | IntervalSet) -> IntervalSet:
        """All units that lie in the time as a whole."""
        pieces = (time,) if isinstance(time, Interval) else time
        whole = ((self.ceil(piece.start), self.floor(piece.end)) for piece in pieces)
        return _sorted_set(tuple(_piece(start, end) for start, end in whole if start < end))

    def split(self, interval: Interval) -> Iterator[Interval]:
        """Cut an interval at the boundaries inside it, in order.

        The first and the last part are whole units only if the interval is aligned.
        """
        start = interval.start
        index = self._index(start)
        while start < interval.end:
            index += 1
            end = min(self._boundary(index), interval.end)
            yield _piece(start, end)
            start = end

    def count(self, time: Interval | IntervalSet) -> int:
        """How many units the time touches: for aligned time, how many it holds."""
        outward = self.outward(IntervalSet((time,)) if isinstance(time, Interval) else time)
        return sum(self._index(piece.end) - self._index(piece.start) for piece in outward)

    def _index(self, instant: datetime) -> int:
        """The number of the unit that holds an instant, counted from `MIN_INSTANT`."""
        if self._months:
            return (instant.year * 12 + instant.month - 13) // self._months
        return (instant - MIN_INSTANT) // self._length

    def _boundary(self, index: int) -> datetime:
        """Where the unit of that number begins, kept between `MIN_INSTANT` and `MAX_INSTANT`."""
        if index <= 0:
            return MIN_INSTANT
        if index >= self._last:
            return MAX_INSTANT
        if self._months:
            years, months = divmod(index * self._months, 12)
            return datetime(years + 1, months + 1, 1, tzinfo=UTC)
        return MIN_INSTANT + index * self._length
