"""Real processes that get real signals: what ends in order, what is left, and what the next run makes of it."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Self

import psycopg2
import pytest

from meshgate.interval import IntervalSet
from meshgate.ledger import Lease
from test_faults import wait_until
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("signals")]

BOTH = pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
# Far less than the ten minutes that a statement or a wait would have, also where the cores are busy.
SOON_S = 30
# Any number that nobody else locks.
GATE = 20260105


class Working:
    """A `meshgate` process, what it prints in files."""

    def __init__(self, tiny: TinyMesh, *arguments: str, job: bool = False) -> None:
        command = tiny.command(*arguments)
        if job:
            command[2] = "from meshgate.cli import job; job()"
        self.out, self.err = tiny.folder / "out.txt", tiny.folder / "err.txt"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=tiny.environment()
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def says(self, text: str) -> None:
        """Wait until it says so on stderr."""
        wait_until(lambda: text in self.err.read_text() or self.process.poll() is not None, text)
        assert text in self.err.read_text()

    def ended(self) -> tuple[int, float]:
        """Its exit code, and after how many seconds."""
        started = time.monotonic()
        return self.process.wait(60), time.monotonic() - started


@contextmanager
def held_up(tiny: TinyMesh) -> Iterator[psycopg2.extensions.connection]:
    """While the block runs, reading the source waits for a lock; closing the connection ends that."""
    table = f"{tiny.schema}.events"
    tiny.sql(
        tiny.source_database,
        f"ALTER TABLE {table} RENAME TO stored; CREATE OR REPLACE FUNCTION {tiny.schema}.slow() RETURNS boolean LANGUAGE sql VOLATILE AS "
        f"$$ SELECT pg_advisory_lock_shared({GATE}) IS NOT NULL AND pg_advisory_unlock_shared({GATE}) $$; "
        f"CREATE VIEW {table} AS SELECT s.* FROM {tiny.schema}.stored s, (SELECT {tiny.schema}.slow() OFFSET 0) o",
    )
    gate = psycopg2.connect(tiny.source_database)
    try:
        gate.autocommit = True
        with gate.cursor() as cursor:
            cursor.execute(f"SELECT pg_advisory_lock({GATE})")
        yield gate
    finally:
        gate.close()
        # A process that left its statement behind left it to the server.
        tiny.sql(
            tiny.source_database,
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        tiny.sql(
            tiny.source_database, f"DROP VIEW {table}; ALTER TABLE {tiny.schema}.stored RENAME TO events"
        )


def at_work(tiny: TinyMesh, working: Working) -> None:
    """Wait until a statement stands before the lock."""
    question = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
    question += "(SELECT oid FROM pg_database WHERE datname = current_database())"
    wait_until(
        lambda: bool(tiny.sql(tiny.source_database, question)[0][0]) or working.process.poll() is not None,
        "a statement that waits for the source",
    )
    assert working.process.poll() is None, working.err.read_text()


def claims(tiny: TinyMesh) -> list[str]:
    """The states of the claims that keep anybody out."""
    rows = tiny.sql(tiny.state_url, "SELECT state FROM meshgate.claim WHERE state IN ('open', 'begun')")
    return [state for (state,) in rows]


def marks(tiny: TinyMesh) -> list[str]:
    return [kind for (kind,) in tiny.sql(tiny.state_url, "SELECT kind FROM meshgate.mark ORDER BY 1")]


def last_run(tiny: TinyMesh) -> tuple[str, ...]:
    query = "SELECT state, coalesce(error, '') FROM meshgate.run ORDER BY run_id DESC LIMIT 1"
    return tiny.sql(tiny.state_url, query)[0]


class Stage:
    """A mesh, deployed at 01:00, of which each test takes another hour: deploying one for each would take minutes."""

    def __init__(self, folder: Path, postgres: LocalPostgres, engine: str) -> None:
        # Where the engine is elsewhere, what was interrupted is left alone for as long as a statement may take.
        settings = {"statement_timeout": "4s"} if engine == "postgres" else {}
        self.tiny = TinyMesh(folder, postgres, engine=engine, settings=settings)
        self.tiny.feed(0, 1200)
        self.upto = 60
        with self.tiny.mesh() as mesh:
            mesh.deploy("upstream", now=at(60))
            mesh.deploy("downstream", now=at(60))

    def next(self, grace: str) -> None:
        """Another hour becomes due; a statement may take so long after a signal."""
        self.upto += 60
        path = self.tiny.folder / "meshgate.yaml"
        config = json.loads(path.read_text())
        for project in config["projects"]:
            project["stop_grace"] = grace
        path.write_text(json.dumps(config))

    @property
    def hour(self) -> str:
        """The hour, as people write it."""
        return str(span(self.upto - 60, self.upto))

    def start(self, *arguments: str, job: bool = False) -> Working:
        """A process for which it is the end of the hour."""
        return Working(self.tiny, *arguments, "--now", at(self.upto).isoformat(), job=job)

    def finish(self) -> None:
        """The ordinary runs of both projects make every table right."""
        now, whole = at(self.upto), IntervalSet([span(0, self.upto)])
        with self.tiny.mesh() as mesh:

            def done() -> bool:
                mesh.run("upstream", now=now)
                known = mesh.ledger.states(mesh.ledger.manifest("prod").version_ids.values()).values()
                covered = sum(state.covered == whole for state in known)
                return covered >= 2 and not any(state.marks for state in known)

            wait_until(done, "a run that does what is left")
            mesh.run("downstream", now=now)
        self.tiny.check(self.upto)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres, extensions: None) -> Stage:
    """DuckDB: the engine is in the process."""
    return Stage(tmp_path_factory.mktemp("lake") / "mesh", postgres, "ducklake")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, postgres: LocalPostgres) -> Stage:
    """Postgres: the engine goes on without the process."""
    return Stage(tmp_path_factory.mktemp("server") / "mesh", postgres, "postgres")


@BOTH
def test_what_ends_within_the_grace_is_committed_and_the_next_run_goes_on(
    lake: Stage, signum: signal.Signals
) -> None:
    """The statement under way may end: its batch is recorded, no further one begins, nothing is left open or suspect."""
    lake.next("10m")
    with held_up(lake.tiny) as gate, lake.start("run", "upstream") as working:
        at_work(lake.tiny, working)
        working.process.send_signal(signum)
        working.says(f"{signum.name}: stopping; the statement under way gets 600 s more")
        gate.close()
        assert working.ended()[0] == 128 + signum
    said = working.out.read_text()
    assert f"stopped by {signum.name}: 1 committed, 1 left; the next run goes on" in said
    assert f"committed bronze.events {lake.hour}" in said
    assert (last_run(lake.tiny)[0], claims(lake.tiny), marks(lake.tiny)) == ("stopped", [], [])
    lake.finish()


@pytest.mark.parametrize(
    ("engine", "signum"),
    [("lake", signal.SIGTERM), ("lake", signal.SIGINT), ("server", signal.SIGTERM)],
    ids=["lake-SIGTERM", "lake-SIGINT", "server-SIGTERM"],
)
def test_what_outlives_the_grace_is_interrupted_or_left_and_evaluated_again(
    request: pytest.FixtureRequest, signum: signal.Signals, engine: str
) -> None:
    """The process ends soon, whatever the statement does; what it was writing is suspect until the next run."""
    stage: Stage = request.getfixturevalue(engine)
    stage.next("1s")
    with held_up(stage.tiny), stage.start("run", "upstream") as working:
        at_work(stage.tiny, working)
        working.process.send_signal(signum)
        code, seconds = working.ended()
        assert code == 128 + signum
        assert seconds < SOON_S
    said = "interrupting the statement under way; what it was writing will be evaluated again"
    assert said in working.err.read_text()
    assert (last_run(stage.tiny)[0], claims(stage.tiny), marks(stage.tiny)) == ("stopped", [], ["suspect"])
    stage.finish()


def test_a_second_signal_does_not_wait_for_the_grace(lake: Stage) -> None:
    """Whoever asks twice wants it now, though the statement would have ten minutes."""
    lake.next("10m")
    with held_up(lake.tiny), lake.start("run", "upstream") as working:
        at_work(lake.tiny, working)
        working.process.send_signal(signal.SIGINT)
        working.says("or until the signal is repeated")
        working.process.send_signal(signal.SIGINT)
        code, seconds = working.ended()
        assert code == 130
        assert seconds < SOON_S
    assert (claims(lake.tiny), marks(lake.tiny)) == ([], ["suspect"])
    lake.finish()


@BOTH
def test_a_run_that_waits_for_data_ends_at_once(lake: Stage, signum: signal.Signals) -> None:
    """Nothing is under way while it waits: no grace is needed, and the summary says that it waited."""
    lake.next("10m")
    with lake.start("run", "downstream", "--wait", "10m") as working:
        working.says(f"waiting for bronze.events {lake.hour} of upstream")
        working.process.send_signal(signum)
        code, seconds = working.ended()
        assert code == 128 + signum
        assert seconds < SOON_S
    said = f"stopped by {signum.name} while it waited: 0 committed; the next run goes on"
    assert said in working.out.read_text()
    assert working.err.read_text().count("waiting for") == 1
    lake.finish()


def test_a_run_that_waits_for_another_one_ends_at_once(lake: Stage) -> None:
    """It names the run that it waits for; after the signal nothing of it is left."""
    lake.next("10m")
    with lake.tiny.mesh() as mesh:
        holder = {"host": "elsewhere", "pid": 1}
        length = {"ttl": timedelta(minutes=10), "grace": timedelta(0)}
        other = mesh.ledger.acquire("upstream", "prod", "run", holder, **length)
        assert isinstance(other, Lease)
        with lake.start("run", "upstream", "--overlap", "wait") as working:
            working.says(f"waiting for run {other.run_id} of upstream to end")
            working.process.send_signal(signal.SIGTERM)
            code, seconds = working.ended()
            assert code == 143
            assert seconds < SOON_S
        assert "stopped by SIGTERM while it waited: 0 committed" in working.out.read_text()
        assert [run.run_id for run in mesh.leases()] == [other.run_id]
        mesh.ledger.finish(other.run_id, "done", {})
    lake.finish()


def test_a_deploy_that_is_stopped_replaces_nothing_and_can_be_made_again(lake: Stage) -> None:
    """What it had evaluated stays recorded; the environment promotes what it did; the summary says what to do."""
    lake.next("10m")
    lake.finish()
    path = lake.tiny.folder / "upstream/models/bronze.sql"
    path.write_text(
        path.read_text().replace("SELECT id, ts, value FROM", "SELECT id, ts, value + 0 AS value FROM")
    )
    with lake.tiny.mesh() as mesh:
        before = mesh.ledger.manifest("prod").plan_id
        with held_up(lake.tiny) as gate, lake.start("deploy", "upstream") as working:
            at_work(lake.tiny, working)
            working.process.send_signal(signal.SIGTERM)
            working.says("SIGTERM: stopping")
            gate.close()
            assert working.ended()[0] == 143
        said = working.out.read_text()
        assert "of upstream: stopped" in said
        assert "stopped by SIGTERM: 1 committed; deploy again to go on" in said
        assert (mesh.ledger.manifest("prod").plan_id, claims(lake.tiny), marks(lake.tiny)) == (before, [], [])
        assert mesh.deploy("upstream", now=at(lake.upto)).state == "done"
        assert mesh.ledger.manifest("prod").plan_id != before
    lake.finish()


def test_a_json_answer_stands_alone(lake: Stage) -> None:
    """Though it waited in vain, stderr is empty; with -v what it waited for is there."""
    lake.next("10m")
    for flags, told in (((), 0), (("-v",), 1)):
        with lake.start(*flags, "run", "downstream", "--wait", "1s", "--json") as working:
            assert working.ended()[0] == 0
        assert json.loads(working.out.read_text())["state"] == "nothing_to_do"
        assert working.err.read_text().count("waiting for bronze.events") == told
        assert told or not working.err.read_text()
    lake.finish()


def test_a_job_that_is_stopped_raises(lake: Stage) -> None:
    """An orchestrator sees that the task did not end by itself."""
    lake.next("10m")
    with lake.start("run", "downstream", "--wait", "10m", job=True) as working:
        working.says("waiting for")
        working.process.send_signal(signal.SIGTERM)
        assert working.ended()[0] == 1
    last = working.err.read_text().splitlines()[-1]
    assert last.startswith("meshgate.errors.StoppedError: run ")
    assert "ended as stopped: stopped by SIGTERM while it waited" in last
    lake.finish()
