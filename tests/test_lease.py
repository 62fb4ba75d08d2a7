"""The keeper of a lease: what keeps it alive, when it stops trusting, and what proves that a holder is gone."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ledger_scene import GRACE, eventually, locked, meanwhile
from meshgate import lease
from meshgate.db import Database
from meshgate.errors import LeaseLostError
from meshgate.lease import LeaseKeeper, identify, proven_gone
from meshgate.ledger import Lease, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

SHORT = timedelta(seconds=0.5)


def acquire(ledger: Ledger, ttl: timedelta = SHORT) -> Lease:
    """A lease by the real clock."""
    answer = ledger.acquire("up", "prod", "run", identify(engine_in_process=True), ttl=ttl, grace=GRACE)
    assert isinstance(answer, Lease)
    return answer


def expires_at(ledger: Ledger) -> datetime:
    """The end of the only lease."""
    return ledger.runs()[0]["expires_at"]


class Machine:
    """This machine's clock of trust, moved by hand, and a ledger whose answers are given beforehand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.renewals = 0
        monkeypatch.setattr(lease, "_trusted_clock", lambda: self.now)

    def renew(self, _run_id: int) -> None:
        """A renewal that takes five seconds."""
        self.now += 5.0
        self.renewals += 1

    def keeper(self, ttl_s: float = 60.0) -> LeaseKeeper:
        """A keeper of a lease that was asked for at the present instant."""
        held = Lease(1, None, None, timedelta(seconds=ttl_s))  # type: ignore[arg-type]
        return LeaseKeeper(self, held, self.now)  # type: ignore[arg-type]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


# -- keeping


def test_a_lease_is_renewed_while_the_runs_own_connection_is_busy(ledger: Ledger) -> None:
    """A statement that takes longer than the lease starves no renewal: it has a thread and a connection of its own."""
    held = acquire(ledger)
    with locked(ledger, "SELECT pg_advisory_xact_lock(4711)") as blocker:

        def release() -> None:
            observer = Ledger(Database(ledger.database._url))
            try:
                eventually(lambda: expires_at(observer) > held.expires_at + 2 * SHORT, "renewals go on")
            finally:
                observer.database.close()
                blocker.commit()

        with LeaseKeeper(ledger, held, LeaseKeeper.now()) as keeper, meanwhile(release) as released:
            ledger.database.execute("SELECT pg_advisory_lock(4711)")  # returns when it was released
            released.result()
            assert keeper.alive()
    ledger.database.execute("SELECT pg_advisory_unlock(4711)")


def test_a_lease_is_not_renewed_after_the_run(ledger: Ledger) -> None:
    """The keeper's thread ends with its block."""
    with LeaseKeeper(ledger, acquire(ledger), LeaseKeeper.now()) as keeper:
        pass
    assert not keeper._thread.is_alive()


def test_the_trust_lasts_as_long_as_the_lease(machine: Machine) -> None:
    """Without a renewal it ends one length after the lease was asked for, by this machine's clock."""
    keeper = machine.keeper(ttl_s=60)
    machine.now += 59.9
    assert keeper.alive()
    machine.now += 0.1
    assert not keeper.alive()


def test_the_trust_is_counted_from_the_start_of_a_renewal(machine: Machine) -> None:
    """A renewal that took five seconds is trusted for one length from before them: this side stops first."""
    began = machine.now
    with machine.keeper(ttl_s=0.3) as keeper:
        eventually(lambda: machine.renewals > 0 and keeper._trusted_until != began + 0.3, "a renewal")
    assert (keeper._trusted_until - 0.3 - began) % 5.0 == pytest.approx(0)
    assert keeper._trusted_until <= machine.now - 5.0 + 0.3 + 1e-9


# -- stopping


def test_a_refused_renewal_ends_the_trust(ledger: Ledger) -> None:
    """A run that was taken over learns it from its next renewal, and says so once."""
    ttl = timedelta(seconds=6)
    held = acquire(ledger, ttl=ttl)
    told: list[float] = []
    began = LeaseKeeper.now()
    with LeaseKeeper(ledger, held, began, lambda: told.append(LeaseKeeper.now())) as keeper:
        ledger.bury(held.run_id, engine_gone=True)
        eventually(lambda: bool(told), "the keeper tells")
        assert not keeper.alive()
    assert len(told) == 1
    # Not only when the trust would have ended by itself.
    assert told[0] < began + ttl.total_seconds()


def test_a_ledger_that_is_out_of_reach_ends_the_trust_when_the_lease_does(ledger: Ledger) -> None:
    """Renewals that reach nobody are tried until the lease is over; then the run stops by itself."""
    held = acquire(ledger)
    away = Ledger(Database("postgresql://meshgate@127.0.0.1:1/nowhere"))
    told: list[float] = []
    began = LeaseKeeper.now()
    with LeaseKeeper(away, held, began, lambda: told.append(LeaseKeeper.now())) as keeper:
        assert keeper.alive()
        eventually(lambda: bool(told), "the keeper gives up")
        assert not keeper.alive()
    assert told[0] >= began + SHORT.total_seconds()


def test_a_ledger_that_comes_back_in_time_keeps_the_trust(ledger: Ledger) -> None:
    """One renewal that fails is no loss while the lease lasts."""
    held = acquire(ledger, ttl=timedelta(seconds=3))
    answers: list[str] = []

    class Flaky:
        def renew(self, run_id: int) -> None:
            if not answers:
                answers.append("lost")
                Database("postgresql://meshgate@127.0.0.1:1/nowhere").execute("SELECT 1")
            ledger.renew(run_id)
            answers.append("renewed")

    with LeaseKeeper(Flaky(), held, LeaseKeeper.now()) as keeper:  # type: ignore[arg-type]
        eventually(lambda: "renewed" in answers, "a renewal after the failed one")
        assert keeper.alive()


def test_a_trust_that_was_ended_does_not_come_back(machine: Machine) -> None:
    """What the ledger refused once in the name of this lease stops every thread for good."""
    with machine.keeper(ttl_s=0.3) as keeper:
        keeper.lose()
        before = machine.renewals
        eventually(lambda: machine.renewals > before or not keeper._thread.is_alive(), "another renewal")
        assert not keeper.alive()


def test_the_loss_is_told_once_however_many_notice(ledger: Ledger) -> None:
    """Keeper and workers may meet the refusal together."""
    told: list[int] = []
    keeper = LeaseKeeper(ledger, acquire(ledger), LeaseKeeper.now(), lambda: told.append(1))
    together = threading.Barrier(8)

    def notice() -> None:
        together.wait()
        keeper.lose()

    threads = [threading.Thread(target=notice) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [1]


def test_a_lease_that_ended_while_the_machine_slept_is_lost(ledger: Ledger, machine: Machine) -> None:
    """The clock of trust counts the sleep, and the ledger refuses what comes after it."""
    held = acquire(ledger, ttl=timedelta(milliseconds=1))
    keeper = LeaseKeeper(ledger, held, machine.now)
    machine.now += 3600
    assert not keeper.alive()
    eventually(lambda: ledger.clock() > held.expires_at, "the lease ends")
    with pytest.raises(LeaseLostError):
        ledger.renew(held.run_id)


# -- proof of an end


@contextmanager
def holder_process(then: str = "sys.stdin.read()") -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process that holds a lease, and who it said it is."""
    code = (
        "import ctypes, json, sys, threading; from meshgate.lease import identify;"
        f"print(json.dumps(identify(engine_in_process=True)), flush=True); {then}"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def test_a_killed_holder_is_gone() -> None:
    """A process that was killed and is no more is proven to have ended."""
    with holder_process() as (process, holder):
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert proven_gone(holder)


def test_a_living_holder_is_not_gone() -> None:
    """A process that runs is not proven to have ended."""
    with holder_process() as (_, holder):
        assert not proven_gone(holder)


def test_a_stopped_holder_is_not_gone() -> None:
    """A process that is paused may go on at any time."""
    with holder_process() as (process, holder):
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: _state(process.pid) == "T", "the process is stopped")
        assert not proven_gone(holder)


def test_a_zombie_is_gone() -> None:
    """A process that ended and was not collected by its parent writes nothing any more."""
    with holder_process() as (process, holder):
        process.send_signal(signal.SIGKILL)
        eventually(lambda: _state(process.pid) == "Z", "the process is a zombie")
        assert proven_gone(holder)


def test_a_holder_of_which_a_thread_is_left_is_not_gone() -> None:
    """Its first thread has ended and shows as a zombie; another may still be inside a write."""
    exit_thread = {"x86_64": 60, "aarch64": 93}[
        platform.machine()
    ]  # the system call, which ends one thread only
    then = f"threading.Thread(target=sys.stdin.read).start(); ctypes.CDLL(None).syscall({exit_thread}, 0)"
    with holder_process(then) as (process, holder):
        eventually(lambda: _state(process.pid) == "Z", "the first thread has ended")
        assert not proven_gone(holder)
        process.send_signal(signal.SIGKILL)
        eventually(lambda: proven_gone(holder), "the others have, too")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_another_process_with_the_same_id_is_not_the_holder() -> None:
    """Ids come round again; the start time tells that the holder is gone."""
    assert proven_gone(identify(engine_in_process=True) | {"started": "1"})


@pytest.mark.parametrize("fact", ["boot", "pids"])
def test_a_holder_of_another_machine_or_namespace_is_never_proven_gone(fact: str) -> None:
    """Its ids say nothing here, though a process of that id and another start time is here."""
    assert not proven_gone(identify(engine_in_process=True) | {"started": "1", fact: "another"})


@pytest.mark.parametrize("fact", ["boot", "pids", "started"])
def test_a_holder_that_did_not_say_enough_is_never_proven_gone(fact: str) -> None:
    """Where there is doubt the lease is waited for."""
    holder = identify(engine_in_process=True) | {"started": "1"}
    del holder[fact]
    assert not proven_gone(holder)


def test_a_system_that_tells_nothing_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc nobody is proven to be gone."""
    holder = identify(engine_in_process=True) | {"started": "1"}
    monkeypatch.setattr(lease, "_machine", dict)
    assert not proven_gone(holder)


def test_a_process_that_is_hidden_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /proc shows a user his own processes only, that of another one seems to be missing."""
    monkeypatch.setattr(lease, "start_time", lambda _pid: None)
    holder = {"pid": os.getpid(), "started": "1", **lease._machine()}
    assert not proven_gone(holder)


def test_a_holder_is_recognised_after_its_way_through_the_ledger(ledger: Ledger) -> None:
    """What the ledger keeps of it is enough to tell that it lives."""
    acquire(ledger)
    assert not proven_gone(ledger.runs()[0]["holder"])
    assert proven_gone(ledger.runs()[0]["holder"] | {"started": "1"})
