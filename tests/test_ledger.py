"""What is worked on: claims, commits, failures, marks, lookback; one property a test, on a real Postgres.

Histories of many steps are in `test_ledger_stateful`; the promises G1 to G8 in `test_guarantees`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ledger_scene import (
    CELLS,
    TTL,
    Scene,
    cells,
    other_session,
    span,
)
from meshgate.errors import LeaseLostError, LedgerError, LedgerUnreachableError

if TYPE_CHECKING:
    from meshgate.ledger import Ledger


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


# -- claims


def test_a_refused_claim_names_who_has_it_and_until_when(scene: Scene) -> None:
    """The answer carries the other run and the end of its lease."""
    version = scene.version()
    one, two = scene.run("up"), scene.run("down")
    scene.open(one, version, span(2, 4))
    (answer,) = scene.ledger.open_claims(two, version, [span(3, 5)])
    assert (answer.refused_by, answer.free_at) == (one, scene.now + TTL)


def test_one_refusal_does_not_spoil_the_other_ranges(scene: Scene) -> None:
    """Each range that was asked for has its own answer."""
    version = scene.version()
    one, two = scene.run("up"), scene.run("down")
    scene.open(one, version, span(2, 4))
    assert scene.open(two, version, span(0, 2), span(3, 5), span(5, 6)) == [None, one, None]


def test_ranges_that_touch_do_not_overlap(scene: Scene) -> None:
    """Half-open: the end of one is the start of the next."""
    version = scene.version()
    scene.open(scene.run("up"), version, span(2, 4))
    assert scene.open(scene.run("down"), version, span(4, 6), span(0, 2)) == [None, None]


def test_of_many_claims_at_once_each_hour_goes_to_one(ledger: Ledger) -> None:
    """Four runs reserve all hours together; every hour has one holder."""
    scene = Scene(ledger)
    ledger.database.execute("RESET meshgate.now")
    version = scene.version()
    runs = [scene.run(f"p{n}") for n in range(4)]
    hours = [span(c, c + 1) for c in range(CELLS)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda run: ledger.open_claims(run, version, hours), runs))
    assert [sum(a[c].refused_by is None for a in answers) for c in range(CELLS)] == [1] * CELLS


def test_a_run_without_a_lease_reserves_nothing(scene: Scene) -> None:
    """An expired run is refused a claim, though nobody took it over."""
    run, version = scene.run(), scene.version()
    scene.pass_time(61)
    with pytest.raises(LeaseLostError):
        scene.open(run, version, span(0, 1))


def test_a_run_without_a_lease_begins_nothing(scene: Scene) -> None:
    """An expired run is refused the begin of what it had reserved."""
    run, version = scene.run(), scene.version()
    scene.open(run, version, span(0, 1))
    scene.pass_time(61)
    with pytest.raises(LeaseLostError):
        scene.begin(run, version, span(0, 1))


def test_a_batch_outside_the_runs_claims_cannot_begin(scene: Scene) -> None:
    """Half a claim is no claim."""
    run, version = scene.run(), scene.version()
    scene.open(run, version, span(0, 2))
    with pytest.raises(LedgerError):
        scene.begin(run, version, span(1, 3))


def test_beginning_a_part_leaves_the_rest_reserved(scene: Scene) -> None:
    """A claim is split where a batch begins inside it."""
    run, version = scene.run(), scene.version()
    scene.open(run, version, span(0, 6))
    scene.begin(run, version, span(2, 4))
    claims = scene.ledger.states([version])[version].claims
    assert [(c.state, cells(c.interval)) for c in claims] == [
        ("open", cells(span(0, 2))),
        ("begun", cells(span(2, 4))),
        ("open", cells(span(4, 6))),
    ]


def test_beginning_again_reads_anew(scene: Scene) -> None:
    """The half of a failed batch has read what was committed meanwhile."""
    run, version, other = scene.run(), scene.version("p"), scene.version("q")
    scene.work(run, version, span(0, 2))
    revision = scene.record(run, other, span(0, 1))
    assert scene.begin(run, version, span(0, 1)).read_revision == revision


def test_what_was_never_begun_is_given_back_clean(scene: Scene) -> None:
    """Abandoning leaves no mark, and others may claim it."""
    version = scene.version()
    one = scene.run("up")
    scene.open(one, version, span(0, 4))
    scene.ledger.abandon(one, version, span(1, 2))
    assert scene.marks(version) == set()
    assert scene.open(scene.run("down"), version, span(0, 1), span(1, 2)) == [one, None]


def test_what_was_begun_is_not_given_back(scene: Scene) -> None:
    """A batch that may have written is not abandoned."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 1))
    assert scene.ledger.abandon(run) == 0


def test_a_batch_does_not_begin_on_a_version_that_is_not_promoted_any_more(scene: Scene) -> None:
    """A deploy between plan and begin is noticed by the begin."""
    run, version = scene.run(), scene.version("p")
    scene.promote({"p": "1"})
    scene.open(run, version, span(0, 1))
    scene.version("p", version="2")
    scene.promote({"p": "2"})
    answer = scene.ledger.begin(run, version, span(0, 1), needs=[], loaded=[], environment="prod")
    assert [(r.version_id, r.reason) for r in answer.refused] == [(version, "superseded")]


def test_a_batch_does_not_begin_on_a_parents_version_that_is_not_promoted_any_more(scene: Scene) -> None:
    """A parent that was replaced between plan and begin is named."""
    run, parent, child = scene.run(), scene.version("p"), scene.version("c")
    scene.promote({"p": "1", "c": "1"})
    scene.record(run, parent, span(0, 1))
    scene.open(run, child, span(0, 1))
    scene.version("p", version="2")
    scene.promote({"p": "2", "c": "1"})
    answer = scene.ledger.begin(
        run, child, span(0, 1), needs=[(parent, span(0, 1))], loaded=[], environment="prod"
    )
    assert [(r.version_id, r.reason) for r in answer.refused] == [(parent, "superseded")]


def test_a_seed_that_was_never_loaded_closes_the_gate(scene: Scene) -> None:
    """`loaded` means that something is recorded."""
    run, seed, child = scene.run(), scene.version("s"), scene.version("c")
    scene.open(run, child, span(0, 1))
    assert [r.reason for r in scene.begin(run, child, span(0, 1), loaded=[seed]).refused] == ["missing"]


def test_a_seed_whose_reload_failed_closes_the_gate(scene: Scene) -> None:
    """A seed that was loaded once and is in doubt now may not be read."""
    run, seed, child = scene.run(), scene.version("s"), scene.version("c")
    scene.record(run, seed, span(0, 1))
    scene.work(run, seed, span(0, 1))
    scene.ledger.fail(run, seed, span(0, 1), {})
    scene.open(run, child, span(5, 6))
    assert "failed" in {r.reason for r in scene.begin(run, child, span(5, 6), loaded=[seed]).refused}


# -- commit and fail


def test_a_commit_said_twice_is_done_once(scene: Scene) -> None:
    """Where the answer was lost on its way, the second call gets the same one and nothing changes."""
    run, version = scene.run(), scene.version()
    revision = scene.record(run, version, span(0, 2))
    assert scene.commit(run, version, span(0, 2)) == revision
    assert scene.ledger.revision() == revision


def test_a_commit_of_a_whole_table_said_twice_is_done_once(scene: Scene) -> None:
    """The same holds for as-of models, whose claim lives on."""
    run, version = scene.run(), scene.version(kind="full")
    revision = scene.record(run, version, span(0, 2))
    assert scene.commit(run, version, span(0, 2)) == revision


def test_a_commit_whose_connection_breaks_is_said_again(scene: Scene) -> None:
    """A broken connection is replaced once for what is harmless to repeat."""
    ledger = scene.ledger
    ledger.database.execute("RESET meshgate.now")
    version, run = scene.version(), scene.run()
    scene.work(run, version, span(0, 1))
    with other_session(ledger) as other:
        other.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'meshgate'"
        )
    assert scene.commit(run, version, span(0, 1)) == ledger.revision()


def test_a_change_that_must_not_be_repeated_tells_that_the_connection_broke(scene: Scene) -> None:
    """Whether a lease was taken nobody knows, so the caller is told."""
    with other_session(scene.ledger) as other:
        other.database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'meshgate'"
        )
    with pytest.raises(LedgerUnreachableError):
        scene.run()


def test_what_was_not_begun_cannot_be_committed(scene: Scene) -> None:
    """A reservation is no permission to record."""
    run, version = scene.run(), scene.version()
    scene.open(run, version, span(0, 1))
    with pytest.raises(LedgerError):
        scene.commit(run, version, span(0, 1))
    assert scene.revisions(version) == {}


def test_what_was_not_begun_cannot_fail(scene: Scene) -> None:
    """A reservation has written nothing that could be wrong."""
    run, version = scene.run(), scene.version()
    scene.open(run, version, span(0, 1))
    with pytest.raises(LedgerError):
        scene.ledger.fail(run, version, span(0, 1), {})


def test_a_batch_is_committed_in_parts_and_one_part_fails(scene: Scene) -> None:
    """Eleven of twelve are recorded and one is marked: a batch is cut without losing the rest."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 12))
    scene.commit(run, version, span(0, 7))
    scene.ledger.fail(run, version, span(7, 8), {"audits": [{"audit": "not_null", "count": 3}]})
    scene.commit(run, version, span(8, 12))
    assert set(scene.revisions(version)) == set(range(12)) - {7}
    assert scene.marks(version) == {("failed", 7)}


def test_a_failure_keeps_its_facts_and_counts_its_attempts(scene: Scene) -> None:
    """The mark carries what failed, for people and for back-off."""
    run, version = scene.run(), scene.version()
    for _ in range(3):
        scene.work(run, version, span(7, 8))
        scene.ledger.fail(run, version, span(7, 8), {"audits": [{"audit": "not_null", "count": 3}]})
    (mark,) = scene.ledger.states([version])[version].marks
    assert (mark.attempts, mark.detail["audits"]) == (3, [{"audit": "not_null", "count": 3}])


def test_what_is_given_up_is_suspect_and_free(scene: Scene) -> None:
    """The half of a batch that was written and will not be finished: the rest of the batch goes on."""
    run, version = scene.run("up"), scene.version()
    scene.record(run, version, span(0, 4))
    scene.work(run, version, span(0, 4))
    assert scene.ledger.give_up(run, version, span(2, 4))
    assert scene.marks(version) == {("suspect", 2), ("suspect", 3)}
    assert scene.open(scene.run("down"), version, span(0, 2), span(2, 4)) == [run, None]
    scene.commit(run, version, span(0, 2))
    assert scene.unclean(version, span(0, 2)) == set()


def test_what_was_not_begun_cannot_be_given_up(scene: Scene) -> None:
    """A reservation has written nothing; the answer says that there was nothing to give up."""
    run, version = scene.run(), scene.version()
    scene.open(run, version, span(0, 1))
    assert not scene.ledger.give_up(run, version, span(0, 1))
    assert scene.marks(version) == set()


def test_a_zombie_gives_nothing_up(scene: Scene) -> None:
    """That it had written is remembered like its commit would be."""
    run, version = scene.run("down"), scene.version()
    scene.work(run, version, span(0, 1))
    scene.pass_time(61)
    assert not scene.ledger.give_up(run, version, span(0, 1))
    assert (scene.state(run), scene.marks(version)) == ("lost", {("suspect", 0)})


def test_a_newer_commit_replaces_what_it_overlaps_and_nothing_else(scene: Scene) -> None:
    """The rows around a redone range keep their revision and what they had read."""
    run, version = scene.run(), scene.version()
    first = scene.record(run, version, span(0, 6))
    second = scene.record(run, version, span(2, 4))
    assert scene.revisions(version) == {0: first, 1: first, 2: second, 3: second, 4: first, 5: first}


def test_a_redo_is_unclean_from_begin_to_commit(scene: Scene) -> None:
    """A re-evaluation overwrites good rows before anybody has judged the new ones."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 2))
    scene.open(run, version, span(0, 1))
    assert scene.unclean(version, span(0, 2)) == set()
    scene.begin(run, version, span(0, 1))
    assert scene.unclean(version, span(0, 2)) == {("begun", 0)}
    scene.commit(run, version, span(0, 1))
    assert scene.unclean(version, span(0, 2)) == set()


def test_an_accepted_hole_has_a_revision_of_its_own(scene: Scene) -> None:
    """Accepting is a commit: it opens gates, discharges what was known, and makes earlier readers stale."""
    run, version = scene.run(), scene.version()
    old = scene.record(run, version, span(0, 1))
    scene.work(run, version, span(0, 1))
    scene.ledger.fail(run, version, span(0, 1), {})
    scene.work(run, version, span(0, 1))
    accepted = scene.ledger.commit(run, version, span(0, 1), verdict="accepted")
    assert accepted > old
    assert scene.unclean(version, span(0, 1)) == set()


def test_a_source_model_knows_what_it_had_read(scene: Scene) -> None:
    """Also without parents a row says up to which revision it read: marks are judged by it."""
    run, version = scene.run(), scene.version()
    read = scene.work(run, version, span(0, 1))
    scene.commit(run, version, span(0, 1))
    (row,) = scene.ledger.coverage_rows(version, span(0, 1))
    assert row.read_revision == read


# -- marks


def test_a_commit_does_not_discharge_what_was_asked_after_it_began(scene: Scene) -> None:
    """An evaluation that had read before the request does not answer it."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 2))
    scene.mark(version, span(0, 1))
    scene.commit(run, version, span(0, 2))
    assert scene.marks(version) == {("requested", 0)}


@pytest.mark.parametrize("kind", ["failed", "suspect", "removed", "requested", "lookback"])
def test_a_commit_that_began_later_discharges_every_kind_of_mark(scene: Scene, kind: str) -> None:
    """Whoever read after the mark was made has done what it asks for."""
    run, version = scene.run(), scene.version()
    scene.mark(version, span(0, 1), kind)
    scene.record(run, version, span(0, 1))
    assert scene.marks(version) == set()


def test_a_commit_discharges_its_own_range_only(scene: Scene) -> None:
    """A mark is cut where a commit has answered a part of it."""
    run, version = scene.run(), scene.version()
    scene.mark(version, span(0, 6))
    scene.record(run, version, span(2, 4))
    assert scene.marks(version) == {("requested", c) for c in (0, 1, 4, 5)}


def test_a_newer_mark_of_a_kind_takes_the_place_of_the_older(scene: Scene) -> None:
    """One kind says one thing about one instant."""
    version = scene.version()
    scene.mark(version, span(0, 4), "suspect")
    scene.mark(version, span(2, 6), "suspect")
    marks = scene.ledger.states([version])[version].marks
    assert [cells(m.interval) for m in marks] == [cells(span(0, 2)), cells(span(2, 6))]


# -- lookback


def test_a_fresh_commit_asks_for_the_units_that_were_not_read_since(scene: Scene) -> None:
    """The obligation is made in the transaction that makes it necessary."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 6))
    scene.record(run, version, span(6, 7), lookback=span(4, 6))
    assert scene.marks(version) == {("lookback", 4), ("lookback", 5)}


def test_a_unit_that_was_read_since_the_claim_was_opened_is_not_asked_for(scene: Scene) -> None:
    """A lookback batch that went first has seen the late rows."""
    run, version, other = scene.run(), scene.version(), scene.version("q")
    scene.record(run, version, span(0, 6))
    scene.open(run, version, span(6, 7))
    scene.record(run, other, span(0, 1))
    scene.record(run, version, span(4, 6))
    scene.begin(run, version, span(6, 7))
    scene.commit(run, version, span(6, 7), lookback=span(4, 6))
    assert scene.marks(version) == set()


def test_an_accepted_hole_asks_for_its_lookback_too(scene: Scene) -> None:
    """The frontier moves with a hole as with data."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 6))
    scene.work(run, version, span(6, 7))
    scene.ledger.commit(run, version, span(6, 7), verdict="accepted", lookback=span(5, 6))
    assert scene.marks(version) == {("lookback", 5)}


def test_the_obligation_outlives_the_run(scene: Scene) -> None:
    """A crash after the fresh unit leaves the lookback on the books."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 6))
    scene.record(run, version, span(6, 7), lookback=span(5, 6))
    scene.ledger.bury(run, engine_gone=True)
    assert scene.marks(version) == {("lookback", 5)}
