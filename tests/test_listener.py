"""Waiting for the ledger: woken by a notification where one arrives, by the clock where none does; and poolers."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from ledger_scene import GRACE, TTL, Scene, eventually, meanwhile, span
from meshgate.coordinator.progress import Waiting
from meshgate.db import Database, migrate
from meshgate.errors import LedgerUnreachableError
from meshgate.interval import Interval, IntervalSet
from meshgate.ledger import Busy, Lease, Ledger
from meshgate.listener import Listener
from meshgate.mesh import Mesh
from server_probe import until
from tiny_mesh import TinyMesh, at
from transaction_pooler import POOLERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

FOR_EVER_S = 120.0  # far more than any of these tests takes
SOON_S = 60.0  # an answer that came before this was not waited for
BRIEF_S = 0.05


@contextmanager
def listening(url: str, *, poll_s: float = FOR_EVER_S) -> Iterator[Listener]:
    """A listener of a database, and nothing of it afterwards."""
    with closing(Database(url, name="listener")) as database, Listener(database, poll_s=poll_s) as listener:
        yield listener


def answer(listener: Listener, timeout_s: float = FOR_EVER_S) -> tuple[bool, float]:
    """What a wait answered, and how long it took."""
    began = time.monotonic()
    return listener.wait(timeout_s), time.monotonic() - began


def woke(listener: Listener) -> bool:
    """Whether a wait ends long before its time."""
    came, took_s = answer(listener)
    return came and took_s < SOON_S


def sessions(database: Database, name: str = "listener") -> list[int]:
    """The server's processes for the connections of that name to this database."""
    rows = database.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = %(name)s",
        {"name": name},
    )
    return [row["pid"] for row in rows]


def backend(listener: Listener) -> int:
    """The server's process for a listener's own connection."""
    return int(listener._connection.info.backend_pid)


def terminate(database: Database, listener: Listener) -> None:
    """End a listener's session from the server's side; returns when it is gone."""
    pid = backend(listener)
    database.execute("SELECT pg_terminate_backend(%(pid)s)", {"pid": pid})
    eventually(lambda: pid not in sessions(database), "the session ends")


def open_files() -> int:
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the listing itself is the question


# -- hearing


def commit(scene: Scene, run: int, version: int) -> None:
    scene.commit(run, version, span(0, 1))


def fail(scene: Scene, run: int, version: int) -> None:
    scene.ledger.fail(run, version, span(0, 1), {"error": "no"})


def finish(scene: Scene, run: int, _version: int) -> None:
    scene.ledger.finish(run, "done", {})


@pytest.mark.parametrize("news", [commit, fail, finish])
def test_what_another_session_records_ends_the_wait(
    ledger: Ledger, news: Callable[[Scene, int, int], None]
) -> None:
    """A commit, a failure and the end of a run each end it at once, whether they came before it or during it."""
    scene = Scene(ledger)
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 1))
    with listening(ledger.database._url) as listener, meanwhile(lambda: woke(listener)) as waited:
        assert listener.listening
        news(scene, run, version)
        assert waited.result(SOON_S)


def test_one_wait_takes_all_notifications(ledger: Ledger) -> None:
    """A burst wakes once: the caller looks at the ledger, which holds all of it."""
    with listening(ledger.database._url) as listener:
        for number in range(100):
            ledger.database.execute(f"NOTIFY meshgate, '{number}'")
        with listener._connection.cursor() as cursor:
            cursor.execute("SELECT 1")  # the server sends what is due before it answers
        assert listener.wait(0)
        assert not listener.wait(0)


def test_other_channels_do_not_wake(ledger: Ledger) -> None:
    """A listener hears its own channel, whatever characters its name has, and not what else the database announces."""
    name = 'Mesh"gate; --'
    with closing(Database(ledger.database._url)) as database, Listener(database, channel=name) as listener:
        database.execute("NOTIFY meshgate")
        assert answer(listener, BRIEF_S)[0] is False
        database.execute("SELECT pg_notify(%(name)s, '')", {"name": name})
        assert woke(listener)


def test_a_lost_notification_costs_an_interval_and_no_more(ledger: Ledger) -> None:
    """Who hears looks rarely without being woken, but looks: what was announced to nobody is in the ledger."""
    scene = Scene(ledger)
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 1))
    with listening(ledger.database._url, poll_s=BRIEF_S) as listener:
        with listener._connection.cursor() as cursor:
            cursor.execute("UNLISTEN *")
        commit(scene, run, version)
        came, took_s = answer(listener)
        assert (came, listener.listening) == (False, True)
        assert BRIEF_S < took_s < SOON_S
        assert scene.revisions(version)


def test_a_wait_is_no_longer_than_it_was_asked_to_be(ledger: Ledger) -> None:
    """The caller's own limit ends a wait before the interval does, also when it has already passed."""
    with listening(ledger.database._url) as listener:
        for timeout_s in (BRIEF_S, 0.0, -1.0):
            came, took_s = answer(listener, timeout_s)
            assert not came
            assert took_s < SOON_S


# -- being woken


def test_another_thread_can_end_a_wait(ledger: Ledger) -> None:
    """`wake` ends the present wait at once, and without one the next; once."""
    with listening(ledger.database._url) as listener:
        with meanwhile(lambda: woke(listener)) as waited:
            listener.wake()
            assert waited.result(SOON_S)
        listener.wake()
        listener.wake()
        assert woke(listener)
        assert not listener.wait(0)


def test_a_signals_handler_can_end_a_wait(ledger: Ledger) -> None:
    """A process that is told to stop does not sit out its wait."""
    with listening(ledger.database._url) as listener:
        before = signal.signal(signal.SIGUSR1, lambda *_: listener.wake())
        main = threading.main_thread().ident
        assert main is not None
        try:
            with meanwhile(lambda: signal.pthread_kill(main, signal.SIGUSR1)):
                assert woke(listener)
        finally:
            signal.signal(signal.SIGUSR1, before)


def test_any_number_of_wakes_is_harmless(ledger: Ledger) -> None:
    """Nobody who wakes is ever blocked or refused: not when nobody waits, and not after the end."""
    with listening(ledger.database._url) as listener:
        for _ in range(100_000):
            listener.wake()
        assert listener.wait(0)
    listener.wake()


# -- a connection that breaks


def test_a_broken_connection_is_replaced(ledger: Ledger) -> None:
    """The wait in which it breaks goes on as a pause; the next one listens anew, and says that something may be missed."""
    with listening(ledger.database._url, poll_s=BRIEF_S) as listener:
        first = backend(listener)
        terminate(ledger.database, listener)
        came, took_s = answer(listener)
        assert (came, listener.listening) == (False, False)
        assert took_s < SOON_S
        assert listener.wait(FOR_EVER_S)
        assert listener.listening
        assert backend(listener) != first
        ledger.database.execute("NOTIFY meshgate")
        assert woke(listener)


def test_a_wait_survives_the_end_of_its_session(ledger: Ledger) -> None:
    """Also when the session ends in the middle of a wait, nothing is raised, and `wake` still ends it."""
    with listening(ledger.database._url) as listener, meanwhile(lambda: woke(listener)) as waited:
        terminate(ledger.database, listener)
        eventually(lambda: waited.done() or not listener.listening, "the listener notices")
        assert not waited.done()
        listener.wake()
        assert waited.result(SOON_S)


def test_a_wake_is_not_lost_with_the_connection(ledger: Ledger) -> None:
    """A wait that finds its connection broken and was told to wake ends at once."""
    with listening(ledger.database._url) as listener:
        terminate(ledger.database, listener)
        listener.wake()
        assert woke(listener)


def test_an_unreachable_ledger_is_polled_until_it_is_back(postgres: Any, database_url: str) -> None:
    """While no new connection is to be had each wait is a pause; the first that gets one says so and listens."""
    name = psycopg2.extensions.parse_dsn(database_url)["dbname"]
    with (
        closing(Database(postgres.url("postgres"))) as server,
        listening(database_url, poll_s=BRIEF_S) as listener,
    ):
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        eventually(lambda: not listener.wait(FOR_EVER_S) and not listener.listening, "the listener notices")
        for _ in range(3):
            came, took_s = answer(listener)
            assert (came, listener.listening) == (False, False)
            assert BRIEF_S * 0.9 < took_s < SOON_S
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert listener.wait(FOR_EVER_S)
        assert listener.listening


def test_no_ledger_is_an_error_at_the_start_only() -> None:
    """A listener that never reached the ledger says so, and leaves no open file behind."""
    with closing(Database("postgresql://nobody@127.0.0.1:1/nothing")) as database:
        before = open_files()
        with pytest.raises(LedgerUnreachableError):
            Listener(database)
        assert open_files() == before


def test_a_listener_leaves_nothing_behind(ledger: Ledger) -> None:
    """One connection while it listens; none, and no open file, after its block, also where it had been replaced."""
    name = f"listener_{uuid.uuid4().hex[:8]}"
    with closing(Database(ledger.database._url, name=name)) as database:
        database.execute("SELECT 1")
        before = open_files()
        with Listener(database, poll_s=BRIEF_S) as listener:
            assert len(sessions(ledger.database, name)) == 2
            terminate(ledger.database, listener)
            eventually(lambda: listener.wait(FOR_EVER_S), "the listener reconnects")
            assert len(sessions(ledger.database, name)) == 2
        listener.close()
        eventually(lambda: len(sessions(ledger.database, name)) == 1, "the listener's connection is closed")
        assert open_files() == before


# -- poolers in transaction mode


@pytest.fixture(params=sorted(POOLERS))
def pooler(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Opens a pooler before a database."""
    return lambda url, **options: POOLERS[request.param](url, tmp_path, **options)


def ask(connection: Any, statement: str) -> Any:
    """The single value of a statement's answer."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


def test_the_pooler_keeps_transactions_and_not_sessions(pooler: Callable[..., Any], ledger_url: str) -> None:
    """One transaction stays with one session of the server, the next may go to another, and settings stay behind."""
    with pooler(ledger_url, round_robin=True) as url, closing(psycopg2.connect(url)) as connection:
        with connection:
            assert ask(connection, "SELECT pg_backend_pid()") == ask(connection, "SELECT pg_backend_pid()")
        connection.autocommit = True
        seen: set[int] = set()

        def several() -> bool:
            seen.add(ask(connection, "SELECT pg_backend_pid()"))
            return len(seen) > 1

        eventually(several, "another session of the server")
        ask(connection, "SELECT set_config('meshgate.trace', 'kept', false)")
        eventually(
            lambda: ask(connection, "SELECT current_setting('meshgate.trace', true)") != "kept",
            "a session without the setting",
        )


def test_a_pooler_would_fool_a_probe_on_one_connection(pooler: Callable[..., Any], ledger_url: str) -> None:
    """Through a pooler a connection hears itself, which is why the listener is tried from another."""
    with pooler(ledger_url) as url, closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("LISTEN echo")
            cursor.execute("NOTIFY echo")
        connection.poll()
        assert [notification.channel for notification in connection.notifies] == ["echo"]


def test_through_a_pooler_waiting_is_polling(pooler: Callable[..., Any], ledger: Ledger) -> None:
    """The listener finds out that it would hear nothing, leaves no subscription, pauses an interval, and can be woken."""
    with pooler(ledger.database._url) as url, listening(url, poll_s=BRIEF_S) as listener:
        assert not listener.listening
        assert listener._connection is None
        with closing(Database(url)) as other:
            assert not other.execute("SELECT pg_listening_channels()")  # the session that had been tried
            other.execute("NOTIFY meshgate")
        came, took_s = answer(listener)
        assert not came
        assert BRIEF_S * 0.9 < took_s < SOON_S
        listener.wake()
        assert listener.wait(0)


def test_what_waits_through_a_pooler_sees_the_commit(pooler: Callable[..., Any], ledger: Ledger) -> None:
    """Polling finds what no notification told: an interval that another run commits meanwhile."""
    scene = Scene(ledger)
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 1))
    with pooler(ledger.database._url) as url, closing(Database(url)) as database:

        def wait_for_it() -> bool:
            pooled = Ledger(database)
            with Listener(database, poll_s=BRIEF_S) as listener:
                while not pooled.coverage_rows(version, span(0, 1)):
                    listener.wait(FOR_EVER_S)
            return True

        with meanwhile(wait_for_it) as waited:
            commit(scene, run, version)
            assert waited.result(SOON_S)


def test_the_ledger_works_through_a_pooler(pooler: Callable[..., Any], ledger: Ledger) -> None:
    """Leases, claims, fence and audit of several runs at once need no session: each transaction may have another one."""
    versions = {f"project_{i}": Scene(ledger).version(f"m{i}", project=f"project_{i}") for i in range(4)}

    def work(url: str, project: str, version: int) -> list[str]:
        states = []
        with closing(Database(url)) as database:
            pooled = Ledger(database)
            for cell in range(4):
                lease = pooled.acquire(project, "prod", "run", {"host": "here"}, ttl=TTL, grace=GRACE)
                assert isinstance(lease, Lease)
                assert isinstance(
                    pooled.acquire(project, "prod", "run", {"host": "there"}, ttl=TTL, grace=GRACE), Busy
                )
                interval = span(cell, cell + 1)
                assert [a.refused_by for a in pooled.open_claims(lease.run_id, version, [interval])] == [None]
                begun = pooled.begin(lease.run_id, version, interval, needs=[], loaded=[], environment=None)
                assert begun.read_revision is not None
                assert pooled.renew(lease.run_id) > lease.started_at
                pooled.commit(lease.run_id, version, interval, verdict="passed")
                states.append(pooled.finish(lease.run_id, "done", {}))
        return states

    with pooler(ledger.database._url, round_robin=True) as url:
        done: list[Any] = []
        threads = [
            threading.Thread(target=lambda p=p, v=v: done.append(work(url, p, v)))
            for p, v in versions.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON_S)
    assert done == [["done"] * 4] * 4
    for version in versions.values():
        assert sorted(Scene(ledger).revisions(version)) == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_run_waits_through_a_pooler(
    pooler: Callable[..., Any], postgres: LocalPostgres, tmp_path: Path, extensions: None
) -> None:
    """Two projects whose ledger is behind a pooler: the one that waits says that it polls, and gets what it waits for."""
    tiny = TinyMesh(tmp_path / "mesh", postgres)
    tiny.feed(0, 120)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
    told: list[Any] = []
    with pooler(tiny.state_url, round_robin=True) as url:
        file = tiny.folder / "meshgate.yaml"
        file.write_text(json.dumps({**json.loads(file.read_text()), "ledger": {"url": url}}))
        with (
            Mesh.open(file, tell=told.append) as mesh,
            meanwhile(lambda: mesh.run("downstream", now=at(120), wait=timedelta(minutes=2))) as waiting,
        ):
            until(lambda: waiting.done() or any(isinstance(t, Waiting) for t in told), "it waits")
            tiny.cli("run", "upstream", "--now", f"{at(120):%Y-%m-%dT%H:%M:%SZ}")
            report = waiting.result(SOON_S)
        assert report.state == "done"
        assert report.committed == {'"lake"."gold"."hourly"': IntervalSet([Interval(at(60), at(120))])}
        assert {t.notified for t in told if isinstance(t, Waiting)} == {False}
    tiny.check(120)


def test_a_ledger_is_made_through_a_pooler(pooler: Callable[..., Any], database_url: str) -> None:
    """The migration's lock belongs to its transaction, so two that start together through a pooler both end well."""
    with pooler(database_url, round_robin=True) as url:

        def make() -> tuple[int, int]:
            with closing(Database(url)) as database:
                return migrate(database)

        with meanwhile(make) as other:
            mine = make()
        assert sorted([mine[0], other.result()[0]]) == [0, mine[1]]
