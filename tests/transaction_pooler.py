"""Poolers in transaction mode between a client and Postgres: pgbouncer where it is installed, and a small one of our own.

The small one does what the mode is about and no more. A client's connection is not a session: with each transaction
it gets some server connection, and gives it back when the server says that it is idle. Notifications that arrive on a
server connection that nobody has are dropped. It speaks the simple query protocol, which is what psycopg2 uses.
"""

from __future__ import annotations

import os
import pwd
import select
import shutil
import socket
import struct
import subprocess
import threading
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psycopg2
from psycopg2.extensions import parse_dsn

from server_probe import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PROTOCOL_3 = 196608
_NO_ENCRYPTION = {80877103, 80877104}  # what asks for SSL and for GSS
_UNDERSTOOD = {"user", "database", "application_name", "client_encoding"}
_REPORTED = (
    "server_version", "server_encoding", "client_encoding", "DateStyle", "IntervalStyle", "TimeZone",
    "integer_datetimes", "standard_conforming_strings",
)  # fmt: skip
_SYNCHRONISING = b"QS"  # a query, a sync: the server answers with everything up to ReadyForQuery


def _read(stream: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := stream.recv(count - len(data))):
            raise ConnectionError("closed")
        data += more
    return data


def _message(stream: socket.socket) -> bytes:
    """The next message, with its type and length."""
    head = _read(stream, 5)
    return head + _read(stream, struct.unpack("!I", head[1:])[0] - 4)


def _packed(kind: bytes, *fields: str) -> bytes:
    body = b"".join(field.encode() + b"\0" for field in fields)
    return kind + struct.pack("!I", len(body) + 4) + body


class _ServerConnection:
    """One session of the server, logged in by libpq, spoken to without it."""

    def __init__(self, url: str) -> None:
        self._session = psycopg2.connect(url, sslmode="disable", application_name="pooled")
        self.pid = self._session.info.backend_pid
        self.greeting = b"".join(
            _packed(b"S", name, value)
            for name in _REPORTED
            if (value := self._session.info.parameter_status(name))
        )
        self.stream = socket.socket(fileno=os.dup(self._session.fileno()))
        self.stream.settimeout(None)

    def drop_what_nobody_reads(self) -> None:
        while select.select([self.stream], [], [], 0)[0]:
            _message(self.stream)

    def close(self) -> None:
        self.stream.close()
        self._session.close()


class TransactionPooler:
    """The small pooler, with all its server connections open from the start.

    Args:
        url: The database behind it.
        size: How many server connections there are.
        round_robin: Give the one that was idle longest, so that no two transactions in a row have the same one;
            otherwise the one that was used last, as poolers do.
    """

    def __init__(self, url: str, *, size: int = 3, round_robin: bool = False) -> None:
        self._round_robin = round_robin
        self._idle = [_ServerConnection(url) for _ in range(size)]
        self._all = list(self._idle)
        self._changed = threading.Condition()
        self._clients: set[socket.socket] = set()
        self._closed = False
        self._door = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        name = quote(str(parse_dsn(url)["dbname"]))
        self.url = f"postgresql://meshgate@127.0.0.1:{self._door.getsockname()[1]}/{name}"

    def close(self) -> None:
        """Leave no thread and no connection behind."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            clients = set(self._clients)
        for stream in (self._door, *clients, *(server.stream for server in self._all)):
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._door.close()
        for server in self._all:
            server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:
                return
            with self._changed:
                if self._closed:
                    client.close()
                    return
                self._clients.add(client)
                thread = threading.Thread(target=self._serve, args=[client], daemon=True)
                self._threads.append(thread)
            thread.start()

    def _take(self) -> _ServerConnection:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._idle)
            if self._closed:
                raise ConnectionError("closed")
            server = self._idle.pop(0 if self._round_robin else -1)
        server.drop_what_nobody_reads()
        return server

    def _give_back(self, server: _ServerConnection) -> None:
        with self._changed:
            self._idle.append(server)
            self._changed.notify()

    def _serve(self, client: socket.socket) -> None:
        held: _ServerConnection | None = None
        try:
            self._greet(client)
            while (asked := _message(client))[:1] != b"X":
                held = held or self._take()
                held.stream.sendall(asked)
                if asked[:1] not in _SYNCHRONISING:
                    continue
                while (answer := _message(held.stream))[:1] != b"Z":
                    client.sendall(answer)
                if answer[5:] == b"I":  # idle: the transaction is over
                    self._give_back(held)
                    held = None
                client.sendall(answer)
        except OSError:
            pass
        finally:
            if held is not None:  # in the middle of a transaction: nobody else may have it
                with suppress(OSError):
                    held.stream.shutdown(socket.SHUT_RDWR)
            with self._changed:
                self._clients.discard(client)
            client.close()

    def _greet(self, client: socket.socket) -> None:
        while True:
            length, code = struct.unpack("!II", _read(client, 8))
            body = _read(client, length - 8)
            if code in _NO_ENCRYPTION:
                client.sendall(b"N")
            elif code == _PROTOCOL_3:
                break
            else:
                raise ConnectionError("a request to cancel, which this pooler does not do")
        words = body.rstrip(b"\0").decode().split("\0")
        if strange := set(words[::2]) - _UNDERSTOOD:
            text = f"unsupported startup parameter: {min(strange)}"
            client.sendall(_packed(b"E", "SFATAL", "C08P01", f"M{text}", ""))
            raise ConnectionError(text)
        accepted = b"R" + struct.pack("!II", 8, 0)
        key = b"K" + struct.pack("!III", 12, os.getpid(), 0)
        client.sendall(accepted + self._all[0].greeting + key + b"Z" + struct.pack("!I", 5) + b"I")


@contextmanager
def small_pooler(url: str, folder: Path, *, round_robin: bool = False) -> Iterator[str]:
    """The URL of the database through the small pooler."""
    with closing(TransactionPooler(url, round_robin=round_robin)) as pooler:
        yield pooler.url


@contextmanager
def pgbouncer(url: str, folder: Path, *, round_robin: bool = False) -> Iterator[str]:
    """The URL of the database through a pgbouncer of this test's own."""
    facts: dict[str, Any] = parse_dsn(url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        "[databases]\n"
        + " ".join([f"{facts['dbname']} =", *(f"{k}='{facts[k]}'" for k in ("host", "port", "user", "password", "dbname"))])
        + f"\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = transaction\ndefault_pool_size = 3\nmin_pool_size = 3\nserver_round_robin = {int(round_robin)}\n"
    )  # fmt: skip
    # It refuses to serve as root.
    account = ["-u", pwd.getpwnam("nobody").pw_name] if os.geteuid() == 0 else []
    log = folder / "pgbouncer.log"
    with log.open("w") as output:
        process = subprocess.Popen(["pgbouncer", *account, str(settings)], stdout=output, stderr=output)
    try:
        through = f"postgresql://meshgate@127.0.0.1:{port}/{quote(facts['dbname'])}"
        until(lambda: process.poll() is not None or answers(through), "pgbouncer answers")
        assert process.poll() is None, log.read_text()
        yield through
    finally:
        process.terminate()
        process.wait(10)


def answers(url: str) -> bool:
    """Whether somebody accepts clients there."""
    try:
        psycopg2.connect(url, connect_timeout=5).close()
    except psycopg2.OperationalError:
        return False
    return True


POOLERS: dict[str, Callable[..., Any]] = {
    "small": small_pooler,
    **({"pgbouncer": pgbouncer} if shutil.which("pgbouncer") else {}),
}
