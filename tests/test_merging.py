"""Neighbouring commits are merged, and nobody can tell: the ledger's size follows the models, not the ticks."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from guarantee_mesh import AUDIT, BRONZE, DIMENSION, GOLD, SILVER, Mesh, minutes, node
from ledger_scene import empty
from meshgate.coordinator.staleness import Policy
from meshgate.graph import Edge
from meshgate.interval import IntervalSet
from staleness_histories import FACT, play

if TYPE_CHECKING:
    from meshgate.interval import Interval
    from meshgate.ledger import Lease, Ledger

HOUR = timedelta(hours=1)


@pytest.fixture
def mesh(ledger: Ledger) -> Mesh:
    return Mesh(ledger)


def grown(mesh: Mesh, hours: int) -> Mesh:
    """Four hours, tick by tick."""
    for passed in range(5, hours * 60 + 5, 5):
        mesh.time(passed)
        mesh.run("up")
        mesh.run("down")
    return mesh


def begin(mesh: Mesh, lease: Lease, name: str, piece: Interval) -> None:
    """Whatever the gate says."""
    mesh.ledger.begin(lease.run_id, mesh.ids[name], piece, needs=[], loaded=[], environment="prod")


def spans(mesh: Mesh, name: str) -> list[Any]:
    return [r.interval for r in mesh.ledger.coverage_rows(mesh.ids[name], minutes(-100, 10_000))]


def test_what_everybody_has_read_is_one_row(mesh: Mesh) -> None:
    """However many ticks there were."""
    grown(mesh, 4)
    assert mesh.tidy() == 4
    assert all(spans(mesh, name) == [minutes(0, 240)] for name in mesh.graph.nodes)
    assert mesh.stale() == {}
    assert mesh.plan().is_empty


def test_a_reader_that_has_not_read_it_keeps_its_rows_apart(mesh: Mesh) -> None:
    """The hour that is stale still says by which of its rows: the rest of a merged row would make nothing else stale.

    Fails without `behind`, and without the child's own `settled`, in `merge_coverage`.
    """
    mesh.policy = Policy(reprocess=False)
    grown(mesh, 4)
    mesh.mark(SILVER, minutes(70, 75), "requested")
    mesh.run("up")
    before = mesh.stale()
    assert before == {GOLD: IntervalSet([minutes(60, 120)]), DIMENSION: IntervalSet([minutes(60, 240)])}
    mesh.tidy()
    assert mesh.stale() == before
    assert minutes(70, 75) in spans(mesh, SILVER)
    mesh.policy = Policy(throttle=timedelta(0))
    assert mesh.run("down").committed[GOLD] == IntervalSet([minutes(60, 120)])
    assert mesh.tidy() == 4


def test_a_merged_row_becomes_stale_by_what_is_stale_of_it(mesh: Mesh) -> None:
    """One restated interval makes one hour stale, of a row that stands for many."""
    grown(mesh, 4)
    mesh.tidy()
    mesh.mark(BRONZE, minutes(70, 75), "requested")
    mesh.run("up")
    assert mesh.stale()[GOLD] == IntervalSet([minutes(60, 120)])
    assert mesh.run("down").committed[GOLD] == IntervalSet([minutes(60, 120)])
    assert mesh.tidy() == 4


def test_a_refresh_that_fails_touches_only_who_read_meanwhile(ledger: Ledger) -> None:
    """Whoever read the table before it was being written is not merged with who read it then.

    Fails without the claims in the bound of `merge_coverage`.
    """
    star = grown(Mesh(ledger, ([node(FACT, "down", "hour")], [Edge(FACT, DIMENSION), Edge(FACT, SILVER)])), 3)
    writer, reader = star.acquire("down"), star.acquire("down", share=True)
    star.ledger.open_claims(writer.run_id, star.ids[DIMENSION], [minutes(120, 180)])
    begin(star, writer, DIMENSION, minutes(120, 180))
    star.ledger.open_claims(reader.run_id, star.ids[FACT], [minutes(60, 120)])
    begin(star, reader, FACT, minutes(60, 120))
    star.ledger.commit(reader.run_id, star.ids[FACT], minutes(60, 120), verdict="passed")
    star.ledger.note_mirrored(reader.run_id, star.ids[FACT], minutes(60, 120))
    star.tidy()
    star.ledger.fail(writer.run_id, star.ids[DIMENSION], minutes(120, 180), AUDIT)
    assert star.stale() == {FACT: IntervalSet([minutes(60, 120)])}


def test_who_read_an_accepted_table_is_not_merged_with_who_read_before(ledger: Ledger) -> None:
    """The next refresh makes stale whoever has read the accepted rows, and nobody else.

    Fails without `accepted_revision` in the bound of `merge_coverage`.
    """
    star = grown(Mesh(ledger, ([node(FACT, "down", "hour")], [Edge(FACT, DIMENSION), Edge(FACT, SILVER)])), 3)
    star.time(240)
    star.run("up")
    star.run("down", lambda name, _: AUDIT if name == DIMENSION else None)
    ledger.accept(star.ids[DIMENSION], minutes(180, 240), lookback=None, reason="good enough", by="a person")
    star.run("down")
    assert star.stale() == {}
    star.tidy()
    assert star.stale() == {}
    star.mark(DIMENSION, minutes(235, 240), "requested")
    star.run("down", lambda name, _: AUDIT if name == FACT else None)
    assert star.stale() == {FACT: IntervalSet([minutes(180, 240)])}
    star.run("down")
    assert star.stale() == {}
    assert len(spans(star, FACT)) == 2
    star.tidy()
    assert len(spans(star, FACT)) == 1


def test_what_is_marked_or_not_in_sqlmesh_stays_apart(mesh: Mesh) -> None:
    """Marks are about rows; and what SQLMesh does not hold yet is found by its own row."""
    grown(mesh, 1)
    mesh.mark(BRONZE, minutes(20, 25), "requested")
    mesh.ledger.database.execute(
        "UPDATE meshgate.coverage SET mirrored_at = NULL WHERE version_id = %(v)s AND lower(span) = %(at)s",
        {"v": mesh.ids[BRONZE], "at": minutes(40, 45).start},
    )
    mesh.tidy()
    assert spans(mesh, BRONZE) == [
        minutes(0, 20),
        minutes(20, 25),
        minutes(25, 40),
        minutes(40, 45),
        minutes(45, 60),
    ]


def test_the_look_back_of_a_fresh_unit_is_not_taken_for_done(mesh: Mesh) -> None:
    """Merging must not make rows look as if they had been read since a claim was opened: late rows would be lost.

    Fails without `min(k.opened_revision)` in `merge_coverage`.
    """
    grown(mesh, 1)
    mesh.time(65)
    lease = mesh.acquire("up")
    fresh = minutes(60, 65)
    mesh.ledger.open_claims(lease.run_id, mesh.ids[BRONZE], [fresh])
    grown_by = mesh.acquire("down")
    mesh.ledger.finish(grown_by.run_id, "done", {})
    mesh.tidy()
    begin(mesh, lease, BRONZE, fresh)
    mesh.ledger.commit(lease.run_id, mesh.ids[BRONZE], fresh, verdict="passed", lookback=minutes(40, 60))
    (mark,) = mesh.ledger.states([mesh.ids[BRONZE]])[mesh.ids[BRONZE]].marks
    assert (mark.kind, mark.interval) == ("lookback", minutes(40, 60))


def test_a_request_that_is_done_stays_done(mesh: Mesh) -> None:
    """What it asked for was read after it; a neighbour that was not asked for was read before."""
    grown(mesh, 2)
    mesh.ledger.request([(BRONZE, minutes(30, 60))], reason="patched", by="ann")
    mesh.run("up")
    mesh.run("down")
    mesh.tidy()
    assert spans(mesh, BRONZE) == [minutes(0, 120)]
    (request,) = mesh.ledger.requests("prod")
    assert not request.open


def test_warnings_add_up(mesh: Mesh) -> None:
    """A model that always warns is merged like any other, and its audits keep their sums."""
    mesh.time(10)
    lease = mesh.acquire("up")
    for piece in (minutes(0, 5), minutes(5, 10)):
        mesh.ledger.open_claims(lease.run_id, mesh.ids[BRONZE], [piece])
        begin(mesh, lease, BRONZE, piece)
        mesh.ledger.commit(
            lease.run_id, mesh.ids[BRONZE], piece, verdict="warned", rows=5,
            audits=[{"audit": "positive", "count": 2, "blocking": False}],
        )  # fmt: skip
        mesh.ledger.note_mirrored(lease.run_id, mesh.ids[BRONZE], piece)
    mesh.ledger.finish(lease.run_id, "done", {})
    mesh.run("up")
    mesh.tidy()
    (row,) = mesh.ledger.coverage_rows(mesh.ids[BRONZE], minutes(0, 10))
    assert (row.verdict, row.rows, row.audits) == (
        "warned",
        10,
        ({"audit": "positive", "count": 4, "blocking": False},),
    )


@pytest.mark.parametrize("seed", range(3))
def test_nobody_can_tell(ledger: Ledger, seed: int) -> None:
    """The same random history with and without merging: the same evaluations, in the same order."""
    told = []
    for look in (Mesh.settle, lambda mesh: mesh.tidy(HOUR)):
        empty(ledger.database)
        mesh = play(ledger, seed, look)
        told.append([
            (e["kind"], e["model"], e["span"])
            for e in reversed(ledger.events(limit=100_000)) if e["kind"].startswith("interval.")
        ])  # fmt: skip
        assert mesh.tidy() <= 12
    assert told[0] == told[1]
