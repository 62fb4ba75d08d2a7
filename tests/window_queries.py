"""Random queries over two tables by time, made from known pieces, and what DuckDB says they read.

The oracle knows nothing of windows: a row is read if the result is another one without it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from string import Template
from typing import TYPE_CHECKING, Any

import duckdb
import sqlglot
from attrs import frozen
from hypothesis import strategies as st

from meshgate.graph import Kind, ModelNode
from meshgate.interval import Interval, IntervalUnit
from meshgate.windows import ModelQuery, Rendering, bounds_to_render

if TYPE_CHECKING:
    from collections.abc import Iterable

CHILD, PARENT, OTHER, VIEW = '"s"."child"', '"s"."p"', '"s"."q"', '"s"."seen"'
EMBEDDED = '"s"."inside"'
MICROSECOND = timedelta(microseconds=1)
VIEW_SQL = "SELECT id, ts AS moment, v, k FROM s.p WHERE k < 9"
EMBEDDED_SQL = (
    "WITH b AS (SELECT *, row_number() OVER (PARTITION BY k ORDER BY ts) AS n FROM s.p"
    " WHERE ts >= CAST({start_ds} AS TIMESTAMP) - INTERVAL 3 HOUR AND ts < {after}) SELECT id, ts, v + n AS v, k FROM b"
)
COLUMNS = {"id": "BIGINT", "ts": "TIMESTAMP", "v": "BIGINT", "k": "BIGINT"}


def rendered(sql: str, interval: Interval, execution: datetime) -> str:
    """A template filled in as SQLMesh fills in its macros."""
    last = interval.end - MICROSECOND
    return sql.format(
        start_ts=f"'{interval.start:%Y-%m-%d %H:%M:%S}'",
        end_ts=f"'{last:%Y-%m-%d %H:%M:%S.%f}'",
        start_dt=f"CAST('{interval.start:%Y-%m-%d %H:%M:%S}' AS TIMESTAMP)",
        end_dt=f"CAST('{last:%Y-%m-%d %H:%M:%S.%f}' AS TIMESTAMP)",
        start_ds=f"'{interval.start:%Y-%m-%d}'",
        end_ds=f"'{last:%Y-%m-%d}'",
        after=f"CAST('{interval.end:%Y-%m-%d %H:%M:%S}' AS TIMESTAMP)",
        execution=f"CAST('{execution:%Y-%m-%d %H:%M:%S.%f}' AS TIMESTAMP)",
    )


def query_of(
    name: str,
    sql: str,
    unit: IntervalUnit,
    *,
    dialect: str = "duckdb",
    parents: Iterable[str] = (),
    **more: Any,
) -> ModelQuery:
    """A model's query, rendered for all the intervals that are asked for."""
    renderings = tuple(
        Rendering(interval, execution, sqlglot.parse_one(rendered(sql, interval, execution), dialect=dialect))
        for interval, execution in bounds_to_render(unit)
    )
    return ModelQuery(name, tuple(parents), renderings, dialect=dialect, text=sql, **more)


def node_of(name: str, unit: IntervalUnit, kind: Kind = Kind.INCREMENTAL_BY_TIME_RANGE) -> ModelNode:
    """A model as the graph knows it."""
    return ModelNode(name, "p", "1", kind, unit, "@daily")


def tables(unit: IntervalUnit, *, typed: bool) -> dict[str, ModelQuery]:
    """What there is to read: two tables by time, and on the first a view and an embedded model."""
    columns = COLUMNS if typed else None
    return {
        PARENT: ModelQuery(PARENT, time_column="ts", columns=columns),
        OTHER: ModelQuery(OTHER, time_column="ts", columns=columns),
        VIEW: query_of(VIEW, VIEW_SQL, unit, parents=[PARENT], transparent=True),
        EMBEDDED: query_of(
            EMBEDDED,
            EMBEDDED_SQL,
            IntervalUnit.FIVE_MINUTE,
            parents=[PARENT],
            transparent=True,
            inlined=True,
        ),
    }


@frozen
class Case:
    """A query, of the model `child` whose time column is `ts`."""

    sql: str
    unit: IntervalUnit
    interval: Interval
    typed: bool


def _filled(template: str, n: int, **parts: str) -> str:
    numbers = {"n": n, "n1": n + 1, "n5": n * 5, "n7": n + 7, "n9": n * 9, "n10": n * 9 + 1}
    return Template(template).substitute(parts, **numbers)


# Conditions on one column of timestamps. `n` is a small number.
LOWER: tuple[str, ...] = (
    "${c} >= {start_dt} - INTERVAL '${n} hours'",
    "${c} > {start_ts}::TIMESTAMP - INTERVAL ${n} DAY",
    "${c} >= {start_ts}",
    "{start_dt} <= ${c} + INTERVAL '${n}' HOUR",
    "CAST(${c} AS DATE) >= {start_ds}::DATE - ${n}",
    "date_trunc('day', ${c}) > {start_dt} - INTERVAL ${n} DAY",
    "NOT (${c} < {after} - INTERVAL '${n} days')",
    "${c} >= date_trunc('month', {start_dt})",
    "${c} >= {end_dt} - INTERVAL 1 MONTH",
    "date_diff('day', ${c}, {end_dt}) <= ${n}",
    "{start_ds}::DATE - ${c}::DATE < ${n1}",
    "date_trunc('hour', ${c}) >= {start_ts}",
    "CAST(${c} AS DATE) >= {start_ts}",
    "strftime(${c}, '%Y-%m-%d') >= strftime({start_dt} - INTERVAL ${n} DAY, '%Y-%m-%d')",
    "date_trunc('week', ${c}) >= date_trunc('week', {start_dt})",
    "${c} >= greatest({start_dt}, {execution})",
    "last_day(${c}) >= {start_ds}",
    # Less than the interval, so that nothing else hides what these say.
    "${c} >= {start_dt} + INTERVAL ${n5} MINUTE",
    "${c} > {end_ts}::TIMESTAMP - INTERVAL ${n10} MINUTE",
)
UPPER: tuple[str, ...] = (
    "${c} <= {end_dt}",
    "${c} < {after}",
    "${c} < {after} + INTERVAL '${n} hours'",
    "CAST(${c} AS DATE) <= {end_ds}",
    "${c}::DATE <= {end_ds}::DATE + ${n}",
    "date_trunc('day', ${c}) <= {end_dt}",
    "date_trunc('month', ${c}) <= {end_dt}",
    "${c} - INTERVAL ${n} DAY < {end_ts}",
    "NOT ${c} >= {start_dt} + INTERVAL ${n1} DAY",
    "${c} <= date_trunc('month', {end_dt}) + INTERVAL 1 MONTH",
    "date_diff('hour', {end_dt}, ${c}) < ${n}",
    "strftime(${c}, '%Y-%m-%d') <= {end_ds}",
    "${c} <= {execution}",
    "last_day(${c}) <= {end_ds}",
    "${c} < {after} - INTERVAL ${n5} MINUTE",
    "${c} <= {start_ts}::TIMESTAMP + INTERVAL ${n9} MINUTE",
)
BOTH: tuple[str, ...] = (
    "${c} BETWEEN {start_dt} AND {end_dt}",
    "${c} BETWEEN {start_dt} AND {after}",
    "CAST(${c} AS DATE) BETWEEN {start_ds}::DATE - ${n} AND {end_ds}",
    "${c}::DATE IN ({start_ds}::DATE - ${n}, {end_ds}::DATE)",
    "${c}::DATE = {start_ds}",
    (
        "((${c} >= {start_dt} AND ${c} < {after}) OR (${c} >= {start_dt} - INTERVAL ${n7} DAY"
        " AND ${c} < {after} - INTERVAL ${n7} DAY))"
    ),
    "NOT (${c} NOT BETWEEN {start_dt} - INTERVAL ${n} HOUR AND {end_dt})",
)
BESIDE = ("{a}.k = 1", "{a}.k IN (1, 2)", "({a}.k = 1 OR {a}.v > 50)", "{a}.v IS NOT NULL", "TRUE")


@st.composite
def conditions(draw: st.DrawFn, column: str, alias: str) -> str:
    """Some conditions on a column: both sides, one, or none, and others beside them."""
    said = []
    number = st.integers(0, 4)
    shape = draw(st.sampled_from(("both", "both", "pair", "pair", "pair", "lower", "upper", "none")))
    if shape == "both":
        said.append(_filled(draw(st.sampled_from(BOTH)), draw(number), c=column))
    if shape in ("pair", "lower"):
        said.append(_filled(draw(st.sampled_from(LOWER)), draw(number), c=column))
    if shape in ("pair", "upper"):
        said.append(_filled(draw(st.sampled_from(UPPER)), draw(number), c=column))
    if draw(st.booleans()):
        said.append(draw(st.sampled_from(BESIDE)).format(a=alias))
    return " AND ".join(draw(st.permutations(said))) or "TRUE"


@st.composite
def rows(draw: st.DrawFn, depth: int = 2) -> str:
    """A query with the columns id, ts, v, k."""
    where = draw(conditions("a.ts", "a"))
    base = draw(st.sampled_from(("s.p", "s.p", "s.q", "s.inside", "seen")))
    start = "SELECT a.id, a.ts, a.v, a.k"
    table = f"{base} AS a" if base != "seen" else "(SELECT id, moment AS ts, v, k FROM s.seen) AS a"
    if depth == 0:
        return f"{start} FROM {table} WHERE {where}"
    shape = draw(st.sampled_from(sorted(SHAPES)))
    inner, other = draw(rows(depth - 1)), draw(rows(depth - 1))
    n = draw(st.integers(0, 4))
    by_day = where.replace("a.ts", "a.day")
    return _filled(SHAPES[shape], n, t=table, w=where, i=inner, o=other, by_day=by_day)


SHAPES: dict[str, str] = {
    "plain": "SELECT a.id, a.ts, a.v, a.k FROM ${t} WHERE ${w}",
    "nested": "SELECT a.* FROM (${i}) AS a WHERE ${w}",
    "shifted": (
        "SELECT a.id, a.ts, a.v, a.k FROM (SELECT id, ts + INTERVAL ${n} DAY AS ts, v, k FROM (${i}) AS b) AS a WHERE ${w}"
    ),
    "cte": ("WITH b AS (${i}), c AS (SELECT * FROM b) SELECT a.id, a.ts, a.v, a.k FROM c AS a WHERE ${w}"),
    "grouped": (
        "SELECT min(a.id) AS id, date_trunc('day', a.ts) AS ts, sum(a.v) AS v, a.k FROM (${i}) AS a WHERE ${w} GROUP BY 2, 4"
    ),
    "grouped inside": (
        "SELECT a.id, a.ts, a.v, a.k FROM (SELECT count(*) AS id, CAST(ts AS DATE) AS ts, sum(v) AS v, max(k) AS k"
        " FROM (${i}) AS b GROUP BY 2) AS a WHERE ${w}"
    ),
    "latest inside": (
        "SELECT a.id, a.ts, a.v, a.k FROM (SELECT id, max(ts) AS ts, sum(v) AS v, k FROM (${i}) AS b GROUP BY id, k) AS a WHERE ${w}"
    ),
    "joined": (
        "SELECT a.id, a.ts, b.v, a.k FROM ${t} JOIN (${i}) AS b ON b.ts BETWEEN a.ts - INTERVAL ${n} DAY AND a.ts WHERE ${w}"
    ),
    "joined equal": (
        "SELECT a.id, a.ts, a.v + b.v AS v, a.k FROM (${i}) AS b JOIN ${t} ON a.ts = b.ts AND a.k = b.k WHERE ${w}"
    ),
    "left": (
        "SELECT a.id, a.ts, coalesce(b.v, -1) AS v, a.k FROM ${t} LEFT JOIN (${i}) AS b"
        " ON b.ts > a.ts - INTERVAL '${n} hours' AND b.ts <= a.ts + INTERVAL 1 HOUR WHERE ${w}"
    ),
    "left wide": (
        "SELECT b.id, b.ts, coalesce(a.v, -1) AS v, b.k FROM (${i}) AS b LEFT JOIN ${t} ON a.k = b.k AND ${w}"
    ),
    "left kept": (
        "SELECT a.id, a.ts, coalesce(b.v, -1) AS v, a.k FROM ${t} LEFT JOIN (${i}) AS b ON a.ts = b.ts AND ${w}"
    ),
    "right": (
        "SELECT b.id, b.ts, coalesce(a.v, -1) AS v, b.k FROM ${t} RIGHT JOIN (${i}) AS b ON a.ts::DATE = b.ts::DATE WHERE ${w}"
    ),
    "full": (
        "SELECT coalesce(a.id, b.id) AS id, coalesce(a.ts, b.ts) AS ts, a.v, b.k FROM ${t} FULL JOIN (${i}) AS b"
        " ON a.ts = b.ts WHERE ${w}"
    ),
    "three": (
        "SELECT a.id, a.ts, c.v, b.k FROM ${t} LEFT JOIN (${i}) AS b ON b.ts = a.ts"
        " JOIN (${o}) AS c ON c.ts BETWEEN b.ts AND b.ts + INTERVAL ${n} HOUR WHERE ${w}"
    ),
    "asof": (
        "SELECT b.id, b.ts, a.v, b.k FROM (${i}) AS b ASOF JOIN ${t} ON b.k = a.k AND b.ts >= a.ts WHERE ${w}"
    ),
    "semi": (
        "SELECT a.id, a.ts, a.v, a.k FROM ${t} SEMI JOIN (${i}) AS b ON a.ts = b.ts + INTERVAL ${n} DAY WHERE ${w}"
    ),
    "anti": (
        "SELECT a.id, a.ts, a.v, a.k FROM ${t} ANTI JOIN (${i}) AS b ON b.ts BETWEEN a.ts - INTERVAL ${n} DAY AND a.ts WHERE ${w}"
    ),
    "exists": (
        "SELECT a.id, a.ts, a.v, a.k FROM ${t} WHERE ${w}"
        " AND EXISTS (SELECT 1 FROM (${i}) AS b WHERE b.ts >= a.ts - INTERVAL ${n} DAY AND b.ts < a.ts)"
    ),
    "not exists": (
        "SELECT a.id, a.ts, a.v, a.k FROM ${t} WHERE NOT EXISTS (SELECT 1 FROM (${i}) AS b WHERE b.ts = a.ts) AND ${w}"
    ),
    "in": ("SELECT a.id, a.ts, a.v, a.k FROM ${t} WHERE a.ts IN (SELECT b.ts FROM (${i}) AS b) AND ${w}"),
    "scalar": (
        "SELECT a.id, a.ts, (SELECT sum(b.v) FROM (${i}) AS b WHERE b.ts::DATE = a.ts::DATE) AS v, a.k FROM ${t} WHERE ${w}"
    ),
    "watermark": (
        "SELECT a.id, a.ts, a.v, a.k FROM ${t} WHERE a.ts > (SELECT min(b.ts) FROM (${i}) AS b) AND ${w}"
    ),
    "union": (
        "SELECT a.id, a.ts, a.v, a.k FROM (SELECT id, ts, v, k FROM (${i}) AS b UNION ALL SELECT id, ts - INTERVAL ${n} DAY, v, k"
        " FROM (${o}) AS c) AS a WHERE ${w}"
    ),
    "except": (
        "SELECT a.id, a.ts, a.v, a.k FROM (SELECT id, ts, v, k FROM (${i}) AS b EXCEPT SELECT id, ts, v, k FROM (${o}) AS c) AS a WHERE ${w}"
    ),
    "distinct": (
        "SELECT 0 AS id, a.ts, a.v, a.k FROM (SELECT DISTINCT ts, k, v FROM (${i}) AS b) AS a WHERE ${w}"
    ),
    "distinct on": (
        "SELECT a.id, a.ts, a.v, a.k FROM (SELECT DISTINCT ON (k) id, ts, v, k FROM (${i}) AS b ORDER BY k, ts, id) AS a WHERE ${w}"
    ),
    "lag": (
        "SELECT a.id, a.ts, a.v, a.k FROM (SELECT id, ts, lag(v) OVER (ORDER BY ts, id) AS v, k FROM (${i}) AS b) AS a WHERE ${w}"
    ),
    "by day": (
        "SELECT a.id, a.day AS ts, a.v, a.k FROM (SELECT id, CAST(ts AS DATE) AS day, sum(v) OVER"
        " (PARTITION BY CAST(ts AS DATE)) AS v, k FROM (${i}) AS b) AS a WHERE $by_day"
    ),
    "qualify": (
        "SELECT a.id, a.ts, a.v, a.k FROM ${t} WHERE ${w} QUALIFY row_number() OVER (PARTITION BY a.k ORDER BY a.ts DESC, a.id) = 1"
    ),
    "qualify inside": (
        "SELECT a.id, a.ts, a.v, a.k FROM (SELECT * FROM s.p QUALIFY row_number() OVER"
        " (PARTITION BY k ORDER BY ts DESC) = 1) AS a WHERE ${w}"
    ),
    "limit": (
        "SELECT a.id, a.ts, a.v, a.k FROM (SELECT * FROM (${i}) AS b ORDER BY ts, id LIMIT 5) AS a WHERE ${w}"
    ),
    "lateral": (
        "SELECT a.id, a.ts, z.v, a.k FROM ${t}, LATERAL (SELECT sum(b.v) AS v FROM (${i}) AS b"
        " WHERE b.ts < a.ts AND b.ts >= a.ts - INTERVAL ${n} DAY) AS z WHERE ${w}"
    ),
    "bounds": (
        "WITH z AS (SELECT {start_dt} - INTERVAL ${n} DAY AS lo, {end_dt} AS hi)"
        " SELECT a.id, a.ts, a.v, a.k FROM ${t} CROSS JOIN z WHERE a.ts BETWEEN z.lo AND z.hi AND ${w}"
    ),
    "case": (
        "SELECT a.id, a.ts, a.v, a.k FROM (SELECT id, CASE WHEN k = 1 THEN ts ELSE ts - INTERVAL 9 DAY END AS ts, v, k"
        " FROM (${i}) AS b) AS a WHERE ${w}"
    ),
    "using": "SELECT a.id, ts, b.v, a.k FROM ${t} JOIN (${i}) AS b USING (ts) WHERE ${w}",
    "star replaced": (
        "SELECT a.* FROM (SELECT * REPLACE (ts + INTERVAL ${n} HOUR AS ts) FROM (${i}) AS b) AS a WHERE ${w}"
    ),
}
INSTANTS = tuple(
    datetime.fromisoformat(text).replace(tzinfo=UTC)
    for text in (
        *("2024-02-29", "2023-12-31", "2024-01-01", "2024-03-31 23:00", "2025-03-01", "2025-05-14 13:00"),
        *("2025-06-30 05:00", "2022-10-30 12:00", "2026-08-31", "2026-11-09 01:00"),
    )
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A query of a daily or an hourly model, and an interval of it."""
    unit = draw(st.sampled_from((IntervalUnit.DAY, IntervalUnit.HOUR)))
    start = unit.floor(draw(st.sampled_from(INSTANTS)))
    units = draw(st.sampled_from((1, 1, 2)))
    depth = draw(st.sampled_from((0, 1, 1, 2)))
    return Case(draw(rows(depth)), unit, Interval(start, unit.shift(start, units)), draw(st.booleans()))


class Oracle:
    """The two tables in DuckDB, with rows around an interval; any of them can be left out."""

    def __init__(self, interval: Interval) -> None:
        self._connection = duckdb.connect()
        self._connection.execute("SET TimeZone = 'UTC'; CREATE SCHEMA s")
        edges = (interval.start, interval.end)
        hours = {edge + timedelta(hours=h) for edge in edges for h in range(-100, 60, 5)}
        days = {
            edge + timedelta(days=d, hours=h) for edge in edges for d in range(-45, 40, 2) for h in (0, 11)
        }
        sharp = {
            edge + by
            for edge in edges
            for by in (-MICROSECOND, timedelta(0), *(timedelta(minutes=m) for m in (1, 3, 12, 40, -8, -30)))
        }
        self.instants = sorted(hours | days | sharp)
        for name in ("p", "q"):
            self._connection.execute(
                f"CREATE TABLE s.all_{name} (id BIGINT, ts TIMESTAMP, v BIGINT, k BIGINT, kept BOOLEAN);"
                f"CREATE VIEW s.{name} AS SELECT id, ts, v, k FROM s.all_{name} WHERE kept"
            )
            values = ", ".join(
                f"({n}, '{at.replace(tzinfo=None)}', {n * 7 % 101 + 1}, {n % 3}, TRUE)"
                for n, at in enumerate(self.instants)
            )
            self._connection.execute(f"INSERT INTO s.all_{name} VALUES {values}")
        self._connection.execute(f"CREATE VIEW s.seen AS {VIEW_SQL}")

    def result(self, case: Case) -> list[Any]:
        """What the model writes for the interval."""
        # As SQLMesh does with an embedded model: its query in the place of its name, then all of it for one interval.
        whole = case.sql.replace("s.inside", f"({EMBEDDED_SQL})")
        sql = rendered(whole, case.interval, datetime(2030, 1, 1, tzinfo=UTC))
        low = case.interval.start.replace(tzinfo=None)
        high = (case.interval.end - MICROSECOND).replace(tzinfo=None)
        query = f"SELECT * FROM ({sql}) AS w WHERE w.ts BETWEEN TIMESTAMP '{low}' AND TIMESTAMP '{high}' ORDER BY ALL"
        return self._connection.execute(query).fetchall()

    def only(self, table: str, before: datetime | None, after: datetime | None) -> None:
        """Leave out what is not in `[before, after)`; None: no such side."""
        kept = ["TRUE"]
        if before is not None:
            kept.append(f"ts >= TIMESTAMP '{before.replace(tzinfo=None)}'")
        if after is not None:
            kept.append(f"ts < TIMESTAMP '{after.replace(tzinfo=None)}'")
        self._connection.execute(f"UPDATE s.all_{table} SET kept = {' AND '.join(kept)}")

    def without(self, table: str, at: datetime | None) -> None:
        """Leave out the rows of one instant; None: nothing."""
        kept = "TRUE" if at is None else f"ts <> TIMESTAMP '{at.replace(tzinfo=None)}'"
        self._connection.execute(f"UPDATE s.all_{table} SET kept = {kept}")
