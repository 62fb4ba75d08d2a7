"""How the tests of the private Postgres look at it from outside: processes, locks, SQL."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2

from meshgate import local_postgres, postgres_server

if TYPE_CHECKING:
    from collections.abc import Callable

SOURCES = Path(local_postgres.__file__).parents[1]
USE = """
import sys
from pathlib import Path
from meshgate.local_postgres import LocalPostgres
server = LocalPostgres.start(Path(sys.argv[1]))
print(server.port, server.url(), flush=True)
sys.stdin.read()
"""
LINGER_S = 0.3


def until(condition: Callable[[], Any], what: str) -> Any:
    """Poll for an observed condition and return what it returned."""
    deadline = time.monotonic() + 30
    while not (seen := condition()):
        assert time.monotonic() < deadline, f"never saw: {what}"
        time.sleep(0.01)
    return seen


def ask(url: str, statement: str) -> Any:
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] if cursor.description else None
    finally:
        connection.close()


def home_of(folder: Path) -> Path:
    return postgres_server.open_home(folder)


def server_pid(folder: Path) -> int | None:
    running = postgres_server.find_running(home_of(folder) / "data")
    return running.pid if running else None


def watchdogs(folder: Path) -> list[int]:
    home = os.fsencode(home_of(folder))
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"--watch" in argv and home in argv:
            found.append(int(entry.name))
    return found


def stopped(folder: Path) -> bool:
    return server_pid(folder) is None and not watchdogs(folder)


def client(folder: Path, code: str = USE, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def leave(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


def remove(folder: Path) -> None:
    """Stop what a test left behind, and delete what lies outside its temporary folder."""
    home = home_of(folder)
    postgres_server.stop(home / "data")
    until(lambda: not watchdogs(folder), "the watchdog ends with the last user")
    shutil.rmtree(home)
    shutil.rmtree(folder, ignore_errors=True)


def in_use(folder: Path) -> bool:
    """Whether any process holds the users' lock."""
    lock = os.open(home_of(folder) / "users.lock", os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def waits_for(pid: int, lock: int) -> bool:
    """Whether a process is blocked in the kernel on the lock of this open file."""
    inode = os.fstat(lock).st_ino
    return any(
        "->" in line and str(pid) in line.split() and line.split()[-3].endswith(f":{inode}")
        for line in Path("/proc/locks").read_text().splitlines()
    )
