"""The server of one home folder: where it lies, how it is made, started, recognised and stopped.

Who may do any of this, and when, is decided in `local_postgres`: every function here that changes
something expects that its caller holds the home's `start.lock`.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshgate import postgres_binaries
from meshgate.errors import LocalPostgresError

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.postgres_binaries import Account

HOST = "127.0.0.1"
USER = "meshgate"
FSYNC_VARIABLE = "MESHGATE_LOCAL_FSYNC"
_PATIENCE_S = 60.0  # for a recovery after a crash, or for the backends of a killed server
_LOG_LIMIT = 5_000_000  # bytes
_SETTINGS = f"""
# Written by meshgate.
listen_addresses = '{HOST}'
unix_socket_directories = ''
max_connections = 100
timezone = 'UTC'
log_timezone = 'UTC'
"""


@dataclass(frozen=True)
class Running:
    """A live server, as its own `postmaster.pid` describes it."""

    pid: int
    port: int
    status: str


# -- the home folder


def open_home(folder: Path) -> Path:
    """The folder that holds everything: `folder/postgres`, or where that points to.

    Root's server runs as another user. If that one cannot enter `folder/postgres`, the home is a
    folder of root's in a shared place, and `folder/postgres/elsewhere` names it.

    Raises:
        LocalPostgresError: The folder belongs to somebody else, or what it points to is gone.
    """
    own = folder.resolve() / "postgres"
    own.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        own.mkdir(mode=0o700)
        if os.geteuid() == 0:
            own.chmod(0o711)  # the server's user has to pass through to its data
        (own / ".gitignore").write_text("*\n")
    pointer = own / "elsewhere"
    if home := _pointed_to(pointer, own):
        if not home.is_dir():
            raise LocalPostgresError(
                f"the data of the local Postgres of {folder} were in {home}, which is gone",
                hint=f"to start with an empty server: rm {pointer}",
            )
        return postgres_binaries.own_folder(home, 0o711)
    account = postgres_binaries.server_account(own / "data")
    if (own / "data").exists() or not account or postgres_binaries.may_enter(own, account):
        return own
    key = hashlib.sha256(os.fsencode(own)).hexdigest()[:16]
    name = f"meshgate-{os.geteuid()}-{key}"
    home = postgres_binaries.own_folder(postgres_binaries.shared_place(account) / name, 0o711)
    _write(home / "belongs-to", f"{own}\n")  # for people who clean up the shared place
    _write(pointer, f"{home}\n{own}\n")
    return home


def forget(home: Path) -> None:
    """Remove the pointer to a home in a shared place: it is about to be deleted on purpose."""
    note = home / "belongs-to"
    if note.exists():
        (Path(note.read_text().strip()) / "elsewhere").unlink(missing_ok=True)


def _pointed_to(pointer: Path, own: Path) -> Path | None:
    if not pointer.exists():
        return None
    home, writer = map(Path, pointer.read_text().splitlines())
    # A moved folder keeps its data; a copied one must not share those of the original.
    copied = writer != own and (writer / pointer.name).exists()
    return None if copied else home


def password_of(home: Path) -> str:
    """The superuser's password, made up at the first call."""
    path = home / "password"
    if not path.exists():
        if (home / "data").exists():
            raise LocalPostgresError(
                f"{path} is missing, and the data beside it cannot be opened without it",
                hint=f"to start with an empty server: rm -r {home}",
            )
        _write(path, secrets.token_urlsafe(24))
    return path.read_text()


def major_of(home: Path) -> int | None:
    """The major version that made the data, which no other can read; None before there are data."""
    version = home / "data" / "PG_VERSION"
    return int(version.read_text().split(".")[0]) if version.exists() else None


def _write(path: Path, text: str, account: Account | None = None) -> None:
    """Write a private file in one step, so that a crash leaves the old one or the new one."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        if account:
            os.fchown(file.fileno(), account.uid, account.gid)
        file.write(text)
    draft.replace(path)


# -- starting


def ensure_running(home: Path, password: str, guard: Callable[[], None]) -> int:
    """The port of a server that is ready.

    Args:
        home: What `open_home` returned.
        password: For the superuser, if the data are yet to be made.
        guard: Called when there are data and before there is a server: if we are killed after
            that, what it set up must be able to stop the server.

    Raises:
        LocalPostgresError: There are no binaries, or the server does not start; says why.
    """
    data = home / "data"
    account = postgres_binaries.server_account(data)
    deadline = time.monotonic() + _PATIENCE_S
    while running := find_running(data):
        if running.status == "ready":
            guard()
            return running.port
        # Somebody was killed while it started, or somebody is stopping it by hand.
        _not_after(deadline, home, f"is still {running.status}")
    binaries = postgres_binaries.find(account, major_of(home)).folder
    if not data.exists():
        _initialise(home, binaries, account, password)
    guard()
    return _launch(home, binaries, account, deadline)


def _initialise(home: Path, binaries: Path, account: Account | None, password: str) -> None:
    for half in home.glob("new-*"):  # of a starter that died; a late child of it may still write there
        shutil.rmtree(half, ignore_errors=True)
    new = home / f"new-{secrets.token_hex(4)}"
    new.mkdir(mode=0o700)
    if account:
        os.chown(new, account.uid, account.gid)
    _write(new / "password", password, account)
    argv = [str(binaries / "initdb"), "-D", str(new / "data"), "-U", USER, "--auth=scram-sha-256"]
    argv += [f"--pwfile={new / 'password'}", "--encoding=UTF8", "--locale=C"]
    done = postgres_binaries.run([*argv, *([] if _durable() else ["--no-sync"])], account)
    if done.returncode:
        raise LocalPostgresError(f"initdb failed in {home}: {done.stderr.strip()}")
    with (new / "data" / "postgresql.conf").open("a") as settings:
        settings.write(_SETTINGS)
    (home / "complete").unlink(missing_ok=True)
    (new / "data").rename(home / "data")
    shutil.rmtree(new, ignore_errors=True)


def _durable() -> bool:
    return os.environ.get(FSYNC_VARIABLE, "on") != "off"


def _launch(home: Path, binaries: Path, account: Account | None, deadline: float) -> int:
    data, log, last = home / "data", home / "server.log", home / "port"
    port = int(last.read_text()) if last.exists() else 0
    if log.exists() and log.stat().st_size > _LOG_LIMIT:
        log.replace(home / "server.log.1")
    while True:
        # The last one again if it is free: who holds an older object then finds the server anew.
        port = _free_port(port)
        _discard_stale_pid(data)
        begin = log.stat().st_size if log.exists() else 0
        pid = _spawn(binaries, data, port, log, account)
        while _exists(pid):
            running = find_running(data)
            if running and running.pid == pid and running.status == "ready":
                _write(last, str(port))
                return port
            _not_after(deadline, home, "did not become ready")
        said = log.read_bytes()[begin:].decode(errors="replace").strip()
        # Two failures pass: the port was taken meanwhile, and the backends of a killed server end by
        # themselves. The second has no other sign than the words of the server (its language is C).
        if "pre-existing shared memory" not in said and _free_port(port) == port:
            raise LocalPostgresError(f"the local Postgres of {home} ended while it started:\n{said[-2000:]}")
        _not_after(deadline, home, "waits for the processes of a server that was killed")


def _spawn(binaries: Path, data: Path, port: int, log: Path, account: Account | None) -> int:
    argv = [str(binaries / "postgres"), "-D", str(data), "-p", str(port)]
    argv += ["-c", f"fsync={'on' if _durable() else 'off'}"]
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as out:
        # Started by a shell that ends at once: as our own child it would become our zombie.
        done = subprocess.run(  # noqa: S603 - the binaries are the ones that the user installed or named
            ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=out,
            check=True,
            env=postgres_binaries.environment(),
            **postgres_binaries.identity(account),
        )
    return int(done.stdout)


def _free_port(preferred: int) -> int:
    with socket.socket() as probe:
        # As the server binds: a port whose old connections are in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, preferred))
        except OSError:
            probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _not_after(deadline: float, home: Path, problem: str) -> None:
    if time.monotonic() > deadline:
        raise LocalPostgresError(
            f"the local Postgres of {home} {problem} after {_PATIENCE_S:.0f} s",
            hint=f"read {home / 'server.log'}",
        )
    time.sleep(0.01)


def _discard_stale_pid(data: Path) -> None:
    """Remove the file of a dead server whose number a zombie or a stranger bears.

    Postgres takes those for a live server. It still notices backends that survive: it looks for
    their shared memory too, by the folder's inode.
    """
    if not find_running(data):
        (data / "postmaster.pid").unlink(missing_ok=True)


# -- recognising and stopping


def find_running(data: Path) -> Running | None:
    """The live server of a data folder, from the file that the server itself keeps there."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, NotADirectoryError, IndexError, ValueError):
        return None
    if not _serves(pid, data):
        return None
    lines += [""] * 8  # it is written in steps
    port = int(lines[3]) if lines[3].strip().isdigit() else 0
    return Running(pid, port, lines[7].strip() or "starting")


def stop(data: Path) -> None:
    """Stop the server: at once for its clients, but cleanly if it can, and killed if it cannot."""
    for number, patience_s in ((signal.SIGINT, 30.0), (signal.SIGQUIT, 10.0), (signal.SIGKILL, 5.0)):
        pids = _server_processes(data)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience_s
        while any(_serves(pid, data) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.01)


def _server_processes(data: Path) -> list[int]:
    if running := find_running(data):
        return [running.pid]
    if data.exists():
        return []
    # The folder was deleted under the server, which would notice that itself only after a minute.
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _serves(int(entry.name), data)]


def _exists(pid: int) -> bool:
    """Whether the process lives; a zombie, which nobody may ever reap in a container, does not."""
    try:
        # The state is the first field after the name, which may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return False
    try:  # there is no /proc, as on macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _serves(pid: int, data: Path) -> bool:
    """Whether this is the server of `data`, and not a process that was given its number later."""
    if not _exists(pid):
        return False
    try:
        # Not its working folder: a container's root may not read that of another user's process.
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return not Path("/proc/self").exists()
    return argv[0].endswith(b"postgres") and os.fsencode(data) in argv
