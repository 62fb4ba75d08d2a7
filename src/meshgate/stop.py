"""How a run is asked to end before its work is done, by a signal or by the program that started it.

The main thread may be inside a statement for minutes, and Python runs signal handlers only between two steps of its
own. So a thread of its own hears the signals (through the wakeup descriptor, which the kernel's side writes at once):

1. the run begins no further batch; the statement under way gets a grace time, and what it wrote is recorded;
2. then statements are interrupted where the engine can, and what had been begun is suspect;
3. what still does not end is ended: the run reports its end to the ledger, and the process exits.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AFTER_INTERRUPT_S = 5.0
_LONGEST_S = 86_400.0  # the system's call takes no more than a few weeks


class Stop:
    """Whether, and why, work was asked to end. May be shared by threads; once requested it stays so."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.signum: int | None = None
        self._requested = threading.Event()
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], None]] = []
        self._enders: list[Callable[[], None]] = []

    @property
    def requested(self) -> bool:
        """Whether no further batch may begin."""
        return self._requested.is_set()

    def request(self, reason: str, signum: int | None = None) -> None:
        """Ask everything that runs under this to end; the first reason counts."""
        with self._lock:
            if self._requested.is_set():
                return
            self.reason, self.signum = reason, signum
            self._requested.set()
            wakers = list(self._wakers)
        for wake in wakers:
            wake()

    def sleep(self, seconds: float) -> bool:
        """Wait so long, or until it is requested; whether it is."""
        return self._requested.wait(seconds)

    @contextlib.contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """While the block runs, a request calls this: it ends some wait."""
        with self._lock:
            self._wakers.append(wake)
        try:
            yield
        finally:
            with self._lock:
                self._wakers.remove(wake)

    @contextlib.contextmanager
    def ending(self, end: Callable[[], None]) -> Iterator[None]:
        """While the block runs, a process that must exit calls this first: it tells the ledger."""
        self._enders.append(end)
        try:
            yield
        finally:
            self._enders.remove(end)

    def end(self, seconds: float) -> None:
        """Tell the ledger, from another thread than the one that is stuck, and not for long."""

        def tell() -> None:
            for end in list(self._enders):
                with contextlib.suppress(Exception):  # the lease ends by itself
                    end()

        telling = threading.Thread(target=tell, daemon=True)
        telling.start()
        telling.join(seconds)


@contextlib.contextmanager
def on_signals(
    stop: Stop, grace: Callable[[], timedelta], interrupt: Callable[[], None], say: Callable[[str], None]
) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT end the work in order; a second one does not wait for the grace.

    Does nothing outside the main thread, where Python allows no handlers.

    Args:
        stop: What the work looks at.
        grace: How long the statement under way may still take.
        interrupt: Interrupts statements, where the engine can.
        say: Tells a person.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, kernels = socket.socketpair()
    kernels.settimeout(0)
    before_fd = signal.set_wakeup_fd(kernels.fileno(), warn_on_full_buffer=False)
    # Python's own handlers would raise, or kill, in the middle of a commit.
    before = {signum: signal.signal(signum, lambda *_: None) for signum in _SIGNALS}
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ours, done, stop, grace, interrupt, say), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(before_fd)
        for signum, handler in before.items():
            signal.signal(signum, handler)
        kernels.close()
        watcher.join()
        ours.close()


def _watch(
    ours: socket.socket,
    done: threading.Event,
    stop: Stop,
    grace: Callable[[], timedelta],
    interrupt: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    signum = _heard(ours, done, None)
    if signum is None:
        return
    name, allowed = signal.Signals(signum).name, grace().total_seconds()
    say(
        f"{name}: stopping; the statement under way gets {allowed:.0f} s more, or until the signal is repeated"
    )
    stop.request(name, signum)
    _heard(ours, done, allowed)
    if done.is_set():
        return
    say("interrupting the statement under way; what it was writing will be evaluated again")
    with contextlib.suppress(Exception):
        interrupt()
    _heard(ours, done, _AFTER_INTERRUPT_S)
    if done.is_set():
        return
    say("it does not end; leaving it")
    stop.end(_AFTER_INTERRUPT_S)
    os._exit(128 + signum)


def _heard(ours: socket.socket, done: threading.Event, seconds: float | None) -> int | None:
    """The next signal of ours; None when the time is over or the work is done."""
    while not done.is_set():
        ready, _, _ = select.select([ours], [], [], None if seconds is None else min(seconds, _LONGEST_S))
        if not ready:
            return None
        told = ours.recv(1)
        if not told:
            return None  # the other end was closed: the work is done
        if told[0] in _SIGNALS:
            return told[0]
    return None
