"""Mistakes that other systems paid for, each as a test. Where one is tested elsewhere, this says where.

* Renewal starved by the work (Prefect #18839, #20251): `test_lease.py`, the keeper has a thread and a connection of its own.
* A counter beside the lease row drifts (Prefect #21794), slots leak after cancellation (Dagster #32560): the limits in
  `test_ledger_limits.py` are counted from the claims themselves.
* Session advisory locks break under poolers in transaction mode: `test_listener.py` works a ledger through one.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg2
import pytest

from guarantee_mesh import BRONZE, SILVER, Mesh, minutes, node
from ledger_scene import HOUR, TTL, locked, meanwhile, other_session, wait_until_blocked
from meshgate.graph import Edge, MeshGraph
from meshgate.interval import IntervalSet
from meshgate.lease import LeaseKeeper

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.ledger import Ledger
    from meshgate.local_postgres import LocalPostgres

STUCK, DONE = '"lake"."stuck"', '"lake"."done"'
STUCK_HOURS = 510


@pytest.fixture
def mesh(ledger: Ledger) -> Mesh:
    return Mesh(ledger)


def test_stuck_hours_do_not_hold_up_a_complete_one(mesh: Mesh) -> None:
    """Wrong answer g (Airflow 3.3.2): 510 hours wait for data, and the one that has it is done in the first tick."""
    nodes = [
        node(BRONZE, "up", "hour"), node(SILVER, "up", "hour"), node(STUCK, "down", "hour"), node(DONE, "down", "hour"),
    ]  # fmt: skip
    mesh.graph = MeshGraph({n.name: n for n in nodes}, [Edge(STUCK, BRONZE), Edge(DONE, SILVER)])
    mesh.ledger.sync_environment("prod", "plan 2", mesh.graph, {"up", "down"})
    mesh.ids = mesh.ledger.manifest("prod").version_ids
    mesh.time(60 * STUCK_HOURS)
    last = minutes(60 * (STUCK_HOURS - 1), 60 * STUCK_HOURS)
    run = mesh.acquire("up").run_id
    mesh.scene.record(run, mesh.ids[SILVER], last)
    mesh.ledger.finish(run, "done", {})
    outcome = mesh.run("down")
    assert outcome.committed == {DONE: IntervalSet([last])}
    assert mesh.of(STUCK).ready == IntervalSet()
    assert sum((b.interval.end - b.interval.start) // HOUR for b in mesh.of(STUCK).blocked) == STUCK_HOURS


def test_a_run_that_ends_as_its_lease_does_is_not_called_lost(mesh: Mesh) -> None:
    """Prefect #18942: who has reported its end is `done`, whatever the clock says a moment later."""
    mesh.time(60)
    lease = mesh.acquire("up")
    assert mesh.ledger.finish(lease.run_id, "done", {}) == "done"
    mesh.scene.pass_time(TTL.total_seconds() * 2)
    mesh.acquire("down")  # takes over whatever has expired
    assert mesh.scene.state(lease.run_id) == "done"
    keeper = LeaseKeeper(mesh.ledger, lease, LeaseKeeper.now())
    keeper.lose()  # its next renewal is refused: nothing is left to lose
    assert mesh.ledger.finish(lease.run_id, "done", {}) == "done"


def test_a_long_run_keeps_a_short_lease_and_a_dead_one_loses_it_soon(mesh: Mesh) -> None:
    """graphile-worker #169, #222, #449: the length of the lease is not the length of the work."""
    mesh.time(60)
    lease = mesh.acquire("up")
    for _ in range(100):  # an hour and more of a one-minute lease
        mesh.scene.pass_time(TTL.total_seconds() - 1)
        mesh.ledger.renew(lease.run_id)
    assert mesh.ledger.take_over() == ()
    mesh.scene.pass_time(TTL.total_seconds())
    assert mesh.ledger.take_over() == (lease.run_id,)


def test_a_rescuer_that_stalls_stalls_nobody_for_good(mesh: Mesh) -> None:
    """Procrastinate #1408: taking over is everybody's; who stalls in it is rolled back, and the next one does it."""
    mesh.time(60)
    lost = mesh.acquire("up")
    mesh.scene.pass_time(TTL.total_seconds())
    clock = f"SET meshgate.now = '{mesh.scene.now.isoformat()}';"
    with (  # noqa: PT012 - the stalled session's own end is what raises
        other_session(mesh.ledger, mesh.scene.now) as other,
        pytest.raises(psycopg2.Error),
        locked(mesh.ledger, clock + "SELECT meshgate.take_over()") as stalled,
        meanwhile(other.take_over) as next_one,
    ):
        wait_until_blocked(mesh.ledger)
        mesh.ledger.database.execute(
            "SELECT pg_terminate_backend(%(pid)s)", {"pid": stalled.info.backend_pid}
        )
        assert next_one.result() == (lost.run_id,)


def test_who_watches_does_not_live_in_what_is_watched(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """mitodl/ol-infrastructure #5456: `status` answers with the warehouse, its lake and the projects' folders gone."""
    from tiny_mesh import TinyMesh, at

    tiny = TinyMesh(tmp_path, postgres)
    tiny.feed(0, 60)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
    tiny.sql_outside(tiny.state_url, f"DROP DATABASE src_{tiny.key} WITH (FORCE)")
    tiny.sql_outside(tiny.state_url, f"DROP DATABASE lake_{tiny.key} WITH (FORCE)")
    (tiny.folder / "upstream").rename(tiny.folder / "away")
    code = "import sys\nfrom meshgate.cli import main\nsys.modules['sqlmesh'] = None\nsys.argv[1:] = sys.argv[1:]\nmain()"
    argv = [sys.executable, "-c", code, "--config", str(tiny.folder), "status"]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env=tiny.environment(), timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "upstream" in done.stdout
