"""Wrong answers that were seen elsewhere, with meshgate in the peer's place: what is computed again after it was read.

Wrong answers b, c, d, f, k; the others are in test_peers.py and test_mistakes.py. The oracle is the source itself.
The tests marked `peers` drive plain SQLMesh and assert that it still shows the fault.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from duck_mesh import DuckMesh, Rows, copied, naive, ranged
from meshgate.interval import IntervalSet
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

HOUR, DAY = 60, 1440
BRONZE, ROLLUP = '"house"."up"."bronze"', '"house"."down"."rollup"'
KILLED = 137
AT_ONCE = {"upstream": {"stale_throttle": "0s"}, "downstream": {"stale_throttle": "0s"}}
# Evaluates upstream, and is killed when it reaches the first batch downstream.
CRASHING = """
import os, sys
from datetime import datetime
from sqlmesh.core.snapshot import SnapshotEvaluator
whole = SnapshotEvaluator.evaluate
def evaluate(self, snapshot, *args, **kwargs):
    if "rollup" in snapshot.name:
        os._exit(137)
    return whole(self, snapshot, *args, **kwargs)
SnapshotEvaluator.evaluate = evaluate
folder, now = sys.argv[1], datetime.fromisoformat(sys.argv[2])
"""
MESHGATE_CRASHES = """
from meshgate.mesh import Mesh
with Mesh.open(folder) as mesh:
    mesh.run("upstream", now=now)
    mesh.run("downstream", now=now)
"""
SQLMESH_CRASHES = """
from sqlmesh.core.console import NoopConsole, set_console
from sqlmesh.core.context import Context
set_console(NoopConsole())
context = Context(paths=[folder + "/upstream", folder + "/downstream"])
restated = {"restate_models": ["up.bronze"], "start": "2026-01-05 01:00:00", "end": "2026-01-05 01:04:59"}
context.plan("prod", execution_time=now, auto_apply=True, no_prompts=True, skip_tests=True, **restated)
"""


def rollup(cron: str, parent: str = "up.bronze") -> str:
    """The count and the sum of each period, as a model."""
    unit = {"@hourly": "hour", "@daily": "day"}[cron]
    query = (
        f"SELECT DATE_TRUNC('{unit}', ts)::TIMESTAMP AS period, COUNT(*)::BIGINT AS events, SUM(value)::BIGINT AS total "
        f"FROM {parent} WHERE ts >= @start_dt AND ts < @end_dt GROUP BY 1"
    )
    return ranged("down.rollup", query, cron=cron, column="period")


def duck(folder: Path, postgres: LocalPostgres, upstream: str, downstream: str) -> DuckMesh:
    """A mesh of `up.bronze`, a copy of the source, every so often, and its sums."""
    files = {"models/bronze.sql": copied("up.bronze", "raw.events", cron=upstream)}
    duck = DuckMesh(folder, postgres, upstream=files, downstream={"models/rollup.sql": rollup(downstream)})
    duck.write_mesh(AT_ONCE)
    return duck


def oracle(duck: DuckMesh, unit: str, upto: float) -> Rows:
    """What the sums ought to be, straight from the source."""
    return duck.sql(
        "SELECT DATE_TRUNC(?, ts)::TIMESTAMP, COUNT(*), SUM(value)::BIGINT FROM raw.events WHERE ts < ? GROUP BY 1 ORDER BY 1",
        [unit, naive(upto)],
    )


@contextmanager
def deployed(duck: DuckMesh, minutes: float) -> Iterator[Mesh]:
    """Both projects, up to an instant."""
    with duck.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(minutes))
        yield mesh


def again(mesh: Mesh, minute: float, now: float) -> None:
    """Upstream evaluates one of its intervals once more."""
    mesh.restate("up.bronze", span(minute, minute + 5), reason="late rows", by="tester", apply=True)
    mesh.run("upstream", now=at(now))


def done(mesh: Mesh, now: float) -> dict[str, IntervalSet]:
    """What a run of downstream records."""
    return dict(mesh.run("downstream", now=at(now)).committed)


@contextmanager
def plain(duck: DuckMesh, *, load: bool = False) -> Iterator[Any]:
    """A plain SQLMesh context on both projects."""
    with TinyMesh.plain(duck, "upstream", "downstream", load=load) as context:  # type: ignore[arg-type]
        yield context


def crash(duck: DuckMesh, code: str, now: float) -> None:
    """Run a process that dies between upstream and downstream."""
    command = [sys.executable, "-c", CRASHING + code, str(duck.folder), at(now).isoformat()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == KILLED, ended.stderr


# b: a daily parent and an hourly child


@pytest.mark.peers
def test_plain_sqlmesh_records_hours_of_a_day_that_is_not_there(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """23 hours of the child are recorded without rows before the parent's day is; nothing returns to them."""
    mesh = duck(tmp_path, postgres, "@daily", "@hourly")
    mesh.feed(0, 2 * DAY)
    with plain(mesh, load=True) as context:
        context.plan("prod", execution_time=at(DAY), auto_apply=True, no_prompts=True)
    with plain(mesh) as context:
        for hours in (47, 48, 49):
            assert context.run("prod", execution_time=at(hours * HOUR), skip_janitor=True).is_success
    assert len(mesh.table("up.bronze")) == 2 * DAY
    assert [row[0] for row in mesh.table("down.rollup") if row[0] >= naive(DAY)] == [naive(47 * HOUR)]


def test_hours_wait_for_the_day_that_they_read(tmp_path: Path, postgres: LocalPostgres) -> None:
    """Wrong answer b (SQLMesh 0.236.4): no hour of the day is recorded before the parent's day; then all are, once."""
    mesh = duck(tmp_path, postgres, "@daily", "@hourly")
    mesh.feed(0, 2 * DAY)
    with deployed(mesh, DAY) as opened:
        for hours, reason in ((25, "not_due"), (47, "not_due"), (48, "late")):
            report = opened.run("downstream", now=at(hours * HOUR))
            assert report.committed == {}
            assert {(b.parent, b.reason) for b in report.blocked} == {(BRONZE, reason)}
        assert oracle(mesh, "hour", DAY) == mesh.table("down.rollup")
        opened.run("upstream", now=at(2 * DAY))
        assert done(opened, 2 * DAY) == {ROLLUP: IntervalSet([span(DAY, 2 * DAY)])}
        assert opened.run("downstream", now=at(2 * DAY)).state == "nothing_to_do"
    assert oracle(mesh, "hour", 2 * DAY) == mesh.table("down.rollup")


# c: 288 dependencies


@pytest.mark.parametrize("minute", [0, 725, 1435])
def test_one_of_288_intervals_computed_again_makes_the_day_stale(
    tmp_path: Path, postgres: LocalPostgres, minute: int
) -> None:
    """Wrong answer c (Dagster 1.13.27, which skips edges of 100 dependencies and more): that day alone is redone."""
    mesh = duck(tmp_path, postgres, "*/5 * * * *", "@daily")
    mesh.feed(0, 2 * DAY)
    with deployed(mesh, 2 * DAY) as opened:
        mesh.set_value(minute, 50)
        again(opened, minute, 2 * DAY)
        assert oracle(mesh, "day", 2 * DAY) != mesh.table("down.rollup")
        assert done(opened, 2 * DAY) == {ROLLUP: IntervalSet([span(0, DAY)])}
        assert opened.run("downstream", now=at(2 * DAY)).state == "nothing_to_do"
    assert oracle(mesh, "day", 2 * DAY) == mesh.table("down.rollup")


# d: an old hour, and what a watcher remembers is lost just after


@pytest.mark.parametrize("lost", [False, True])
def test_an_old_hour_is_computed_again_whatever_is_forgotten(
    tmp_path: Path, postgres: LocalPostgres, *, lost: bool
) -> None:
    """Wrong answer d (Dagster 1.13.27): an hour of two days ago follows; also where the ledger forgets how far it looked.

    Nobody listens when upstream commits, and the process that reads is another one.
    """
    mesh = duck(tmp_path, postgres, "@hourly", "@hourly")
    mesh.feed(0, 3 * DAY)
    with deployed(mesh, 3 * DAY) as opened:
        mesh.set_value(5 * HOUR, 50)
        opened.restate("up.bronze", span(5 * HOUR, 6 * HOUR), reason="late", by="tester", apply=True)
        opened.run("upstream", now=at(3 * DAY))
        if lost:
            database = opened.ledger.database
            database.execute("UPDATE meshgate.promotion SET settled_revision = 0, settled = '{}'")
            database.execute("UPDATE meshgate.environment SET fingerprint = NULL")
            database.execute("DELETE FROM meshgate.event")
    with mesh.mesh() as opened:
        assert done(opened, 3 * DAY) == {ROLLUP: IntervalSet([span(5 * HOUR, 6 * HOUR)])}
        assert opened.run("downstream", now=at(3 * DAY)).state == "nothing_to_do"
    assert oracle(mesh, "hour", 3 * DAY) == mesh.table("down.rollup")


# f: a key emitted again after its hour has fired


def test_an_interval_computed_again_after_its_hour_is_read_again(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """Wrong answer f (Airflow 3.3.2): the hour follows each time, and nothing stays pending."""
    mesh = duck(tmp_path, postgres, "*/5 * * * *", "@hourly")
    mesh.feed(0, 4 * HOUR)
    with deployed(mesh, 2 * HOUR) as opened:
        for value in (50, 60):  # fired, emitted again, fired, emitted again
            mesh.set_value(70, value)
            again(opened, 70, 2 * HOUR)
            assert done(opened, 2 * HOUR) == {ROLLUP: IntervalSet([span(HOUR, 2 * HOUR)])}
            assert oracle(mesh, "hour", 2 * HOUR) == mesh.table("down.rollup")
        # Twice in one period: the reader goes once.
        for value in (70, 80):
            mesh.set_value(70, value)
            again(opened, 70, 2 * HOUR)
        assert done(opened, 2 * HOUR) == {ROLLUP: IntervalSet([span(HOUR, 2 * HOUR)])}
        assert opened.run("downstream", now=at(2 * HOUR)).state == "nothing_to_do"
        assert opened.status(now=at(2 * HOUR)).waits == ()
        # The next hour fires as ever.
        opened.run("upstream", now=at(3 * HOUR))
        assert done(opened, 3 * HOUR) == {ROLLUP: IntervalSet([span(2 * HOUR, 3 * HOUR)])}
    assert oracle(mesh, "hour", 3 * HOUR) == mesh.table("down.rollup")


# k: a crash between restating upstream and downstream


@pytest.mark.peers
def test_plain_sqlmesh_forgets_a_restatement_that_died_halfway(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """The process dies when upstream is restated: the child stays as it was, and every later run says SUCCESS."""
    mesh = duck(tmp_path, postgres, "*/5 * * * *", "@hourly")
    mesh.feed(0, 4 * HOUR)
    with plain(mesh, load=True) as context:
        context.plan("prod", execution_time=at(2 * HOUR), auto_apply=True, no_prompts=True)
    mesh.set_value(61, 50)
    crash(mesh, SQLMESH_CRASHES, 2 * HOUR)
    with plain(mesh) as context:
        for hours in (2, 3):
            context.run("prod", execution_time=at(hours * HOUR), skip_janitor=True)
    assert (61, naive(61), 50) in mesh.table("up.bronze")
    assert oracle(mesh, "hour", 2 * HOUR)[1][2] == HOUR + 49
    assert mesh.table("down.rollup")[1][2] == HOUR


def test_a_crash_between_upstream_and_downstream_loses_no_restatement(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """Wrong answer k (SQLMesh 0.236.4): the process dies where SQLMesh's did, and the next run of downstream goes on."""
    mesh = duck(tmp_path, postgres, "*/5 * * * *", "@hourly")
    mesh.feed(0, 4 * HOUR)
    with deployed(mesh, 2 * HOUR) as opened:
        mesh.set_value(61, 50)
        opened.restate("up.bronze", span(60, 65), reason="late", by="tester", apply=True)
    crash(mesh, MESHGATE_CRASHES, 2 * HOUR)
    assert (61, naive(61), 50) in mesh.table("up.bronze")
    with mesh.mesh() as opened:
        told = opened.status(now=at(2 * HOUR))
        (model,) = (m for p in told.projects for m in p.models if m.model == ROLLUP)
        assert IntervalSet([span(HOUR, 2 * HOUR)]) in (model.stale, model.suspect)
        assert done(opened, 2 * HOUR) == {ROLLUP: IntervalSet([span(HOUR, 2 * HOUR)])}
        assert opened.run("downstream", now=at(2 * HOUR)).state == "nothing_to_do"
    assert oracle(mesh, "hour", 2 * HOUR) == mesh.table("down.rollup")
