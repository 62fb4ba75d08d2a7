"""Dimensions that tell from when to when their rows hold: which facts a late-arriving row makes stale, and which it does not."""

from __future__ import annotations

import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import duckdb
import psycopg2
import pytest
import sqlglot
from hypothesis import given
from hypothesis import strategies as st

from duck_mesh import DuckMesh, naive, ranged
from meshgate.bridge.validity import changes_query
from meshgate.coordinator.validity import changed_from, past
from meshgate.interval import MIN_INSTANT, IntervalSet
from tiny_mesh import at, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

CUSTOMERS, FACT = '"house"."lake"."customers"', '"house"."mart"."fact"'
BY_TIME = "SCD_TYPE_2_BY_TIME (unique_key id, updated_at_as_valid_from TRUE, disable_restatement FALSE{})"
DIMENSIONS = {
    "by_time": f"MODEL (name lake.customers, kind {BY_TIME.format('')}, cron '@hourly', audits (named));"
    "SELECT id::BIGINT AS id, name::TEXT AS name, updated_at::TIMESTAMP AS updated_at FROM raw.customers",
    "deletes": f"MODEL (name lake.customers, kind {BY_TIME.format(', invalidate_hard_deletes TRUE')}, cron '@hourly', audits (named));"
    "SELECT id::BIGINT AS id, name::TEXT AS name, updated_at::TIMESTAMP AS updated_at FROM raw.customers",
    "full": "MODEL (name lake.customers, kind FULL, cron '@hourly', audits (named));"
    "SELECT id, name, updated_at AS valid_from, LEAD(updated_at) OVER (PARTITION BY id ORDER BY updated_at) AS valid_to FROM raw.customers",
}  # fmt: skip
FACTS = ranged(
    "mart.fact",
    "SELECT e.id, e.ts, c.name FROM raw.events AS e LEFT JOIN lake.customers AS c ON c.id = e.value "
    "AND e.ts >= c.valid_from AND (c.valid_to IS NULL OR e.ts < c.valid_to) WHERE e.ts >= @start_dt AND e.ts < @end_dt",
)


def dimension_mesh(folder: Path, postgres: LocalPostgres, sort: str) -> DuckMesh:
    """A dimension upstream, facts of each minute downstream; customer 1 is there from the beginning."""
    audit = "AUDIT (name named); SELECT * FROM @this_model WHERE name = 'bad'"
    files = {"customers": DIMENSIONS[sort], "audits/named.sql": audit}
    duck = DuckMesh(folder, postgres, upstream=files, downstream={"fact": FACTS})
    own = {"validity": {"lake.customers": {"from": "valid_from", "to": "valid_to"}}} if sort == "full" else {}
    at_once = {"stale_throttle": "0s", "retry": {"first": "0s"}}
    duck.write_mesh({"upstream": at_once | own, "downstream": at_once})
    duck.sql("CREATE TABLE raw.customers (id BIGINT, name TEXT, updated_at TIMESTAMP)")
    customer(duck, 1, "ann", 0)
    duck.feed(0, 600)
    return duck


@pytest.fixture(params=DIMENSIONS)
def duck(request: pytest.FixtureRequest, tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    return dimension_mesh(tmp_path, postgres, request.param)


@pytest.fixture
def mesh(duck: DuckMesh) -> Iterator[Mesh]:
    with duck.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(240))
        yield mesh


def customer(duck: DuckMesh, key: int, name: str, minute: float) -> None:
    """A customer is called so from a minute on; a history by time is told only the newest."""
    if duck.sql("SELECT 1 FROM raw.customers WHERE id = ?", [key]) and "FULL" not in told(duck):
        duck.sql("UPDATE raw.customers SET name = ?, updated_at = ? WHERE id = ?", [name, naive(minute), key])
    else:
        duck.sql("INSERT INTO raw.customers VALUES (?, ?, ?)", [key, name, naive(minute)])


def told(duck: DuckMesh) -> str:
    return (duck.folder / "upstream/models/customers.sql").read_text()


def tick(mesh: Mesh, minute: float) -> IntervalSet:
    """One run of each project; what was done of the facts."""
    for project in ("upstream", "downstream"):
        report = mesh.run(project, now=at(minute))
        assert report.state in ("done", "nothing_to_do"), report
    return report.committed.get(FACT, IntervalSet())


def right(duck: DuckMesh) -> bool:
    """Whether every fact has the name that the dimension gives it now."""
    upto = duck.sql("SELECT MAX(ts) FROM mart.fact")[0][0]
    return duck.table("mart.fact") == duck.sql(
        "SELECT e.id, e.ts, c.name FROM raw.events AS e LEFT JOIN lake.customers AS c ON c.id = e.value "
        f"AND e.ts >= c.valid_from AND (c.valid_to IS NULL OR e.ts < c.valid_to) WHERE e.ts <= '{upto}' ORDER BY ALL"
    )


def test_the_hourly_refresh_makes_no_fact_stale(duck: DuckMesh, mesh: Mesh) -> None:
    """Neither where nothing changed, nor where a customer was renamed or came in the new hour, nor by one that is still to come."""
    assert tick(mesh, 300) == IntervalSet([span(240, 300)])
    customer(duck, 1, "anna", 310)
    customer(duck, 2, "bob", 320)
    customer(duck, 3, "eve", 365)
    assert tick(mesh, 360) == IntervalSet([span(300, 360)])
    assert tick(mesh, 420) == IntervalSet([span(360, 420)])
    assert right(duck)
    assert mesh.verify().differences == ()


def test_a_customer_that_arrives_after_its_fact_makes_stale_what_comes_after(
    duck: DuckMesh, mesh: Mesh
) -> None:
    """Known since 02:10, told after 04:00: the facts from 02:00 on are computed again, and those before are not."""
    duck.sql("UPDATE raw.events SET value = 2 WHERE id % 10 = 0")
    customer(duck, 2, "bob", 130)
    assert tick(mesh, 300) == IntervalSet([span(120, 300)])
    assert duck.sql("SELECT MIN(id), COUNT(*) FROM mart.fact WHERE name = 'bob'") == [(130, 17)]
    assert mesh.verify().differences == ()
    assert tick(mesh, 300) == IntervalSet()


def test_a_name_that_changed_long_ago(duck: DuckMesh, mesh: Mesh) -> None:
    """A row that ends earlier than it did is a change from its new end on."""
    customer(duck, 1, "anna", 190)
    assert tick(mesh, 300) == IntervalSet([span(180, 300)])
    assert duck.sql("SELECT MIN(id) FROM mart.fact WHERE name = 'anna'") == [(190,)]


def test_what_a_failed_refresh_wrote_is_not_taken_for_what_was_there(duck: DuckMesh, mesh: Mesh) -> None:
    """A late row arrives with one that an audit rejects; when that is mended, the late one still counts from its instant on."""
    duck.sql("UPDATE raw.events SET value = 2 WHERE id >= 120")
    customer(duck, 2, "bob", 130)
    customer(duck, 3, "bad", 250)
    assert mesh.run("upstream", now=at(300)).failed
    assert mesh.run("downstream", now=at(300)).committed == {}
    duck.sql("DELETE FROM raw.customers WHERE id = 3")
    if "FULL" not in told(duck):
        table = duck.sql(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'sqlmesh__lake'"
        )
        duck.sql(f"DELETE FROM sqlmesh__lake.{table[0][0]} WHERE id = 3")
    assert tick(mesh, 300) == IntervalSet([span(120, 300)])
    assert right(duck)


def test_what_a_killed_refresh_wrote_is_not_taken_for_what_was_there(
    duck: DuckMesh, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the write and the record: the next refresh finds the row there, and knows that it is new to its readers."""
    customer(duck, 2, "bob", 130)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("meshgate.coordinator.journal.RunJournal.commit", killed)
        with pytest.raises(KeyboardInterrupt):
            mesh.run("upstream", now=at(300))
    assert ("bob",) in duck.sql("SELECT name FROM lake.customers")
    assert tick(mesh, 300) == IntervalSet([span(120, 300)])


def test_a_history_of_placeholders_counts_from_the_change(tmp_path: Path, postgres: LocalPostgres) -> None:
    """SQLMesh lets new keys hold from 1970 on; a new customer an hour is no reason to compute years of facts again."""
    duck = dimension_mesh(tmp_path, postgres, "by_time")
    duck.write("upstream", "customers", told(duck).replace("updated_at_as_valid_from TRUE, ", ""))
    with duck.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(240))
        customer(duck, 2, "bob", 250)
        assert tick(mesh, 300) == IntervalSet([span(240, 300)])
        customer(duck, 3, "eve", 130)
        assert tick(mesh, 360) == IntervalSet([span(120, 360)])


def test_a_history_is_not_looked_at_where_nobody_wants_it(tmp_path: Path, postgres: LocalPostgres) -> None:
    """`validity: {model: none}`: its refreshes stamp their new part, whatever comes late."""
    duck = dimension_mesh(tmp_path, postgres, "by_time")
    duck.write_mesh({"upstream": {"validity": {"lake.customers": "none"}}})
    with duck.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(240))
        customer(duck, 2, "bob", 130)
        assert tick(mesh, 300) == IntervalSet([span(240, 300)])


def test_a_misspelt_column_fails_the_refresh_by_name(tmp_path: Path, postgres: LocalPostgres) -> None:
    """What is declared and not there is said with the table and the column."""
    duck = dimension_mesh(tmp_path, postgres, "full")
    duck.write_mesh({"upstream": {"validity": {"lake.customers": "valid_form"}}})
    with duck.mesh() as mesh, pytest.raises(Exception, match="has no column valid_form"):
        mesh.deploy("upstream", now=at(240))


def test_a_dimension_in_doubt_that_a_person_accepted_counts_as_changed(duck: DuckMesh, mesh: Mesh) -> None:
    """Readers meet rows then that nobody has compared with those before: the next refresh makes all of them stale."""
    customer(duck, 3, "bad", 250)
    assert mesh.run("upstream", now=at(300)).failed
    mesh.accept("lake.customers", span(240, 300), reason="it will do", by="tester")
    mesh.run("downstream", now=at(300))
    duck.sql("DELETE FROM raw.customers WHERE id = 3")
    if "FULL" not in told(duck):
        table = duck.sql(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'sqlmesh__lake'"
        )
        duck.sql(f"DELETE FROM sqlmesh__lake.{table[0][0]} WHERE id = 3")
    assert tick(mesh, 360) == IntervalSet([span(0, 360)])


# The values

UPTO = datetime(2026, 1, 20, tzinfo=UTC)
HOURS = st.integers(0, 24 * 20)
EVENTS = st.lists(st.tuples(st.one_of(st.none(), HOURS), st.integers(1, 99)), max_size=12)


def seen(events: list[tuple[int | None, int]]) -> dict[int | None, tuple[int, int, int]]:
    found: dict[int | None, tuple[int, int, int]] = {}
    for hour, digest in events:
        key = None if hour is None else int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) + hour * 3600
        count, first, second = found.get(key, (0, 0, 0))
        found[key] = (count + 1, first + digest, second + digest * digest)
    return found


@given(before=EVENTS, later=EVENTS)
def test_the_earliest_change_is_found_and_none_that_was_not_there(
    before: list[tuple[int | None, int]], later: list[tuple[int | None, int]]
) -> None:
    """To the hour within the last week, to the day before; what was after the recorded time is no change."""
    history = past(seen(before), UPTO)
    found = changed_from(history, seen(later))
    old, new = seen(before), seen(later)
    end, fine = UPTO.timestamp(), (UPTO - timedelta(days=7)).timestamp()
    differ = [k for k in {*old, *new} if old.get(k) != new.get(k) and (k is None or k < end)]
    if not differ:
        assert found is None
    elif None in differ:
        assert found == MIN_INSTANT
    elif min(k for k in differ if k is not None) >= fine:
        assert found is not None
        assert found.timestamp() == min(k for k in differ if k is not None)
    elif found is not None:  # two changes of one day may add up to none, by chance of these small numbers
        first = min(k for k in differ if k is not None)
        assert found.timestamp() >= first - first % 86400


@pytest.mark.parametrize("dialect", ["duckdb", "databricks", "postgres", "snowflake", "bigquery"])
def test_the_statement_is_one_that_an_engine_understands(dialect: str) -> None:
    """Rendered in its dialect, it is parsed."""
    query = changes_query("lake.customers", ["id", "name"], "valid_from", "valid_to", "updated_at", 3600)
    text = query.sql(dialect)
    assert sqlglot.parse_one(text, read=dialect).find(sqlglot.exp.Union) is not None


def test_two_engines_say_the_same_of_the_same_rows(tmp_path: Path, postgres: LocalPostgres) -> None:
    """DuckDB and Postgres, by the statement in their dialects: counts and sums, whatever the order of rows; nulls are no text."""
    rows = (
        "CREATE TABLE t (id BIGINT, name TEXT, valid_from TIMESTAMP, valid_to TIMESTAMP);"
        "INSERT INTO t VALUES (1, 'a', '1970-01-01', '2026-01-05 01:10'), (1, 'b', '2026-01-05 01:10', NULL),"
        "(2, NULL, '1969-12-31 23:30', NULL), (23, '-', NULL, NULL), (2, '3:-', '2026-01-05 01:50', NULL)"
    )
    query = changes_query("t", ["id", "name"], "valid_from", "valid_to", None, 3600)
    with duckdb.connect(str(tmp_path / "t.duckdb")) as duck:
        duck.execute(rows)
        one = duck.execute(query.sql("duckdb")).fetchall()
    with closing(psycopg2.connect(postgres.ensure_database(f"validity_{uuid.uuid4().hex}"))) as connection:
        cursor = connection.cursor()
        cursor.execute(rows)
        cursor.execute(query.sql("postgres"))
        other = cursor.fetchall()
    assert sorted(map(str, one)) == sorted(map(str, other))
    hour = int(at(60).timestamp())
    assert {row[0]: row[1] for row in one} == {0: 1, hour: 3, -3600: 1, None: 1}
