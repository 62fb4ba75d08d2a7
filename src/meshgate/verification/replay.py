"""What each table's coverage, marks and dirty spans must be, by what happened to it: one event after the other."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, frozen

from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from meshgate.graph import Kind

DOUBTS = ("failed", "suspect", "removed")
"""The marks that close every gate."""
_MARKS = (*DOUBTS, "requested", "lookback")
_PREFIX = "interval."


@frozen
class Event:
    """Something that happened. `revision` is the ledger's at that moment; `interval` is half-open, UTC."""

    event_id: int
    at: datetime
    revision: int
    kind: str
    run_id: int | None
    version_id: int | None
    interval: Interval | None
    detail: Mapping[str, Any]


@frozen
class Table:
    """One version of a model: one physical table."""

    version_id: int
    model: str
    project: str
    version: str
    kind: Kind
    as_of: bool


@frozen
class Piece:
    """Some recorded time: when it was made, up to where its parents had been read, by whom, how it was judged, of how many commits."""

    interval: Interval
    revision: int
    read_revision: int
    run_id: int | None
    verdict: str
    mirrored: bool = False
    merged: int = 1
    touched: int | None = None
    """When it was computed again, and was what it had been: its parents had been read up to then, and its readers need not care."""

    @property
    def written(self) -> int:
        """When its rows were written last."""
        return max(self.revision, self.touched or 0)


@frozen
class Mark:
    """A reason to compute some time again; `batch`: of a whole table, what was being written when it went wrong."""

    interval: Interval
    kind: str
    revision: int
    batch: Interval | None = None


@frozen
class Dirty:
    """A whole table held rows that nobody had judged until a revision; or a person has taken them as they were at one."""

    until: int | None = None
    accepted: int | None = None

    @property
    def end(self) -> int | None:
        """Whoever begins to read at this revision meets nothing unjudged, as far as is known; None: there is no such one."""
        return self.accepted if self.until is None else self.until


def _start(piece: Piece) -> datetime:
    return piece.interval.start


def _end(piece: Piece) -> datetime:
    return piece.interval.end


@define
class Derived:
    """One table, as its history says. `pieces` are in order and do not overlap."""

    pieces: list[Piece] = field(factory=list)
    marks: list[Mark] = field(factory=list)
    dirty: dict[int, Dirty] = field(factory=dict)

    @property
    def covered(self) -> IntervalSet:
        """All recorded time."""
        return IntervalSet(piece.interval for piece in self.pieces)

    def meeting(self, time: Interval) -> list[Piece]:
        """The pieces that share time with an interval."""
        low = bisect_right(self.pieces, time.start, key=_end)
        return self.pieces[low : bisect_left(self.pieces, time.end, lo=low, key=_start)]

    def doubts(self, time: Interval) -> list[Mark]:
        """The marks that keep an interval from its readers."""
        return [m for m in self.marks if m.kind in DOUBTS and m.interval.overlaps(time)]

    def record(self, new: Piece) -> None:
        """Put a piece in place of what it covers."""
        low = bisect_right(self.pieces, new.interval.start, key=_end)
        high = bisect_left(self.pieces, new.interval.end, lo=low, key=_start)
        kept = [
            evolve(old, interval=rest)
            for old in self.pieces[low:high]
            for rest in IntervalSet([old.interval]) - IntervalSet([new.interval])
        ]
        self.pieces[low:high] = sorted([*kept, new], key=_start)

    def restamp(self, since: datetime, made: int) -> None:
        """What is recorded from an instant on was changed, though read when it was."""
        later = IntervalSet.of(since, MAX_INSTANT)
        self.pieces = sorted(
            (
                evolve(old, interval=part, revision=made if part.start >= since else old.revision)
                for old in self.pieces
                for time in (IntervalSet([old.interval]) - later, IntervalSet([old.interval]) & later)
                for part in time
            ),
            key=_start,
        )

    def discharge(self, time: Interval, upto: int, kinds: Sequence[str] = _MARKS) -> None:
        """Take time out of the marks that a read at a revision answers."""
        self.marks = [
            evolve(m, interval=rest)
            for m in self.marks
            for rest in (
                IntervalSet([m.interval]) - IntervalSet([time])
                if m.kind in kinds and m.revision <= upto
                else [m.interval]
            )
        ]

    def put(self, new: Mark) -> None:
        """A new mark takes the place of older ones of its kind, and remembers what they were about."""
        batches = [new.batch] if new.batch else []
        batches += [
            m.batch
            for m in self.marks
            if m.kind == new.kind and m.batch and m.interval.overlaps(new.interval)
        ]
        self.discharge(new.interval, new.revision, (new.kind,))
        self.marks.append(evolve(new, batch=IntervalSet(batches).hull))

    def repaired(self, made: int) -> None:
        """Nobody has to meet unjudged rows from here on."""
        self.dirty = {s: evolve(d, until=made) if d.until is None else d for s, d in self.dirty.items()}

    def taken(self, made: int) -> None:
        """A person takes a refreshed table as it is: until it is refreshed, or was written over since it was taken before."""
        rewritten = any(one.end is None for one in self.dirty.values())
        for since, one in self.dirty.items():
            if one.until is None and one.accepted is None:
                self.dirty[since] = Dirty(accepted=made)
            elif one.until is None and rewritten:
                self.dirty[since] = evolve(one, until=made)


class Replay:
    """The ledger, as its history says so far.

    Args:
        tables: Every version that the ledger knows.
        before: What is taken as given: what was there before the first event that is remembered.
    """

    def __init__(self, tables: Mapping[int, Table], before: Mapping[int, Derived]) -> None:
        self._tables = tables
        self.tables: dict[int, Derived] = {
            key: Derived(list(known.pieces), list(known.marks), dict(known.dirty))
            for key, known in before.items()
        }
        self.settled: dict[str, dict[int, tuple[IntervalSet, int]]] = {}
        """By environment and version: what a promotion left settled, and at which revision."""
        self.made: dict[int, set[int]] = {}
        """By version: every revision at which some of it was made."""

    def of(self, version_id: int) -> Derived:
        """One table so far."""
        return self.tables.setdefault(version_id, Derived())

    def walk(self, events: Iterable[Event], at_begin: Callable[[Event], None]) -> None:
        """Apply all events in their order.

        Args:
            events: In the order in which they happened.
            at_begin: Is called for each commit when the replay is where the commit's batch had begun to read.
        """
        happened = list(events)
        commits = [e for e in happened if e.kind == "interval.committed"]
        waiting = sorted(commits, key=lambda e: (e.detail["read_revision"], e.event_id), reverse=True)
        for event in happened:
            # What has this batch's number or a lower one had happened when it began.
            while waiting and waiting[-1].detail["read_revision"] < event.revision:
                at_begin(waiting.pop())
            self.apply(event)
        while waiting:
            at_begin(waiting.pop())

    def apply(self, event: Event) -> None:
        """One event."""
        if event.kind in ("environment.promoted", "environment.changed"):
            self._promoted(event)
            return
        if event.version_id is None:
            return
        table, what = self.of(event.version_id), event.kind.removeprefix(_PREFIX)
        if event.kind == "table.tainted":
            table.dirty[event.detail["from_revision"]] = Dirty()
        elif event.interval is None:
            return
        elif what in _MARKS:
            written = event.detail.get("written")
            table.put(Mark(event.interval, what, event.revision, _interval(written) if written else None))
        elif what == "withdrawn":
            table.discharge(event.interval, event.revision, ("requested",))
        elif what == "added_elsewhere":
            read = event.revision - 1 if event.detail["trusted"] else 0
            self._record(event, event.interval, read, "foreign", None)
        elif what == "accepted":
            self._accepted(event, table, event.interval)
        elif what == "committed":
            self._committed(event, table, event.interval)

    def _record(self, event: Event, time: Interval, read: int, verdict: str, run_id: int | None) -> None:
        assert event.version_id is not None  # noqa: S101 - asked by the caller
        self.of(event.version_id).record(Piece(time, event.revision, read, run_id, verdict))
        self.made.setdefault(event.version_id, set()).add(event.revision)

    def _committed(self, event: Event, table: Derived, time: Interval) -> None:
        read = event.detail["read_revision"]
        stamped = IntervalSet([_interval(event.detail["stamped"])])
        touched = IntervalSet(map(_interval, event.detail.get("touched", ())))
        for old in [p for part in touched for p in table.meeting(part)]:
            for part in touched & IntervalSet([old.interval]):
                new = Piece(
                    part, old.revision, read, event.run_id, event.detail["verdict"], touched=event.revision
                )
                table.record(new)
        for part in stamped - touched:
            self._record(event, part, read, event.detail["verdict"], event.run_id)
        if changed := event.detail.get("changed_from"):
            table.restamp(datetime.fromisoformat(changed).astimezone(UTC), event.revision)
        kind = self._kind(event)
        if not kind.as_of:
            table.discharge(time, read)
            return
        if kind.reads_everything:
            table.marks = [m for m in table.marks if m.revision > read]
        elif kind.redoable:
            # A doubt about a table that merges ends when all that was being written has been written once more.
            table.marks = [kept for m in table.marks if (kept := _left(m, time, read)) is not None]
            table.discharge(time, read, ("removed", "requested", "lookback"))
        if not any(m.kind in ("failed", "suspect") for m in table.marks):
            table.repaired(event.revision)

    def _accepted(self, event: Event, table: Derived, time: Interval) -> None:
        if time != _ALL:  # of a whole table there may be a doubt and nothing missing
            self._record(event, time, event.revision - 1, "accepted", None)
            table.discharge(time, event.revision - 1)
        if self._kind(event).as_of:
            table.marks = [m for m in table.marks if m.kind not in ("failed", "suspect")]
            if self._kind(event).reads_everything:
                table.taken(event.revision)
            else:
                table.repaired(event.revision)

    def _kind(self, event: Event) -> Kind:
        assert event.version_id is not None  # noqa: S101 - asked by the caller
        return self._tables[event.version_id].kind

    def _promoted(self, event: Event) -> None:
        told = event.detail
        settled = self.settled.setdefault(told["environment"], {})
        for key in (*told["versions"], *told["removed"]):
            settled.pop(key, None)
        for key in told["versions"]:
            self.of(key).pieces = [evolve(p, revision=event.revision) for p in self.of(key).pieces]
            self.made.setdefault(key, set()).add(event.revision)
        if told["settled"] is not None:
            settled.clear()
            settled |= {
                one["version_id"]: (IntervalSet(map(_interval, one["spans"])), event.revision)
                for one in told["settled"]
            }


_ALL = Interval(MIN_INSTANT, MAX_INSTANT)


def _left(mark: Mark, time: Interval, read: int) -> Mark | None:
    """What is left of a doubt about a table that merges, when some of its time was written again."""
    if mark.kind not in ("failed", "suspect") or mark.revision > read:
        return mark
    if mark.batch is None or mark.batch.start == MIN_INSTANT:
        return None
    rest = (IntervalSet([mark.batch]) - IntervalSet([time])).hull
    return None if rest is None else evolve(mark, batch=rest)


def _interval(ends: Sequence[str | None]) -> Interval:
    start, end = (datetime.fromisoformat(e).astimezone(UTC) if e else None for e in ends)
    return Interval(start or MIN_INSTANT, end or MAX_INSTANT)
