"""The promises of the contract, each under its name, at the level of ledger, plan, gate and journal.

SQLMesh is left out: `Mesh` calls the journal as SQLMesh's scheduler does, and what the engine does is a function.
Each docstring names the function and the condition whose removal makes the test fail; `mutations.py` removes them.
The same promises with real SQLMesh projects are in `test_end_to_end` and `test_faults`.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from guarantee_mesh import (
    AUDIT,
    BRONZE,
    DIMENSION,
    GOLD,
    MINUTES,
    SILVER,
    Mesh,
    minutes,
)
from ledger_scene import GRACE, TTL, at, empty
from meshgate.coordinator.reconcile import Finding
from meshgate.coordinator.run import Workbench
from meshgate.db import Database, migrate
from meshgate.errors import ConfigError, LeaseLostError, LedgerError
from meshgate.interval import Interval, IntervalSet
from meshgate.ledger import Ledger
from strategies import examples

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshgate.coordinator.journal import RunJournal


@pytest.fixture
def mesh(ledger: Ledger) -> Mesh:
    """A mesh with nothing recorded."""
    return Mesh(ledger)


# -- G1


def test_g1_no_premature_work_when_the_run_plans(mesh: Mesh) -> None:
    """An hour whose last 55 minutes are not there upstream is not ready: `gate.decide`, window ⊆ clean(parent)."""
    mesh.time(65)
    mesh.run("up")
    mesh.time(125)
    ready = mesh.of(GOLD).ready
    assert ready == IntervalSet([minutes(0, 60)])


@pytest.mark.parametrize("trouble", ["failed", "suspect", "removed", "begun", "superseded"])
def test_g1_no_premature_work_when_a_batch_begins(mesh: Mesh, trouble: str) -> None:
    """What went wrong with a parent after the plan stops the batch: `begin_claim`, `meshgate.unclean` of the parents."""
    mesh.time(125)
    mesh.run("up")
    lease = mesh.acquire("down")
    journal = mesh.journal(lease, "down")
    pieces = mesh.claim(journal, mesh.plan("down"))[GOLD]
    if trouble == "begun":
        mesh.scene.work(mesh.scene.run("other"), mesh.ids[SILVER], minutes(70, 75))
    elif trouble == "superseded":
        mesh.scene.version(SILVER, version="2")
        mesh.scene.promote({BRONZE: "1", SILVER: "2"})
    else:
        mesh.mark(SILVER, minutes(70, 75), trouble)
    begun = [ready for piece in pieces for ready in journal.begin(GOLD, piece)]
    assert begun == ([] if trouble == "superseded" else [minutes(0, 60)])
    assert {b.reason for b in journal.outcome.blocked} == {trouble}


def test_g1_no_premature_work_on_what_another_run_is_writing(mesh: Mesh) -> None:
    """A redo of good rows closes the gate from its begin on: `standing._of_claim` in the plan."""
    mesh.time(61)
    mesh.run("up")
    mesh.scene.work(mesh.scene.run("other"), mesh.ids[SILVER], minutes(10, 15))
    assert not mesh.of(GOLD).ready


def test_g1_no_premature_work_while_an_as_of_parent_is_in_doubt(mesh: Mesh) -> None:
    """A whole table that failed opens no gate, however old the interval: `put_mark`, as-of marks are on all of time."""
    mesh.time(61)
    mesh.run("up")
    mesh.run("down")
    mesh.time(121)
    mesh.run("up")
    mesh.run("down", lambda name, _: AUDIT if name == DIMENSION else None)
    assert mesh.scene.unclean(mesh.ids[DIMENSION], minutes(0, 60)) == {("failed", 0)}


def test_g1_no_premature_work_on_rows_whose_redo_failed(mesh: Mesh) -> None:
    """Bad rows have replaced the good ones that are recorded: `fail_claim`, `distrust_claim` marks them."""
    mesh.time(60)
    mesh.run("up")
    mesh.mark(SILVER, minutes(0, 5), "requested")
    mesh.run("up", lambda name, _: AUDIT if name == SILVER else None)
    mesh.time(60 + 180)  # beyond any patience
    assert minutes(0, 60) not in mesh.of(GOLD).ready
    assert "failed" in {b.reason for b in mesh.of(GOLD).blocked}


def test_g1_what_a_run_produces_itself_counts(mesh: Mesh) -> None:
    """A child is ready where its parent is evaluated earlier in the same run: `make_plan`, `produced`."""
    mesh.time(30)
    assert mesh.of(SILVER).ready == IntervalSet([minutes(0, 30)])


# -- G2


def test_g2_no_double_work(mesh: Mesh) -> None:
    """Two live runs never hold one interval: `open_claims`, the constraint "two live claims never overlap"."""
    mesh.time(61)
    one, two = mesh.acquire("up"), mesh.acquire("other")
    plan = mesh.plan("up")
    assert mesh.claim(mesh.journal(one, "up"), plan)[BRONZE] == [minutes(0, 60)]
    assert mesh.claim(mesh.journal(two, "up"), plan)[BRONZE] == []


def test_g2_no_double_work_whatever_the_code_does(mesh: Mesh) -> None:
    """A client that writes past every function is refused too: the constraint "two live claims never overlap"."""
    one, two = mesh.acquire("up"), mesh.acquire("down")
    mesh.ledger.open_claims(one.run_id, mesh.ids[BRONZE], [minutes(0, 60)])
    connection = mesh.ledger.database.connect()
    with connection.cursor() as cursor, pytest.raises(psycopg2.errors.ExclusionViolation) as refused:
        cursor.execute(
            "INSERT INTO meshgate.claim (run_id, version_id, span, opened_revision, opened_at)"
            " VALUES (%s, %s, tstzrange(%s, %s), 0, now())",
            [two.run_id, mesh.ids[BRONZE], minutes(30, 60).start, minutes(30, 60).end],
        )
    connection.close()
    assert refused.value.diag.constraint_name == "two live claims never overlap"


def test_g2_no_double_work_on_a_whole_table(mesh: Mesh) -> None:
    """Refreshes of disjoint intervals of an as-of model are one work: `open_claims`, as-of claims are '(,)'."""
    one, two = mesh.acquire("up"), mesh.acquire("down")
    assert mesh.scene.open(one.run_id, mesh.ids[DIMENSION], minutes(0, 60)) == [None]
    assert mesh.scene.open(two.run_id, mesh.ids[DIMENSION], minutes(60, 120)) == [one.run_id]


def test_g2_no_double_work_while_a_lost_run_may_still_write(mesh: Mesh) -> None:
    """A mute zombie is waited out: `open_claims`, quarantined_until > present."""
    lease = mesh.acquire("up", grace=timedelta(minutes=5))
    mesh.scene.work(lease.run_id, mesh.ids[BRONZE], minutes(0, 5))
    mesh.time(5.9)
    assert mesh.scene.open(mesh.acquire("up").run_id, mesh.ids[BRONZE], minutes(0, 5)) == [lease.run_id]


# -- G3


def accounted(mesh: Mesh, name: str) -> IntervalSet:
    """All of a model's time that is clean, will be evaluated by the next run, or is blocked for a reason."""
    planned, standing = mesh.of(name), mesh.plan().standings[name]
    told = planned.ready | IntervalSet(b.interval for b in planned.blocked)
    # Whatever part of time a refresh is for, it makes the whole table anew.
    whole = standing.covered if told and mesh.graph[name].kind.reads_everything else IntervalSet()
    return told | whole | standing.settled


def test_g3_no_lost_work_when_an_interval_fails(mesh: Mesh) -> None:
    """Eleven of twelve are kept, one is shown with its audit, and tried again: `fail_claim`, `claim_piece`."""
    mesh.time(60)
    poisoned = minutes(35, 40)
    outcome = mesh.run(
        "up", lambda name, piece: AUDIT if name == BRONZE and piece.overlaps(poisoned) else None
    )
    assert outcome.committed[BRONZE] == IntervalSet([minutes(0, 60)]) - IntervalSet([poisoned])
    assert [(f.interval, f.detail) for f in outcome.failed] == [(poisoned, AUDIT)]
    assert mesh.of(BRONZE).ready == IntervalSet([poisoned])


def test_g3_no_lost_work_when_a_redo_fails(mesh: Mesh) -> None:
    """Recorded time whose redo failed is due again: `fail_claim`, `distrust_claim` marks it."""
    mesh.time(60)
    mesh.run("up")
    lease = mesh.acquire("up")
    mesh.scene.work(lease.run_id, mesh.ids[BRONZE], minutes(0, 5))
    mesh.ledger.fail(lease.run_id, mesh.ids[BRONZE], minutes(0, 5), AUDIT)
    mesh.ledger.finish(lease.run_id, "failed", {})
    assert mesh.of(BRONZE).redo == IntervalSet([minutes(0, 5)])


def test_g3_no_lost_work_when_a_run_dies_in_a_redo(mesh: Mesh) -> None:
    """Recorded time that a dead run was overwriting is due again: `lose_run`, `distrust_claim` marks it."""
    mesh.time(60)
    mesh.run("up")
    lease = mesh.acquire("up")
    mesh.scene.work(lease.run_id, mesh.ids[BRONZE], minutes(0, 5))
    mesh.ledger.bury(lease.run_id, engine_gone=True)
    assert mesh.of(BRONZE).redo == IntervalSet([minutes(0, 5)])


def test_g3_no_lost_work_when_a_request_comes_while_it_is_worked(mesh: Mesh) -> None:
    """A request that an evaluation could not have seen is still due after it: `carve_marks`, m.revision <= p_upto."""
    mesh.time(60)
    mesh.run("up")
    lease = mesh.acquire("up")
    mesh.scene.work(lease.run_id, mesh.ids[BRONZE], minutes(0, 5))
    mesh.mark(BRONZE, minutes(0, 5), "requested")
    mesh.scene.commit(lease.run_id, mesh.ids[BRONZE], minutes(0, 5))
    mesh.ledger.finish(lease.run_id, "done", {})
    assert mesh.of(BRONZE).redo == IntervalSet([minutes(0, 5)])


def test_g3_no_lost_work_of_what_crashed_between_the_two_records(mesh: Mesh) -> None:
    """What the ledger has and SQLMesh never got is due again: `reconcile_version`, rows without mirrored_at."""
    mesh.time(60)
    lease = mesh.acquire("up")
    mesh.scene.record(lease.run_id, mesh.ids[BRONZE], minutes(0, 60))
    mesh.ledger.bury(lease.run_id, engine_gone=True)
    assert mesh.foreign(bronze=IntervalSet()) == [Finding(BRONZE, "up", "unmirrored", minutes(0, 60))]
    assert mesh.of(BRONZE).redo == IntervalSet([minutes(0, 60)])


@settings(examples(25), suppress_health_check=list(HealthCheck))
@given(
    histories=st.lists(
        st.tuples(
            st.sampled_from(["up", "up", "down"]),
            st.sampled_from([5, 30, 60]),
            st.sampled_from(["well", "poisoned", "dies", "zombie"]),
            st.integers(0, 11),
        ),
        min_size=1,
        max_size=6,
    )
)
@example([("up", 60, "well", 0), ("down", 5, "well", 0), ("up", 60, "well", 0), ("down", 5, "poisoned", 0)])
def test_g3_no_lost_work_in_any_history(ledger_url: str, histories: list[tuple[str, int, str, int]]) -> None:
    """Whatever failed, died or came late: all due time is clean, ready, or blocked for a reason that is named."""
    database = Database(ledger_url)
    empty(database)
    mesh = Mesh(Ledger(database))
    passed = 0.0
    for project, step, how, which in histories:
        passed += step
        mesh.time(passed)
        calls = 0

        def engine(_name: str, piece: Interval, how: str = how, which: int = which) -> dict[str, Any] | None:
            nonlocal calls, passed
            calls += 1
            if how == "poisoned" and piece.contains(piece.start.replace(minute=5 * which)):
                return AUDIT
            if how == "zombie" and calls == 1 + which % 3:
                passed += 2
                mesh.time(passed)
            if how == "dies" and calls == 1 + which % 3:
                raise KeyboardInterrupt
            return None

        with suppress(KeyboardInterrupt, LeaseLostError):
            mesh.run(project, engine)
        passed += 2  # whoever died is over, and its quarantine too
        mesh.time(passed)
        mesh.ledger.finish(mesh.acquire("other").run_id, "nothing_to_do", {})
        for planned in mesh.plan("up").models + mesh.plan("down").models:
            due = IntervalSet.of(at(0), planned.upto)
            assert due <= accounted(mesh, planned.name), planned.name
            assert all(b.reason and b.model == planned.name for b in planned.blocked)
    database.close()


# -- G4


def lost(mesh: Mesh) -> tuple[RunJournal, Interval]:
    """A run that had begun an interval, slept beyond its lease, and was taken over by `other`."""
    mesh.time(60)
    mesh.run("up")
    mesh.mark(BRONZE, minutes(0, 5), "requested")
    lease = mesh.acquire("up")
    journal = mesh.journal(lease, "up")
    (piece,) = mesh.claim(journal, mesh.plan("up"))[BRONZE]
    (begun,) = journal.begin(BRONZE, piece)
    mesh.time(61)
    mesh.acquire("other")
    return journal, begun


def test_g4_no_zombie_commit(mesh: Mesh) -> None:
    """A run that lost its lease records nothing, and its other threads stop: `commit_claim`, `holds_lease`."""
    journal, begun = lost(mesh)
    before = mesh.scene.revisions(mesh.ids[BRONZE])
    with pytest.raises(LeaseLostError):
        journal.commit(BRONZE, begun, audits=[], duration=MINUTES, rows=1)
    assert mesh.scene.revisions(mesh.ids[BRONZE]) == before
    assert not journal.alive()


def test_g4_no_zombie_commit_though_nobody_took_over(mesh: Mesh) -> None:
    """An expired lease is no lease, taken over or not: `holds_lease`, expires_at > clock()."""
    lease = mesh.acquire("up")
    mesh.scene.work(lease.run_id, mesh.ids[BRONZE], minutes(0, 5))
    mesh.time(1)
    with pytest.raises(LeaseLostError):
        mesh.scene.commit(lease.run_id, mesh.ids[BRONZE], minutes(0, 5))
    assert not mesh.covered(BRONZE)


def test_g4_a_zombies_late_write_is_evaluated_again(mesh: Mesh) -> None:
    """Its range is due again though a successor has recorded it since: `refuse_write`, `put_mark`."""
    journal, begun = lost(mesh)
    mesh.time(65)
    mesh.run("up")
    assert mesh.of(BRONZE).redo == IntervalSet()
    with pytest.raises(LeaseLostError):
        journal.commit(BRONZE, begun, audits=[], duration=MINUTES, rows=1)
    assert mesh.of(BRONZE).redo == IntervalSet([begun])


def test_g4_what_a_lost_run_had_begun_opens_no_gate(mesh: Mesh) -> None:
    """Taken over, its begun time is suspect until somebody evaluates it: `lose_run`, `distrust_claim`."""
    _, begun = lost(mesh)
    assert mesh.plan().standings[BRONZE].clean == IntervalSet([minutes(0, 60)]) - IntervalSet([begun])
    child = mesh.acquire("down").run_id
    mesh.scene.open(child, mesh.ids[SILVER], begun)
    refused = mesh.scene.begin(child, mesh.ids[SILVER], begun, (mesh.ids[BRONZE], begun)).refused
    assert [(r.reason, r.interval) for r in refused] == [("suspect", begun)]


def test_g4_a_mute_zombie_is_waited_out(mesh: Mesh) -> None:
    """Until grace has passed the range is shown as begun by the lost run, then it is ready: `quarantined_until`."""
    _, begun = lost(mesh)
    (cause,) = (b for b in mesh.of(BRONZE).blocked if b.interval.overlaps(begun))
    assert (cause.reason, cause.detail["claim"]) == ("begun", "lost")
    mesh.scene.set_clock(at(1) + TTL + GRACE)
    assert mesh.of(BRONZE).ready.covers(begun)


# -- G6


def test_g6_foreign_writes_on_missing_parents_are_seen_and_redone(mesh: Mesh) -> None:
    """Plain SQLMesh recorded an hour that upstream had not: told, suspect, due again: `reconcile_version`, `put_mark`."""
    mesh.time(65)
    mesh.run("up")
    found = mesh.foreign(gold=IntervalSet([minutes(0, 60), minutes(60, 120)]))
    assert Finding(GOLD, "down", "added", minutes(0, 120)) in found
    assert {("suspect", 1)} <= mesh.scene.marks(mesh.ids[GOLD])
    mesh.time(125)
    mesh.run("up")
    assert mesh.of(GOLD).redo.covers(minutes(60, 120))


def test_g6_foreign_removals_are_seen_and_redone(mesh: Mesh) -> None:
    """What somebody removed from SQLMesh's record is due again: `reconcile_version`, the `removed` mark."""
    mesh.time(61)
    mesh.run("up")
    held = mesh.covered(BRONZE) - IntervalSet([minutes(10, 20)])
    assert mesh.foreign(bronze=held) == [Finding(BRONZE, "up", "removed", minutes(10, 20))]
    assert mesh.of(BRONZE).redo == IntervalSet([minutes(10, 20)])


def test_g6_a_foreign_write_into_an_evaluation_under_way_is_redone(mesh: Mesh) -> None:
    """Which write came last nobody knows: `reconcile_version`, begun claims make foreign time suspect."""
    mesh.time(5)
    lease = mesh.acquire("up")
    mesh.scene.work(lease.run_id, mesh.ids[BRONZE], minutes(0, 5))
    mesh.foreign(bronze=IntervalSet([minutes(0, 5)]))
    mesh.scene.commit(lease.run_id, mesh.ids[BRONZE], minutes(0, 5))
    mesh.ledger.finish(lease.run_id, "done", {})
    assert mesh.of(BRONZE).redo == IntervalSet([minutes(0, 5)])


def test_g6_a_state_that_nobody_touched_yields_nothing(mesh: Mesh) -> None:
    """What meshgate's own runs recorded in both is no finding: `note_mirrored`."""
    mesh.time(61)
    mesh.run("up")
    mesh.run("down")
    assert mesh.foreign() == []


def test_g6_a_foreign_evaluation_that_spans_a_look_is_not_trusted(mesh: Mesh) -> None:
    """It read at 60 min, upstream recorded the last unit, somebody looked, it recorded: nothing proves what it read."""
    mesh.time(61)
    mesh.run("up", lambda _, piece: AUDIT if piece.end > minutes(55, 60).start else None)
    mesh.foreign()
    # Here plain SQLMesh reads silver for its hour, without the last five minutes.
    mesh.time(62)
    mesh.run("up")
    mesh.foreign()
    mesh.foreign(gold=IntervalSet([minutes(0, 60)]))
    assert mesh.scene.marks(mesh.ids[GOLD]) == {("suspect", 0)}


def test_g6_a_whole_table_that_was_removed_is_redone_once(mesh: Mesh) -> None:
    """After one refresh SQLMesh's record is as the ledger's, and a second look finds nothing."""
    mesh.time(181)
    mesh.run("up")
    mesh.run("down")
    mesh.foreign(dimension=IntervalSet())
    mesh.told.clear()
    mesh.run("down")
    assert mesh.foreign(dimension=mesh.told[DIMENSION]) == []


# -- G7


@pytest.fixture
def production(postgres: Any) -> Iterator[Ledger]:
    """A ledger that was not made for tests."""
    import uuid

    database = Database(postgres.ensure_database(f"production_{uuid.uuid4().hex}"))
    migrate(database)
    yield Ledger(database)
    database.close()


def test_g7_one_clock_that_no_session_of_a_production_ledger_can_set(production: Ledger) -> None:
    """A session's own idea of now is ignored: `meshgate.clock`, ledger.test_clock."""
    production.database.execute("SET meshgate.now = '2001-01-01 00:00Z'")
    (row,) = production.database.execute("SELECT meshgate.clock() - clock_timestamp() AS apart")
    assert abs(row["apart"]) < timedelta(seconds=5)


def test_g7_a_run_is_given_no_instant_in_the_future(mesh: Mesh) -> None:
    """`--now` replaces the clock by the past only, by the database's judgement: `acquire_run`, p_as_of > present."""
    late = mesh.scene.now + timedelta(microseconds=1)
    with pytest.raises(LedgerError):
        mesh.ledger.acquire("up", "prod", "run", {}, ttl=TTL, grace=GRACE, as_of=late)


def test_g7_the_instant_that_counts_is_the_databases(mesh: Mesh) -> None:
    """A run that was given no instant decides with the ledger's clock, whatever this machine's says: `Workbench.instant`."""
    bench = Workbench(None, mesh.ledger, None)  # type: ignore[arg-type]
    assert bench.instant(None) == mesh.scene.now
    with pytest.raises(ConfigError):
        bench.instant(mesh.scene.now + timedelta(seconds=1))


def test_g7_the_order_of_work_is_the_ledgers_sequence(mesh: Mesh) -> None:
    """A clock that goes back changes no order: `next_revision` under `lock_ledger`."""
    run = mesh.scene.run()
    first = mesh.scene.record(run, mesh.ids[BRONZE], minutes(0, 5))
    mesh.scene.pass_time(-30)
    assert mesh.scene.record(run, mesh.ids[BRONZE], minutes(5, 10)) > first


# -- G8


def test_g8_a_no_of_the_plan_explains_itself(mesh: Mesh) -> None:
    """The blocked hour names the failing five minutes, its project, its audit and count: `fail_claim`, p_detail."""
    mesh.time(60)
    mesh.run("up", lambda name, piece: AUDIT if name == SILVER and piece.overlaps(minutes(10, 15)) else None)
    (why,) = mesh.of(GOLD).blocked
    assert (why.interval, why.parent, why.parent_project, why.span, why.reason) == (
        minutes(0, 60), SILVER, "up", minutes(10, 15), "failed",
    )  # fmt: skip
    assert why.detail["audits"] == AUDIT["audits"]


def test_g8_a_no_of_the_begin_explains_itself(mesh: Mesh) -> None:
    """A batch that is refused names parent, time and facts as data: `begin_claim`, `meshgate.unclean` detail."""
    mesh.time(60)
    mesh.run("up")
    journal = mesh.journal(mesh.acquire("down"), "down")
    (piece,) = mesh.claim(journal, mesh.plan("down"))[GOLD]
    lease = mesh.acquire("up")
    mesh.scene.work(lease.run_id, mesh.ids[SILVER], minutes(10, 15))
    mesh.ledger.fail(lease.run_id, mesh.ids[SILVER], minutes(10, 15), AUDIT)
    assert list(journal.begin(GOLD, piece)) == []
    (why,) = journal.outcome.blocked
    assert (why.interval, why.parent, why.parent_project, why.span, why.reason) == (
        minutes(0, 60), SILVER, "up", minutes(10, 15), "failed",
    )  # fmt: skip
    assert why.detail["audits"] == AUDIT["audits"]


def test_g8_a_refused_claim_names_the_run_that_has_it(mesh: Mesh) -> None:
    """What another run is working on is told with that run and the end of its lease: `open_claims`, refused_by."""
    mesh.time(60)
    one = mesh.acquire("up")
    plan = mesh.plan("up")
    mesh.claim(mesh.journal(one, "up"), plan)
    second = mesh.journal(mesh.acquire("other"), "up")
    mesh.claim(second, plan)
    assert {(b.reason, b.detail["run_id"]) for b in second.outcome.blocked} == {("begun", one.run_id)}
