"""The private Postgres: shared while somebody uses it, gone when nobody does, whoever is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
import pytest

from meshgate import local_postgres, postgres_binaries, postgres_server
from meshgate.errors import LocalPostgresError
from meshgate.local_postgres import LocalPostgres
from server_probe import (
    LINGER_S,
    SOURCES,
    ask,
    client,
    home_of,
    in_use,
    leave,
    remove,
    server_pid,
    stopped,
    until,
    waits_for,
    watchdogs,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short linger, and no fsync."""
    monkeypatch.setenv(local_postgres.LINGER_VARIABLE, str(LINGER_S))
    monkeypatch.setenv(postgres_server.FSYNC_VARIABLE, "off")


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for the tests that do not care who made the data: making them takes the time."""
    place = tmp_path_factory.mktemp("shared") / "mesh"
    yield place
    remove(place)


@pytest.fixture
def folder(data_folder: Path) -> Iterator[Path]:
    """A folder whose server is stopped when the test begins."""
    yield data_folder
    until(lambda: stopped(data_folder), "the last test's server stops")


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Path]:
    """A folder without data."""
    place = tmp_path / "mesh"
    yield place
    if place.exists():
        remove(place)


def test_it_answers_on_the_loopback_address_alone_with_a_password_and_durably(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A started server listens on 127.0.0.1 only, has no unix socket, refuses a wrong password, and syncs."""
    monkeypatch.delenv(postgres_server.FSYNC_VARIABLE)
    monkeypatch.setenv("PGHOST", "192.0.2.1")
    monkeypatch.setenv("PGOPTIONS", "-c nonsense=1")
    with LocalPostgres.start(folder) as server:
        monkeypatch.delenv("PGOPTIONS")
        assert server.ensure_database("warehouse") == server.url("warehouse")
        assert ask(server.url(), "SELECT current_database()") == "meshgate"
        assert ask(server.url(), "SHOW listen_addresses") == "127.0.0.1"
        assert ask(server.url(), "SHOW unix_socket_directories") == ""
        assert ask(server.url(), "SHOW fsync") == "on"
        assert ask(server.url(), "SHOW synchronous_commit") == "on"
        assert ask(server.url(), "SHOW timezone") == "UTC"
        with pytest.raises(psycopg2.OperationalError, match="password"):
            ask(server.url().replace(server.password, "wrong"), "SELECT 1")


def test_secrets_stay_in_one_private_file(folder: Path) -> None:
    """The password is in a file of mode 0600 and in no `repr`, log or command line."""
    with LocalPostgres.start(folder) as server:
        home = home_of(folder)
        assert stat.S_IMODE((home / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE((home / "data").stat().st_mode) == 0o700
        assert server.password not in repr(server)
        assert set(server.environment().values()) >= {server.password, str(server.port)}
        assert server.password not in (home / "server.log").read_text()
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                assert server.password.encode() not in entry.read_bytes()
            except OSError:
                continue
        assert (folder / "postgres" / ".gitignore").read_text() == "*\n"


def test_databases_are_created_once_whatever_they_are_called(folder: Path) -> None:
    """`ensure_database` may be repeated, quotes what needs quoting, and refuses what Postgres would cut."""
    with LocalPostgres.start(folder) as server:
        for name in ("plain", "plain", "O'Brien's \"data\" : x", "größe", "meshgate"):
            assert ask(server.ensure_database(name), "SELECT current_database()") == name
        for name in ("", "x" * 64, "a\0b"):
            with pytest.raises(LocalPostgresError, match="cannot be called"):
                server.ensure_database(name)


def test_six_concurrent_starters_make_one_server(fresh: Path) -> None:
    """Processes that start at once share one server and one watchdog, which end with the last of them."""
    fresh.mkdir(parents=True)
    clients = [client(fresh) for _ in range(6)]
    ports = {process.stdout.readline() for process in clients if process.stdout}
    assert len(ports) == 1
    pid = server_pid(fresh)
    assert pid is not None
    assert len(watchdogs(fresh)) == 1
    for process in clients[:5]:
        leave(process)
    assert server_pid(fresh) == pid
    leave(clients[5])
    until(lambda: stopped(fresh), "the server stops")


def test_a_killed_client_does_not_leave_the_server_running(folder: Path) -> None:
    """The server ends after its only user was killed with SIGKILL."""
    process = client(folder)
    assert process.stdout
    process.stdout.readline()
    pid = server_pid(folder)
    assert pid
    process.kill()
    process.communicate()
    until(lambda: stopped(folder), "the server stops")


def test_who_comes_while_the_watchdog_lingers_keeps_the_server(folder: Path) -> None:
    """Attaching anew within the linger time meets the running server, for as long as somebody does."""
    pids = set()
    end = time.monotonic() + 4 * LINGER_S
    while time.monotonic() < end:
        with LocalPostgres.start(folder):
            pids.add(server_pid(folder))
    assert len(pids) == 1


def test_the_watchdog_looks_again_when_it_is_alone(folder: Path) -> None:
    """Who attaches after the linger time, just before the watchdog would stop the server, keeps it."""
    with LocalPostgres.start(folder):
        pid = server_pid(folder)
        home = home_of(folder)
        start, users = (os.open(home / name, os.O_RDWR) for name in ("start.lock", "users.lock"))
        fcntl.flock(start, fcntl.LOCK_EX)
    (watchdog,) = watchdogs(folder)
    until(lambda: waits_for(watchdog, start), "the watchdog wants to stop the server")
    fcntl.flock(users, fcntl.LOCK_SH)
    os.close(start)
    until(lambda: waits_for(watchdog, users), "the watchdog waits for the new user")
    assert server_pid(folder) == pid
    os.close(users)


def test_users_and_the_watchdog_never_meet_a_half_stopped_server(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no linger at all, every start returns a server that answers."""
    monkeypatch.setenv(local_postgres.LINGER_VARIABLE, "0")
    for _ in range(12):
        with LocalPostgres.start(folder) as server:
            assert ask(server.url(), "SELECT 1") == 1


def test_a_killed_server_is_started_again_with_its_data_and_its_port(folder: Path) -> None:
    """After SIGKILL of the server the next start recovers it, for older users at the same address."""
    with LocalPostgres.start(folder) as first:
        ask(first.url(), "CREATE TABLE kept AS SELECT 7 AS x")
        pid = server_pid(folder)
        assert pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: server_pid(folder) is None, "the server is dead")
        with LocalPostgres.start(folder) as second:
            assert server_pid(folder) != pid
            assert ask(second.url(), "SELECT x FROM kept") == 7
            assert ask(first.url(), "SELECT x FROM kept") == 7
            assert len(watchdogs(folder)) == 1


@pytest.mark.parametrize("bearer", ["zombie", "stranger"])
def test_a_stale_pid_file_with_a_reused_number_does_not_matter(folder: Path, bearer: str) -> None:
    """A `postmaster.pid` whose number belongs to a zombie or to another program is not a live server."""
    with LocalPostgres.start(folder):
        pid = server_pid(folder)
        assert pid
        text = (home_of(folder) / "data" / "postmaster.pid").read_text()
        os.kill(pid, signal.SIGKILL)
        until(lambda: server_pid(folder) is None, "the server is dead")
        other = subprocess.Popen(["sleep", "0" if bearer == "zombie" else "60"])
        if bearer == "zombie":
            state = Path(f"/proc/{other.pid}/stat")
            until(lambda: ") Z " in state.read_text(), "nobody has reaped it")
        stale = home_of(folder) / "data" / "postmaster.pid"
        stale.write_text(text.replace(str(pid), str(other.pid), 1))
        with LocalPostgres.start(folder) as server:
            assert ask(server.url(), "SELECT 1") == 1
        other.kill()
        other.wait()


def test_a_port_that_was_taken_meanwhile_is_replaced(folder: Path) -> None:
    """A stopped server whose port somebody else took comes back on another one, and says so."""
    with LocalPostgres.start(folder) as server:
        old = server.port
    until(lambda: stopped(folder), "the server stops")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", old))
        other.listen()
        with LocalPostgres.start(folder) as server:
            assert server.port != old
            assert ask(server.url(), "SELECT 1") == 1


def test_a_starter_killed_during_initdb_leaves_nothing_that_hurts(fresh: Path) -> None:
    """Half a data folder is never taken for a whole one."""
    process = client(fresh)
    home = until(lambda: fresh.exists() and home_of(fresh), "the home")
    until(lambda: list(home.glob("new-*/data/*")), "initdb has begun")
    process.kill()
    process.communicate()
    with LocalPostgres.start(fresh) as server:
        assert ask(server.url(), "SELECT 1") == 1


def test_a_starter_killed_before_the_database_exists_is_made_good(folder: Path) -> None:
    """The database `meshgate` is created by whoever comes first after a crash between the two steps."""
    with LocalPostgres.start(folder) as server:
        server.ensure_database("other")
        ask(server.url("other"), "DROP DATABASE meshgate")
        (home_of(folder) / "complete").unlink()
        with LocalPostgres.start(folder) as second:
            assert ask(second.url(), "SELECT current_database()") == "meshgate"


def test_a_killed_watchdog_is_replaced_by_the_next_user(folder: Path) -> None:
    """The server is still stopped when its first watchdog was killed and another user came."""
    with LocalPostgres.start(folder):
        (first,) = watchdogs(folder)
        os.kill(first, signal.SIGKILL)
        until(lambda: not watchdogs(folder), "the watchdog is dead")
        with LocalPostgres.start(folder):
            assert len(watchdogs(folder)) == 1
    until(lambda: stopped(folder), "the server stops")


def test_a_forked_child_that_closes_does_not_take_the_server_from_its_parent(folder: Path) -> None:
    """After a fork the server lives until both parent and child have closed."""
    server = LocalPostgres.start(folder)
    pid = server_pid(folder)
    child = os.fork()
    if child == 0:
        server.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert in_use(folder)
    assert server_pid(folder) == pid
    server.close()
    server.close()
    until(lambda: stopped(folder), "the server stops")


def test_destroy_deletes_everything_but_not_under_another_user(fresh: Path) -> None:
    """`destroy` refuses while somebody is attached, and then leaves neither process nor data."""
    first, second = LocalPostgres.start(fresh), LocalPostgres.start(fresh)
    home = home_of(fresh)
    with pytest.raises(LocalPostgresError, match="in use"):
        first.destroy()
    assert ask(second.url(), "SELECT 1") == 1
    second.destroy()
    first.destroy()
    assert not home.exists()
    with pytest.raises(LocalPostgresError, match="cannot be created"):
        second.ensure_database("late")
    shutil.rmtree(fresh, ignore_errors=True)
    with pytest.raises(psycopg2.OperationalError):
        ask(second.url(), "SELECT 1")


def test_destroy_does_not_take_the_watchdog_for_a_user(fresh: Path) -> None:
    """The watchdog takes the users' lock when the last user closes, which may be the one who destroys: that one waits for it."""
    server = LocalPostgres.start(fresh)
    home = home_of(fresh)
    (watchdog,) = watchdogs(fresh)
    start = os.open(home / "start.lock", os.O_RDWR)
    fcntl.flock(start, fcntl.LOCK_EX)
    os.kill(watchdog, signal.SIGSTOP)
    users = os.open(home / "users.lock", os.O_RDWR)
    server.close()
    fcntl.flock(users, fcntl.LOCK_EX)  # as the watchdog would, were it not stopped
    with ThreadPoolExecutor() as pool:
        os.close(start)
        destroyed = pool.submit(server.destroy)
        time.sleep(0.2)
        assert not destroyed.done()
        os.close(users)
        destroyed.result()
    os.kill(watchdog, signal.SIGCONT)
    assert not home.exists()


def test_a_server_whose_folder_was_deleted_is_stopped(fresh: Path) -> None:
    """Deleting the folder under a running server does not leave the server behind."""
    server = LocalPostgres.start(fresh)
    pid = server_pid(fresh)
    assert pid
    home = home_of(fresh)
    shutil.rmtree(home)
    shutil.rmtree(fresh, ignore_errors=True)
    server.close()
    until(lambda: not Path(f"/proc/{pid}").exists(), "the server stops")


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    """The error holds the server's own words, and the lock is free again."""
    with LocalPostgres.start(folder):
        pass
    until(lambda: stopped(folder), "the server stops")
    settings = home_of(folder) / "data" / "postgresql.conf"
    good = settings.read_text()
    settings.write_text(f"{good}\nno_such_setting = 1\n")
    with pytest.raises(LocalPostgresError, match="no_such_setting") as caught:
        LocalPostgres.start(folder)
    assert caught.value.exit_code == 2
    settings.write_text(good)
    LocalPostgres.start(folder).close()


# -- the command


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "meshgate.local_postgres", str(folder), *arguments]


def test_a_command_runs_with_the_server_in_its_environment(folder: Path) -> None:
    """`FOLDER DATABASE -- COMMAND` gives the command the variables and returns its exit code."""
    code = (
        "import os, psycopg2; e = os.environ.get\n"
        "psycopg2.connect(host=e('MESHGATE_LOCAL_HOST'), port=e('MESHGATE_LOCAL_PORT'), dbname='lake',"
        " user=e('MESHGATE_LOCAL_USER'), password=e('MESHGATE_LOCAL_PASSWORD'))\n"
        "raise SystemExit(7)"
    )
    done = subprocess.run(
        command(folder, "lake", "--", sys.executable, "-c", code), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
    until(lambda: stopped(folder), "the server stops")


def test_without_a_command_it_prints_exports_and_serves_until_it_is_told_to_end(folder: Path) -> None:
    """`FOLDER` alone prints lines for a shell, and serves until SIGTERM."""
    process = subprocess.Popen(
        command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(4)]
    names = ["HOST", "PORT", "USER", "PASSWORD"]
    assert [line.split("=")[0] for line in lines] == [f"export MESHGATE_LOCAL_{name}" for name in names]
    assert server_pid(folder)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 0
    until(lambda: stopped(folder), "the server stops")


def test_the_command_keeps_the_server_when_its_wrapper_is_killed(folder: Path) -> None:
    """A command that outlives `python -m meshgate.local_postgres` still has its server."""
    process = subprocess.Popen(
        command(folder, "--", "sh", "-c", "echo $$; exec sleep 60"), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    with LocalPostgres.start(folder):
        pass
    assert in_use(folder)
    os.kill(child, signal.SIGKILL)
    process.stdout.close()
    until(lambda: stopped(folder), "the server stops")


def test_wrong_use_of_the_command_exits_with_2(
    folder: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder, an option, or no binaries: a message and exit code 2; an unknown command: 127."""
    for arguments in ([], ["--help"]):
        assert local_postgres.main(arguments) == 2
    assert local_postgres.main([str(folder), "--", "/no/such/command"]) == 127
    monkeypatch.setenv(postgres_binaries.BIN_VARIABLE, "/nowhere")
    assert local_postgres.main([str(fresh)]) == 2


def test_importing_it_is_cheap() -> None:
    """The watchdog must not carry SQLMesh, psycopg2 or anything else that is heavy."""
    code = (
        "import sys, meshgate.local_postgres\n"
        "print([m for m in ('sqlmesh', 'sqlglot', 'psycopg2', 'attrs', 'jinja2', 'click') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(SOURCES)},
    )
    assert done.stdout.strip() == "[]"


def test_a_watchdog_of_a_destroyed_server_spares_the_one_that_follows(fresh: Path) -> None:
    """Started anew in the same folder, a server is not stopped by the watchdog of the one before it."""
    with LocalPostgres.start(fresh) as first:
        before = watchdogs(fresh)
    first.destroy()
    with LocalPostgres.start(fresh) as second:
        until(lambda: not set(before) & set(watchdogs(fresh)), "the old watchdog ends")
        assert ask(second.url(), "SELECT 1") == 1
