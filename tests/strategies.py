"""Shared hypothesis strategies, and an oracle that knows time only as numbered cells of a grid.

The oracle is deliberately slow and shares no code with the package: units are stepped through one
by one with plain calendar arithmetic, and sets of time are Python sets of cell numbers.

`MESHGATE_EXAMPLES=10 pytest` tries ten times as many examples.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property

from attrs import frozen
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from meshgate.gate import Decision, Obstacle, ParentState, decide
from meshgate.graph import Edge, Kind, MeshGraph, ModelNode, Window
from meshgate.interval import Interval, IntervalSet, IntervalUnit

ORIGIN = datetime(2024, 1, 29, tzinfo=UTC)
"""Where the grids begin: soon after it come the end of a month and a leap day."""


def examples(count: int) -> settings:
    """Settings for a property that needs so many examples, scaled by MESHGATE_EXAMPLES."""
    factor = float(os.environ.get("MESHGATE_EXAMPLES", "1"))
    return settings(
        max_examples=max(1, int(count * factor)),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def instants(first: int = 1990, last: int = 2060) -> st.SearchStrategy[datetime]:
    """Any instant to the microsecond, and round ones more often than chance would give."""
    anything = st.datetimes(datetime(first, 1, 1), datetime(last, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
    hours = anything.map(lambda t: t.replace(minute=0, second=0, microsecond=0))
    days = hours.map(lambda t: t.replace(hour=0))
    return st.one_of(anything, hours, days, days.map(lambda t: t.replace(day=1)))


# --- the oracle: calendars -------------------------------------------------------------------

_MINUTES = {"five_minute": 5, "quarter_hour": 15, "half_hour": 30}


def unit_start(unit: IntervalUnit, instant: datetime) -> datetime:
    """The beginning of the unit that holds an instant."""
    if unit.value in _MINUTES:
        minute = instant.minute - instant.minute % _MINUTES[unit.value]
        return instant.replace(minute=minute, second=0, microsecond=0)
    floor = instant.replace(minute=0, second=0, microsecond=0)
    if unit.value != "hour":
        floor = floor.replace(hour=0)
    if unit.value in ("month", "year"):
        floor = floor.replace(day=1)
    return floor.replace(month=1) if unit.value == "year" else floor


def unit_after(unit: IntervalUnit, start: datetime) -> datetime:
    """The beginning of the unit after the one that begins here."""
    if unit.value in _MINUTES:
        return start + timedelta(minutes=_MINUTES[unit.value])
    if unit.value == "hour":
        return start + timedelta(hours=1)
    if unit.value == "day":
        return start + timedelta(days=1)
    return unit_start(unit, start + timedelta(days=31 if unit.value == "month" else 366))


def unit_stop(unit: IntervalUnit, instant: datetime) -> datetime:
    """The first beginning of a unit at or after an instant."""
    start = unit_start(unit, instant)
    return start if start == instant else unit_after(unit, start)


# --- the oracle: grids -----------------------------------------------------------------------


@frozen
class Grid:
    """So many cells of one length, and the units that make sense on it.

    Attributes:
        cell: The length of a cell.
        size: How many cells.
        units: Whose boundaries all lie between cells.
        offsets: Offsets for windows, whole cells each.
    """

    cell: timedelta
    size: int
    units: tuple[IntervalUnit, ...]
    offsets: tuple[timedelta, ...]

    @property
    def start(self) -> datetime:
        """The first instant of the grid: a boundary of all its units up to a month."""
        return ORIGIN

    @property
    def end(self) -> datetime:
        """The first instant after the grid."""
        return ORIGIN + self.size * self.cell

    def at(self, cell: int) -> datetime:
        """Where a cell begins."""
        return ORIGIN + cell * self.cell

    def cell_of(self, instant: datetime) -> int:
        """The number of the cell that holds an instant; negative before the grid."""
        return (instant - ORIGIN) // self.cell

    def cells(self, time: IntervalSet | Interval) -> set[int]:
        """The cells inside some time, which must consist of whole cells of the grid."""
        pieces = (time,) if isinstance(time, Interval) else time
        return {c for piece in pieces for c in range(self.cell_of(piece.start), self.cell_of(piece.end))}

    def set_of(self, cells: set[int]) -> IntervalSet:
        """The time of some cells, built from the bounds of their runs."""
        starts = sorted(cells - {c + 1 for c in cells})
        ends = sorted({c + 1 for c in cells} - cells)
        return IntervalSet(Interval(self.at(a), self.at(b)) for a, b in zip(starts, ends, strict=True))

    @cache  # noqa: B019 - there are three grids, and they live as long as the tests
    def units_in(self, unit: IntervalUnit) -> list[Interval]:
        """All whole units on the grid, in order. Do not change it."""
        found = []
        start = unit_stop(unit, self.start)
        while (stop := unit_after(unit, start)) <= self.end:
            found.append(Interval(start, stop))
            start = stop
        return found


_U = IntervalUnit
CLOCK = Grid(
    timedelta(minutes=5),
    4 * 288,
    (_U.FIVE_MINUTE, _U.QUARTER_HOUR, _U.HALF_HOUR, _U.HOUR, _U.DAY),
    tuple(timedelta(minutes=m) for m in (0, 0, 0, -5, -15, -30, -60, -90, -1440, -2880, 5, 30, 60, 1440)),
)
CALENDAR = Grid(
    timedelta(days=1),
    3 * 366,
    (_U.DAY, _U.MONTH, _U.YEAR),
    tuple(timedelta(days=d) for d in (0, 0, 0, -1, -7, -28, -31, -366, 1, 30)),
)
MIXED = Grid(
    timedelta(minutes=5),
    70 * 288,
    (_U.FIVE_MINUTE, _U.HOUR, _U.DAY, _U.MONTH),
    tuple(timedelta(minutes=m) for m in (0, 0, -5, -60, -1440, -7 * 1440, 1440)),
)


def cuts(grid: Grid) -> st.SearchStrategy[int]:
    """Cell numbers, half of them from a few, so that bounds of different things often coincide."""
    few = st.integers(0, 12).map(lambda k: k * grid.size // 12)
    return st.one_of(few, st.integers(0, grid.size))


def ranges(grid: Grid, *, most: int = 6) -> st.SearchStrategy[list[tuple[int, int]]]:
    """Ranges of cells, in any order, overlapping, touching or apart; never empty ones."""
    bounds = st.tuples(cuts(grid), cuts(grid)).filter(lambda b: b[0] != b[1])
    short = st.tuples(cuts(grid).filter(lambda c: c < grid.size - 4), st.integers(1, 4))
    return st.lists(
        st.one_of(bounds.map(lambda b: (min(b), max(b))), short.map(lambda r: (r[0], r[0] + r[1]))),
        max_size=most,
    )


def intervals_of(grid: Grid, cells: list[tuple[int, int]]) -> list[Interval]:
    """One interval for each range of cells."""
    return [Interval(grid.at(low), grid.at(high)) for low, high in cells]


def windows(grid: Grid) -> st.SearchStrategy[Window]:
    """Windows of all modes; the default is as frequent as it is in life."""
    offsets = st.sampled_from(grid.offsets)
    pairs = st.tuples(offsets, offsets).map(sorted)
    return st.one_of(
        st.just(Window()),
        pairs.map(lambda p: Window("interval", from_offset=p[0], to_offset=p[1])),
        offsets.map(lambda to: Window("latest", to_offset=to)),
        offsets.map(lambda to: Window("prefix", to_offset=to)),
    )


@st.composite
def lives(draw: st.DrawFn, grid: Grid) -> tuple[datetime | None, datetime | None]:
    """A start and an end, each possibly missing, not aligned to anything but cells."""
    low = draw(st.integers(-grid.size // 4, grid.size // 2))
    high = draw(st.integers(low + 1, grid.size + grid.size // 4))
    start = draw(st.sampled_from([None, grid.at(low), grid.at(low)]))
    end = draw(st.sampled_from([None, None, grid.at(high)]))
    return start, end


def node(
    name: str,
    unit: IntervalUnit,
    life: tuple[datetime | None, datetime | None] = (None, None),
    kind: Kind = Kind.INCREMENTAL_BY_TIME_RANGE,
    **fields: object,
) -> ModelNode:
    """A model with what tests do not care about filled in."""
    fields = {"project": "p", "version": "1", "cron": "@daily"} | fields
    return ModelNode(name=name, unit=unit, kind=kind, start=life[0], end=life[1], **fields)


def read_by(parent: ModelNode, window: Window, unit: Interval) -> tuple[datetime, datetime] | None:
    """The oracle's window: what one unit of a child reads of a parent, or None for nothing.

    Written from the description of windows, for one unit at a time.
    """
    grid = parent.unit
    born = unit_start(grid, parent.start) if parent.start else None
    dead = unit_stop(grid, parent.end) if parent.end else None
    stop = unit.end + window.to_offset
    if window.mode == "latest":
        stop = unit_start(grid, stop)
        stop = min(stop, dead) if dead else stop
        start = unit_start(grid, stop - timedelta(microseconds=1))
    else:
        start = unit.start + (
            window.from_offset if window.mode == "interval" else min(window.to_offset, timedelta(0))
        )
        start, stop = unit_start(grid, start), unit_stop(grid, stop)
        if window.mode == "prefix" and born:
            start = born
    start = max(start, born) if born else start
    stop = min(stop, dead) if dead else stop
    return (start, stop) if start < stop else None


# --- the oracle: the gate --------------------------------------------------------------------

REASONS = ("missing", "failed", "suspect", "removed", "held", "begun", "stale", "marked", "late", "not_due")
Cells = set[int]


@frozen(slots=False)
class Parent:
    """A parent as the oracle sees it: cells."""

    node: ModelNode
    window: Window
    covered: Cells
    obstacles: tuple[tuple[int, int, str], ...]
    produced: Cells

    def having(self, *reasons: str) -> Cells:
        return {c for low, high, reason in self.obstacles if reason in reasons for c in range(low, high)}

    @cached_property
    def clean(self) -> Cells:
        """The cells that open the gate to a reader whose patience is over."""
        good = self.covered - self.having("failed", "suspect", "removed")
        return (good | self.produced) - self.having("held", "begun")

    @cached_property
    def settled(self) -> Cells:
        """The cells that open the gate to any reader."""
        return self.clean - (self.having("stale", "marked") - self.produced)

    def fine(self, *, patient: bool) -> Cells:
        return self.settled if patient else self.clean


@frozen
class Scene:
    """A child, its parents, what is wanted, and when."""

    grid: Grid
    child: ModelNode
    reads_itself: bool
    parents: tuple[Parent, ...]
    wanted: tuple[Interval, ...]
    now: datetime
    patience: timedelta | None

    def graph(self) -> MeshGraph:
        nodes = [self.child, *(parent.node for parent in self.parents)]
        edges = [Edge("child", parent.node.name, parent.window) for parent in self.parents]
        return MeshGraph({n.name: n for n in nodes}, edges + [Edge("child", "child")] * self.reads_itself)

    def state(self) -> dict[str, ParentState]:
        return {
            parent.node.name: ParentState(
                self.grid.set_of(parent.covered),
                tuple(
                    Obstacle(Interval(self.grid.at(low), self.grid.at(high)), reason)
                    for low, high, reason in parent.obstacles
                ),
            )
            for parent in self.parents
        }

    def produced(self) -> dict[str, IntervalSet]:
        return {parent.node.name: self.grid.set_of(parent.produced) for parent in self.parents}

    def decide(self, wanted: IntervalSet | None = None, **changed) -> Decision:
        arguments = {"state": self.state(), "produced": self.produced(), "now": self.now} | changed
        wanted = IntervalSet(self.wanted) if wanted is None else wanted
        graph = arguments.pop("graph", None) or self.graph()
        return decide(graph, "child", wanted, patience=self.patience, **arguments)

    # The oracle from here on: unit by unit, cell by cell.

    def is_patient(self, unit: Interval) -> bool:
        if self.patience is None:
            return unit_after(self.child.unit, unit_after(self.child.unit, unit.end)) > self.now
        return unit.end + self.patience > self.now

    def lacks(self, parent: Parent, unit: Interval) -> Cells:
        """The cells that a unit reads and that keep it."""
        window = parent.window
        if self.child.kind.as_of and window == Window():
            window = Window("prefix")
        read = read_by(parent.node, window, unit)
        if read is None:
            return set()
        cells = set(range(self.grid.cell_of(read[0]), self.grid.cell_of(read[1])))
        return cells - parent.fine(patient=self.is_patient(unit))

    @property
    def in_order(self) -> bool:
        return self.child.kind.as_of or self.child.depends_on_past or self.reads_itself

    def ready_units(self) -> list[Interval]:
        """Unit after unit, until the first blocked one where order matters."""
        ready = []
        for unit in self.wanted:
            if not any(self.lacks(parent, unit) for parent in self.parents):
                ready.append(unit)
            elif self.in_order:
                break
        return ready


@st.composite
def scenes(draw: st.DrawFn, grid: Grid = CLOCK) -> Scene:
    """One to three parents, mostly covered, and up to 60 wanted units of a child of any sort."""
    unit = st.sampled_from(grid.units)
    size = grid.size
    kind = draw(st.sampled_from([Kind.INCREMENTAL_BY_TIME_RANGE] * 6 + [Kind.FULL, Kind.SCD_TYPE_2]))
    child = node("child", draw(unit), kind=kind, depends_on_past=draw(st.integers(0, 7)) == 0)
    units = grid.units_in(child.unit)
    first = draw(st.integers(0, len(units) - 1))
    wanted = units[first:][: draw(st.integers(1, 60))]
    gap = draw(st.integers(0, 120))
    # Obstacles are short and near what is wanted, or they would close the gate for all or for nothing.
    near, far = grid.cell_of(wanted[0].start), grid.cell_of(wanted[-1].end)
    short = st.tuples(st.integers(max(0, near - 40), min(size, far + 9)), st.integers(1, 30))
    some_ranges = st.lists(short.map(lambda r: (r[0], r[0] + r[1])), max_size=2)
    parents = []
    for index in range(draw(st.sampled_from([1, 1, 2, 3]))):
        parent = node(f"parent{index}", draw(unit), draw(lives(grid)))
        frontier = draw(st.one_of(st.integers(near, size), st.just(3 * size // 2)))
        covered = set(range(-size // 2, frontier))
        covered -= {c for low, high in draw(some_ranges) for c in range(low, high)}
        obstacles = [(low, high, draw(st.sampled_from(REASONS))) for low, high in draw(some_ranges)]
        produced = {c for low, high in draw(some_ranges) for c in range(low, high)}
        parents.append(Parent(parent, draw(windows(grid)), covered, tuple(obstacles), produced))
    now = grid.at(draw(st.integers(size // 2, size)))
    patience = draw(st.sampled_from([None, timedelta(0), 3 * child.unit.approximate, timedelta.max]))
    if patience == timedelta.max:
        patience = 10 * grid.size * grid.cell
    kept = tuple(piece for place, piece in enumerate(wanted) if place != gap)
    return Scene(grid, child, draw(st.integers(0, 9)) == 0, tuple(parents), kept, now, patience)
