"""Maintenance of whole tables beside runs: it reserves and never begins (docs/decisions/0060)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from guarantee_mesh import BRONZE, GOLD, SILVER, Mesh, minutes
from ledger_scene import GRACE, TTL
from meshgate.errors import LeaseLostError, RunInProgressError
from meshgate.interval import IntervalSet
from meshgate.ledger import WHOLE, Busy, Lease, Ledger
from tiny_mesh import TinyMesh, at

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres


@pytest.fixture
def mesh(ledger: Ledger) -> Mesh:
    """Two hours of both projects are due, the first is recorded."""
    found = Mesh(ledger)
    found.time(65)
    found.run("up")
    found.run("down")
    found.time(125)
    return found


def maintenance(mesh: Mesh, project: str = "up") -> int:
    """A lease for it, which is never refused."""
    found = mesh.ledger.acquire(project, "prod", "maintenance", {"pid": 2}, ttl=TTL, grace=GRACE)
    assert isinstance(found, Lease)
    return found.run_id


def reserve(mesh: Mesh, run_id: int, name: str) -> int | None:
    """Who is in the way of reserving a whole table."""
    (answer,) = mesh.ledger.open_claims(run_id, mesh.ids[name], [WHOLE], whole=True)
    return answer.refused_by


def test_it_is_in_no_runs_way_and_no_run_in_its(mesh: Mesh) -> None:
    """Leases of all three purposes side by side; runs keep out each other as before."""
    for purpose in ("run", "deploy"):
        held = mesh.ledger.acquire("up", "prod", purpose, {"pid": 1}, ttl=TTL, grace=GRACE)
        assert isinstance(held, Lease)
        first, second = maintenance(mesh), maintenance(mesh)
        assert isinstance(mesh.ledger.acquire("up", "prod", purpose, {"pid": 1}, ttl=TTL, grace=GRACE), Busy)
        for run_id in (held.run_id, first, second):
            mesh.ledger.finish(run_id, "done", {})
    maintenance(mesh)
    assert isinstance(mesh.ledger.acquire("up", "prod", "run", {"pid": 1}, ttl=TTL, grace=GRACE), Lease)


@pytest.mark.parametrize("begun", [False, True])
def test_no_table_is_reserved_on_which_a_run_works(mesh: Mesh, begun: bool) -> None:
    """Neither while it has reserved five minutes of it, nor while it writes them; afterwards it is."""
    lease = mesh.acquire("up")
    piece = minutes(65, 70)
    mesh.ledger.open_claims(lease.run_id, mesh.ids[BRONZE], [piece])
    if begun:
        mesh.ledger.begin(lease.run_id, mesh.ids[BRONZE], piece, needs=[], loaded=[], environment="prod")
    run_id = maintenance(mesh)
    assert reserve(mesh, run_id, BRONZE) == lease.run_id
    assert reserve(mesh, run_id, SILVER) is None
    mesh.ledger.finish(lease.run_id, "done", {})
    # What was begun may still be written until the grace is over.
    assert reserve(mesh, run_id, BRONZE) == (lease.run_id if begun else None)


def test_no_run_begins_anything_under_it_and_its_readers_go_on(mesh: Mesh) -> None:
    """Upstream's silver is left alone, bronze is done, and gold is computed from what silver has."""
    mesh.run("up")
    mesh.time(185)
    run_id = maintenance(mesh)
    assert reserve(mesh, run_id, SILVER) is None
    plan = mesh.plan("up")
    outcome = mesh.run("up")
    assert set(outcome.committed) == {BRONZE}
    blocked = [*plan.blocked, *outcome.blocked]
    assert {(b.model, b.reason, b.detail["run_id"]) for b in blocked} == {(SILVER, "begun", run_id)}
    assert mesh.run("down").committed[GOLD] == IntervalSet([minutes(60, 120)])
    mesh.ledger.finish(run_id, "done", {})
    assert SILVER in mesh.run("up").committed


def test_what_dies_leaves_nothing_behind(mesh: Mesh) -> None:
    """Its lease ends, the table is free at once: no suspicion, no quarantine, and what is recorded is as it was."""
    before = mesh.ledger.states(mesh.ids.values())
    run_id = maintenance(mesh)
    assert reserve(mesh, run_id, BRONZE) is None
    assert (
        mesh.ledger.states([mesh.ids[BRONZE]])[mesh.ids[BRONZE]].covered == before[mesh.ids[BRONZE]].covered
    )
    mesh.scene.pass_time(TTL.total_seconds())
    lease = mesh.acquire("up")
    (answer,) = mesh.ledger.open_claims(lease.run_id, mesh.ids[BRONZE], [minutes(65, 70)])
    assert answer.refused_by is None
    with pytest.raises(LeaseLostError):
        mesh.ledger.note_maintenance(run_id, mesh.ids[BRONZE], "optimize", {})
    assert mesh.ledger.finish(run_id, "done", {}) == "lost"
    after = mesh.ledger.states(mesh.ids.values())
    assert [(s.covered, s.marks) for s in after.values()] == [(s.covered, s.marks) for s in before.values()]
    assert mesh.ledger.maintained(mesh.ids.values()) == {}


def test_it_is_remembered_by_operation_and_only_for_what_is_reserved(mesh: Mesh) -> None:
    """The newest counts; a table that it does not hold is none of its business."""
    run_id = maintenance(mesh)
    bronze, silver = mesh.ids[BRONZE], mesh.ids[SILVER]
    reserve(mesh, run_id, BRONZE)
    mesh.ledger.note_maintenance(run_id, bronze, "optimize", {})
    mesh.scene.pass_time(1)
    mesh.ledger.note_maintenance(run_id, bronze, "optimize", {})
    mesh.ledger.note_maintenance(run_id, bronze, "analyze", {})
    with pytest.raises(LeaseLostError):
        mesh.ledger.note_maintenance(run_id, silver, "optimize", {})
    now = mesh.ledger.clock()
    assert mesh.ledger.maintained([bronze, silver]) == {(bronze, "optimize"): now, (bronze, "analyze"): now}


def test_a_purpose_that_is_not_known_is_refused(mesh: Mesh) -> None:
    """By the database."""
    with pytest.raises((psycopg2.Error, Exception), match="a run has a known purpose"):
        mesh.ledger.acquire("up", "prod", "tidying", {}, ttl=TTL, grace=GRACE)


def test_the_longest_run_counts_also_while_it_lives(mesh: Mesh) -> None:
    """And after shorter ones; of one that died unseen, no more than its lease and its grace. Maintenance reads nothing for long."""
    lease, step = mesh.acquire("up"), TTL / 2
    for passed in range(1, 9):
        mesh.time(125 + passed * step.total_seconds() / 60)
        mesh.ledger.renew(lease.run_id)
    assert mesh.ledger.longest_run() == 8 * step
    mesh.ledger.finish(lease.run_id, "done", {})
    mesh.acquire("down")
    mesh.time(1000)
    assert mesh.ledger.longest_run() == max(8 * step, TTL + GRACE)
    mesh.run("up")
    maintenance(mesh)
    mesh.time(5000)
    assert mesh.ledger.longest_run() == max(8 * step, TTL + GRACE)


@pytest.fixture
def tiny(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> TinyMesh:
    """Both projects deployed, an hour is done."""
    found = TinyMesh(tmp_path, postgres)
    found.feed(0, 130)
    with found.mesh() as opened:
        for project in ("upstream", "downstream"):
            opened.deploy(project, now=at(60))
    return found


def test_statements_run_while_the_tables_are_held(tiny: TinyMesh) -> None:
    """On the lake itself: a run leaves the held table alone, and does it afterwards; rows and ledger are right."""
    with tiny.mesh() as mesh, tiny.mesh() as other:
        estate = mesh.estate("upstream")
        silver = next(t for t in estate.tables if t.display == "silver.events")
        assert (estate.dialect, silver.done) == ("duckdb", {})
        assert estate.longest.total_seconds() >= mesh.config.ledger.grace_s
        with mesh.upkeep("upstream", [silver]) as upkeep:
            assert upkeep.execute(f"SELECT COUNT(*) FROM {silver.physical}") == [(60,)]
            report = other.run("upstream", now=at(65))
            assert [(b.model.replace('"', ""), b.reason) for b in report.blocked] == [
                ("lake.silver.events", "begun")
            ]
            with pytest.raises(RunInProgressError), other.upkeep("upstream", None):
                pass
            upkeep.done(silver, "optimize")
        again = mesh.estate("upstream")
        assert next(t for t in again.tables if t.display == "silver.events").done.keys() == {"optimize"}
        assert other.run("upstream", now=at(65)).state == "done"
        assert not mesh.verify().differences
    expected: dict[str, list[Any]] = tiny.expected(65)
    assert tiny.table("silver.events") == expected["silver.events"]


def test_a_lost_lease_ends_the_statements(tiny: TinyMesh) -> None:
    """After somebody broke it, nothing more is executed, and nothing noted."""
    with tiny.mesh() as mesh:
        table = mesh.estate("upstream").tables[0]
        with mesh.upkeep("upstream", [table]) as upkeep:
            (run,) = mesh.leases()
            assert (run.purpose, run.open, run.begun) == ("maintenance", 1, 0)
            mesh.break_lease(run.run_id, "a test")
            with pytest.raises(LeaseLostError):
                upkeep.done(table, "optimize")
        assert mesh.estate("upstream").tables[0].done == {}
