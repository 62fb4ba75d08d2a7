"""Tables by time that one run claims whole, because writers would be in each other's way, on a real Postgres."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ledger_scene import GRACE, TTL, Scene, at, cells, span
from meshgate.errors import LedgerError

if TYPE_CHECKING:
    from meshgate.ledger import Ledger


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


def test_who_claims_a_table_whole_is_alone_with_it(scene: Scene) -> None:
    """No other run claims any of its time, however far away."""
    version, run = scene.version(), scene.run("up")
    scene.open(run, version, span(0, 1), whole=True)
    assert scene.open(scene.run("down"), version, span(8, 9)) == [run]


def test_a_table_of_which_somebody_has_a_part_is_not_claimed_whole(scene: Scene) -> None:
    """Also of two runs of which only one asks for all of it, one waits."""
    version, run = scene.version(), scene.run("up")
    scene.open(run, version, span(0, 1))
    assert scene.open(scene.run("down"), version, span(8, 9), whole=True) == [run]


def test_a_table_is_claimed_whole_once_for_all_its_intervals(scene: Scene) -> None:
    """One run asks for several intervals, also later on, and all of them are reserved."""
    version, run = scene.version(), scene.run()
    assert scene.open(run, version, span(0, 1), span(1, 2), whole=True) == [None, None]
    scene.begin(run, version, span(1, 2))
    assert scene.open(run, version, span(5, 6), whole=True) == [None]


def test_a_table_stays_claimed_whole_between_two_batches(scene: Scene) -> None:
    """What was committed of it is no door for another run."""
    version, run = scene.version(), scene.run("up")
    scene.work(run, version, span(0, 1), whole=True)
    scene.commit(run, version, span(0, 1))
    assert scene.open(scene.run("down"), version, span(0, 1), whole=True) == [run]


def test_a_failed_batch_leaves_the_rest_of_a_table_claimed_whole(scene: Scene) -> None:
    """Other time of it may still be evaluated by the same run."""
    version, run = scene.version(), scene.run("up")
    scene.work(run, version, span(0, 1), whole=True)
    scene.ledger.fail(run, version, span(0, 1), {})
    assert scene.open(scene.run("down"), version, span(0, 1), whole=True) == [run]
    assert scene.begin(run, version, span(1, 2)).read_revision is not None


def test_a_table_claimed_whole_is_unclean_only_where_it_is_being_written(scene: Scene) -> None:
    """Its rows still stand by time: readers of other hours need not wait."""
    version, run = scene.version(), scene.run()
    scene.record(run, version, span(0, 4))
    scene.work(run, version, span(1, 2), whole=True)
    assert scene.unclean(version, span(0, 4)) == {("begun", 1)}
    (claim,) = [c for c in scene.ledger.states([version])[version].claims if c.state == "begun"]
    assert claim.written is not None
    assert cells(claim.written) == {1}


def test_what_was_not_begun_of_a_table_claimed_whole_cannot_be_committed(scene: Scene) -> None:
    """The claim reserves all of its time, and permits nothing."""
    version, run = scene.version(), scene.run()
    scene.work(run, version, span(0, 1), whole=True)
    with pytest.raises(LedgerError):
        scene.commit(run, version, span(5, 6))


def test_two_batches_of_a_table_claimed_whole_have_each_read_for_themselves(scene: Scene) -> None:
    """A thread of the run that begins later says nothing about what an earlier one had read."""
    version, other, run = scene.version(), scene.version("q"), scene.run()
    read = scene.work(run, version, span(0, 1), whole=True)
    scene.record(run, other, span(0, 1))
    scene.begin(run, version, span(1, 2))
    scene.commit(run, version, span(0, 1))
    (row,) = scene.ledger.coverage_rows(version, span(0, 1))
    assert row.read_revision == read


def test_halves_of_a_failed_batch_leave_nothing_of_it_out_of_doubt(scene: Scene) -> None:
    """A run that dies in the first half has written in the second one too."""
    version, run = scene.version(), scene.run()
    scene.record(run, version, span(0, 4))
    scene.work(run, version, span(0, 4), whole=True)
    scene.begin(run, version, span(0, 2))
    scene.commit(run, version, span(0, 2))
    assert scene.unclean(version, span(0, 4)) == {("begun", 2), ("begun", 3)}
    scene.ledger.bury(run, engine_gone=True)
    assert scene.marks(version) == {("suspect", 2), ("suspect", 3)}


@pytest.mark.parametrize("bad", [(0, 2), (1,), (0, 1, 2)])
def test_a_batch_of_a_table_claimed_whole_is_committed_in_parts(scene: Scene, bad: tuple[int, ...]) -> None:
    """The good intervals are recorded first, in any order, and nothing remains begun."""
    version, run = scene.version(), scene.run()
    scene.work(run, version, span(0, 3), whole=True)
    for cell in {0, 1, 2} - set(bad):
        scene.commit(run, version, span(cell, cell + 1))
    for cell in bad:
        scene.ledger.fail(run, version, span(cell, cell + 1), {})
    found = scene.unclean(version, span(0, 3))
    assert {cell for reason, cell in found if reason == "failed"} == set(bad)
    assert "begun" not in {reason for reason, _ in found}


@pytest.mark.parametrize("how", ["commit", "fail"])
def test_what_is_said_twice_of_a_table_claimed_whole_is_done_once(scene: Scene, how: str) -> None:
    """Where the answer was lost on its way, the second call gets the same one and nothing changes."""
    version, run = scene.version(), scene.run()
    scene.work(run, version, span(0, 2), whole=True)
    for _ in range(2):
        if how == "commit":
            scene.commit(run, version, span(0, 1))
        else:
            scene.ledger.fail(run, version, span(0, 1), {})
    assert scene.ledger.revision() == 1
    assert scene.unclean(version, span(1, 2)) >= {("begun", 1)}


def test_all_of_a_table_that_was_claimed_whole_is_waited_out(scene: Scene) -> None:
    """The late write of a lost run would meet any other writer."""
    version, run = scene.version(), scene.run("up")
    scene.work(run, version, span(0, 1), whole=True)
    scene.pass_time(61)
    (answer,) = scene.ledger.open_claims(scene.run("down"), version, [span(8, 9)], whole=True)
    assert (answer.refused_by, answer.free_at) == (run, at(12) + TTL + GRACE)
