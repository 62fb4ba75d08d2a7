"""Runs that lose the ledger, an answer, or a half of a batch: they end, they hold nothing, and nobody waits for them."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from guarantee_mesh import AUDIT, BRONZE, Mesh, minutes
from ledger_scene import eventually
from meshgate.errors import LedgerUnreachableError
from meshgate.interval import IntervalSet
from meshgate.lease import LeaseKeeper
from meshgate.ledger import Lease, Ledger
from meshgate.mesh import Mesh as RealMesh
from meshgate.stop import _heard
from tiny_mesh import BRONZE as BRONZE_SQL
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

BRONZE_EVENTS = '"lake"."bronze"."events"'
IN_BATCHES = BRONZE_SQL.replace(
    "partition_by_time_column FALSE)", "partition_by_time_column FALSE, batch_size 2)"
)


@pytest.fixture
def mesh(ledger: Ledger) -> Mesh:
    return Mesh(ledger)


def test_a_run_does_not_wait_for_its_own_batch_whose_end_nobody_knows(
    tmp_path: Path, postgres: LocalPostgres, extensions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that never came ends the run: its claim would count against the limit for ever."""
    tiny = TinyMesh(tmp_path, postgres, policies={"limits": {"models": {"bronze.events": 1}}})
    tiny.write("upstream", "bronze", IN_BATCHES.format(source=tiny.source))
    tiny.feed(0, 240)
    calls: list[int] = []
    commit = Ledger.commit

    def cut_off(self: Ledger, *args: Any, **kwargs: Any) -> int:
        calls.append(1)
        if len(calls) == 2:
            raise LedgerUnreachableError("the connection broke")
        return commit(self, *args, **kwargs)

    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(10))
        calls.clear()
        monkeypatch.setattr(Ledger, "commit", cut_off)
        with pytest.raises(LedgerUnreachableError):
            mesh.run("upstream", now=at(60))
        monkeypatch.undo()
        assert mesh.leases() == ()
        assert mesh.run("upstream", now=at(60)).state == "done"
    assert tiny.table("silver.events") == tiny.expected(60)["silver.events"]


def test_a_deploy_keeps_to_the_limits_that_it_brings(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """Four threads and a limit of one: never two batches begun at once, from the first deploy on."""
    tiny = TinyMesh(tmp_path, postgres, policies={"limits": {"warehouse": 1}, "warehouse": "small"})
    tiny.write("upstream", "bronze", IN_BATCHES.format(source=tiny.source))
    tiny.feed(0, 60)
    begun: list[int] = []

    def look(_: Any) -> None:
        begun.append(sum(run.begun for run in mesh.leases()))

    with tiny.mesh() as first:
        assert first.ledger
    with RealMesh.open(tiny.folder, tell=look) as mesh:
        mesh.deploy("upstream", now=at(60))
    assert max(begun) == 1


def test_waiting_does_not_try_a_failure_again_and_again(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """Without any pause between tries (`retry: {first: 0s}`) a failing interval is no progress, and is told once."""
    tiny = TinyMesh(tmp_path, postgres)
    tiny.feed(0, 240)
    tiny.poison(62)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        report = mesh.run("upstream", now=at(120), wait=timedelta(seconds=4))
        assert [f.interval for f in report.failed] == [span(60, 65)]
        assert report.state == "failed"
        assert len([r for r in mesh.ledger.runs("upstream") if r["purpose"] == "run"]) <= 6


def test_waiting_survives_a_ledger_that_is_away_for_a_while(
    tmp_path: Path, postgres: LocalPostgres, extensions: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage while a run waits is waited out: it holds nothing, so there is nothing to lose."""
    tiny = TinyMesh(tmp_path, postgres)
    tiny.feed(0, 240)
    told: list[Any] = []
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
        mesh.run("upstream", now=at(115))
    away: list[int] = []
    take_over = Ledger.take_over

    def unreachable(self: Ledger) -> tuple[int, ...]:
        if told and len(away) < 2:
            away.append(1)
            raise LedgerUnreachableError("the connection broke")
        return take_over(self)

    monkeypatch.setattr(Ledger, "take_over", unreachable)
    with RealMesh.open(tiny.folder, tell=told.append) as mesh, tiny.mesh() as other:
        done: list[Any] = []
        waiting = threading.Thread(
            target=lambda: done.append(mesh.run("downstream", now=at(120), wait=timedelta(seconds=90)))
        )
        waiting.start()
        eventually(lambda: bool(told), "it waits")
        assert other.run("upstream", now=at(120)).state == "done"
        waiting.join(90)
        assert [report.state for report in done] == ["done"]
    assert len(away) == 2
    tiny.check(120)


def test_a_half_that_is_not_ready_any_more_is_in_doubt(mesh: Mesh) -> None:
    """The whole batch was written and failed; what of it is not tried again in halves is suspect, and holds up nobody."""
    mesh.time(60)
    mesh.run("up")
    mesh.time(120)
    lease = mesh.acquire("up")
    journal = mesh.journal(lease, "up")
    hour = minutes(60, 120)
    mesh.claim(journal, mesh.plan("up"))
    assert list(journal.begin(BRONZE, hour)) == [hour]
    (first,) = journal.begin(BRONZE, minutes(60, 90))
    journal.fail(BRONZE, first, AUDIT)
    journal._give_back(mesh.graph[BRONZE], minutes(90, 120))
    claims = mesh.ledger.states([mesh.ids[BRONZE]])[mesh.ids[BRONZE]].claims
    assert claims == ()
    assert ("suspect", 1) in mesh.scene.marks(mesh.ids[BRONZE])
    mesh.ledger.finish(lease.run_id, "failed", {})
    assert mesh.of(BRONZE).ready == IntervalSet([hour])


def test_who_waits_for_a_silent_ledger_is_cut_loose_when_the_trust_ends(ledger: Ledger) -> None:
    """Neither the thread that renews nor one that works can wait for ever: their connections are ended."""
    answer = ledger.acquire("up", "prod", "run", {}, ttl=timedelta(seconds=1), grace=timedelta(0))
    assert isinstance(answer, Lease)
    connection = ledger.database.connect()
    connection.autocommit = False
    cut = threading.Event()

    def cut_loose() -> None:
        ledger.database.cut()
        cut.set()

    with connection.cursor() as cursor:
        cursor.execute("SELECT FROM meshgate.run WHERE run_id = %s FOR UPDATE", [answer.run_id])
        with LeaseKeeper(ledger, answer, LeaseKeeper.now(), on_expired=cut_loose) as keeper:
            assert cut.wait(30)
            assert not keeper.alive()
    connection.close()


@pytest.mark.parametrize("seconds", [0.0, 1e12])
def test_any_grace_is_heard_out(seconds: float) -> None:
    """None at all, and more than the system can wait for, are both times to listen for a signal."""
    ours, kernels = socket.socketpair()
    done = threading.Event()
    if seconds:
        kernels.send(b"\x0f")
    assert _heard(ours, done, seconds) == (15 if seconds else None)
    ours.close()
    kernels.close()
