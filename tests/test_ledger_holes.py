"""Declared holes: what a person takes as it is; on a real Postgres."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ledger_scene import CELLS, Scene, span
from meshgate.errors import ClaimConflictError, LeaseLostError, LedgerError
from meshgate.interval import IntervalSet
from meshgate.ledger import WHOLE

if TYPE_CHECKING:
    from meshgate.interval import Interval
    from meshgate.ledger import Ledger


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


def accept(
    scene: Scene, version: int, interval: Interval, *, lookback: Interval | None = None
) -> tuple[Interval, ...] | None:
    """Bob accepts it."""
    return scene.ledger.accept(version, interval, lookback=lookback, reason="lost at the source", by="bob")


def kinds(scene: Scene) -> list[str]:
    """The kinds of events, oldest first."""
    return [row["kind"] for row in reversed(scene.ledger.events())]


def row(scene: Scene, version: int, interval: Interval) -> tuple[str, int, int]:
    """Verdict, revision and read revision of what is recorded of an interval."""
    (found,) = scene.ledger.coverage_rows(version, interval)
    return found.verdict, found.revision, found.read_revision


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_failed_range_that_is_accepted_opens_the_gate(scene: Scene, attempts: int) -> None:
    """A commit with a new revision, read up to the one before; its failures and their pause are gone."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 2))
    for _ in range(attempts):
        scene.attempt(run, version, span(2, 3))
    before = scene.ledger.revision()
    assert accept(scene, version, span(2, 3)) == (span(2, 3),)
    assert row(scene, version, span(2, 3)) == ("accepted", before + 1, before)
    assert scene.unclean(version, span(0, 3)) == set()
    assert scene.marks(version) == set()


def test_missing_time_that_is_accepted_counts_as_recorded(scene: Scene) -> None:
    """It is told apart from what was computed; who did it and why stands with it."""
    version = scene.version()
    assert accept(scene, version, span(0, 2)) == (span(0, 2),)
    state = scene.ledger.states([version])[version]
    assert state.covered == state.accepted == IntervalSet([span(0, 2)])
    (found,) = scene.ledger.coverage_rows(version, span(0, 2))
    assert found.accepted == {"by": "bob", "reason": "lost at the source", "was": ["missing"]}
    assert (found.audits, found.run_id) == ((), None)


def test_accepting_touches_only_what_is_not_clean(scene: Scene) -> None:
    """Clean time inside the range keeps its revision: nobody who read it has to read it again."""
    run, version = scene.run(), scene.version()
    good = scene.record(run, version, span(0, 2))
    scene.attempt(run, version, span(2, 3))
    scene.mark(version, span(0, 1), "suspect")
    assert accept(scene, version, span(0, 5)) == (span(0, 1), span(2, 5))
    new = scene.ledger.revision()
    assert scene.revisions(version) == {0: new, 1: good, 2: new, 3: new, 4: new}


def test_who_read_good_rows_before_has_read_less_than_the_accepted_revision(scene: Scene) -> None:
    """Rule 12: recorded, read, redone badly, accepted: the reader's read_revision lies below the new revision."""
    run, parent, child = scene.run(), scene.version(), scene.version("c")
    scene.record(run, parent, span(0, 1))
    scene.record(run, child, span(0, 1))
    scene.attempt(run, parent, span(0, 1))
    accept(scene, parent, span(0, 1))
    (_, _, read), (_, made, _) = row(scene, child, span(0, 1)), row(scene, parent, span(0, 1))
    assert read < made
    again = scene.record(run, parent, span(0, 1))
    assert (row(scene, parent, span(0, 1))[0], again > made) == ("passed", True)


@pytest.mark.parametrize("kind", ["failed", "suspect", "removed", "requested", "lookback"])
def test_acceptance_discharges_the_older_marks_of_what_it_accepts(scene: Scene, kind: str) -> None:
    """Of whatever kind; outside the range they stay."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 3))
    scene.mark(version, span(0, 3), kind)
    scene.mark(version, span(1, 2), "failed")
    accept(scene, version, span(1, 2))
    assert scene.marks(version) == {(kind, 0), (kind, 2)}


def test_clean_time_cannot_be_accepted(scene: Scene) -> None:
    """There is nothing to accept: no revision, no event."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    before, told = scene.ledger.revision(), kinds(scene)
    assert accept(scene, version, span(0, 1)) is None
    assert (scene.ledger.revision(), kinds(scene)) == (before, told)


@pytest.mark.parametrize("kind", ["incremental_by_time_range", "full"])
def test_what_a_run_is_writing_cannot_be_accepted(scene: Scene, kind: str) -> None:
    """It is refused with the run that is in the way; reserved time can be."""
    run, version = scene.run(), scene.version(kind=kind)
    scene.open(run, version, span(0, 2))
    assert accept(scene, version, span(0, 1))
    scene.begin(run, version, span(1, 2))
    with pytest.raises(ClaimConflictError, match=f"run {run} of 'up' is evaluating it") as refused:
        accept(scene, version, span(1, 2))
    assert refused.value.fields["run_id"] == run
    scene.commit(run, version, span(1, 2))


def test_what_a_lost_run_may_still_write_cannot_be_accepted(scene: Scene) -> None:
    """Not before its grace is over; then it can."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 1))
    scene.pass_time(61)
    scene.ledger.take_over()
    with pytest.raises(ClaimConflictError, match="was lost while it evaluated it, and may write until"):
        accept(scene, version, span(0, 1))
    scene.pass_time(30)
    assert accept(scene, version, span(0, 1)) == (span(0, 1),)


def test_a_zombies_write_over_accepted_time_is_suspect(scene: Scene) -> None:
    """The mark is newer than the acceptance."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 1))
    scene.pass_time(100)
    scene.ledger.take_over()
    accept(scene, version, span(0, 1))
    with pytest.raises(LeaseLostError):
        scene.commit(run, version, span(0, 1))
    assert ("suspect", 0) in scene.unclean(version, span(0, 1))


def test_time_that_is_not_over_cannot_be_accepted(scene: Scene) -> None:
    """Nor all of time."""
    version = scene.version()
    for interval in (span(CELLS - 1, CELLS + 1), WHOLE):
        with pytest.raises(LedgerError, match="time of a known version that is over"):
            accept(scene, version, interval)


def test_accepting_fresh_time_obliges_to_the_lookback(scene: Scene) -> None:
    """Rule 9: the units before it are marked in the same transaction; those that were accepted themselves are not."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 2))
    accept(scene, version, span(2, 3))
    accept(scene, version, span(3, 4), lookback=span(1, 3))
    assert scene.marks(version) == {("lookback", 1)}


def test_the_lookback_of_a_commit_leaves_accepted_time_alone(scene: Scene) -> None:
    """It would fail again at each tick; who wants it computed says so."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    accept(scene, version, span(1, 2))
    scene.record(run, version, span(2, 3), lookback=span(0, 2))
    assert scene.marks(version) == {("lookback", 0)}


def test_an_undone_acceptance_is_due_again(scene: Scene) -> None:
    """Only what was accepted; filling it gives it a revision of its own."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    accept(scene, version, span(1, 3))
    assert scene.ledger.undo_accept(version, span(0, 2), by="ann") == (span(1, 2),)
    assert scene.marks(version) == {("requested", 1)}
    accepted = scene.ledger.revision()
    assert scene.record(run, version, span(1, 2)) > accepted
    assert scene.marks(version) == set()
    assert row(scene, version, span(1, 2))[0] == "passed"
    assert row(scene, version, span(2, 3))[0] == "accepted"


# -- tables that are one whole


@pytest.mark.parametrize("kind", ["full", "incremental_by_unique_key", "incremental_unmanaged"])
def test_the_doubt_about_a_whole_table_is_accepted_whole(scene: Scene, kind: str) -> None:
    """What was being written counts as recorded; what was recorded before keeps its revision."""
    run, version = scene.run(), scene.version(kind=kind)
    good = scene.record(run, version, span(0, 2))
    scene.work(run, version, span(2, 3))
    scene.ledger.fail(run, version, span(2, 3), {"error": "no"})
    assert accept(scene, version, span(0, 3)) == (span(2, 3),)
    assert scene.unclean(version, span(0, 3)) == set()
    assert scene.revisions(version) == {0: good, 1: good, 2: scene.ledger.revision()}


def test_readers_in_flight_over_an_accepted_refresh_met_its_rows(scene: Scene) -> None:
    """The span of revisions in which they may have is closed by the acceptance."""
    run, version = scene.run(), scene.version(kind="full")
    scene.record(run, version, span(0, 1))
    began = scene.work(run, version, span(1, 2))
    scene.ledger.fail(run, version, span(1, 2), {"error": "no"})
    accept(scene, version, span(0, 2))
    assert scene.dirty(version) == {(began, scene.ledger.revision())}


def test_who_read_an_accepted_refresh_met_what_the_next_one_writes_over(scene: Scene) -> None:
    """The span is closed for good by the next commit; and by another acceptance only where something was written since."""
    run, version = scene.run(), scene.version(kind="full")
    scene.record(run, version, span(0, 1))

    def fails() -> int:
        began = scene.work(run, version, span(1, 2))
        scene.ledger.fail(run, version, span(1, 2), {"error": "no"})
        return began

    first = fails()
    accept(scene, version, span(0, 2))
    taken = scene.ledger.revision()
    accept(scene, version, span(0, 3))  # an hour more, and the same rows
    assert scene.dirty(version) == {(first, taken)}
    second = fails()
    accept(scene, version, span(0, 3))
    again = scene.ledger.revision()
    assert scene.dirty(version) == {(first, again), (second, again)}
    made = scene.record(run, version, span(3, 4))
    assert scene.dirty(version) == {(first, again), (second, made)}


def test_a_doubt_without_a_range_is_accepted_too(scene: Scene) -> None:
    """Nothing is stamped, and the doubt is over."""
    run, version = scene.run(), scene.version(kind="full")
    scene.record(run, version, span(0, 2))
    scene.mark(version, WHOLE, "suspect")
    assert accept(scene, version, span(0, 2)) == ()
    assert scene.marks(version) == set()
    assert kinds(scene)[-1] == "interval.accepted"


# -- SQLMesh's own record


def test_what_was_never_taken_along_to_sqlmesh_is_no_finding(scene: Scene) -> None:
    """It is not in SQLMesh's record, and everybody knows why."""
    version = scene.version()
    accept(scene, version, span(0, 1))
    scene.pass_time(1)
    assert scene.reconcile(version, []) == []
    assert scene.marks(version) == set()


def test_a_run_takes_accepted_time_along_once(scene: Scene) -> None:
    """The first that asks; as long as it lives nobody is surprised that SQLMesh does not have it yet."""
    run, version = scene.run(), scene.version()
    accept(scene, version, span(0, 1))
    assert scene.ledger.adopt_accepted(run, version) == (span(0, 1),)
    assert scene.ledger.adopt_accepted(scene.run("down"), version) == ()
    scene.pass_time(1)
    assert scene.reconcile(version, []) == []
    scene.ledger.note_mirrored(run, version, span(0, 1))
    scene.ledger.finish(run, "done", {})
    scene.pass_time(1)
    assert scene.reconcile(version, [span(0, 1)]) == []


def test_a_run_that_ends_while_it_takes_it_along_leaves_it_to_be_evaluated(scene: Scene) -> None:
    """Nobody knows whether SQLMesh got it and somebody removed it since: as with any range that a run left behind."""
    run, version = scene.run(), scene.version()
    accept(scene, version, span(0, 1))
    scene.ledger.adopt_accepted(run, version)
    scene.ledger.finish(run, "failed", {})
    scene.pass_time(1)
    assert scene.reconcile(version, []) == [("unmirrored", frozenset({0}))]
    assert scene.marks(version) == {("suspect", 0)}


def test_a_run_without_a_lease_takes_nothing_along(scene: Scene) -> None:
    """Somebody else's run does."""
    run, version = scene.run(), scene.version()
    accept(scene, version, span(0, 1))
    scene.pass_time(61)
    with pytest.raises(LeaseLostError):
        scene.ledger.adopt_accepted(run, version)
    assert scene.ledger.adopt_accepted(scene.run(), version) == (span(0, 1),)


def test_what_sqlmesh_held_before_it_holds_still(scene: Scene) -> None:
    """A redo that failed, accepted: SQLMesh had recorded the interval, and has; removing it there is seen."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    scene.ledger.note_mirrored(run, version, span(0, 1))
    scene.attempt(run, version, span(0, 1))
    accept(scene, version, span(0, 2))
    assert scene.ledger.adopt_accepted(run, version) == (span(1, 2),)
    scene.ledger.note_mirrored(run, version, span(0, 2))
    scene.ledger.finish(run, "done", {})
    scene.pass_time(1)
    assert scene.reconcile(version, [span(0, 2)]) == []
    assert scene.reconcile(version, [span(1, 2)]) == [("removed", frozenset({0}))]


def test_removed_time_that_is_accepted_is_taken_along_anew(scene: Scene) -> None:
    """SQLMesh does not hold what somebody had removed from it."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    scene.ledger.note_mirrored(run, version, span(0, 1))
    scene.pass_time(1)
    assert scene.reconcile(version, []) == [("removed", frozenset({0}))]
    accept(scene, version, span(0, 1))
    assert scene.ledger.adopt_accepted(run, version) == (span(0, 1),)


def test_plain_sqlmesh_over_accepted_time_is_suspect(scene: Scene) -> None:
    """Rule 5: which of the two came last nobody can tell. Once is enough."""
    version = scene.version()
    accept(scene, version, span(0, 2))
    scene.pass_time(1)
    assert scene.reconcile(version, [span(0, 1)]) == [("suspect", frozenset({0}))]
    assert scene.reconcile(version, [span(0, 1)]) == []
    assert scene.marks(version) == {("suspect", 0)}


def test_what_was_accepted_brings_a_run_to_look_at_sqlmesh(scene: Scene) -> None:
    """Also one that would have nothing to do."""
    version = scene.version()
    scene.promote({"p": "1"})
    assert not scene.ledger.has_unmirrored("prod")
    accept(scene, version, span(0, 1))
    assert scene.ledger.has_unmirrored("prod")
    run = scene.run(ttl=timedelta(hours=1))
    scene.ledger.adopt_accepted(run, version)
    scene.ledger.note_mirrored(run, version, span(0, 1))
    assert not scene.ledger.has_unmirrored("prod")
