"""`meshgate doctor` on real projects: queries that read more than their windows declare, and where they say so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from command_line import Answer, answer_of
from duck_mesh import DuckMesh, copied, ranged
from tiny_mesh import at

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

EVENTS = copied("lake.events", "raw.events", cron="*/5 * * * *")
WEEKLY = """
SELECT CAST(@start_dt AS TIMESTAMP) AS ts, count(*) AS events
FROM lake.events
WHERE value > 0
  AND ts >= @start_dt - INTERVAL (@days()) DAY
  AND ts < @end_dt"""
DAYS = """from sqlmesh import macro

@macro()
def days(evaluator):
    return "6"
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COLUMNS", "400")
    return lambda duck, *arguments: answer_of(capsys, duck.folder, *arguments)


def deployed(folder: Path, postgres: LocalPostgres, downstream: dict[str, str], **project: Any) -> DuckMesh:
    """A mesh with one table upstream, every 5 minutes, and some models that read it."""
    duck = DuckMesh(folder, postgres, upstream={"events": EVENTS}, downstream=downstream)
    duck.write_mesh({"downstream": project})
    duck.feed(0, 60)
    with duck.mesh() as mesh:
        for name in ("upstream", "downstream"):
            mesh.deploy(name, now=at(60))
    return duck


def windows(answer: Answer, outcome: str) -> list[tuple[str, str | None]]:
    """What doctor says of the windows of downstream."""
    return [
        (check["message"], check["hint"])
        for check in answer.document["checks"]
        if (check["name"], check["subject"], check["outcome"]) == ("windows", "downstream", outcome)
    ]


def test_doctor_names_a_query_that_reads_before_its_window(
    tmp_path: Path, postgres: LocalPostgres, call: Any
) -> None:
    """Model, parent, expression, file and line, window, what to do; the offset comes out of a macro."""
    weekly = ranged("lake.weekly", WEEKLY)
    duck = deployed(tmp_path, postgres, {"weekly": weekly, "macros/days.py": DAYS})
    answer = call(duck, "doctor", "--json")
    line = weekly.splitlines().index("  AND ts >= @start_dt - INTERVAL (@days()) DAY") + 1
    ((message, hint),) = windows(answer, "warn")
    assert message == (
        "lake.weekly reads lake.events from 6d before its start on (`ts >= @start_dt - INTERVAL (@days()) DAY` "
        f"in models/weekly.sql:{line}), but its window is its interval: the gate does not wait for the rest"
    )
    assert hint == (
        "declare it in meshgate.yaml, edges: [{reader: lake.weekly, parent: lake.events, window: {from: -6d}}], "
        "or limit the query"
    )
    duck.write_mesh(
        {
            "downstream": {
                "edges": [{"reader": "lake.weekly", "parent": "lake.events", "window": {"from": "-6d"}}]
            }
        }
    )
    answer = call(duck, "doctor", "--json")
    assert windows(answer, "warn") == []
    assert windows(answer, "ok") == [("of 1 windows 1 hold all that the queries read", None)]


def test_doctor_looks_through_views_of_another_project(
    tmp_path: Path, postgres: LocalPostgres, call: Any
) -> None:
    """The window that counts is the one on the table behind, also where the view renames its column and shifts it."""
    view = "MODEL (name lake.seen, kind VIEW, cron '@hourly'); SELECT id, ts + INTERVAL 1 HOUR AS seen_at, value FROM lake.events"
    duck = DuckMesh(
        tmp_path, postgres,
        upstream={"events": EVENTS, "seen": view},
        downstream={
            "hourly": ranged("lake.hourly", "SELECT seen_at AS ts, value FROM lake.seen WHERE seen_at >= @start_dt AND seen_at < @end_dt")
        },
    )  # fmt: skip
    duck.feed(0, 60)
    with duck.mesh() as mesh:
        for name in ("upstream", "downstream"):
            mesh.deploy(name, now=at(60))
    ((message, hint),) = windows(call(duck, "doctor", "--json"), "warn")
    assert message.startswith(
        "lake.hourly reads lake.events through lake.seen from 1h before its start on (`"
    )
    assert hint is not None
    assert "{reader: lake.hourly, parent: lake.seen, window: {from: -1h}}" in hint


def test_doctor_names_queries_without_a_limit_and_is_honest_about_the_rest(
    tmp_path: Path, postgres: LocalPostgres, call: Any
) -> None:
    """A window function before the filter, a filter by another column, a Python model; one that reads a microsecond too far."""
    python = (
        "import typing as t\nfrom datetime import datetime\nimport pandas as pd\nfrom sqlmesh import ExecutionContext, model\n"
        "from sqlmesh.core.model import ModelKindName\n\n"
        "@model('lake.python', kind={'name': ModelKindName.INCREMENTAL_BY_TIME_RANGE, 'time_column': 'ts'}, cron='@hourly',"
        " columns={'ts': 'timestamp', 'id': 'bigint'}, depends_on=['lake.events'])\n"
        "def execute(context: ExecutionContext, start: datetime, end: datetime, execution_time: datetime, **kwargs: t.Any)"
        " -> t.Generator[pd.DataFrame, None, None]:\n    yield from ()\n"
    )
    duck = deployed(tmp_path, postgres, {
        "lagging": ranged("lake.lagging", "SELECT ts, lag(value) OVER (ORDER BY ts) AS value\nFROM lake.events"),
        "closed": ranged("lake.closed", "SELECT @start_dt AS ts, sum(value) AS value FROM lake.events\nWHERE ts BETWEEN @start_dt AND @end_dt + INTERVAL 1 MICROSECOND"),
        "other": ranged("lake.other", "SELECT make_timestamp(id) AS ts, value FROM lake.events"),
        "models/python.py": python,
    })  # fmt: skip
    answer = call(duck, "doctor", "--json")
    assert answer.code == 0
    found = dict(windows(answer, "warn"))
    closed, lagging, other = sorted(found)
    # What is written is chosen by another column: of the parent's time that says nothing.
    assert other.startswith("lake.other reads lake.events without a limit before its interval (`")
    assert lagging.startswith(
        "lake.lagging reads lake.events without a limit before its interval (`FROM lake.events` in models/lagging.sql:3), "
        "and without a limit after its interval"
    )
    assert found[lagging].startswith("limit the query to what lies before the interval's end")
    assert closed.startswith("lake.closed reads lake.events up to 5m after its end (")
    assert "window: {to: 5m}" in str(found[closed])
    ((message, _),) = windows(answer, "ok")
    assert "lake.python reads lake.events: it is a python model" in message


def test_doctor_warns_of_no_window_that_is_meant(tmp_path: Path, postgres: LocalPostgres, call: Any) -> None:
    """Looked up (`latest`), ungated, all of the past (`prefix`); and a table that is refreshed as a whole reads everything."""
    lookup = "SELECT 1 AS id, @start_dt AS ts, max(value) AS value FROM lake.events"
    duck = deployed(
        tmp_path, postgres,
        {
            "latest": ranged("lake.latest", lookup),
            "ungated": ranged("lake.ungated", lookup),
            "past": ranged("lake.past", f"{lookup} WHERE ts < @end_dt"),
            "full": "MODEL (name lake.full, kind FULL, cron '@hourly'); SELECT count(*) AS n FROM lake.events",
        },
        edges=[
            {"reader": f"lake.{name}", "parent": "lake.events", "window": window}
            for name, window in (("latest", "latest"), ("ungated", "ungated"), ("past", "prefix"))
        ],
    )  # fmt: skip
    answer = call(duck, "doctor", "--json")
    assert windows(answer, "warn") == []


def test_doctor_writes_nothing(tmp_path: Path, postgres: LocalPostgres, call: Any) -> None:
    """Neither the ledger nor SQLMesh's state: every row of every table is what it was."""
    duck = deployed(tmp_path, postgres, {"weekly": ranged("lake.weekly", WEEKLY.replace("(@days())", "6"))})
    before = everything(duck)
    assert windows(call(duck, "doctor", "--json"), "warn")
    assert everything(duck) == before


def everything(duck: DuckMesh) -> dict[str, list[str]]:
    """All rows of all tables in the database of ledger and state, as text."""
    from contextlib import closing

    import psycopg2

    with closing(psycopg2.connect(duck.state_url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname IN ('meshgate', 'sqlmesh') ORDER BY 1"
        )
        found: dict[str, list[str]] = {}
        for (table,) in cursor.fetchall():
            cursor.execute(f"SELECT t::text FROM {table} AS t ORDER BY 1")
            found[table] = [row for (row,) in cursor.fetchall()]
    return found
