"""What queries read, found in the queries: never less than they read, as DuckDB says, and rarely unknown."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, seed

from meshgate.graph import Kind, Window
from meshgate.interval import Interval, IntervalUnit
from meshgate.windows import Reading, beyond, infer, unclear
from strategies import examples
from window_queries import (
    CHILD,
    EMBEDDED,
    OTHER,
    PARENT,
    VIEW,
    Case,
    Oracle,
    cases,
    node_of,
    query_of,
    tables,
)

DAY, HOUR, FIVE = IntervalUnit.DAY, IntervalUnit.HOUR, IntervalUnit.FIVE_MINUTE
LEAP = Interval(datetime(2024, 2, 29, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC))
NOON = Interval(datetime(2025, 5, 14, 12, tzinfo=UTC), datetime(2025, 5, 14, 13, tzinfo=UTC))
# No output column tells the time, so that only the conditions count.
SUM = "SELECT 1 AS id, {start_dt} AS ts, sum(a.v) AS v FROM s.p AS a"


@cache
def oracle(interval: Interval) -> Oracle:
    return Oracle(interval)


def readings(
    sql: str, unit: IntervalUnit = DAY, *, typed: bool = False, dialect: str = "duckdb", column: str | None = "ts", **kind: Kind
) -> tuple[Reading, ...]:  # fmt: skip
    """What is inferred for a query of the model `child`."""
    nodes = {CHILD: node_of(CHILD, unit, **kind), PARENT: node_of(PARENT, HOUR), OTHER: node_of(OTHER, HOUR)}
    model = query_of(
        CHILD, sql, unit, dialect=dialect, parents=(PARENT, OTHER, VIEW, EMBEDDED, CHILD), time_column=column
    )
    return infer(model, nodes, tables(unit, typed=typed))


def hull(found: list[Reading], interval: Interval) -> tuple[datetime | None, datetime | None]:
    """What all readings of a table together claim for an interval; None: nothing is claimed on that side."""
    starts = [r.before.offset for r in found]
    ends = [r.after.offset for r in found]
    known_starts = [o for o in starts if o is not None]
    known_ends = [o for o in ends if o is not None]
    far = timedelta(days=9000)
    low = interval.start + min(known_starts, default=far)
    high = interval.end + max(known_ends, default=-far)
    return (low if len(known_starts) == len(starts) else None, high if len(known_ends) == len(ends) else None)


def case(sql: str, interval: Interval = LEAP, unit: IntervalUnit = DAY) -> Case:
    return Case(sql, unit, interval, typed=False)


@examples(60)
@given(cases())
# What a join keeps is not filtered by its condition; what an ASOF JOIN chooses from is not filtered by WHERE.
@example(
    case(
        "SELECT a.id, {start_dt} AS ts, b.v FROM s.p AS a LEFT JOIN s.q AS b ON a.k = b.k AND a.ts >= {start_dt}"
    )
)
@example(
    case(
        "SELECT b.id, b.ts, a.v FROM s.q AS b ASOF JOIN s.p AS a ON b.k = a.k AND b.ts >= a.ts WHERE a.ts < {start_dt}"
    )
)
@example(
    case(
        "SELECT count(a.id) AS id, {start_dt} AS ts FROM s.p AS a FULL JOIN s.q AS b ON a.id = b.id AND a.ts >= {start_dt}"
    )
)
@example(case("SELECT id, ts, lag(v) OVER (ORDER BY ts) AS v FROM s.p"))
@example(case("SELECT * FROM (SELECT * FROM s.p ORDER BY ts DESC LIMIT 40) AS a"))
# LIMIT over a set operation; a condition in one case only; months that are short; a string that is compared with a date.
@example(
    case(
        "SELECT * FROM (SELECT id, ts, v FROM s.p UNION ALL SELECT id, ts, v FROM s.q ORDER BY ts, id LIMIT 270) AS a"
    )
)
@example(case(f"{SUM} WHERE a.ts >= {{start_dt}} OR a.k = 1"))
@example(case(f"{SUM} WHERE a.ts + INTERVAL 1 MONTH <= {{end_dt}}"))
@example(case(f"{SUM} WHERE a.ts - INTERVAL 1 MONTH >= {{start_dt}}"))
@example(case(f"{SUM} WHERE CAST(a.ts AS DATE) >= {{start_ts}}", NOON, HOUR))
@example(case(f"{SUM} WHERE date_diff('day', a.ts, {{end_dt}}) <= 2", NOON, HOUR))
def test_inference_never_claims_less_than_is_read(drawn: Case) -> None:
    """Without all rows outside of the claimed window, the model writes the same."""
    claimed = readings(drawn.sql, drawn.unit, typed=drawn.typed)
    truth = oracle(drawn.interval)
    expected = truth.result(drawn)
    for table, name in (("p", PARENT), ("q", OTHER)):
        found = [r for r in claimed if r.parent == name]
        truth.only(table, *hull(found, drawn.interval))
        assert truth.result(drawn) == expected, (table, hull(found, drawn.interval))
        truth.only(table, None, None)


def test_inference_is_rarely_at_a_loss() -> None:
    """Of random queries, four sides in five are known; of a twentieth at most it says that it does not know."""
    counted: Counter[str] = Counter()

    @seed(7)
    @examples(150)
    @given(cases())
    def count(drawn: Case) -> None:
        for found in readings(drawn.sql, drawn.unit, typed=drawn.typed):
            counted.update((found.before.kept, found.after.kept))

    count()
    sides = sum(counted.values())
    assert counted["known"] >= 0.8 * sides, counted
    assert counted["unknown"] <= 0.05 * sides, counted


def test_a_known_window_is_no_wider_than_what_is_read() -> None:
    """The rows just inside both ends count, in queries of each sort that people write."""
    for sql in (
        "SELECT id, ts, v FROM s.p WHERE ts BETWEEN {start_dt} AND {end_dt}",
        "SELECT 1 AS id, {start_dt} AS ts, sum(v) AS v FROM s.p WHERE ts >= {start_dt} - INTERVAL 3 DAY AND ts < {after} + INTERVAL 5 HOUR",
        "SELECT a.id, a.ts, sum(b.v) AS v FROM s.p AS a JOIN s.p AS b ON b.ts BETWEEN a.ts - INTERVAL 2 DAY AND a.ts GROUP BY ALL",
        "SELECT 1 AS id, date_trunc('day', ts) AS ts, sum(v) AS v FROM s.p GROUP BY 2",
    ):
        drawn = case(sql)
        truth = oracle(drawn.interval)
        expected = truth.result(drawn)
        low, high = hull([r for r in readings(sql) if r.parent == PARENT], drawn.interval)
        assert low is not None
        assert high is not None
        inside = [at for at in truth.instants if low <= at < high]
        for at in (inside[0], inside[-1]):
            truth.without("p", at)
            assert truth.result(drawn) != expected, (sql, at)
        truth.without("p", None)


def test_an_embedded_model_is_read_for_its_readers_interval() -> None:
    """What it limits itself counts, in the reader's units: a day's beginning is one for a reader by five minutes too."""
    sql = "SELECT a.id, a.ts, a.v, a.k FROM s.inside AS a"
    (found,) = readings(sql, FIVE)
    assert (found.parent, found.through) == (PARENT, EMBEDDED)
    assert (found.before.offset, found.after.offset) == (timedelta(hours=-27, minutes=5), timedelta(0))
    (found,) = readings(sql, DAY)
    assert (found.before.offset, found.after.offset) == (timedelta(hours=-3), timedelta(0))


def said(found: tuple[Reading, ...], parent: str = PARENT) -> list[Any]:
    """Both sides of a parent, as days; text where it is no length."""

    def side(kept: str, offset: timedelta | None) -> Any:
        return kept if offset is None else offset / timedelta(days=1)

    return [
        (side(r.before.kept, r.before.offset), side(r.after.kept, r.after.offset))
        for r in found
        if r.parent == parent
    ]


# No output column tells the time, so that only the conditions count.
NOW = "SELECT {start_dt} AS ts, count(*) AS n FROM s.p AS a WHERE "


@pytest.mark.parametrize(
    ("dialect", "condition", "expected"),
    [
        ("duckdb", "ts >= {start_dt} - INTERVAL '7 days' AND ts < {after}", (-7, 0)),
        ("duckdb", "ts BETWEEN {start_dt} - to_days(7) AND {end_dt}", (-7, 0)),
        ("duckdb", "ts >= date_add({start_dt}, INTERVAL (-7) DAY) AND ts::DATE <= {end_ds}", (-7, 0)),
        ("duckdb", "datediff('day', ts, {end_dt}) BETWEEN 0 AND 6 AND ts < {after}", (-7 + 1 / 86400e6, 0)),
        ("duckdb", "ts >= date_trunc('month', {start_dt}) AND ts < {after}", (-30, 0)),
        ("duckdb", "ts >= {start_dt} - INTERVAL 3 MONTH AND ts <= {end_dt} + INTERVAL 1 DAY", (-92, 1)),
        ("databricks", "ts >= date_sub({start_ds}, 7) AND ts < date_add({end_ds}, 1)", (-7, 0)),
        ("databricks", "ts >= {start_dt} - INTERVAL 7 DAYS AND ts < dateadd(DAY, 1, {start_dt})", (-7, 0)),
        ("databricks", "to_date(ts) BETWEEN date_sub({start_ds}, 7) AND {end_ds}", (-7, 0)),
        ("databricks", "date_trunc('DAY', ts) >= {start_ts} AND date_format(ts, 'yyyy-MM-dd') <= {end_ds}", (0, 0)),
        ("databricks", "datediff({end_ds}, ts) < 7 AND datediff(ts, {end_ds}) <= 0", (-7 + 1 / 86400e6, 0)),
        ("databricks", "ts >= add_months({start_dt}, -1) AND ts < {after}", (-31, 0)),
        ("databricks", "trunc(ts, 'MM') = trunc({start_dt}, 'MM')", (-30, 30)),
        ("postgres", "ts >= {start_dt} - INTERVAL '1 week' AND ts < {after}", (-7, 0)),
        ("postgres", "ts::date BETWEEN {start_ds}::date - 7 AND {end_ds}::date", (-7, 0)),
        ("postgres", "date_trunc('day', ts) >= {start_dt} - '7 days'::interval AND to_char(ts, 'YYYY-MM-DD') <= {end_ds}", (-7, 0)),
        ("postgres", "{end_ds}::date - ts::date <= 7 AND ts < {after}", (-7, 0)),
        ("postgres", "ts >= {start_dt} - make_interval(days => 7) AND ts < {after}", (-7, 0)),
    ],
)  # fmt: skip
def test_date_arithmetic_of_the_dialects(dialect: str, condition: str, expected: tuple[float, float]) -> None:
    """Each spelling of the same window gives the same offsets, in days."""
    ((before, after),) = said(readings(NOW + condition, dialect=dialect))
    assert (before, after) == (pytest.approx(expected[0]), pytest.approx(expected[1]))


@pytest.mark.parametrize(
    ("condition", "expected", "reason"),
    [
        ("TRUE", ("unbounded", "unbounded"), None),
        ("a.k = 3", ("unbounded", "unbounded"), None),
        ("ts >= '2020-01-01' AND ts < {after}", ("unbounded", 0), None),
        ("ts >= current_date - 7 AND ts < {after}", ("unknown", 0), "it depends on the time of execution"),
        ("ts >= {execution} AND ts < {after}", ("unknown", 0), "it depends on the time of execution"),
        (
            "greatest(ts, ts) >= {start_dt} AND ts < {after}",
            ("unknown", 0),
            "GREATEST(ts, ts) is not understood",
        ),
        (
            "a.loaded_at >= {start_dt} AND ts < {after}",
            ("unknown", 0),
            "it limits loaded_at, not the time column",
        ),
        ("ts IN (SELECT b.ts FROM s.q AS b)", ("unknown", "unknown"), "it is no comparison of times"),
        ("epoch(ts) >= 5 AND ts < {after}", ("unknown", 0), "TIME_TO_UNIX(ts) is not understood"),
    ],
)
def test_what_is_not_limited_is_told_from_what_is_not_understood(
    condition: str, expected: tuple[Any, Any], reason: str | None
) -> None:
    """It says "unbounded" where no condition speaks of the parent's time, "unknown" where one does and cannot be followed."""
    found = [r for r in readings(NOW + condition) if r.parent == PARENT]
    assert said(tuple(found)) == [expected]
    assert found[0].unknown == reason


def test_what_cannot_be_read_at_all_is_unknown() -> None:
    """No SQL, a query that is another one for each interval, a recursive one, joins in parentheses, parents without a time."""

    def reasons(sql: str) -> set[str | None]:
        return {r.unknown for r in readings(sql)}

    nodes = {CHILD: node_of(CHILD, DAY)}
    bare = query_of(CHILD, "SELECT 1", DAY, parents=(PARENT,))
    assert (
        infer(type(bare)(CHILD, (PARENT,), problem="it is a python model"), nodes, {})[0].unknown
        == "it is a python model"
    )
    assert reasons("WITH RECURSIVE r AS (SELECT * FROM s.p UNION ALL SELECT * FROM r) SELECT * FROM r") == {
        "r is recursive"
    }
    assert reasons("SELECT a.ts FROM (s.p AS a JOIN s.q AS b ON a.ts = b.ts)") == {
        "it is read where no table is expected"
    }
    by_hour = query_of(
        CHILD, "SELECT ts FROM s.p WHERE ts >= {start_dt}", DAY, parents=(PARENT,), time_column="ts"
    )
    other = query_of(CHILD, "SELECT ts FROM s.p", DAY, parents=(PARENT,), time_column="ts")
    mixed = type(bare)(CHILD, (PARENT,), (by_hour.renderings[0], *other.renderings[1:]), "ts")
    assert (
        infer(mixed, nodes, tables(DAY, typed=False))[0].unknown
        == "its query is another one for each interval"
    )
    untimed = {PARENT: type(bare)(PARENT)}
    assert infer(other, nodes, untimed)[0].unknown == "it is not partitioned by time"
    assert infer(other, nodes, {})[0].unknown == "its time column is not known here"


def test_the_place_is_the_line_that_says_it() -> None:
    """Of several conditions the one that sets the limit, and its line; of none, where the parent is named."""
    sql = "SELECT {start_dt} AS ts\nFROM s.p AS a\nWHERE a.k = 1\n  AND a.ts >= {start_dt} - INTERVAL 6 DAY\n  AND a.ts >= {start_dt} - INTERVAL 9 DAY"
    found = next(r for r in readings(sql) if r.parent == PARENT)
    assert found.before.place is not None
    assert (found.before.place.line, found.before.place.expression) == (
        4,
        "a.ts >= {start_dt} - INTERVAL 6 DAY",
    )
    assert found.after.place is not None
    assert (found.after.kept, found.after.place.line) == ("unbounded", 2)


def test_a_view_is_looked_through_and_named() -> None:
    """Also below a CTE: the reading is of the table, through what the reader's own query names."""
    found = readings("WITH c AS (SELECT moment AS ts FROM s.seen) SELECT * FROM c")
    assert [(r.parent, r.through) for r in found] == [(PARENT, VIEW)]
    assert said(found) == [(0, 0)]


@pytest.mark.parametrize(
    ("inlined", "condition", "expected"),
    [
        (True, "ts BETWEEN {start_dt} AND {end_dt}", (0, 0)),
        (True, "ts >= {start_ds} AND ts <= {end_dt}", (-23, 0)),
        (False, "ts BETWEEN {start_dt} AND {end_dt}", None),
    ],
)
def test_an_embedded_model_is_of_its_readers_interval_and_a_view_of_none(
    inlined: bool, condition: str, expected: tuple[int, int] | None
) -> None:
    """What is rounded to a day is, however short the reader's intervals; hours of what is read before and after those."""
    part = query_of(
        VIEW,
        f"SELECT * FROM s.p WHERE {condition}",
        FIVE,
        parents=[PARENT],
        transparent=True,
        inlined=inlined,
    )
    model = query_of(
        CHILD,
        "SELECT 1 AS id, {start_dt} AS ts, sum(a.v) AS v FROM s.seen AS a",
        HOUR,
        parents=[VIEW],
        time_column="ts",
    )
    nodes = {CHILD: node_of(CHILD, HOUR), PARENT: node_of(PARENT, HOUR)}
    (found,) = infer(model, nodes, tables(HOUR, typed=True) | {VIEW: part})
    sides = (found.before, found.after)
    if expected is None:
        assert {side.kept for side in sides} == {"unbounded"}
    else:
        assert tuple(side.offset for side in sides) == tuple(timedelta(hours=h) for h in expected)


def declared(
    sql: str, *windows: Window, unit: IntervalUnit = DAY, parent: IntervalUnit = HOUR, **kind: Kind
) -> tuple[bool, bool]:
    """Whether a query reads before and after what is declared."""
    node = node_of(CHILD, unit, **kind)
    column = "ts" if not kind else None
    found = next(r for r in readings(sql, unit, column=column, **kind) if r.parent == PARENT)
    before, after = beyond(found, node, node_of(PARENT, parent), windows or (Window(),))
    return before is not None, after is not None


def test_beyond_is_judged_in_whole_intervals_of_the_parent() -> None:
    """A day that reads up to 23:30 of the day before is beyond for hours, not for days; so is a closed end."""
    week = NOW + "ts >= {start_dt} - INTERVAL 6 DAY AND ts < {after}"
    assert declared(week) == (True, False)
    assert declared(week, Window(from_offset=timedelta(days=-6))) == (False, False)
    assert declared(week, Window(from_offset=timedelta(days=-5))) == (True, False)
    assert declared(week, Window(from_offset=timedelta(days=-9)), Window()) == (False, False)
    closed = NOW + "ts BETWEEN {start_dt} AND {after}"
    assert declared(closed) == (False, True)
    assert declared(closed, Window(to_offset=timedelta(hours=1))) == (False, False)
    hours = NOW + "ts::DATE BETWEEN {start_ds} AND {end_ds}"
    assert declared(hours, unit=HOUR) == (True, True)
    assert declared(hours, unit=HOUR, parent=DAY) == (False, False)


def test_what_is_meant_to_read_everything_is_never_beyond() -> None:
    """`latest` and `ungated` say so; `prefix` does for the past; a table that is one whole reads what is there."""
    everything = NOW + "TRUE"
    assert declared(everything) == (True, True)
    assert declared(everything, Window("latest")) == (False, False)
    assert declared(everything, Window("ungated")) == (False, False)
    assert declared(everything, Window("prefix")) == (False, True)
    assert declared(everything, Window("prefix"), kind=Kind.FULL) == (False, False)
    assert declared(NOW + "ts < {after} + INTERVAL 1 DAY", Window("prefix"), kind=Kind.FULL) == (False, True)


def test_what_is_not_known_is_told_only_where_it_matters() -> None:
    """Not of the past where all of it is declared, nor of anything where a table is refreshed as a whole or looked up."""
    sql = NOW + "ts >= current_date - 7"
    child = node_of(CHILD, DAY)
    (reading,) = (r for r in readings(sql) if r.parent == PARENT)
    side = unclear(reading, child, [Window()])
    assert side is not None
    assert side.reason == "it depends on the time of execution"
    assert side.place is not None
    assert side.place.line == 1
    assert unclear(reading, child, [Window("latest")]) is None
    assert unclear(reading, child, [Window("prefix")]) is reading.after
    assert unclear(reading, node_of(CHILD, DAY, Kind.FULL), [Window("prefix")]) is None
