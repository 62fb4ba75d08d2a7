"""Waking up when somebody's work is announced: the ledger's notifications, tried, and polling where they do not arrive."""

from __future__ import annotations

import secrets
import selectors
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

from meshgate.db import DriverError, quoted, translated
from meshgate.errors import LedgerError, MeshgateError

if TYPE_CHECKING:
    from meshgate.db import Database

_PROBE_S = 1.0  # a notification is there in milliseconds, or somebody between here and the server swallows it
_NET_PER_POLL = 6  # who hears every notification looks so much less often without one


class Listener:
    """A pause that ends as soon as somebody's work is announced.

    The ledger decides, and a notification only wakes earlier: after every `wait`, whatever it answers, the caller
    looks at the ledger. So a notification that gets lost costs one interval and nothing else, and so does a
    connection that breaks.

    Whether notifications arrive is tried, not assumed: a pooler in transaction mode takes `LISTEN` without a word
    and swallows what follows. Where nothing is heard, no connection is kept and every `wait` is a plain pause.

    For one thread; only `wake` may be called from others.

    Example:
        >>> with Listener(database) as listener:  # doctest: +SKIP
        ...     while not ready() and (left_s := deadline - time.monotonic()) > 0:
        ...         listener.wait(left_s)

    Args:
        database: Where; the listener has a connection of its own, and is tried through the calling thread's.
        channel: What the ledger notifies.
        poll_s: The longest pause, in seconds, while nothing can be heard; six times as long while it can.

    Raises:
        LedgerUnreachableError: No connection. Later on, that is a reason to pause, and never raised.
    """

    def __init__(self, database: Database, *, channel: str = "meshgate", poll_s: float = 5.0) -> None:
        self._database = database
        self._channel = channel
        self._poll_s = poll_s
        self._connection: Any = None
        self._lost = False
        self._ear, self._waker = socket.socketpair()
        self._ear.settimeout(0)
        self._waker.settimeout(0)
        try:
            self._listen()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def listening(self) -> bool:
        """Whether notifications arrive. Otherwise `wait` polls: through a pooler for good, else until it has reconnected."""
        return self._connection is not None

    def _listen(self) -> None:
        connection = self._database.connect()
        heard = False
        try:
            with suppress(LedgerError):  # a pooler that says so: `LISTEN` is not supported
                heard = self._hears(connection)
        finally:
            if not heard:
                connection.close()
        self._lost = False
        self._connection = connection if heard else None

    def _hears(self, connection: Any) -> bool:
        probe = f'"meshgate_probe_{secrets.token_hex(8)}"'
        with translated(self._database.shown_url), connection.cursor() as cursor:
            cursor.execute(f"LISTEN {probe}")
            # From another connection: its own notification would come back also through a pooler.
            self._database.execute(f"NOTIFY {probe}", again=True)
            heard = _notified(connection, _PROBE_S)
            # Only now the channel: a pooled session that listened would pester whoever gets it next.
            channel = quoted(self._channel)
            cursor.execute(f"UNLISTEN {probe}" + (f"; LISTEN {channel}" if heard else ""))
        return heard

    def wait(self, timeout_s: float) -> bool:
        """Pause until there may be something to see in the ledger.

        Args:
            timeout_s: The longest pause, in seconds; an interval of polling ends it earlier. A ledger that does not
                even refuse a lost connection's successor can make it ten seconds longer.

        Returns:
            True at once when a notification came since the last call, when `wake` was called since, or when a lost
            connection was replaced, for nobody knows what was missed; False when the time is over.
        """
        deadline = time.monotonic() + timeout_s
        if self._lost:
            with suppress(MeshgateError):
                self._listen()
                return True
        try:
            return self._pause(deadline, self._poll_s * (_NET_PER_POLL if self.listening else 1))
        except DriverError:
            self._connection.close()
            self._connection = None
            self._lost = True
            return self._pause(deadline, self._poll_s)

    def _pause(self, deadline: float, longest_s: float) -> bool:
        until = min(deadline, time.monotonic() + longest_s)
        with selectors.DefaultSelector() as selector:
            selector.register(self._ear, selectors.EVENT_READ)
            if self._connection is not None:
                selector.register(self._connection, selectors.EVENT_READ)
            while True:
                if self._woken() or (self._connection is not None and _drained(self._connection)):
                    return True
                if not selector.select(max(0.0, until - time.monotonic())):
                    return False

    def _woken(self) -> bool:
        with suppress(BlockingIOError):
            return bool(self._ear.recv(65536))
        return False

    def wake(self) -> None:
        """End the present `wait`, or else the next one, at once: from any thread, or from a signal's handler."""
        with suppress(OSError):  # so many calls unanswered that no more fit, or closed
            self._waker.send(b"!")

    def close(self) -> None:
        """Close the connection; harmless when said twice."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._ear.close()
        self._waker.close()


def _drained(connection: Any) -> bool:
    """Whether there were notifications; they are taken. Raises the driver's error where the connection broke."""
    connection.poll()
    found = bool(connection.notifies)
    connection.notifies.clear()
    return found


def _notified(connection: Any, timeout_s: float) -> bool:
    """Whether a notification arrives in time."""
    until = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        while not (found := _drained(connection)) and selector.select(max(0.0, until - time.monotonic())):
            pass
    return found
