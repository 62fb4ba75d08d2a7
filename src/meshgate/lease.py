"""Keeps a run's lease alive, and says when to stop trusting it.

The lease is the run's row in the ledger; the database's clock decides when it ends. This room holds the other side:

* a thread with a connection of its own renews at a third of the lease's length, so that neither long statements nor
  a busy pool can starve the renewal;
* local trust ends one length after the *start* of the last attempt that succeeded, by a clock that also counts the
  time a machine is suspended. So this side always stops first: its clock can make the run stop earlier, never later;
* a renewal that is refused, or that cannot reach the ledger until the trust has run out, ends the trust for good.

A holder says who it is well enough to prove later that it is gone: the same machine since the same boot, the same
process namespace, and no process with that id and start time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from meshgate.errors import LeaseLostError, LedgerUnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from meshgate.ledger import Lease, Ledger

_RENEWALS_PER_TTL = 3


def _trusted_clock() -> float:
    """Seconds that also pass while the machine sleeps, where the system offers them."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(boottime) if boottime is not None else time.monotonic()


@contextlib.contextmanager
def loss_stops(keeper: LeaseKeeper) -> Iterator[None]:
    """Tells the keeper what the ledger's refusal means: every thread of the run stops before its next batch."""
    try:
        yield
    except LeaseLostError:
        keeper.lose()
        raise


class LeaseKeeper:
    """Renews one lease until it is stopped or lost.

    Args:
        ledger: Where the lease is.
        lease: As acquired.
        acquired_at: `LeaseKeeper.now()` from before the lease was asked for.
        on_lost: Called once, from the thread that notices, when the trust ends for good.
        on_expired: Called when it ends because nothing was heard of the ledger: whoever waits for its answer waits
            in vain.
    """

    def __init__(
        self,
        ledger: Ledger,
        lease: Lease,
        acquired_at: float,
        on_lost: Callable[[], None] | None = None,
        on_expired: Callable[[], None] | None = None,
    ) -> None:
        self._ledger = ledger
        self._lease = lease
        self._ttl_s = lease.ttl.total_seconds()
        self._trusted_until = acquired_at + self._ttl_s
        self._on_lost = on_lost
        self._lost = threading.Event()
        self._losing = threading.Lock()
        self._stop = threading.Event()
        self._on_expired = on_expired
        self._thread = threading.Thread(target=self._keep, name=f"lease-{lease.run_id}", daemon=True)
        # The thread that renews may itself be the one that waits for an answer.
        self._watcher = threading.Thread(target=self._watch, name=f"watch-{lease.run_id}", daemon=True)

    @staticmethod
    def now() -> float:
        """This machine's clock of trust, in seconds from an arbitrary origin."""
        return _trusted_clock()

    def __enter__(self) -> Self:
        self._thread.start()
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=self._ttl_s)
        self._watcher.join(timeout=self._ttl_s)

    def alive(self) -> bool:
        """Whether the run may go on."""
        return not self._lost.is_set() and _trusted_clock() < self._trusted_until

    def lose(self) -> None:
        """End the trust: the ledger refused something in the name of this lease."""
        with self._losing:  # the keeper's thread and those that work may notice together
            first = not self._lost.is_set()
            self._lost.set()
        if first and self._on_lost is not None:
            self._on_lost()

    def _watch(self) -> None:
        while not self._lost.is_set() and not self._stop.wait(
            min(1.0, max(0.01, self._trusted_until - _trusted_clock()))
        ):
            if _trusted_clock() >= self._trusted_until:
                self.lose()
                if self._on_expired is not None:
                    self._on_expired()

    def _keep(self) -> None:
        pause = self._ttl_s / _RENEWALS_PER_TTL
        while not self._stop.wait(pause):
            attempt = _trusted_clock()
            try:
                self._ledger.renew(self._lease.run_id)
            except LeaseLostError:
                self.lose()
                return
            except LedgerUnreachableError:
                if _trusted_clock() >= self._trusted_until:
                    self.lose()
                    return
                pause = min(pause, 1.0)
            else:
                self._trusted_until = attempt + self._ttl_s
                pause = self._ttl_s / _RENEWALS_PER_TTL


def start_time(pid: int) -> str | None:
    """The kernel's start time of a process, in ticks since boot; None where there is no such process."""
    try:
        # The second field is the command in brackets and may hold anything; what follows it is well-formed.
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _is_zombie(pid: int) -> bool:
    # The first thread can be gone while another is still inside the kernel, writing: none may be left.
    with contextlib.suppress(OSError, IndexError):
        return all(
            (task / "stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
            for task in Path(f"/proc/{pid}/task").iterdir()
        )
    return False


def _exists(pid: int) -> bool:
    """Whether there is a process with that id, also one that /proc does not show to this user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _machine() -> dict[str, str]:
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        facts["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        facts["pids"] = str(Path("/proc/self/ns/pid").readlink())
    return facts


def identify(*, engine_in_process: bool) -> dict[str, Any]:
    """Who this process is, for the run's row.

    Args:
        engine_in_process: Whether the engine dies with the process, so that nothing of it can still be writing.
    """
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "started": start_time(pid),
        "engine_in_process": engine_in_process,
        **_machine(),
    }


def proven_gone(holder: Mapping[str, Any]) -> bool:
    """Whether the process of a holder is proven to have ended. False whenever there is any doubt."""
    machine = _machine()
    if (
        not machine
        or any(holder.get(key) != value for key, value in machine.items())
        or not holder.get("started")
    ):
        return False
    pid = int(holder["pid"])
    started = start_time(pid)
    if started is None:
        return not _exists(pid)
    return started != holder["started"] or _is_zombie(pid)
