"""A private Postgres for a laptop or a CI machine: started by whoever needs it, stopped when nobody does.

    with LocalPostgres.start(Path(".meshgate")) as server:
        url = server.ensure_database("meshgate")

For people, around any command, or until Ctrl-C:

    python -m meshgate.local_postgres .meshgate -- sqlmesh plan
    python -m meshgate.local_postgres .meshgate warehouse

**Sharing.** Processes that name the same folder share one server. Each user holds a shared kernel
lock on `users.lock`; whoever starts, stops or creates a database holds `start.lock` alone. A detached
watchdog waits for `users.lock` alone, which it gets when the last user has closed or died, also by
SIGKILL, because the kernel drops the locks of the dead. When nobody has come for the linger time it
takes `start.lock`, looks again, and stops the server.

**Trust.** The server listens on 127.0.0.1 only, has no unix socket, and wants a password (scram) that
lies in a file of mode 0600. Nothing outside the folder is changed, except that root may need folders
of its own in a shared place: see `postgres_binaries`.

**Fork.** A lock belongs to the open file, which a forked child shares: the server lives until parent
and child have both closed or ended. A child that executes another program does not keep it alive.

Environment: MESHGATE_POSTGRES_BIN (folder of the binaries), MESHGATE_LOCAL_LINGER_S (seconds, default
5; of the process that started the watchdog), MESHGATE_LOCAL_FSYNC=off (for tests: faster, and a crash
of the machine may destroy the data; of the process that started the server).
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

from meshgate import postgres_binaries, postgres_server
from meshgate.errors import LocalPostgresError, MeshgateError
from meshgate.postgres_server import HOST, USER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

DATABASE = "meshgate"
LINGER_VARIABLE = "MESHGATE_LOCAL_LINGER_S"
_PATIENCE_S = 180.0  # for a lock; longer than any starter may hold it


class LocalPostgres:
    """A user of the server of one folder; the server runs at least until `close`.

    Attributes:
        host: Always 127.0.0.1.
        port: The port when this object was made. A server that is started again takes the same one
            if it is free; if not, `start` tells the new one.
        user: A superuser of the server.
        password: Its password; not shown by `repr`.
    """

    def __init__(self, home: Path, users: int, port: int, password: str) -> None:
        self._home = home
        self._users: int | None = users
        self.host = HOST
        self.port = port
        self.user = USER
        self.password = password

    @classmethod
    def start(cls, folder: Path) -> LocalPostgres:
        """Attach to the server of `folder`; make it and start it first, if need be.

        Args:
            folder: Any folder, made if missing. Everything lies in its subfolder `postgres`.

        Raises:
            LocalPostgresError: There are no binaries, or the server does not start; says why.
        """
        try:
            home = postgres_server.open_home(folder)
            with _alone(home / "start.lock"):
                users = _open(home / "users.lock")
                try:
                    _take(users, fcntl.LOCK_SH, home / "users.lock")
                    os.utime(users)  # tells a lingering watchdog that somebody came
                    password = postgres_server.password_of(home)
                    port = postgres_server.ensure_running(home, password, lambda: _ensure_watchdog(home))
                    server = cls(home, users, port, password)
                    # `start.lock` is held until the database is there, so nobody sees a server without it.
                    if not (home / "complete").exists():
                        server._create(DATABASE)
                        (home / "complete").touch()
                except BaseException:
                    os.close(users)
                    raise
        except (OSError, subprocess.SubprocessError) as error:
            raise LocalPostgresError(f"the local Postgres of {folder} cannot be used: {error}") from error
        return server

    def ensure_database(self, name: str) -> str:
        """Create the database if it is missing, and return its URL.

        Raises:
            LocalPostgresError: The name is empty or longer than 63 bytes, or the server refuses.
        """
        if not name or len(name.encode()) > 63 or "\0" in name:
            raise LocalPostgresError(f"a database cannot be called {name!r}", hint="1 to 63 bytes")
        try:
            with _alone(self._home / "start.lock"):
                self._create(name)
        except (OSError, subprocess.SubprocessError) as error:
            raise LocalPostgresError(f"database {name!r} cannot be created: {error}") from error
        return self.url(name)

    def url(self, database: str = DATABASE) -> str:
        """The URL of a database, with the password: not for logs. Only `meshgate` exists from the start."""
        return (
            f"postgresql://{self.user}:{quote(self.password)}@{self.host}:{self.port}/{quote(database, '')}"
        )

    def environment(self) -> dict[str, str]:
        """The variables that `{{ env_var('MESHGATE_LOCAL_PORT') }}` and its like read."""
        return {
            "MESHGATE_LOCAL_HOST": self.host,
            "MESHGATE_LOCAL_PORT": str(self.port),
            "MESHGATE_LOCAL_USER": self.user,
            "MESHGATE_LOCAL_PASSWORD": self.password,
        }

    def close(self) -> None:
        """Stop using the server; safe to repeat. The watchdog stops it when nobody else uses it."""
        if self._users is not None:
            # Not LOCK_UN: that would also take the lock from the parent of a forked process.
            os.close(self._users)
            self._users = None

    def destroy(self) -> None:
        """Stop the server and delete its data, for tests and for starting anew; safe to repeat.

        Raises:
            LocalPostgresError: Another user is attached; nothing was done but to close this one.
        """
        self.close()
        # Another user may delete everything at any moment before we have the lock.
        with suppress(FileNotFoundError), _alone(self._home / "start.lock"):
            users = _open(self._home / "users.lock")
            try:
                if not _without_users(users):
                    raise LocalPostgresError(f"the local Postgres of {self._home} is in use")
                postgres_server.stop(self._home / "data")
                postgres_server.forget(self._home)
                shutil.rmtree(self._home)
            finally:
                os.close(users)

    def _create(self, name: str) -> None:
        account = postgres_binaries.server_account(self._home / "data")
        psql = postgres_binaries.find(account, postgres_server.major_of(self._home)).folder / "psql"
        argv = [str(psql), "-XqAt", "-v", "ON_ERROR_STOP=1", "-v", f"name={name}"]
        argv += ["-h", self.host, "-p", str(self.port), "-U", self.user, "-d", "postgres"]
        done = postgres_binaries.run(
            argv,
            account,
            env={"PGPASSWORD": self.password, "PGCONNECT_TIMEOUT": "10"},
            text_in="SELECT format('CREATE DATABASE %I TEMPLATE template0', :'name') WHERE NOT EXISTS"
            " (SELECT FROM pg_database WHERE datname = :'name') \\gexec\n",
        )
        if done.returncode:
            raise LocalPostgresError(f"database {name!r} cannot be created: {done.stderr.strip()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._users is None else "open"
        return f"<LocalPostgres {self.host}:{self.port} in {self._home}, {state}>"


# -- locks


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _take(lock: int, kind: int, path: Path) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LocalPostgresError(
                    f"another process has held {path} for {_PATIENCE_S:.0f} s",
                    hint=f"find it: fuser {path}",
                ) from None
            time.sleep(0.01)
        else:
            return


def _without_users(users: int) -> bool:
    """Take `users.lock` alone, if no user has it; the caller holds `start.lock`, so nobody can come.

    The watchdog is no user, but takes this lock too, for an instant, when the last user has gone: then not even another user could
    take it. It does so once at most before it needs `start.lock`; so the first lock that a user could share may have been its own,
    gone between two looks, and the second is a user's.
    """
    shared = 0
    while shared < 2:
        with suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        try:
            fcntl.flock(users, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.001)
        else:
            fcntl.flock(users, fcntl.LOCK_UN)
            shared += 1
    return False


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = _open(path)
    try:
        _take(lock, fcntl.LOCK_EX, path)
        yield
    finally:
        os.close(lock)


# -- the watchdog


def _ensure_watchdog(home: Path) -> None:
    lock = _open(home / "watchdog.lock")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # it lives
        linger_s = float(os.environ.get(LINGER_VARIABLE) or 5)
        # It inherits the lock that we took, so there is no moment in which nobody holds it.
        argv = [sys.executable, "-S", "-P", "-m", "meshgate.local_postgres"]
        argv += ["--watch", str(home), str(linger_s), str(lock)]
        with (home / "watchdog.log").open("w") as log:
            subprocess.run(  # noqa: S603
                ["/bin/sh", "-c", '"$@" &', "sh", *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                check=True,
                pass_fds=[lock],
                env=postgres_binaries.environment({"PYTHONPATH": str(Path(__file__).parents[1])}),
                cwd="/",
                start_new_session=True,
            )
    finally:
        os.close(lock)


def _watch(home: Path, linger_s: float, watchdog: int) -> None:
    """Wait until nobody uses the server, linger, and stop it. Returns when the server is stopped."""
    # Opened now: the folder may be deleted before its last user ends.
    users, start = _open(home / "users.lock"), _open(home / "start.lock")
    while True:
        fcntl.flock(users, fcntl.LOCK_EX)  # sleeps in the kernel until the last user is gone
        fcntl.flock(users, fcntl.LOCK_UN)
        came = os.fstat(users).st_mtime_ns
        until = time.monotonic() + linger_s
        while time.monotonic() < until and os.fstat(users).st_mtime_ns == came:
            time.sleep(min(0.1, linger_s))
        if os.fstat(users).st_mtime_ns != came:
            continue
        fcntl.flock(start, fcntl.LOCK_EX)
        with suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # After `destroy` and a new start, the same path is another server with a watchdog of its own.
            if not _replaced(home / "users.lock", users):
                postgres_server.stop(home / "data")
            # In this order: who gets `start.lock` next must see that there is no watchdog.
            os.close(watchdog)
            return
        fcntl.flock(start, fcntl.LOCK_UN)


def _replaced(path: Path, lock: int) -> bool:
    try:
        return path.stat().st_ino != os.fstat(lock).st_ino
    except FileNotFoundError:
        return False


# -- the command


def main(argv: Sequence[str]) -> int:
    """Serve until interrupted, or while a command runs; returns the exit code."""
    if argv and argv[0] == "--watch":
        _watch(Path(argv[1]), float(argv[2]), int(argv[3]))
        return 0
    cut = list(argv).index("--") if "--" in argv else len(argv)
    names, command = argv[:cut], argv[cut + 1 :]
    if not names or names[0].startswith("-"):
        sys.stderr.write("usage: python -m meshgate.local_postgres FOLDER [DATABASE...] [-- COMMAND...]\n")
        return 2
    try:
        with LocalPostgres.start(Path(names[0])) as server:
            for name in names[1:]:
                server.ensure_database(name)
            return _run_command(server, command) if command else _hold(server)
    except MeshgateError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def _hold(server: LocalPostgres) -> int:
    # Blocked first: a signal that comes between the printing and the waiting must not be lost.
    ends = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    for name, value in server.environment().items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    sys.stdout.flush()
    sys.stderr.write("The server runs until Ctrl-C; paste these lines into another shell.\n")
    signal.sigwait(ends)
    return 0


def _run_command(server: LocalPostgres, command: Sequence[str]) -> int:
    users = server._users  # noqa: SLF001 - the command inherits the lock, and so survives our being killed
    try:
        child = subprocess.Popen(  # noqa: S603 - the user's own command
            list(command), env=os.environ | server.environment(), pass_fds=[] if users is None else [users]
        )
    except OSError as error:
        sys.stderr.write(f"error: {command[0]} cannot be run: {error.strerror}\n")
        return 127
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the command too
    signal.signal(signal.SIGTERM, lambda number, _frame: child.send_signal(number))
    code = child.wait()
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
