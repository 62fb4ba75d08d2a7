"""Whole tables and what plain SQLMesh recorded, on a real Postgres."""

from __future__ import annotations

import pytest

from ledger_scene import Scene, cells, locked, meanwhile, other_session, span, wait_until_blocked
from meshgate.errors import LeaseLostError, LedgerError
from meshgate.interval import Interval, IntervalSet
from meshgate.ledger import WHOLE, Ledger


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


# -- whole tables


def test_a_claim_on_an_as_of_model_is_on_all_of_it(scene: Scene) -> None:
    """Two refreshes of disjoint ranges would write one table."""
    version = scene.version(kind="full")
    one = scene.run("up")
    scene.open(one, version, span(0, 1))
    assert scene.open(scene.run("down"), version, span(8, 9)) == [one]


def test_an_as_of_model_is_claimed_once_for_all_its_intervals(scene: Scene) -> None:
    """One run asks for several intervals and holds one claim."""
    run, version = scene.run(), scene.version(kind="full")
    assert scene.open(run, version, span(0, 1), span(1, 2)) == [None, None]
    (claim,) = scene.ledger.states([version])[version].claims
    assert claim.interval == WHOLE


def test_a_failed_refresh_makes_the_whole_table_unclean(scene: Scene) -> None:
    """Old intervals of a table that was replaced by bad rows open no gate either."""
    run, version = scene.run(), scene.version(kind="full")
    scene.record(run, version, span(0, 6))
    scene.work(run, version, span(6, 7))
    scene.ledger.fail(run, version, span(6, 7), {})
    assert scene.unclean(version, span(0, 6)) == {("failed", c) for c in range(6)}


def test_a_failed_refresh_names_the_interval_that_failed(scene: Scene) -> None:
    """The mark is on the table, its detail on the interval."""
    run, version = scene.run(), scene.version(kind="full")
    scene.work(run, version, span(6, 7))
    scene.ledger.fail(run, version, span(6, 7), {})
    (mark,) = scene.ledger.states([version])[version].marks
    assert mark.interval == WHOLE
    assert mark.detail["start"].startswith("2026-01-05T06:00")


def test_a_good_refresh_makes_the_whole_table_clean(scene: Scene) -> None:
    """What failed is discharged by any later refresh, whatever its range."""
    run, version = scene.run(), scene.version(kind="full")
    scene.record(run, version, span(0, 6))
    scene.work(run, version, span(6, 7))
    scene.ledger.fail(run, version, span(6, 7), {})
    scene.record(run, version, span(6, 8))
    assert scene.unclean(version, span(0, 8)) == set()


def test_a_refresh_stamps_its_new_part_only(scene: Scene) -> None:
    """An hourly refresh of a dimension does not make years of facts stale."""
    run, version = scene.run(), scene.version(kind="full")
    old = scene.record(run, version, span(0, 6))
    new = scene.record(run, version, span(6, 7))
    assert scene.revisions(version) == {**dict.fromkeys(range(6), old), 6: new}


@pytest.mark.parametrize("kind", ["requested", "removed"])
def test_a_refresh_stamps_everything_from_what_was_asked_for_on(scene: Scene, kind: str) -> None:
    """A restated dimension makes its readers from there on stale."""
    run, version = scene.run(), scene.version(kind="full")
    old = scene.record(run, version, span(0, 6))
    scene.mark(version, span(3, 4), kind)
    new = scene.record(run, version, span(6, 7))
    assert scene.revisions(version) == {**dict.fromkeys(range(3), old), **dict.fromkeys(range(3, 7), new)}


def test_a_refresh_stamps_everything_if_all_of_time_was_asked_for(scene: Scene) -> None:
    """A request without bounds is for all that there is."""
    run, version = scene.run(), scene.version(kind="full")
    scene.record(run, version, span(2, 6))
    scene.mark(version, WHOLE)
    new = scene.record(run, version, span(6, 7))
    assert scene.revisions(version) == dict.fromkeys(range(2, 7), new)


def test_a_refresh_stamps_up_to_its_frontier(scene: Scene) -> None:
    """What was asked for beyond the batch is rewritten with it, and so is stamped with it."""
    run, version = scene.run(), scene.version(kind="full")
    scene.record(run, version, span(0, 6))
    scene.mark(version, span(4, 5))
    new = scene.record(run, version, span(2, 3))
    assert scene.revisions(version)[5] == new


def test_a_refresh_does_not_stamp_what_was_asked_for_after_it_began(scene: Scene) -> None:
    """The request is still open, so the next refresh stamps."""
    run, version = scene.run(), scene.version(kind="full")
    old = scene.record(run, version, span(0, 6))
    scene.work(run, version, span(6, 7))
    scene.mark(version, span(3, 4))
    scene.commit(run, version, span(6, 7))
    assert scene.revisions(version)[3] == old
    assert scene.marks(version) == {("requested", 3)}


def test_a_refresh_does_not_stamp_because_of_a_crash(scene: Scene) -> None:
    """Restamping a table after each crash would make years of facts stale; dirty spans name who was in flight."""
    run, version = scene.run(), scene.version(kind="full")
    old = scene.record(run, version, span(0, 6))
    scene.mark(version, WHOLE, "suspect")
    scene.record(run, version, span(6, 7))
    assert scene.revisions(version)[5] == old


def test_a_failed_refresh_leaves_a_dirty_span_until_it_is_repaired(scene: Scene) -> None:
    """From the begin of what failed to the commit that repaired it; that is who may have met bad rows."""
    run, version = scene.run(), scene.version(kind="full")
    scene.record(run, version, span(0, 6))
    read = scene.work(run, version, span(6, 7))
    scene.ledger.fail(run, version, span(6, 7), {})
    assert scene.dirty(version) == {(read, None)}
    repaired = scene.record(run, version, span(6, 7))
    assert scene.dirty(version) == {(read, repaired)}


def test_a_lost_refresh_leaves_a_dirty_span(scene: Scene) -> None:
    """A crash is judged like a failure."""
    run, version = scene.run(), scene.version(kind="full")
    read = scene.work(run, version, span(6, 7))
    scene.ledger.bury(run, engine_gone=True)
    assert scene.dirty(version) == {(read, None)}


def test_a_repair_that_had_begun_before_a_zombie_wrote_closes_no_dirty_span(scene: Scene) -> None:
    """While the table is in doubt, its readers are."""
    version = scene.version(kind="full")
    zombie = scene.run("down")
    scene.work(zombie, version, span(0, 1))
    scene.ledger.bury(zombie, engine_gone=True)
    successor = scene.run("up")
    scene.work(successor, version, span(0, 1))
    with pytest.raises(LeaseLostError):
        scene.commit(zombie, version, span(0, 1))
    scene.commit(successor, version, span(0, 1))
    assert {until for _, until in scene.dirty(version)} == {None}


def test_a_foreign_refresh_leaves_a_dirty_span_without_a_beginning(scene: Scene) -> None:
    """Nobody knows when it was written, and so who has met rows that nobody judged."""
    run, version = scene.run(), scene.version(kind="full")
    scene.record(run, version, span(0, 6))
    scene.reconcile(version, [span(0, 6)])
    scene.reconcile(version, [span(0, 7)])
    assert scene.dirty(version) == {(0, None)}


@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("full", set()),
        ("incremental_by_unique_key", {("requested", 0)}),
        ("incremental_unmanaged", {("requested", 0), ("requested", 3)}),
    ],
)
def test_what_a_commit_mends_depends_on_how_the_table_is_written(
    scene: Scene, kind: str, left: set[tuple[str, int]]
) -> None:
    """A refresh answers every request, a merge those for its interval, an append none."""
    run, version = scene.run(), scene.version(kind=kind)
    scene.record(run, version, span(0, 4))
    scene.mark(version, span(0, 1))
    scene.mark(version, span(3, 4))
    scene.record(run, version, span(3, 4))
    assert {m for m in scene.marks(version) if m[0] == "requested"} == left


# -- tables that merge


def doubtful(scene: Scene, run: int, start: int, end: int, kind: str = "incremental_by_unique_key") -> int:
    """A table of which a refresh of so many hours has just failed; its version."""
    version = scene.version(kind=kind)
    scene.record(run, version, span(0, 8))
    scene.work(run, version, span(start, end))
    scene.ledger.fail(run, version, span(start, end), {})
    return version


def doubt(scene: Scene, version: int) -> dict[str, frozenset[int]]:
    """What has to be written once more, by the kind of the mark."""
    marks = scene.ledger.states([version])[version].marks
    return {m.kind: cells(m.batch) for m in marks if m.batch and m.kind in ("failed", "suspect")}


@pytest.mark.parametrize("kind", ["incremental_by_unique_key", "scd_type_2", "incremental_by_partition"])
def test_a_merge_mends_a_table_once_all_that_was_being_written_is_written_again(
    scene: Scene, kind: str
) -> None:
    """Bad rows of the second hour are still there when only the first one has been merged anew."""
    run = scene.run()
    version = doubtful(scene, run, 5, 8, kind)
    for cell in (5, 6):
        scene.record(run, version, span(cell, cell + 1))
        assert ("failed", 0) in scene.unclean(version, span(0, 8))
    scene.record(run, version, span(7, 8))
    assert scene.unclean(version, span(0, 8)) == set()


def test_a_merge_of_other_time_mends_nothing(scene: Scene) -> None:
    """What went wrong is not among the rows that it writes."""
    run = scene.run()
    version = doubtful(scene, run, 6, 7)
    scene.record(run, version, span(7, 9))
    assert doubt(scene, version) == {"failed": cells(span(6, 7))}


def test_a_merge_of_more_than_was_being_written_mends_it_too(scene: Scene) -> None:
    """The next run may write it in larger pieces."""
    run = scene.run()
    version = doubtful(scene, run, 6, 7)
    scene.record(run, version, span(4, 9))
    assert doubt(scene, version) == {}


def test_a_merge_tells_what_is_left_to_be_written(scene: Scene) -> None:
    """The mark shrinks from its ends, and keeps its revision."""
    run = scene.run()
    version = doubtful(scene, run, 2, 6)
    before = scene.known(version, WHOLE, "failed").revision
    for piece, left in ((span(1, 3), span(3, 6)), (span(4, 5), span(3, 6)), (span(5, 7), span(3, 5))):
        scene.record(run, version, piece)
        assert doubt(scene, version) == {"failed": cells(left)}
    assert scene.known(version, WHOLE, "failed").revision == before


@pytest.mark.parametrize("part", [1, 2])
def test_a_merge_that_had_begun_before_mends_nothing(scene: Scene, part: int) -> None:
    """What a zombie wrote in between, the merge may have been written before."""
    version = scene.version(kind="incremental_by_unique_key")
    zombie = scene.run("down")
    scene.work(zombie, version, span(0, 2))
    scene.ledger.bury(zombie, engine_gone=True)
    successor = scene.run("up")
    scene.work(successor, version, span(0, part))
    with pytest.raises(LeaseLostError):
        scene.commit(zombie, version, span(0, 2))
    scene.commit(successor, version, span(0, part))
    assert doubt(scene, version) == {"suspect": cells(span(0, 2))}


def test_a_second_failure_adds_to_what_has_to_be_written_again(scene: Scene) -> None:
    """One mark says all that is in doubt."""
    run = scene.run()
    version = doubtful(scene, run, 2, 3)
    scene.work(run, version, span(5, 6))
    scene.ledger.fail(run, version, span(5, 6), {})
    assert doubt(scene, version) == {"failed": cells(span(2, 6))}


def test_what_a_lost_merge_was_writing_has_to_be_written_again(scene: Scene) -> None:
    """Of a death as of a failure it is the batch that counts, not all that the run had claimed."""
    run, version = scene.run(), scene.version(kind="incremental_by_unique_key")
    scene.work(run, version, span(0, 2))
    scene.commit(run, version, span(0, 2))
    scene.begin(run, version, span(2, 4))
    scene.ledger.bury(run, engine_gone=True)
    assert doubt(scene, version) == {"suspect": cells(span(2, 4))}


def test_a_doubt_without_bounds_ends_with_any_merge(scene: Scene) -> None:
    """Where nobody knows what was being written, waiting for all of time would be waiting for ever."""
    run, version = scene.run(), scene.version(kind="incremental_by_unique_key")
    scene.mark(version, WHOLE, "suspect")
    scene.record(run, version, span(3, 4))
    assert scene.marks(version) == set()


def test_an_append_mends_nothing(scene: Scene) -> None:
    """Whether rows are doubled, a person must say."""
    run = scene.run()
    version = doubtful(scene, run, 6, 7, "incremental_unmanaged")
    scene.record(run, version, span(6, 7))
    assert doubt(scene, version) == {"failed": cells(span(6, 7))}


def test_the_dirty_span_of_a_merge_ends_with_its_doubt(scene: Scene) -> None:
    """Readers may meet bad rows until the last of them is written again."""
    run = scene.run()
    version = doubtful(scene, run, 5, 7)
    scene.record(run, version, span(5, 6))
    assert {until for _, until in scene.dirty(version)} == {None}
    repaired = scene.record(run, version, span(6, 7))
    assert {until for _, until in scene.dirty(version)} == {repaired}


def test_a_refresh_mends_at_once_whatever_was_being_written(scene: Scene) -> None:
    """It makes the whole table anew."""
    run = scene.run()
    version = doubtful(scene, run, 2, 6, "full")
    scene.record(run, version, span(8, 9))
    assert scene.unclean(version, span(0, 9)) == set()


# -- what is being written of a whole table


@pytest.mark.parametrize("kind", ["full", "incremental_by_unique_key"])
@pytest.mark.parametrize("how", ["commit", "fail"])
def test_what_was_not_begun_of_a_whole_table_cannot_end(scene: Scene, kind: str, how: str) -> None:
    """The claim is on all of it, and permits what its begin was asked for."""
    run, version = scene.run(), scene.version(kind=kind)
    scene.work(run, version, span(0, 2))
    with pytest.raises(LedgerError):
        end_badly(scene, run, version, how)


def end_badly(scene: Scene, run: int, version: int, how: str) -> None:
    """Commit or fail an hour more than was begun."""
    if how == "commit":
        scene.commit(run, version, span(1, 3))
    else:
        scene.ledger.fail(run, version, span(1, 3), {})


def test_a_second_begin_of_a_whole_table_forgets_nothing_of_the_first(scene: Scene) -> None:
    """All that was begun and did not end may have been written, and readers may have met it since the first begin."""
    run, version = scene.run(), scene.version(kind="incremental_by_unique_key")
    other = scene.version("q")
    read = scene.work(run, version, span(0, 4))
    scene.record(run, other, span(0, 1))
    assert scene.begin(run, version, span(1, 2)).read_revision == read
    scene.ledger.bury(run, engine_gone=True)
    assert doubt(scene, version) == {"suspect": cells(span(0, 4))}
    assert scene.dirty(version) == {(read, None)}


def test_a_merge_in_parts_is_under_way_until_the_last_one(scene: Scene) -> None:
    """The first commit of two leaves the table closed, and what is left of it begun."""
    run, version = scene.run(), scene.version(kind="incremental_by_unique_key")
    scene.work(run, version, span(0, 2))
    scene.commit(run, version, span(0, 1))
    assert scene.unclean(version, span(0, 1)) == {("begun", 0)}
    scene.commit(run, version, span(1, 2))
    assert scene.unclean(version, span(0, 2)) == set()


def test_a_batch_of_a_whole_table_reads_anew_after_a_commit(scene: Scene) -> None:
    """The claim lives on, and each batch has read for itself."""
    run, version = scene.run(), scene.version(kind="full")
    first = scene.record(run, version, span(0, 1))
    assert scene.begin(run, version, span(1, 2)).read_revision == first


# -- reconciliation


def test_foreign_time_of_a_gated_model_is_added_and_suspect(scene: Scene) -> None:
    """Nothing proves what it had read: it has a revision, and has read up to nothing."""
    version = scene.version()
    assert scene.reconcile(version, [span(0, 2)]) == [
        ("added", cells(span(0, 2))),
        ("suspect", cells(span(0, 2))),
    ]
    (row,) = scene.ledger.coverage_rows(version, span(0, 2))
    assert (row.verdict, row.read_revision, row.run_id) == ("foreign", 0, None)


def test_foreign_time_of_a_source_is_taken_as_it_is(scene: Scene) -> None:
    """Without gated parents there is nothing that it could have read too early."""
    assert scene.reconcile(scene.version(), [span(0, 2)], gated=False) == [("added", cells(span(0, 2)))]


@pytest.mark.parametrize("known", ["failed", "suspect", "requested", "begun", "quarantined"])
def test_foreign_time_over_time_that_the_ledger_knows_is_suspect(scene: Scene, known: str) -> None:
    """Which of two writes came last nobody can tell, parents or not."""
    version, run = scene.version(), scene.run("down")
    if known in ("begun", "quarantined"):
        scene.work(run, version, span(0, 1))
        if known == "quarantined":
            scene.ledger.bury(run, engine_gone=False)
    else:
        scene.mark(version, span(0, 1), known)
    assert ("suspect", cells(span(0, 1))) in scene.reconcile(version, [span(0, 1)], gated=False)


def test_an_evaluation_under_way_does_not_discharge_a_foreign_write(scene: Scene) -> None:
    """The suspicion is newer than what the evaluation had read."""
    version, run = scene.version(), scene.run()
    scene.work(run, version, span(0, 1))
    scene.reconcile(version, [span(0, 1)], gated=False)
    scene.commit(run, version, span(0, 1))
    assert scene.marks(version) == {("suspect", 0)}


def test_what_sqlmesh_held_and_holds_no_more_was_removed(scene: Scene) -> None:
    """A foreign restatement is a mark, and the data stays recorded."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 4))
    scene.ledger.note_mirrored(run, version, span(0, 4))
    scene.pass_time(1)
    assert scene.reconcile(version, [span(0, 1), span(2, 4)]) == [("removed", frozenset({1}))]
    assert scene.marks(version) == {("removed", 1)}


def test_what_was_removed_is_told_once(scene: Scene) -> None:
    """A second look at the same state finds nothing new."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 4))
    scene.ledger.note_mirrored(run, version, span(0, 4))
    scene.pass_time(1)
    scene.reconcile(version, [span(0, 1), span(2, 4)])
    scene.pass_time(1)
    assert scene.reconcile(version, [span(0, 1), span(2, 4)]) == []


def test_what_a_live_run_has_not_mirrored_yet_is_not_missed(scene: Scene) -> None:
    """The ledger's commit comes first; SQLMesh's record follows a moment later."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    scene.pass_time(1)
    assert scene.reconcile(version, []) == []


def test_what_an_ended_run_did_not_mirror_is_evaluated_again(scene: Scene) -> None:
    """Nothing proves that it was not recorded and removed again."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    scene.ledger.finish(run, "failed", {})
    scene.pass_time(1)
    assert scene.reconcile(version, []) == [("unmirrored", frozenset({0}))]
    assert scene.marks(version) == {("suspect", 0)}


def test_a_look_from_before_the_mirror_does_not_miss_it(scene: Scene) -> None:
    """A state that was read before SQLMesh recorded a range says nothing about that range."""
    run, version = scene.run(), scene.version()
    read_at = scene.now
    scene.pass_time(1)
    scene.record(run, version, span(0, 1))
    scene.ledger.note_mirrored(run, version, span(0, 1))
    scene.ledger.finish(run, "done", {})
    assert scene.reconcile(version, [], read_at=read_at) == []


def test_what_a_dead_run_left_unnoted_is_suspect_also_where_sqlmesh_has_it(scene: Scene) -> None:
    """Somebody else may have evaluated it meanwhile, so SQLMesh's record is no proof of whose rows these are."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    scene.ledger.bury(run, engine_gone=True)
    scene.pass_time(1)
    assert scene.reconcile(version, [span(0, 1)]) == [("unmirrored", frozenset({0}))]
    assert scene.marks(version) == {("suspect", 0)}


def test_noting_a_mirror_queues_behind_the_ledgers_lock(scene: Scene) -> None:
    """Whoever holds the lock may be rewriting the same rows; in another order they would wait for each other."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    with (
        other_session(scene.ledger, scene.now) as other,
        locked(scene.ledger) as blocker,
        meanwhile(lambda: other.note_mirrored(run, version, span(0, 1))) as noted,
    ):
        wait_until_blocked(scene.ledger)
        blocker.commit()
        noted.result()
    scene.pass_time(1)
    assert scene.reconcile(version, []) == [("removed", frozenset({0}))]


@pytest.mark.parametrize("kind", ["incremental_by_time_range", "full"])
def test_what_is_removed_while_it_is_evaluated_outlives_the_commit(scene: Scene, kind: str) -> None:
    """Whether it was recorded before or not; each removal counts once, and none of what was never read."""
    run, version = scene.run(), scene.version(kind=kind)
    scene.record(run, version, span(0, 2))
    scene.work(run, version, span(2, 3))

    def look(**log: Interval) -> list[frozenset[int]]:
        found = scene.ledger.find_rewritten(
            version, again=IntervalSet(), altered=None, explained=False, suspect=False, removed=log
        )
        return [cells(time) for what, time in found if what == "removed"]

    assert look(a=span(1, 6)) == [frozenset({1, 2})]
    scene.commit(run, version, span(2, 3))
    assert {cell for _, cell in scene.marks(version)} == {1, 2}
    assert look(a=span(1, 6)) == []
    assert look(b=span(7, 9)) == []
