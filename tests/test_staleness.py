"""G5: what was read before its parents were computed again is known, and computed again, once. A real ledger."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from guarantee_mesh import AUDIT, BRONZE, DIMENSION, GOLD, SILVER, Mesh, minutes, node
from meshgate.coordinator.staleness import Policy, find, rested_by
from meshgate.graph import Edge, Kind, Window
from meshgate.interval import IntervalSet, IntervalUnit
from staleness_histories import DAILY, FACT, play

if TYPE_CHECKING:
    from meshgate.ledger import Ledger

KEYED = '"lake"."keyed"'
HOUR = timedelta(hours=1)


@pytest.fixture
def mesh(ledger: Ledger) -> Mesh:
    return Mesh(ledger)


@pytest.fixture
def star(ledger: Ledger) -> Mesh:
    """With a fact of the dimension's hours, a fact of its latest state, and a table that merges."""
    latest = node(DAILY, "down", "hour")
    return Mesh(
        ledger,
        (
            [node(FACT, "down", "hour"), latest, node(KEYED, "down", "hour", Kind.INCREMENTAL_BY_UNIQUE_KEY)],
            [
                Edge(FACT, DIMENSION),
                Edge(FACT, SILVER),
                Edge(DAILY, DIMENSION, Window("latest")),
                Edge(KEYED, SILVER),
            ],
        ),
    )


def caught_up(mesh: Mesh, passed: float) -> Mesh:
    mesh.time(passed)
    mesh.run("up")
    mesh.run("down")
    assert mesh.plan().is_empty
    return mesh


def test_g5_no_silent_staleness(mesh: Mesh) -> None:
    """A restated interval upstream is computed again through both projects, and no other time is.

    Fails without `p.revision > ...` in the query `stale`, and without the stale ranges in `_redo`.
    """
    caught_up(mesh, 180)
    mesh.mark(BRONZE, minutes(70, 75), "requested")
    up = mesh.run("up")
    # Silver follows in the same run: what a run computes again is due below at once.
    assert up.committed == {BRONZE: IntervalSet([minutes(70, 75)]), SILVER: IntervalSet([minutes(70, 75)])}
    assert mesh.stale() == {GOLD: IntervalSet([minutes(60, 120)]), DIMENSION: IntervalSet([minutes(60, 180)])}
    down = mesh.run("down")
    assert down.committed[GOLD] == IntervalSet([minutes(60, 120)])
    assert mesh.stale() == {}
    assert mesh.plan().is_empty


def test_g5_an_evaluation_under_way_does_not_hide_it(mesh: Mesh) -> None:
    """The parent is committed after the child has begun and before it commits: the child is stale at birth."""
    mesh.time(60)
    mesh.run("up")
    lease = mesh.acquire("down")
    plan = mesh.plan("down")
    journal = mesh.journal(lease, "down")
    mesh.claim(journal, plan)
    (piece,) = journal.begin(GOLD, minutes(0, 60))
    mesh.mark(SILVER, minutes(10, 15), "requested")
    mesh.run("up")
    journal.commit(GOLD, piece, audits=[], duration=HOUR, rows=1)
    mesh.ledger.finish(lease.run_id, "done", {})
    assert mesh.stale()[GOLD] == IntervalSet([minutes(0, 60)])


def test_twelve_restated_intervals_are_one_hourly_evaluation_of_each_affected_model(star: Mesh) -> None:
    """Whatever the number of restated intervals, of runs in which they were restated, and of ways that lead to a reader."""
    caught_up(star, 120)
    before = star.ledger.revision()
    for start in range(60, 120, 5):
        star.mark(BRONZE, minutes(start, start + 5), "requested")
        star.run("up")
    star.run("down")
    assert set(star.stale()) == {KEYED}  # which is only shown
    assert star.plan().is_empty
    rows = [e for e in star.ledger.events(limit=1000) if e["revision"] > before]
    done = [e["model"] for e in rows if e["kind"] == "interval.committed" and e["project"] == "down"]
    assert sorted(done) == sorted((GOLD, DIMENSION, FACT, DAILY))


# -- as-of models


def test_the_hourly_refresh_of_a_dimension_makes_no_fact_stale(star: Mesh) -> None:
    """Routine growth stamps the new part only."""
    caught_up(star, 60)
    star.time(120)
    star.run("up")
    star.run("down")
    star.time(180)
    star.run("up")
    star.run("down")
    assert star.stale() == {}


def test_a_restated_dimension_makes_its_facts_stale_from_there_on(star: Mesh) -> None:
    """A refresh stamps everything from the first stale instant on: not only its new part, and no earlier time."""
    caught_up(star, 180)
    star.mark(SILVER, minutes(70, 75), "requested")
    star.run("up")
    star.time(240)
    star.run("up")
    done = star.run("down")
    assert done.committed[FACT] == IntervalSet([minutes(60, 240)])
    assert done.committed[DAILY] == IntervalSet([minutes(60, 240)])
    assert set(star.stale()) == {KEYED}


def test_a_filled_hole_makes_stale_exactly_those_that_read_it(mesh: Mesh) -> None:
    """Five minutes that failed are accepted, read as they are, and filled later: their readers are stale then, and no other time."""
    mesh.time(120)
    bad = minutes(70, 75)
    mesh.run("up", lambda name, piece: AUDIT if name == SILVER and piece.overlaps(bad) else None)
    mesh.ledger.accept(mesh.ids[SILVER], bad, lookback=None, reason="the source is gone", by="tester")
    mesh.run("up")
    mesh.run("down")
    assert mesh.stale() == {}
    mesh.ledger.undo_accept(mesh.ids[SILVER], bad, by="tester")
    assert mesh.run("up").committed == {SILVER: IntervalSet([bad])}
    assert mesh.stale() == {GOLD: IntervalSet([minutes(60, 120)]), DIMENSION: IntervalSet([minutes(60, 120)])}


def test_a_table_that_merges_is_only_reported(star: Mesh) -> None:
    """A rebuild of its whole history is nothing that one restated interval brings about."""
    caught_up(star, 180)
    star.mark(SILVER, minutes(70, 75), "requested")
    star.run("up")
    star.run("down")
    assert star.stale() == {KEYED: IntervalSet([minutes(60, 180)])}
    assert star.plan().is_empty
    assert all(not o.closes for o in star.plan().standings[KEYED].obstacles)


def test_a_reader_in_flight_over_a_failed_refresh_is_stale(star: Mesh) -> None:
    """It may have read rows that nobody had judged; who read before or after them is not touched.

    Fails without the dirty spans in the query `stale`.
    """
    caught_up(star, 120)
    star.time(180)
    star.run("up")
    dimension = star.acquire("down")
    fact = star.acquire("down", share=True)
    plan = star.plan("down")
    writer, reader = star.journal(dimension, "down"), star.journal(fact, "down")
    star.ledger.open_claims(dimension.run_id, star.ids[DIMENSION], [minutes(120, 180)])
    star.ledger.open_claims(fact.run_id, star.ids[FACT], [minutes(60, 120)])
    assert plan
    # The fact reads hour 1 again while a refresh of the dimension fails.
    begun = star.ledger.begin(
        fact.run_id, star.ids[FACT], minutes(60, 120), needs=[], loaded=[], environment="prod"
    )
    assert begun.read_revision is not None
    star.ledger.begin(
        dimension.run_id, star.ids[DIMENSION], minutes(120, 180), needs=[], loaded=[], environment="prod"
    )
    star.ledger.fail(dimension.run_id, star.ids[DIMENSION], minutes(120, 180), AUDIT)
    star.ledger.commit(fact.run_id, star.ids[FACT], minutes(60, 120), verdict="passed")
    for lease in (dimension, fact):
        star.ledger.finish(lease.run_id, "done", {})
    assert writer
    assert reader
    assert star.stale()[FACT] == IntervalSet([minutes(60, 120)])
    star.run("down")
    star.run("down")
    assert FACT not in star.stale()


# -- policy


def test_stale_time_is_left_alone_for_a_period_after_it_was_read(mesh: Mesh) -> None:
    """A throttle from its own last read, not a pause after the last change: that would never end."""
    mesh.policy = Policy()
    caught_up(mesh, 60)
    for passed in range(65, 120, 5):
        mesh.time(passed)
        mesh.mark(BRONZE, minutes(passed - 60, passed - 55), "requested")
        mesh.run("up")
        assert GOLD not in mesh.run("down").committed
        (told, *_) = mesh.of(GOLD).deferred
        assert (told.reason, told.detail["retry_at"]) == ("stale", mesh.scene.now.replace(hour=2, minute=0))
    mesh.time(120)
    mesh.run("up")
    assert mesh.run("down").committed[GOLD] == IntervalSet([minutes(0, 120)])


def test_what_is_only_reported_closes_no_gate(star: Mesh) -> None:
    """Accepted staleness: nothing is computed again, and readers go on."""
    star.policy = Policy(reprocess=False)
    caught_up(star, 120)
    star.mark(SILVER, minutes(70, 75), "requested")
    star.run("up")
    assert star.run("down").committed == {}
    star.time(180)
    star.run("up")
    assert star.run("down").committed[FACT] == IntervalSet([minutes(120, 180)])
    assert star.stale()[GOLD] == IntervalSet([minutes(60, 120)])


def test_what_lay_behind_the_horizon_when_its_parent_changed_is_only_reported(mesh: Mesh) -> None:
    """Judged by when the parent was committed: what waited for its turn since is still done."""
    mesh.policy = Policy(throttle=timedelta(0), horizon=timedelta(minutes=70))
    caught_up(mesh, 180)
    for start in (30, 90):
        mesh.mark(SILVER, minutes(start, start + 5), "requested")
    mesh.run("up")  # at 3:00: an hour after the second hour was over, and two after the first
    mesh.time(300)
    mesh.run("up")
    assert mesh.run("down").committed[GOLD] == IntervalSet([minutes(60, 120), minutes(180, 300)])
    assert mesh.stale()[GOLD] == IntervalSet([minutes(0, 60)])
    assert mesh.plan().is_empty


def test_the_horizon_is_judged_hour_by_hour(mesh: Mesh) -> None:
    """However the parent and its reader were recorded; the preview, and a run that is the cause itself, judge the same.

    Fails where what is stale is judged by its end, or `leaves` by another boundary.
    """
    mesh.policy = Policy(throttle=timedelta(0), horizon=timedelta(minutes=70))
    caught_up(mesh, 300)
    mesh.mark(SILVER, minutes(0, 300), "requested")
    mesh.run("up")
    within = IntervalSet([minutes(180, 300)])
    assert mesh.of(GOLD).redo == within
    everything = IntervalSet([minutes(0, 300)])
    assert everything - mesh.policy.leaves(mesh.graph[GOLD], mesh.scene.now) == within
    manifest = mesh.ledger.manifest("prod")
    rested = rested_by(mesh.ledger, manifest, mesh.scene.now, lambda _: mesh.policy)
    assert rested(mesh.graph[GOLD], everything) == within


def test_what_was_within_the_horizon_once_is_done_whatever_comes_after(mesh: Mesh) -> None:
    """Its parent is computed once more before its turn comes; what was beyond the horizon each time is only reported.

    Fails without `_spared`.
    """
    mesh.policy = Policy(throttle=timedelta(0), horizon=timedelta(minutes=70))
    caught_up(mesh, 180)
    mesh.mark(SILVER, minutes(90, 95), "requested")
    mesh.run("up")
    mesh.time(300)
    mesh.mark(SILVER, minutes(0, 180), "requested")
    mesh.run("up")
    assert mesh.of(GOLD).redo == IntervalSet([minutes(60, 120)])
    assert IntervalSet([minutes(60, 120)]) <= mesh.run("down").committed[GOLD]
    assert mesh.stale()[GOLD] == IntervalSet([minutes(0, 60), minutes(120, 180)])
    assert mesh.plan().is_empty


def test_late_rows_of_a_dimension_are_judged_by_when_they_came(ledger: Ledger) -> None:
    """Not by when the time from which they hold was recorded first.

    Fails where `restamp` leaves the instant as it was.
    """
    mesh = Mesh(
        ledger,
        ([node(KEYED, "up", "hour", Kind.SCD_TYPE_2), node(FACT, "down", "hour")], [Edge(FACT, KEYED)]),
    )
    mesh.policy = Policy(throttle=timedelta(0), horizon=timedelta(minutes=120))
    for passed in range(60, 420, 60):
        caught_up(mesh, passed)
    mesh.time(420)
    lease = mesh.acquire("up")
    mesh.scene.work(lease.run_id, mesh.ids[KEYED], minutes(360, 420))
    changed_from = minutes(60, 120).start
    ledger.commit(
        lease.run_id, mesh.ids[KEYED], minutes(360, 420), verdict="passed", changed_from=changed_from
    )
    ledger.finish(lease.run_id, "done", {})
    (*_, found) = find(ledger, "prod", mesh.graph, mesh.ids)[FACT]
    assert found.since == mesh.scene.now
    assert mesh.stale()[FACT] == IntervalSet([minutes(60, 360)])
    assert mesh.of(FACT).redo == IntervalSet([minutes(240, 360)])


def test_an_explicit_request_is_done_whatever_the_policy(mesh: Mesh) -> None:
    """Horizon and `report` are about what follows by itself."""
    mesh.policy = Policy(reprocess=False, horizon=timedelta(0))
    caught_up(mesh, 180)
    mesh.mark(GOLD, minutes(0, 60), "requested")
    assert mesh.run("down").committed == {GOLD: IntervalSet([minutes(0, 60)])}


def test_a_run_computes_only_so_much_again_beside_all_that_is_fresh(mesh: Mesh) -> None:
    """The oldest first; the rest is told, and comes with the next runs."""
    caught_up(mesh, 240)
    mesh.budgets = {"down": 1}
    mesh.mark(SILVER, minutes(0, 180), "requested")
    mesh.time(300)
    assert mesh.run("up").committed[SILVER] == IntervalSet([minutes(0, 180), minutes(240, 300)])
    (told,) = mesh.of(GOLD).deferred
    assert (told.reason, told.interval) == ("stale", minutes(60, 180))
    assert "stale_budget" in told.detail["cause"]
    assert mesh.run("down").committed[GOLD] == IntervalSet([minutes(0, 60), minutes(240, 300)])
    assert mesh.run("down").committed[GOLD] == IntervalSet([minutes(60, 120)])
    assert mesh.run("down").committed[GOLD] == IntervalSet([minutes(120, 180)])
    assert mesh.stale() == {}


def test_a_reader_of_stale_time_waits_for_a_while(star: Mesh) -> None:
    """Stale is unsettled: it closes the gate until the reader's patience is over."""
    star.policy = Policy()
    caught_up(star, 60)
    star.time(120)
    star.run("up")
    star.run("down")
    star.mark(SILVER, minutes(65, 70), "requested")
    star.run("up")
    blocked = [b for b in star.of(FACT).blocked if b.reason == "stale"]
    assert not blocked  # nothing of the fact is wanted yet
    star.time(180)
    star.run("up")
    assert {b.reason for b in star.of(FACT).blocked} <= {"stale"}


# -- what is remembered of a look


def test_what_was_settled_is_not_looked_at_again(mesh: Mesh) -> None:
    """The next look begins at the revision of the last one, and misses nothing that came later."""
    caught_up(mesh, 120)
    mesh.settle()
    assert mesh.stale() == {}
    mesh.mark(SILVER, minutes(10, 15), "requested")
    mesh.run("up")
    stale = mesh.stale()
    mesh.settle()  # what is stale is not settled
    assert mesh.stale() == stale != {}
    mesh.run("down")
    mesh.settle()
    assert mesh.stale() == {}


def test_a_claim_under_way_is_not_settled_by_a_look(mesh: Mesh) -> None:
    """What it records later had read before: its own number counts, not that of the look."""
    mesh.time(60)
    mesh.run("up")
    lease = mesh.acquire("down")
    journal = mesh.journal(lease, "down")
    mesh.claim(journal, mesh.plan("down"))
    (piece,) = journal.begin(GOLD, minutes(0, 60))
    mesh.mark(SILVER, minutes(10, 15), "requested")
    mesh.run("up")
    mesh.settle()
    journal.commit(GOLD, piece, audits=[], duration=HOUR, rows=1)
    mesh.ledger.finish(lease.run_id, "done", {})
    assert mesh.stale()[GOLD] == IntervalSet([minutes(0, 60)])


# -- random histories


@pytest.mark.parametrize("seed", range(6, 10))
def test_after_any_history_every_row_is_as_if_all_were_computed_anew(ledger: Ledger, seed: int) -> None:
    """Late rows, failures, crashes in the middle, looks that settle: at rest nothing is stale, and nothing is wrong."""
    play(ledger, seed, Mesh.settle)


@pytest.mark.parametrize("seed", range(6))
def test_of_a_table_that_merges_exactly_what_read_older_rows_is_stale(ledger: Ledger, seed: int) -> None:
    """However far behind the parent's change it lies, whatever was settled when, and although each is told once.

    Fails without the second half of `pair` in the query `stale`, and without the second of its bounds.
    """
    chance = random.Random(seed)  # noqa: S311 - so that a history can be had again
    keyed = node(KEYED, "down", "five_minute", Kind.INCREMENTAL_BY_UNIQUE_KEY)
    mesh = Mesh(ledger, ([keyed], [Edge(KEYED, SILVER)]))
    passed, most = 60, 0
    at, settled = 0, IntervalSet()
    for _ in range(25):
        passed += chance.choice((0, 5, 15))
        mesh.time(passed)
        if chance.random() < 0.5:
            start = chance.randrange(passed // 5) * 5
            mesh.mark(SILVER, minutes(start, start + 5), "requested")
        mesh.run(chance.choice(("up", "down")))
        if chance.random() < 0.1:
            start = chance.randrange(passed // 5) * 5
            mesh.mark(KEYED, minutes(start, start + chance.choice((5, 60))), "requested")
        if chance.random() < 0.4:
            at = ledger.revision()
            settled = IntervalSet.everything() - mesh.stale().get(KEYED, IntervalSet())
            if chance.random() < 0.3:  # as a promotion may settle what is stale, and only a part of it
                settled |= IntervalSet([minutes(chance.randrange(passed // 5) * 5, passed)])
            ledger.settle("prod", {KEYED: settled}, mesh.ids, at)
        ever = minutes(0, passed)
        read, made = (ledger.coverage_rows(mesh.ids[name], ever) for name in (KEYED, SILVER))
        expected = set()
        for row in read:
            for unit in IntervalUnit.FIVE_MINUTE.split(row.interval):
                upto = at if row.revision <= at and not IntervalSet([unit]) - settled else 0
                if any(
                    p.revision > max(row.read_revision, upto) and p.interval.start < unit.end for p in made
                ):
                    expected.add(unit)
        assert mesh.stale().get(KEYED, IntervalSet()) == IntervalSet(expected)
        pairs = find(ledger, "prod", mesh.graph, mesh.ids).get(KEYED, ())
        most = max(most, len(pairs))
        assert len(pairs) <= 8 * len(made)
    assert most


def test_a_month_is_read_by_the_units_that_it_touches(ledger: Ledger) -> None:
    """The windows of the query are wide; what comes back is cut to the units that read it."""
    weekly = node(DAILY, "down", "hour")
    mesh = Mesh(
        ledger,
        ([weekly], [Edge(DAILY, SILVER, Window("interval", timedelta(hours=-2), timedelta(hours=-2)))]),
    )
    caught_up(mesh, 240)
    mesh.mark(SILVER, minutes(70, 75), "requested")
    mesh.run("up")
    assert mesh.stale()[DAILY] == IntervalSet([minutes(180, 240)])
    assert IntervalUnit.HOUR.count(mesh.stale()[DAILY]) == 1
