"""Intervals, their sets and their units, each against a slower way to say the same."""

from __future__ import annotations

import os
import pickle
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshgate.errors import IntervalError
from meshgate.interval import (
    MAX_INSTANT,
    MIN_INSTANT,
    Interval,
    IntervalSet,
    IntervalUnit,
    offset_by,
    parse_instant,
)
from strategies import (
    CLOCK,
    cuts,
    examples,
    instants,
    intervals_of,
    ranges,
    unit_after,
    unit_start,
    unit_stop,
)

CELLS = ranges(CLOCK)
UNITS = st.sampled_from(IntervalUnit)


def build(cells: list[tuple[int, int]]) -> tuple[IntervalSet, set[int]]:
    """The same time as a set of intervals and as a set of cells."""
    return IntervalSet(intervals_of(CLOCK, cells)), {c for low, high in cells for c in range(low, high)}


def moment(text: str) -> datetime:
    return parse_instant(text)


# --- one interval ---------------------------------------------------------------------------


def test_the_end_is_exclusive():
    """An interval holds its start and not its end."""
    hour = Interval.parse("2026-01-01T03:00/2026-01-01T04:00")
    assert hour.contains(hour.start)
    assert not hour.contains(hour.end)


def test_touching_is_not_overlapping():
    """Two intervals that share only a bound share no time."""
    first = Interval.parse("2026-01-01T03:00/2026-01-01T04:00")
    second = Interval.parse("2026-01-01T04:00/2026-01-01T05:00")
    assert not first.overlaps(second)
    assert first.intersect(second) is None


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (datetime(2026, 1, 1), datetime(2026, 1, 2, tzinfo=UTC)),  # noqa: DTZ001
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1)))),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
        (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)),
        (datetime(2026, 1, 2, tzinfo=UTC), datetime(9999, 1, 2, tzinfo=UTC)),
        ("2026-01-01", datetime(2026, 1, 2, tzinfo=UTC)),
    ],
    ids=["naive", "other offset", "empty", "backwards", "beyond time", "text"],
)
def test_a_bad_interval_cannot_be_made(start: datetime, end: datetime):
    """An interval has UTC instants and a positive length, or it does not exist."""
    with pytest.raises(IntervalError):
        Interval(start, end)


def test_utc_under_another_name_is_utc():
    """An instant whose offset is zero is taken, and spelled like all others."""
    start = datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/London"))
    assert Interval(start, moment("2026-01-02")).start.tzinfo is UTC


@given(instants(), st.timedeltas(timedelta(microseconds=1), timedelta(days=900)))
@examples(200)
def test_what_is_printed_can_be_read(start: datetime, length: timedelta):
    """`parse` reads back exactly what `str` prints, to the microsecond."""
    interval = Interval(start, start + length)
    assert Interval.parse(str(interval)) == interval


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-01T03:00/2026-01-01T04:00",
        "2026-01-01 03:00..2026-01-01 04:00",
        "[2026-01-01 03:00, 2026-01-01 04:00)",
        "[2026-01-01 03:00, 04:00)",
        " 2026-01-01T03:00Z / 2026-01-01T04:00:00+00:00 ",
    ],
)
def test_all_spellings_mean_the_same(text: str):
    """Slash, dots and brackets are three spellings of one interval."""
    assert str(Interval.parse(text)) == "[2026-01-01 03:00, 04:00)"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-01",
        "yesterday/today",
        "2026-01-01T00:00+01:00/2026-01-02",
        "2026-01-02/2026-01-01",
        "a/b/c",
    ],
)
def test_unreadable_text_is_refused_with_exit_code_2(text: str):
    """What cannot be read as UTC `START/END` is wrong input, not a guess."""
    with pytest.raises(IntervalError) as caught:
        Interval.parse(text)
    assert caught.value.exit_code == 2


# --- sets -----------------------------------------------------------------------------------


@given(CELLS)
@examples(200)
def test_a_set_is_always_normalised(cells: list[tuple[int, int]]):
    """However it is built, a set is sorted, its intervals apart, and it holds exactly its cells."""
    built, plain = build(cells)
    pieces = list(built)
    assert all(left.end < right.start for left, right in pairwise(pieces))
    assert CLOCK.cells(built) == plain


@given(CELLS, st.randoms(use_true_random=False))
@examples(200)
def test_equal_time_is_an_equal_set(cells: list[tuple[int, int]], random):
    """Sets of the same time are equal and hash alike, whatever rows they came from."""
    built, plain = build(cells)
    rows = [Interval(CLOCK.at(c), CLOCK.at(c + 1)) for c in plain]
    random.shuffle(rows)
    again = IntervalSet(rows)
    assert again == built
    assert hash(again) == hash(built)


@given(CELLS, CELLS)
@examples(300)
def test_union_intersection_and_difference_are_those_of_cells(left, right):
    """The three operations agree with Python's sets, and leave their results normalised."""
    (a, cells_a), (b, cells_b) = build(left), build(right)
    assert a | b == CLOCK.set_of(cells_a | cells_b)
    assert a & b == CLOCK.set_of(cells_a & cells_b)
    assert a - b == CLOCK.set_of(cells_a - cells_b)


@given(CELLS, CELLS)
@examples(300)
def test_subset_is_that_of_cells(left, right):
    """`<=` and `covers` agree with Python's subset, for sets and for single intervals."""
    (a, cells_a), (b, cells_b) = build(left), build(right)
    assert (a <= b) == (cells_a <= cells_b) == b.covers(a)
    assert (a & b) <= a <= (a | b)
    for piece in a:
        assert b.covers(piece) == (CLOCK.cells(piece) <= cells_b)


def bounds(plain: set[int], *more: int) -> list[int]:
    """Where something changes, and some cells more."""
    return sorted(
        {c for c in plain if c - 1 not in plain} | {c + 1 for c in plain if c + 1 not in plain} | {*more}
    )


@given(CELLS, cuts(CLOCK))
@examples(200)
def test_containing_an_instant_is_that_of_cells(cells, somewhere: int):
    """An instant lies in a set exactly if its cell does, at every bound, before and after it."""
    built, plain = build(cells)
    for bound in bounds(plain, somewhere):
        for cell in (bound - 1, bound, bound + 1):
            assert built.contains(CLOCK.at(cell)) == (cell in plain)
            assert built.contains(CLOCK.at(cell) + timedelta(minutes=1)) == (cell in plain)


@given(CELLS, cuts(CLOCK))
@examples(200)
def test_clipping_is_intersection_with_one_interval(cells, somewhere: int):
    """`clip` is `&` with a range, from any bound to any other, also with an empty range."""
    built, plain = build(cells)
    places = bounds(plain, somewhere)
    for low in places:
        for high in places:
            assert built.clip(CLOCK.at(low), CLOCK.at(high)) == CLOCK.set_of(plain & set(range(low, high)))


@given(CELLS)
@examples(200)
def test_measures_are_those_of_cells(cells):
    """Duration, hull, first, last, length and truth agree with the cells."""
    built, plain = build(cells)
    assert built.duration == len(plain) * CLOCK.cell
    assert bool(built) == bool(plain) == (built.hull is not None)
    assert len(built) == sum(c - 1 not in plain for c in plain)
    if plain:
        assert built.hull == Interval(CLOCK.at(min(plain)), CLOCK.at(max(plain) + 1))
        assert built.first.start == built.hull.start
        assert built.last.end == built.hull.end


def test_a_set_cannot_be_changed_and_survives_pickling():
    """A set is a value."""
    one = IntervalSet.of(moment("2026-01-01"), moment("2026-01-02"))
    with pytest.raises(AttributeError):
        one._pieces = ()
    assert pickle.loads(pickle.dumps(one)) == one  # noqa: S301


def test_a_range_without_length_is_the_empty_set():
    """`of` of nothing is nothing, and everything minus everything is nothing."""
    assert IntervalSet.of(moment("2026-01-02"), moment("2026-01-01")) == IntervalSet.empty()
    assert IntervalSet.everything() - IntervalSet.everything() == IntervalSet()
    assert str(IntervalSet.empty()) == "nothing"


@given(UNITS, instants())
@examples(300)
def test_floor_ceil_next_and_previous_are_the_neighbouring_boundaries(unit: IntervalUnit, instant: datetime):
    """All four agree with stepping through the calendar."""
    start = unit_start(unit, instant)
    assert unit.floor(instant) == start
    assert unit.ceil(instant) == unit_stop(unit, instant)
    assert unit.next(instant) == unit_after(unit, start)
    assert unit.previous(instant) == unit_start(unit, instant - timedelta(microseconds=1))
    assert unit.is_aligned(instant) == (start == instant)


@given(UNITS, instants(), st.integers(-40, 40))
@examples(200)
def test_shift_is_as_many_steps(unit: IntervalUnit, instant: datetime, count: int):
    """Shifting by n is n times `next`, or `previous`, from the floor."""
    stepped = unit.floor(instant)
    for _ in range(abs(count)):
        stepped = unit.next(stepped) if count > 0 else unit.previous(stepped)
    assert unit.shift(instant, count) == stepped


@given(UNITS, instants(), st.timedeltas(timedelta(minutes=1), timedelta(days=1200)))
@examples(200)
def test_outward_is_the_least_and_inward_the_greatest_whole_units(unit, start: datetime, length: timedelta):
    """Outward is all units touched, inward all units held: nothing between them and the interval."""
    interval = Interval(start, start + length)
    outward, inward = unit.outward(interval), unit.inward(interval)
    assert outward == Interval(unit_start(unit, start), unit_stop(unit, interval.end))
    assert inward == IntervalSet.of(unit_stop(unit, start), unit_start(unit, interval.end))


@given(st.sampled_from(CLOCK.units), CELLS)
@examples(200)
def test_aligning_a_set_is_aligning_by_units(unit: IntervalUnit, cells):
    """A unit is in the outward set if any of its cells is in the set, in the inward one if all are."""
    built, plain = build(cells)
    outward, inward = unit.outward(built), unit.inward(built)
    for whole in CLOCK.units_in(unit):
        inside = CLOCK.cells(whole)
        assert outward.covers(whole) == bool(inside & plain)
        assert inward.covers(whole) == (inside <= plain)
    assert inward <= built <= outward


@given(UNITS, instants(), st.integers(1, 30), st.timedeltas(timedelta(0), timedelta(days=40)))
@examples(200)
def test_splitting_gives_back_the_interval(unit: IntervalUnit, start: datetime, units: int, extra: timedelta):
    """The parts of a split join to the interval, and meet at boundaries only."""
    interval = Interval(start, unit.shift(start, units) + (extra % unit.approximate))
    parts = list(unit.split(interval))
    assert IntervalSet(parts) == IntervalSet([interval])
    assert all(left.end == right.start for left, right in pairwise(parts))
    assert all(unit.is_aligned(part.start) for part in parts[1:])
    assert unit.count(interval) == len(parts)


def test_calendar_units_have_the_length_of_the_calendar():
    """February has 29 days in 2024 and 28 in 2025; so have the years one day more and less."""
    month, year = IntervalUnit.MONTH, IntervalUnit.YEAR
    assert month.next(moment("2024-02-01")) - moment("2024-02-01") == timedelta(days=29)
    assert month.next(moment("2025-02-01")) - moment("2025-02-01") == timedelta(days=28)
    assert month.shift(moment("2024-01-31"), 1) == moment("2024-02-01")
    assert month.previous(moment("2024-01-01")) == moment("2023-12-01")
    assert year.next(moment("2024-06-01")) == moment("2025-01-01")
    assert year.count(Interval.parse("2023-12-31/2025-01-02")) == 3


@pytest.mark.parametrize("unit", IntervalUnit)
def test_time_has_ends_and_units_stop_there(unit: IntervalUnit):
    """Both ends of time are boundaries of every unit, and nothing moves beyond them."""
    assert unit.is_aligned(MIN_INSTANT)
    assert unit.is_aligned(MAX_INSTANT)
    assert unit.previous(MIN_INSTANT) == MIN_INSTANT
    assert unit.next(MAX_INSTANT) == MAX_INSTANT
    assert offset_by(MAX_INSTANT, timedelta(days=-7)) == MAX_INSTANT
    assert offset_by(MIN_INSTANT + timedelta(days=1), timedelta(days=-7)) == MIN_INSTANT


# --- contract with SQLMesh ------------------------------------------------------------------


@pytest.fixture(scope="module")
def sqlmesh_unit():
    """SQLMesh's own enumeration of units."""
    os.environ["SQLMESH__DISABLE_ANONYMIZED_ANALYTICS"] = "true"
    from sqlmesh.core.node import IntervalUnit as Theirs

    return Theirs


def test_the_units_are_those_of_sqlmesh(sqlmesh_unit):
    """The same seven values, each as long as SQLMesh takes it to be."""
    assert [unit.value for unit in IntervalUnit] == [unit.value for unit in sqlmesh_unit]
    for unit in IntervalUnit:
        theirs = sqlmesh_unit(unit.value)
        assert unit.approximate == timedelta(milliseconds=theirs.milliseconds)


@given(unit=UNITS, instant=instants(2000, 2040))
@examples(400)
def test_boundaries_are_those_of_sqlmesh(sqlmesh_unit, unit: IntervalUnit, instant: datetime):
    """`floor`, `next` and `previous` are SQLMesh's `cron_floor`, `cron_next` and `cron_prev`."""
    instant = instant.replace(microsecond=instant.microsecond // 1000 * 1000)
    theirs = sqlmesh_unit(unit.value)
    assert unit.floor(instant) == theirs.cron_floor(instant)
    assert unit.next(instant) == theirs.cron_next(instant)
    assert unit.previous(instant) == theirs.cron_prev(instant)


@given(unit=UNITS, start=instants(2000, 2040), count=st.integers(1, 60))
@examples(100)
def test_splitting_is_sqlmeshs_expanding(sqlmesh_unit, unit: IntervalUnit, start: datetime, count: int):
    """`split` cuts where SQLMesh's `expand_range` does, also when the end is not a boundary."""
    from sqlmesh.core.snapshot.definition import expand_range
    from sqlmesh.utils.date import to_datetime, to_timestamp

    interval = Interval(unit.floor(start), unit.shift(start, count) + timedelta(minutes=count % 5))
    cuts = expand_range(to_timestamp(interval.start), to_timestamp(interval.end), sqlmesh_unit(unit.value))
    assert [interval.start, *(part.end for part in unit.split(interval))] == [to_datetime(c) for c in cuts]
