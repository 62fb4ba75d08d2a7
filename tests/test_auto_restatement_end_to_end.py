"""SQLMesh's `auto_restatement_cron` from its files to its tables: real SQLMesh, DuckDB and Postgres."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from duck_mesh import DuckMesh, copied, ranged
from meshgate.errors import MeshgateError, ProjectError
from meshgate.interval import Interval, IntervalSet
from tiny_mesh import at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

pytestmark = pytest.mark.slow

A, B, GOLD = '"house"."lake"."a"', '"house"."lake"."b"', '"house"."gold"."hours"'
NIGHTLY = "auto_restatement_cron '0 3 * * *', auto_restatement_intervals 2"
FEW = copied("gold.hours", "lake.a")
BY_KEY = (
    "MODEL (name lake.a, kind INCREMENTAL_BY_UNIQUE_KEY (unique_key id, auto_restatement_cron '0 3 * * *'), cron '@hourly');"
    "SELECT id, ts, value FROM raw.events WHERE ts >= @start_dt AND ts < @end_dt"
)
SCD = (
    "MODEL (name lake.a, kind SCD_TYPE_2_BY_TIME (unique_key id, updated_at_name ts, auto_restatement_cron '0 3 * * *'),"
    "cron '@hourly'); SELECT id, ts, value FROM raw.events"
)


def mesh_of(folder: Path, postgres: LocalPostgres, kind: str = NIGHTLY, **policies: Any) -> DuckMesh:
    """`a` with that kind, `b` and, in the other project, `gold.hours` that read it; ten hours of source."""
    files = {"a": copied("lake.a", "raw.events", kind=kind), "b": copied("lake.b", "lake.a")}
    duck = DuckMesh(folder, postgres, upstream=files, downstream={"hours": FEW})
    duck.write_mesh({"upstream": policies, "downstream": {"stale_throttle": "0s"}})
    duck.feed(0, 600)
    return duck


def deployed(mesh: Mesh, now: float) -> None:
    for project in ("upstream", "downstream"):
        assert mesh.deploy(project, now=at(now)).state == "done"


def asked(mesh: Mesh) -> list[tuple[str, Interval]]:
    return [(request.model, request.interval) for request in mesh.ledger.requests("prod")]


def next_in_sqlmesh(duck: DuckMesh) -> dict[str, datetime]:
    with psycopg2.connect(duck.state_url) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT snapshot_name, next_auto_restatement_ts FROM sqlmesh._auto_restatements")
        found = {name: datetime.fromtimestamp(ms / 1000, UTC) for name, ms in cursor.fetchall()}
    connection.close()
    return found


def test_a_tick_is_done_once_and_its_readers_follow_in_all_projects(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """Late rows of the last two hours come through; those from before stay out, as the model says; the history tells why."""
    duck = mesh_of(tmp_path, postgres)
    with duck.mesh() as mesh:
        deployed(mesh, 120)
        duck.set_value(30, 7)
        duck.set_value(90, 8)
        assert mesh.run("upstream", now=at(179)).state == "nothing_to_do"
        report = mesh.run("upstream", now=at(181))
        # The third hour is fresh, the second is asked for again.
        assert report.committed == {A: IntervalSet([span(60, 180)]), B: IntervalSet([span(60, 180)])}
        assert asked(mesh) == [(A, span(60, 180))]
        (request,) = mesh.ledger.requests("prod")
        assert (request.state, request.made_by) == ("done", "auto_restatement_cron")
        assert "'0 3 * * *' ticked at 2026-01-05 03:00 UTC" in request.reason
        assert mesh.run("upstream", now=at(239)).state == "nothing_to_do"
        assert mesh.run("downstream", now=at(181)).committed[GOLD] == IntervalSet([span(60, 180)])
        assert len(asked(mesh)) == 1
        for table in ("lake.a", "lake.b", "gold.hours"):
            changed = duck.sql(f"SELECT id, value FROM {table} WHERE value <> 1 ORDER BY 1")
            assert changed == [(90, 8)], table
        assert next_in_sqlmesh(duck) == {A: at(180 + 24 * 60)}


def test_a_week_without_runs_is_made_up_for_once(tmp_path: Path, postgres: LocalPostgres) -> None:
    """From what the first missed tick was about; SQLMesh would leave the hours before the outage as they were read."""
    duck = mesh_of(tmp_path, postgres, "auto_restatement_cron '0 3 * * *', auto_restatement_intervals 26")
    with duck.mesh() as mesh:
        deployed(mesh, 180)
        duck.set_value(90, 8)
        week = 180 + 7 * 24 * 60 + 5
        assert mesh.run("upstream", now=at(week), only=[A]).state == "done"
        assert asked(mesh) == [(A, span(60, week - 5))]
        assert 90 in evaluated(duck, "lake.a")
        mesh.run("upstream", now=at(week + 30))
        assert len(asked(mesh)) == 1


def test_a_run_for_which_nothing_has_ticked_does_not_need_the_project(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """And where something has, it is asked for before anything else can go wrong, once."""
    duck = mesh_of(tmp_path, postgres)
    with duck.mesh() as mesh:
        deployed(mesh, 120)
    config = duck.folder / "upstream/config.yaml"
    config.rename(duck.folder / "away.yaml")
    with duck.mesh() as mesh:
        assert mesh.run("upstream", now=at(150)).state == "nothing_to_do"
        assert mesh.run("upstream", now=at(179.9)).state == "nothing_to_do"
        for _ in range(2):
            with pytest.raises(ProjectError):
                mesh.run("upstream", now=at(181))
        assert asked(mesh) == [(A, span(60, 180))]
    (duck.folder / "away.yaml").rename(config)
    with duck.mesh() as mesh:
        assert mesh.run("upstream", now=at(182)).committed[A] == IntervalSet([span(60, 180)])
        assert asked(mesh) == [(A, span(60, 180))]


def plain_run(duck: DuckMesh, now: float) -> None:
    """What `sqlmesh run` does at an instant."""
    from sqlmesh.core.console import NoopConsole, get_console, set_console
    from sqlmesh.core.context import Context

    before = get_console()
    set_console(NoopConsole())
    context = Context(paths=[str(duck.folder / "upstream")], load=False)
    try:
        context.run("prod", execution_time=at(now), skip_janitor=True)
    finally:
        context.close()
        set_console(before)


def evaluated(duck: DuckMesh, name: str) -> set[int]:
    """The minutes of which a table holds what the source has now."""
    rows = duck.sql(f"SELECT a.id FROM {name} a JOIN raw.events e USING (id) WHERE a.value = e.value")
    return {row[0] for row in rows}


def test_what_was_answered_here_plain_sqlmesh_does_not_do_again(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """Its own record, which said that it was due, says when the next one is."""
    duck = mesh_of(tmp_path, postgres)
    with duck.mesh() as mesh:
        deployed(mesh, 120)
        plain_run(duck, 150)
        assert next_in_sqlmesh(duck) == {A: at(180)}
        assert mesh.run("upstream", now=at(185)).state == "done"
        duck.set_value(90, 8)
        plain_run(duck, 190)
        assert 90 not in evaluated(duck, "lake.a")
        plain_run(duck, 185 + 24 * 60)
        assert next_in_sqlmesh(duck)[A] == at(180 + 48 * 60)
        # What plain SQLMesh has done is not known to be done: it is asked for all the same.
        mesh.run("upstream", now=at(186 + 24 * 60), only=[A])
        assert len(asked(mesh)) == 1
        assert mesh.ledger.manifest("prod").answered == {A: at(180 + 24 * 60)}


def test_a_new_cron_counts_from_its_deploy_and_the_old_one_until_then(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """A tick of the old one that no run has seen is not lost; without the cron nothing is asked for."""
    duck = mesh_of(tmp_path, postgres)
    hourly = "auto_restatement_cron '@hourly', auto_restatement_intervals 2"
    with duck.mesh() as mesh:
        deployed(mesh, 120)
        duck.write("upstream", "a", copied("lake.a", "raw.events", kind=hourly))
        mesh.deploy("upstream", now=at(185))
        assert asked(mesh) == [(A, span(60, 180))]
        mesh.run("upstream", now=at(190))
        assert len(asked(mesh)) == 1
        mesh.run("upstream", now=at(245))
        assert asked(mesh) == [(A, span(120, 240))]
        duck.write("upstream", "a", copied("lake.a", "raw.events"))
        mesh.deploy("upstream", now=at(250))
        mesh.run("upstream", now=at(365))
        assert asked(mesh) == [(A, span(120, 240))]


@pytest.mark.parametrize(
    ("model", "time"),
    [
        (copied("lake.a", "raw.events", kind="auto_restatement_cron '0 3 * * *'"), span(0, 120)),
        (copied("lake.a", "raw.events", kind=f"{NIGHTLY}, disable_restatement true"), None),
        (
            BY_KEY,
            span(0, 120),
        ),
        (
            SCD,
            None,
        ),
    ],
    ids=["all", "disabled", "by key", "scd"],
)
def test_kinds_are_treated_as_sqlmesh_does(
    tmp_path: Path, postgres: LocalPostgres, model: str, time: Interval | None
) -> None:
    """Without a number of intervals all that is recorded; nothing where restatement is disabled, also by the kind's default."""
    duck = DuckMesh(tmp_path, postgres, upstream={"a": model})
    duck.feed(0, 300)
    with duck.mesh() as mesh:
        assert mesh.deploy("upstream", now=at(120)).state == "done"
        duck.set_value(5, 9)
        report = mesh.run("upstream", now=at(181))
        assert asked(mesh) == ([(A, time)] if time else [])
        assert report.committed[A] == IntervalSet([span(0 if time else 120, 180)])
        if time:
            assert duck.sql("SELECT value FROM lake.a WHERE id = 5") == [(9,)]


@pytest.mark.parametrize("cron", ["0 0 31 2 *", "61 * * * *", "often"])
def test_a_cron_that_cannot_be_gone_by_is_refused_by_the_deploy(
    tmp_path: Path, postgres: LocalPostgres, cron: str
) -> None:
    """It names the model and the cron, and nothing was deployed."""
    duck = mesh_of(tmp_path, postgres, kind=f"auto_restatement_cron '{cron}'")
    with duck.mesh() as mesh:
        with pytest.raises(MeshgateError) as told:
            mesh.deploy("upstream", now=at(120))
        assert cron in str(told.value)
        assert "prod" not in mesh.ledger.environments()


def test_only_production_does_it_by_itself(tmp_path: Path, postgres: LocalPostgres) -> None:
    """As in SQLMesh: what a development environment shares with it is asked for there once, by production's runs."""
    duck = mesh_of(tmp_path, postgres)
    with duck.mesh() as mesh:
        deployed(mesh, 120)
        duck.write(
            "upstream",
            "b",
            ranged(
                "lake.b",
                "SELECT id, ts, value + 1 AS value FROM lake.a WHERE ts >= @start_dt AND ts < @end_dt",
            ),
        )
        mesh.deploy("upstream", environment="dev", now=at(121))
        mesh.run("upstream", environment="dev", now=at(185))
        assert asked(mesh) == []
        mesh.run("upstream", now=at(186))
        assert asked(mesh) == [(A, span(60, 180))]
