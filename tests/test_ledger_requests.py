"""Requests for restatement in the ledger: what they mark, how far they are, and what outlives a deploy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ledger_scene import Scene, cells, span
from meshgate.coordinator.verify import collect
from meshgate.errors import LedgerError
from meshgate.ledger import Request
from meshgate.verification import compare

if TYPE_CHECKING:
    from meshgate.interval import Interval, IntervalSet
    from meshgate.ledger import Ledger

MERGING = ["incremental_by_unique_key", "incremental_by_partition", "scd_type_2"]


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    return Scene(ledger)


def promoted(scene: Scene, kind: str = "incremental_by_time_range", upto: int = 8) -> tuple[int, int]:
    """The model `p`, recorded up to a cell, and a run that lives."""
    version = scene.version(kind=kind)
    scene.promote({"p": "1"})
    run = scene.run()
    scene.record(run, version, span(0, upto))
    return version, run


def ask(scene: Scene, interval: Interval, *, reason: str = "the source was mended") -> int:
    (key,) = scene.ledger.request([("p", interval)], reason=reason, by="ann")
    return key


def cells_of(time: IntervalSet) -> set[int]:
    return {c for piece in time for c in cells(piece)}


def progress(scene: Scene, key: int, environment: str = "prod") -> tuple[str, set[int], set[int]]:
    """State, what is done and what is open."""
    (found,) = scene.ledger.requests(environment, key)
    return found.state, cells_of(found.done), cells_of(found.open)


def requested(scene: Scene, version: int) -> set[int]:
    return {cell for kind, cell in scene.marks(version) if kind == "requested"}


# Asking


def test_a_request_marks_the_recorded_part_of_what_was_asked(scene: Scene) -> None:
    """What is not recorded is due anyway; the mark tells which request it is, and why."""
    version, _ = promoted(scene, upto=5)
    key = ask(scene, span(3, 9))
    mark = scene.known(version, span(3, 5), "requested")
    assert (mark.detail["request_id"], mark.detail["cause"]) == (key, "the source was mended")
    assert progress(scene, key) == ("open", set(), {3, 4})


def test_a_request_remembers_who_asked_for_what_when_and_why(scene: Scene) -> None:
    """All of it as it was asked, and in the history."""
    promoted(scene)
    key = ask(scene, span(3, 5))
    (found,) = scene.ledger.requests("prod")
    assert isinstance(found, Request)
    assert (found.request_id, found.model, found.project, found.interval) == (key, "p", "up", span(3, 5))
    assert (found.reason, found.made_by, found.made_at) == ("the source was mended", "ann", scene.now)
    event = next(e for e in scene.ledger.events() if e["kind"] == "request.made")
    assert event["detail"] == {
        "request_id": key,
        "model": "p",
        "reason": "the source was mended",
        "by": "ann",
    }


@pytest.mark.parametrize("asked", [span(4, 7), span(5, 7)])
def test_what_is_evaluated_for_the_first_time_when_somebody_asks_is_evaluated_again(
    scene: Scene, asked: Interval
) -> None:
    """It has read before, and is not recorded yet: its commit does not fulfil the request, the next one does.

    Fails without the claims in `read_time`: the late rows of an interval under way would be lost.
    """
    version, run = promoted(scene, upto=5)
    scene.open(run, version, span(5, 6))
    scene.begin(run, version, span(5, 6))
    key = ask(scene, asked)
    assert requested(scene, version) == set(cells(asked)) - {6}
    scene.commit(run, version, span(5, 6))
    assert progress(scene, key) == ("open", set(), set(cells(asked)) - {6})
    scene.record(run, version, asked)
    assert requested(scene, version) == set()
    assert progress(scene, key)[0] == "done"
    with scene.ledger.still() as still:
        assert compare(collect(still)) == ()


def test_a_request_for_what_is_not_recorded_is_refused_and_leaves_nothing(scene: Scene) -> None:
    """Of several at once too: all or none."""
    version, _ = promoted(scene, upto=5)
    for asked in ([("p", span(7, 9))], [("q", span(0, 1))], [("p", span(0, 1)), ("p", span(7, 9))]):
        with pytest.raises(LedgerError, match="is recorded in"):
            scene.ledger.request(asked, reason="no", by="ann")
    assert scene.ledger.requests("prod") == ()
    assert requested(scene, version) == set()


def test_a_request_marks_the_promoted_version_of_each_environment(scene: Scene) -> None:
    """Each has its own progress; a version that two share is marked once."""
    version, run = promoted(scene)
    other = scene.version(version="2")
    scene.record(run, other, span(0, 4))
    scene.promote({"p": "2"}, environment="dev")
    scene.promote({"p": "1"}, environment="stage")
    key = ask(scene, span(3, 5))
    assert (requested(scene, version), requested(scene, other)) == ({3, 4}, {3})
    scene.record(run, version, span(3, 5))
    assert progress(scene, key) == ("done", {3, 4}, set())
    assert progress(scene, key, "stage") == ("done", {3, 4}, set())
    assert progress(scene, key, "dev") == ("open", set(), {3})


@pytest.mark.parametrize("kind", MERGING)
def test_a_request_for_a_table_that_merges_is_for_all_of_it(scene: Scene, kind: str) -> None:
    """Nothing less than a rebuild makes its rows right."""
    version, _ = promoted(scene, kind, upto=6)
    key = ask(scene, span(3, 5))
    assert requested(scene, version) == set(range(6))
    assert progress(scene, key) == ("open", set(), set(range(6)))


def test_an_origin_asks_for_a_model_once_however_many_come_with_it(scene: Scene) -> None:
    """At the same time too, and over whichever range; another one asks for itself; who cancelled it may ask anew."""
    promoted(scene)

    def by(origin: str, upto: int = 4) -> int:
        (key,) = scene.ledger.request([("p", span(0, upto))], reason="left", by="ann", origin=origin)
        return key

    with ThreadPoolExecutor(4) as pool:
        (first,) = set(pool.map(lambda upto: by("an analysis", upto), range(1, 5)))
    assert scene.ledger.requests_of("an analysis") == {"p": first}
    assert {by("another"), ask(scene, span(0, 4))}.isdisjoint({first})
    assert len(scene.ledger.requests("prod")) == 3
    scene.ledger.cancel_request(first, "ann")
    assert scene.ledger.requests_of("an analysis") == {}
    assert by("an analysis") > first


# Progress


def test_a_request_is_done_where_a_later_evaluation_committed(scene: Scene) -> None:
    """Piece by piece; and what is done has no mark any more."""
    version, run = promoted(scene)
    key = ask(scene, span(2, 6))
    scene.record(run, version, span(3, 4))
    assert progress(scene, key) == ("open", {3}, {2, 4, 5})
    assert requested(scene, version) == {2, 4, 5}
    scene.record(run, version, span(2, 6))
    assert progress(scene, key) == ("done", {2, 3, 4, 5}, set())
    assert requested(scene, version) == set()


def test_an_evaluation_that_was_under_way_does_not_fulfil_a_request(scene: Scene) -> None:
    """It had read the source before it was mended."""
    version, run = promoted(scene)
    scene.work(run, version, span(3, 4))
    key = ask(scene, span(3, 4))
    scene.commit(run, version, span(3, 4))
    assert progress(scene, key) == ("open", set(), {3})
    assert requested(scene, version) == {3}


def test_overlapping_requests_each_tell_their_own_progress(scene: Scene) -> None:
    """Their marks are merged, and neither is taken for done before it is."""
    version, run = promoted(scene)
    first = ask(scene, span(0, 4))
    scene.record(run, version, span(0, 3))
    second = ask(scene, span(2, 6))
    assert progress(scene, first) == ("open", {0, 1, 2}, {3})
    assert progress(scene, second) == ("open", set(), {2, 3, 4, 5})
    scene.record(run, version, span(3, 6))
    assert progress(scene, first)[0] == "done"
    assert progress(scene, second) == ("open", {3, 4, 5}, {2})


def test_a_refresh_fulfils_a_request_and_stamps_from_the_asked_instant_on(scene: Scene) -> None:
    """What stands before it was not asked for, and its readers are not disturbed."""
    version, run = promoted(scene, "full", upto=8)
    before = scene.revisions(version)
    key = ask(scene, span(3, 5))
    scene.record(run, version, span(8, 9))
    after = scene.revisions(version)
    assert {cell for cell in before if after[cell] == before[cell]} == {0, 1, 2}
    assert progress(scene, key) == ("done", {3, 4}, set())


# Cancelling


def test_cancelling_takes_back_what_is_left(scene: Scene) -> None:
    """What was done stays done, who cancelled it stays known, and the second time there is nothing to do."""
    version, run = promoted(scene)
    key = ask(scene, span(2, 6))
    scene.record(run, version, span(2, 3))
    assert scene.ledger.cancel_request(key, "bob")
    assert not scene.ledger.cancel_request(key, "eve")
    assert requested(scene, version) == set()
    (found,) = scene.ledger.requests("prod", key)
    assert (found.state, found.cancelled_by, found.cancelled_at) == ("cancelled", "bob", scene.now)
    assert cells_of(found.done) == {2}
    with pytest.raises(LedgerError, match="request 99 is not in the ledger"):
        scene.ledger.cancel_request(99, "bob")


def test_cancelling_one_of_two_requests_leaves_the_other_as_it_was(scene: Scene) -> None:
    """Also its mark: an evaluation that is under way for it counts."""
    version, run = promoted(scene)
    first, second = ask(scene, span(0, 4)), ask(scene, span(2, 6))
    scene.work(run, version, span(3, 4))
    assert scene.ledger.cancel_request(first, "bob")
    assert requested(scene, version) == {2, 3, 4, 5}
    scene.commit(run, version, span(3, 4))
    assert requested(scene, version) == {2, 4, 5}
    assert progress(scene, second) == ("open", {3}, {2, 4, 5})
    assert scene.ledger.cancel_request(second, "bob")
    assert requested(scene, version) == set()


@pytest.mark.parametrize("kind", MERGING)
def test_cancelling_the_rebuild_of_a_table_that_merges(scene: Scene, kind: str) -> None:
    """All of its marks go."""
    version, _ = promoted(scene, kind, upto=6)
    assert scene.ledger.cancel_request(ask(scene, span(3, 5)), "bob")
    assert requested(scene, version) == set()


def test_a_cancelled_failure_is_still_a_failure(scene: Scene) -> None:
    """Only what was asked for is taken back."""
    version, run = promoted(scene)
    key = ask(scene, span(3, 4))
    scene.attempt(run, version, span(3, 4))
    scene.ledger.cancel_request(key, "bob")
    assert {kind for kind, _ in scene.marks(version)} == {"failed"}


@pytest.mark.parametrize("undone_first", [True, False])
def test_cancelling_a_request_leaves_what_was_accepted_and_undone(scene: Scene, undone_first: bool) -> None:
    """That is nobody's request: it is computed again all the same, whatever was asked before or since, and how often."""
    version, run = promoted(scene, upto=2)
    scene.attempt(run, version, span(2, 3))
    scene.ledger.finish(run, "failed", {})
    scene.ledger.accept(version, span(2, 3), lookback=None, reason="a hole", by="ann")
    if undone_first:
        assert list(scene.ledger.undo_accept(version, span(2, 3), by="ann"))
    keys = [ask(scene, span(0, 3)), ask(scene, span(1, 4))]
    if not undone_first:
        assert list(scene.ledger.undo_accept(version, span(2, 3), by="ann"))
    for key in keys:
        assert requested(scene, version) == ({0, 1, 2} if key == keys[0] else {1, 2})
        scene.ledger.cancel_request(key, "bob")
    assert requested(scene, version) == {2}
    with scene.ledger.still() as still:
        assert compare(collect(still)) == ()


def test_an_open_request_is_listed_however_many_came_after_it(scene: Scene) -> None:
    """Of those that are done or cancelled only the newest are."""
    version, run = promoted(scene)
    keys = [ask(scene, span(cell, cell + 1)) for cell in range(5)]
    scene.record(run, version, span(2, 5))
    scene.ledger.cancel_request(keys[0], "bob")
    assert [r.request_id for r in scene.ledger.requests("prod", limit=2)] == [keys[4], keys[3], keys[1]]


# Deploys


def test_a_request_goes_over_to_the_version_that_is_promoted_next(scene: Scene) -> None:
    """Where that had read before the request; where it read later, it is done."""
    _, run = promoted(scene)
    later = scene.version(version="2")
    scene.record(run, later, span(0, 4))
    key = ask(scene, span(2, 6))
    scene.record(run, later, span(4, 8))
    assert requested(scene, later) == set()
    assert scene.promote({"p": "2"}) == ["p"]
    assert requested(scene, later) == {2, 3}
    assert progress(scene, key) == ("open", {4, 5}, {2, 3})


def test_a_request_reaches_a_version_that_has_more_than_the_one_it_marked(scene: Scene) -> None:
    """The old version had nothing there to be marked; the new one was built before the request."""
    version, run = promoted(scene, upto=4)
    later = scene.version(version="2")
    scene.record(run, later, span(0, 8))
    key = ask(scene, span(2, 6))
    assert requested(scene, version) == {2, 3}
    scene.promote({"p": "2"})
    assert requested(scene, later) == {2, 3, 4, 5}
    assert progress(scene, key)[0] == "open"


def test_a_request_reaches_an_environment_that_is_made_later(scene: Scene) -> None:
    """A request belongs to the model, not to what was promoted when it was made."""
    _, run = promoted(scene)
    other = scene.version(version="2")
    scene.record(run, other, span(0, 4))
    ask(scene, span(2, 6))
    scene.promote({"p": "2"}, environment="dev")
    assert requested(scene, other) == {2, 3}


def test_looking_at_an_environment_again_does_not_ask_again(scene: Scene) -> None:
    """A mark that is there keeps its revision, and what is cancelled or done gets none."""
    version, run = promoted(scene)
    ask(scene, span(2, 4))
    done = ask(scene, span(5, 6))
    scene.record(run, version, span(5, 6))
    scene.ledger.cancel_request(ask(scene, span(6, 7)), "bob")
    mark = scene.known(version, span(2, 4), "requested")
    scene.promote({"p": "1"})
    assert scene.known(version, span(2, 4), "requested") == mark
    assert requested(scene, version) == {2, 3}
    assert progress(scene, done)[0] == "done"


# Keeping


def test_what_is_done_or_cancelled_is_forgotten_in_time_and_what_is_open_is_not(scene: Scene) -> None:
    """A request is durable as long as it is one."""
    version, run = promoted(scene)
    waiting, done, cancelled = ask(scene, span(0, 1)), ask(scene, span(1, 2)), ask(scene, span(2, 3))
    scene.record(run, version, span(1, 2))
    scene.ledger.cancel_request(cancelled, "bob")
    scene.ledger.prune(timedelta(days=1))
    assert {r.request_id for r in scene.ledger.requests("prod")} == {waiting, done, cancelled}
    scene.pass_time(2 * 86400)
    scene.ledger.prune(timedelta(days=1))
    assert {r.request_id for r in scene.ledger.requests("prod")} == {waiting}


def test_how_long_evaluations_took_is_known(scene: Scene) -> None:
    """Their number, their sum, and over how much time."""
    version, run = promoted(scene, upto=1)
    for cell, minutes in ((1, 2), (2, 4)):
        scene.work(run, version, span(cell, cell + 1))
        scene.ledger.commit(
            run, version, span(cell, cell + 1), verdict="passed", duration=timedelta(minutes=minutes)
        )
    (pace,) = scene.ledger.paces([version]).values()
    assert (pace.evaluations, pace.took, pace.time) == (2, timedelta(minutes=6), timedelta(hours=2))
    assert scene.ledger.paces([version + 1]) == {}
