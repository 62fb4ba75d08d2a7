"""Commits of the lake that outlive the process that asked for them."""

from __future__ import annotations

import subprocess
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg2
import pytest
from sqlmesh.core.config.connection import DuckDBConnectionConfig, MotherDuckConnectionConfig

from meshgate.bridge.engine import ends_with_its_process
from tiny_mesh import TinyMesh, at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

# A commit that takes as long as somebody holds the lock: a synchronous standby that does not answer does the same.
SLOW_COMMIT = """
CREATE FUNCTION slow_commit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock_shared(42); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON ducklake_snapshot
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow_commit();
"""
BUSY = "SELECT left(query, 6), wait_event_type FROM pg_stat_activity WHERE datname = 'lake_{key}' AND state = 'active'"


PATIENCE_S = 60.0  # a process imports SQLMesh first


def until(condition: Callable[[], bool], what: str) -> None:
    """Look until something is so."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never seen: {what}"
        time.sleep(0.02)


def busy(tiny: TinyMesh) -> list[str]:
    """What the lake's catalog is asked to do, and waits for a lock with."""
    return [word for word, wait in tiny.sql(tiny.state_url, BUSY.format(key=tiny.key)) if wait == "Lock"]


@contextmanager
def slow_commits(tiny: TinyMesh) -> Iterator[None]:
    """While the block runs, no commit to the lake ends."""
    holder = psycopg2.connect(tiny.lake_url)
    try:
        with holder.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(42)")
            holder.commit()
            yield
    finally:
        holder.close()


@pytest.mark.slow
def test_the_commit_of_a_killed_run_is_waited_for(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """Its process is proven to be gone, and the catalog still commits its rows: who writes them again deletes these too.

    Without `outlast_commits` each row of the interval is there twice, and nobody says so.
    """
    tiny = TinyMesh(tmp_path / "mesh", postgres)
    tiny.feed(0, 65)
    reports = []
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        tiny.sql(tiny.lake_url, SLOW_COMMIT)
        with slow_commits(tiny):
            command = tiny.command("run", "upstream", "--now", at(65).isoformat())
            with subprocess.Popen(
                command, env=tiny.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as process:
                until(lambda: busy(tiny) == ["COMMIT"], "the commit of its first write")
                process.kill()
            next_run = threading.Thread(target=lambda: reports.append(mesh.run("upstream", now=at(65))))
            next_run.start()
            until(lambda: len(busy(tiny)) == 2, "the next run, at the lake")
            assert "COMMIT" in busy(tiny)
        next_run.join()
        assert [(report.state, report.failed) for report in reports] == [("done", ())]
        assert not mesh.verify().differences
    expected = tiny.expected(65)
    for name in ("bronze.events", "silver.events"):
        assert tiny.table(name) == expected[name]


@pytest.mark.parametrize(
    ("catalogs", "ends"),
    [
        (None, True),
        ({"lake": "house.duckdb"}, True),
        ({"lake": {"type": "ducklake", "path": "lake.duckdb", "data_path": "data"}}, True),
        ({"lake": {"type": "ducklake", "path": "postgres:dbname=lake", "data_path": "data"}}, True),
        ({"lake": {"type": "ducklake", "path": "mysql:db=lake", "data_path": "data"}}, False),
        ({"house": "house.duckdb", "lake": "ducklake:mysql:db=lake"}, False),
        ({"house": "house.duckdb", "shop": {"type": "postgres", "path": "dbname=shop"}}, True),
        ({"shop": {"type": "postgres", "path": "dbname=shop"}}, False),
        ({"shop": {"type": "postgres", "path": "dbname=shop", "read_only": True}}, True),
    ],
)
def test_an_engine_ends_with_its_process_where_nobody_else_commits(
    catalogs: dict[str, object] | None, ends: bool
) -> None:
    """What a DuckDB writes through another server's commits may come later than its end; of one sort that is waited for."""
    assert ends_with_its_process(DuckDBConnectionConfig(catalogs=catalogs)) is ends


def test_motherduck_goes_on_without_the_process() -> None:
    """It speaks DuckDB, elsewhere."""
    assert not ends_with_its_process(MotherDuckConnectionConfig(token="t", catalogs={"md:house": "md:house"}))
