"""Real processes, killed for real at the three places where a run can leave the two records apart (G3, G4)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from meshgate.interval import IntervalSet
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.local_postgres import LocalPostgres

GOLD_HOURLY, SILVER_EVENTS, BRONZE_EVENTS = (
    '"lake"."gold"."hourly"',
    '"lake"."silver"."events"',
    '"lake"."bronze"."events"',
)

KILL = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
BEFORE_THE_LEDGER = f"""
from meshgate.coordinator.journal import RunJournal
def commit(self, name, *args, **kwargs):
    {KILL}
RunJournal.commit = commit
"""
BEFORE_SQLMESH = f"""
from meshgate.bridge.scheduler import GatedScheduler
def record(self, *args, **kwargs):
    {KILL}
GatedScheduler._record = record
"""


@pytest.fixture
def tiny(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> TinyMesh:
    return TinyMesh(tmp_path, postgres)


def start(tiny: TinyMesh, project: str, minutes: float, prelude: str = "") -> subprocess.Popen[str]:
    """A run in a process of its own."""
    code = textwrap.dedent(prelude) + (
        "\nfrom datetime import datetime\nfrom meshgate.mesh import Mesh\n"
        f"with Mesh.open({str(tiny.folder)!r}) as mesh:\n"
        f"    report = mesh.run({project!r}, now=datetime.fromisoformat({at(minutes).isoformat()!r}))\n"
        "    print(report.state)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=tiny.environment(),
    )


def wait_until(true: Callable[[], bool], what: str, seconds: float = 150) -> None:
    """Poll for an observed condition."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"never seen: {what}"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "prelude", [BEFORE_THE_LEDGER, BEFORE_SQLMESH], ids=["before-the-ledger", "before-sqlmesh"]
)
@pytest.mark.parametrize("project", ["upstream", "downstream"])
def test_a_run_killed_between_its_writes_is_finished_by_the_next(
    tiny: TinyMesh, prelude: str, project: str
) -> None:
    """Killed after the engine's write, before one of the records: the next run makes every table right, once."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
        if project == "downstream":
            mesh.run("upstream", now=at(120))
        dying = start(tiny, project, 120, prelude)
        assert dying.wait(60) == -signal.SIGKILL, dying.stderr.read() if dying.stderr else ""
        # Nobody has to wait for the lease: the process is proven to be gone.
        assert mesh.run("upstream", now=at(120)).exit_code == 0
        report = mesh.run("downstream", now=at(120))
        assert report.exit_code == 0
        assert mesh.ledger.runs()[0]["state"] in {"done", "nothing_to_do"}
        assert not [
            m
            for s in mesh.ledger.states(mesh.ledger.manifest("prod").version_ids.values()).values()
            for m in s.marks
        ]
    tiny.check(120)


def test_nothing_is_forked_that_could_outlive_a_killed_run(tiny: TinyMesh) -> None:
    """Fails without the line in `bridge/project.py` that sets `MAX_FORK_WORKERS`: SQLMesh's pool loads what no cache holds."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
    shutil.rmtree(tiny.folder / "upstream" / ".cache")
    refuse = """
        import sys
        def refuse(event, _):
            if event in {"os.fork", "os.forkpty"}:
                raise AssertionError("it forks")
        sys.addaudithook(refuse)
    """
    process = start(tiny, "upstream", 120, refuse)
    out, errors = process.communicate(timeout=100)
    assert out == "done\n", errors


def test_a_run_killed_while_the_engine_works_is_finished_by_the_next(tiny: TinyMesh) -> None:
    """Killed in the middle of a statement: nothing is recorded, the range is suspect, the next run does it."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
    with tiny.mesh() as mesh:
        # The source answers slowly, so that the kill meets a statement at work.
        tiny.sql(
            tiny.source_url,
            "ALTER TABLE events RENAME TO stored; CREATE FUNCTION slow() RETURNS boolean LANGUAGE sql VOLATILE AS "
            "$$ SELECT true FROM pg_sleep(60) $$; CREATE VIEW events AS SELECT * FROM stored WHERE slow()",
        )
        dying = start(tiny, "upstream", 120)

        def working() -> bool:
            found = tiny.sql(
                tiny.state_url,
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' "
                f"AND datname = 'src_{tiny.key}' AND state = 'active'",
            )
            return bool(found[0][0]) or dying.poll() is not None

        wait_until(working, "a statement that sleeps in the source")
        os.kill(dying.pid, signal.SIGKILL)
        assert dying.wait(60) == -signal.SIGKILL, dying.stderr.read() if dying.stderr else ""
        tiny.sql(
            tiny.source_url,
            f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = 'src_{tiny.key}' "
            "AND pid <> pg_backend_pid()",
        )
        tiny.sql(tiny.source_url, "DROP VIEW events; ALTER TABLE stored RENAME TO events")
        report = mesh.run("upstream", now=at(120))
        assert report.committed == {
            BRONZE_EVENTS: IntervalSet([span(60, 120)]), SILVER_EVENTS: IntervalSet([span(60, 120)]),
        }  # fmt: skip
        mesh.run("downstream", now=at(120))
    tiny.check(120)


def test_a_second_run_is_skipped_while_the_first_one_works(tiny: TinyMesh) -> None:
    """G2: the second run of a project is told who works, and nothing is evaluated twice."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
    with tiny.mesh() as mesh:
        tiny.sql(
            tiny.source_url,
            "ALTER TABLE events RENAME TO stored; CREATE FUNCTION slow() RETURNS boolean LANGUAGE sql VOLATILE AS "
            "$$ SELECT true FROM pg_sleep(2) $$; CREATE VIEW events AS SELECT s.* FROM stored s, (SELECT slow() OFFSET 0) o",
        )
        first = start(tiny, "upstream", 120)
        wait_until(
            lambda: bool(mesh.ledger.runs("upstream")[0]["state"] == "running") or first.poll() is not None,
            "the first run",
        )
        second = mesh.run("upstream", now=at(120))
        assert second.state == "skipped"
        assert second.exit_code == 4
        assert second.busy is not None
        assert second.busy.holder["pid"] == first.pid
        out, errors = first.communicate(timeout=60)
        assert out.strip().endswith("done"), errors
        assert mesh.run("upstream", now=at(120)).state == "nothing_to_do"


def test_a_killed_run_whose_lease_has_expired_keeps_nobody_waiting(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """Its process and its engine are gone, so the grace that a late write would be given is not waited out."""
    tiny = TinyMesh(tmp_path, postgres, settings={"lease_ttl": "1s"})
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        assert start(tiny, "upstream", 120, BEFORE_THE_LEDGER).wait(60) == -signal.SIGKILL
        wait_until(lambda: mesh.ledger.runs("upstream", limit=1)[0]["expired"], "the end of the lease")
        mesh.ledger.acquire("elsewhere", "prod", "run", {}, ttl=timedelta(seconds=60), grace=timedelta(0))
        assert len(mesh.ledger.watched()) > 1
        report = mesh.run("upstream", now=at(120))
        assert report.committed[BRONZE_EVENTS] == IntervalSet([span(60, 120)])


PAUSED_AT_COMMIT = """
import os, signal
from meshgate.coordinator.journal import RunJournal
commit = RunJournal.commit
def paused(self, *args, **kwargs):
    if not hasattr(self, "paused"):
        self.paused = True
        os.kill(os.getpid(), signal.SIGSTOP)
    return commit(self, *args, **kwargs)
RunJournal.commit = paused
"""


PAUSED_BEFORE_ITS_WORK = """
import os, signal
import meshgate.bridge.project
from sqlmesh.core.scheduler import Scheduler
evaluate = Scheduler.evaluate
def paused(self, *args, **kwargs):
    if not hasattr(Scheduler, "paused"):
        Scheduler.paused = True
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        return evaluate(self, *args, **kwargs)
    finally:
        LAST_WORD
Scheduler.evaluate = paused
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_late_write_that_ends_in_an_error_is_mended(
    tmp_path: Path, postgres: LocalPostgres, extensions: None, *, killed: bool
) -> None:
    """G4: SQLMesh writes, and audits afterwards. Who fails then, or is killed, has no commit that could be refused.

    Fails without `hear_of` in `bury_run`; its like in `finish_run` has a test of the ledger's.
    """
    tiny = TinyMesh(
        tmp_path, postgres, settings={"lease_ttl": "1s", "grace": "1s", "statement_timeout": "1s"}
    )
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        last = "os.kill(os.getpid(), signal.SIGKILL)" if killed else "pass"
        zombie = start(tiny, "upstream", 120, PAUSED_BEFORE_ITS_WORK.replace("LAST_WORD", last))
        try:
            wait_until(lambda: _is_stopped(zombie.pid), "the pause before the work")
            wait_until(lambda: mesh.run("upstream", now=at(120)).state == "done", "the takeover")
            tiny.poison(90)
        finally:
            os.kill(zombie.pid, signal.SIGCONT)
        out, errors = zombie.communicate(timeout=60)
        assert out.strip() == ("" if killed else "lost"), errors
        tiny.repair(90)
        assert (90 * 60, at(90).replace(tzinfo=None), -1 - 90 % 7) in tiny.table("bronze.events"), (
            "it wrote late"
        )
        again = mesh.run("upstream", now=at(120))
        assert again.committed[BRONZE_EVENTS] == IntervalSet([span(60, 120)])
        assert mesh.run("upstream", now=at(120)).state == "nothing_to_do"
    for name in ("bronze.events", "silver.events"):
        assert tiny.table(name) == tiny.expected(120)[name]


def test_a_worker_that_wakes_up_after_its_work_was_done_elsewhere_records_nothing(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """Wrong answer h (River, procrastinate): the paused first worker's completion is refused, and told, and mended."""
    tiny = TinyMesh(
        tmp_path, postgres, settings={"lease_ttl": "1s", "grace": "1s", "statement_timeout": "1s"}
    )
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        zombie = start(tiny, "upstream", 120, PAUSED_AT_COMMIT)
        try:
            wait_until(lambda: _is_stopped(zombie.pid), "the pause before the commit")
            # Somebody else does the work: when the lease has ended, and the grace for what may still be written.
            wait_until(lambda: mesh.run("upstream", now=at(120)).state == "done", "the takeover")
            done = mesh.ledger.runs("upstream", limit=1)[0]["run_id"]
            assert mesh.run("upstream", now=at(120)).state == "nothing_to_do"
        finally:
            os.kill(zombie.pid, signal.SIGCONT)
        out, errors = zombie.communicate(timeout=60)
        assert out.strip() == "lost", errors
        # Once, or twice where the answer was lost with the connections that the end of its trust has cut.
        refused = [e["run_id"] for e in mesh.ledger.events(limit=1000) if e["kind"] == "commit.refused"]
        assert refused
        assert max(refused) < done
        # What it wrote may have come after the other's rows: evaluated once more, and then all is well.
        again = mesh.run("upstream", now=at(120))
        assert again.committed[BRONZE_EVENTS] == IntervalSet([span(60, 120)])
        assert mesh.run("upstream", now=at(120)).state == "nothing_to_do"
    assert tiny.table("silver.events") == tiny.expected(120)["silver.events"]


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
