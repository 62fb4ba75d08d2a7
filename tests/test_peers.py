"""Wrong answers that were seen elsewhere, with meshgate in plain SQLMesh's place: overlap, a signal, a failing hour, an early hour.

The tests marked `peers` drive plain SQLMesh and assert that it still shows the fault: when one of them fails, the fault
is mended, and what is said of it must be taken back. `make test-peers` runs them too.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from meshgate.interval import IntervalSet
from sqlmesh_driver import plain_runs
from tiny_mesh import BRONZE, GOLD, SILVER, TinyMesh, at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

SILVER_EVENTS, GOLD_HOURLY = '"lake"."silver"."events"', '"lake"."gold"."hourly"'
EVENTS = 60
SIGNAL = """
from sqlmesh import signal

@signal()
def parents_recorded(batch, context):
    snapshot = next(s for name, s in context.snapshots.items() if "silver" in name)
    recorded = [(a, b) for a, b in snapshot.intervals]
    return [r for r in batch if any(a <= r[0].timestamp() * 1000 and r[1].timestamp() * 1000 <= b for a, b in recorded)]
"""
GOLD_WITH_SIGNAL = GOLD.replace("cron '@hourly');", "cron '@hourly', signals (parents_recorded()));")


@pytest.fixture
def tiny(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> TinyMesh:
    return TinyMesh(tmp_path, postgres)


@pytest.fixture
def rowwise(tmp_path: Path, postgres: LocalPostgres) -> TinyMesh:
    """On an engine that deletes and inserts, where double work doubles rows; its source pauses while it is read."""
    tiny = TinyMesh(tmp_path, postgres, engine="postgres")
    tiny.sql(
        tiny.lake_url,
        "CREATE FUNCTION raw.wait() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1 FROM pg_sleep(3)'; "
        "CREATE VIEW raw.pause AS SELECT raw.wait() AS paused FROM (SELECT OFFSET 0) AS once",
    )
    return tiny


def plain_plan(tiny: TinyMesh, project: str, minutes: float) -> None:
    with tiny.plain(project, load=True) as context:
        context.plan("prod", execution_time=at(minutes), auto_apply=True, no_prompts=True)


# The hour: upstream reached 03:05, downstream runs at 04:00 (meshgate's answer is in test_end_to_end.py)


@pytest.mark.peers
def test_plain_sqlmesh_records_the_hour_that_is_not_there(tiny: TinyMesh) -> None:
    """The hour 03:00-04:00 is recorded with five minutes of data, with SUCCESS, and nothing returns to it."""
    tiny.feed(0, 400)
    plain_plan(tiny, "upstream", 185)
    plain_plan(tiny, "downstream", 185)
    with tiny.plain("downstream") as context:
        chosen = {"select_models": ["gold.hourly"], "no_auto_upstream": True, "skip_janitor": True}
        assert context.run("prod", execution_time=at(240), **chosen).is_success
        assert context.run("prod", execution_time=at(300), skip_janitor=True).is_success
    hours = tiny.table("gold.hourly")
    assert hours[3][1] == 5
    assert hours[4][1] == EVENTS


# Two overlapping runs of one five-minute model


@pytest.mark.peers
def test_plain_sqlmesh_evaluates_an_interval_twice(rowwise: TinyMesh) -> None:
    """Two overlapping runs of one model both evaluate its interval: twice the rows, and both say SUCCESS."""
    rowwise.feed(0, 400)
    rowwise.write("upstream", "bronze", BRONZE.format(source="raw"))
    plain_plan(rowwise, "upstream", 60)
    rowwise.sql(rowwise.lake_url, "ALTER TABLE raw.events RENAME TO stored")
    rowwise.sql(
        rowwise.lake_url, "CREATE VIEW raw.events AS SELECT s.* FROM raw.stored s CROSS JOIN raw.pause"
    )
    first, second = (plain_runs(rowwise, "upstream", at(120)) for _ in range(2))
    assert [first.communicate(timeout=90)[0].strip(), second.communicate(timeout=90)[0].strip()] == [
        "SUCCESS",
        "SUCCESS",
    ]
    stamps = [row for row in rowwise.table("bronze.events") if row[1] >= at(60).replace(tzinfo=None)]
    assert len(stamps) == 2 * EVENTS


def test_two_overlapping_runs_evaluate_an_interval_once(rowwise: TinyMesh) -> None:
    """With meshgate the second run is skipped while the first works, and the rows are there once."""
    rowwise.feed(0, 400)
    with rowwise.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
    rowwise.sql(rowwise.lake_url, "ALTER TABLE raw.events RENAME TO stored")
    rowwise.sql(
        rowwise.lake_url, "CREATE VIEW raw.events AS SELECT s.* FROM raw.stored s CROSS JOIN raw.pause"
    )
    when = f"{at(120):%Y-%m-%dT%H:%MZ}"
    runs = [
        subprocess.Popen(
            rowwise.command("run", "upstream", "--now", when), env=rowwise.environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for process in runs:
        process.communicate(timeout=90)
    assert sorted(process.returncode for process in runs) == [0, 4]
    assert len(rowwise.table("bronze.events")) == 2 * EVENTS  # two hours, each event once


# A breaking change upstream, and a signal that asks whether the parents are recorded


@pytest.mark.peers
def test_plain_sqlmesh_promotes_an_empty_table_behind_a_signal(tiny: TinyMesh) -> None:
    """The signal looks at what is recorded, the plan has only just made the parent's new version: promoted empty."""
    tiny.feed(0, 400)
    (tiny.folder / "downstream/signals").mkdir()
    (tiny.folder / "downstream/signals/__init__.py").write_text(SIGNAL)
    tiny.write("downstream", "gold", GOLD_WITH_SIGNAL)
    plain_plan(tiny, "upstream", 180)
    plain_plan(tiny, "downstream", 180)
    assert len(tiny.table("gold.hourly")) == 3
    tiny.write("upstream", "silver", SILVER.replace("value FROM", "value + 0 AS value FROM"))
    plain_plan(tiny, "upstream", 180)
    assert tiny.table("gold.hourly") == []


def test_a_breaking_change_promotes_full_tables(tiny: TinyMesh) -> None:
    """The gate counts what the same plan makes for the parent, so the reader is backfilled behind it."""
    tiny.feed(0, 400)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(180))
        mesh.deploy("downstream", now=at(180))
        tiny.write("upstream", "silver", SILVER.replace("value FROM", "value + 0 AS value FROM"))
        report = mesh.deploy("upstream", now=at(180))
        assert report.committed[GOLD_HOURLY] == IntervalSet([span(0, 180)])
    tiny.check(180)


# One failing hour of a parent


@pytest.mark.peers
def test_plain_sqlmesh_skips_all_hours_of_the_child(tiny: TinyMesh) -> None:
    """One bad hour of three upstream, and the child does none of its hours, the good ones included."""
    tiny.feed(0, 400)
    tiny.write(
        "upstream", "bronze", BRONZE.format(source="source.public").replace("FALSE", "FALSE, batch_size 12")
    )
    tiny.write("upstream", "silver", SILVER.replace("FALSE", "FALSE, batch_size 12"))
    plain_plan(tiny, "upstream", 60)
    plain_plan(tiny, "downstream", 60)
    tiny.poison(92)
    with tiny.plain("upstream") as context:
        assert not context.run("prod", execution_time=at(240), skip_janitor=True).is_success
    assert len(tiny.table("gold.hourly")) == 1
    assert {row[1].hour for row in tiny.table("bronze.events")} >= {2, 3}


def test_one_failing_hour_of_a_parent_costs_the_child_one_hour(tiny: TinyMesh) -> None:
    """With meshgate the child does every hour but the one that reads the failed interval."""
    tiny.feed(0, 400)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
        tiny.poison(92)
        assert mesh.run("upstream", now=at(240)).exit_code == 1
        report = mesh.run("downstream", now=at(240))
        assert report.committed == {GOLD_HOURLY: IntervalSet([span(120, 240)])}
