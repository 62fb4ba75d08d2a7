"""How long what failed, or what runs died of, is left alone; on a real Postgres."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ledger_scene import Scene, span
from meshgate.errors import LeaseLostError
from meshgate.ledger import WHOLE, BackOff

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.interval import Interval
    from meshgate.ledger import Ledger, Mark

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DEATHS: dict[str, Callable[[Scene, int], object]] = {
    "buried": lambda scene, run: scene.ledger.bury(run, engine_gone=True),
    "expired": lambda scene, _run: (scene.pass_time(61), scene.ledger.take_over()),
    "broken": lambda scene, run: scene.ledger.break_lease(run, "somebody"),
    "stopped": lambda scene, run: scene.ledger.finish(run, "stopped", {}),
}


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


def pause(scene: Scene, mark: Mark) -> timedelta | None:
    """How long it is left alone from now on."""
    return mark.retry_at - scene.now if mark.retry_at else None


def die(scene: Scene, version: int, interval: Interval, how: str = "buried") -> Mark:
    """A run begins something and ends without an end of it; what is left of that. Its quarantine is over."""
    run = scene.run(grace=timedelta(0))
    scene.work(run, version, interval)
    DEATHS[how](scene, run)
    found = scene.known(version, interval, "suspect")
    scene.pass_time(61)
    return found


# -- failures


def test_the_pause_doubles_with_each_failure_and_is_bounded(scene: Scene) -> None:
    """One minute, two, four, …, and never more than an hour."""
    run, version = scene.run(ttl=2 * HOUR), scene.version()
    pauses = [pause(scene, scene.attempt(run, version, span(7, 8))) for _ in range(9)]
    assert pauses == [min(2**n * MINUTE, HOUR) for n in range(9)]


def test_a_project_says_how_long_its_failures_are_left_alone(scene: Scene) -> None:
    """The run carries the project's own first and longest pause."""
    run = scene.run(back_off=BackOff(timedelta(seconds=5), timedelta(seconds=7)))
    version = scene.version()
    pauses = [pause(scene, scene.attempt(run, version, span(7, 8))) for _ in range(3)]
    assert pauses == [timedelta(seconds=s) for s in (5, 7, 7)]


def test_a_pause_of_nothing_lets_it_be_tried_at_once(scene: Scene) -> None:
    """Zero doubled is zero."""
    run, version = scene.run(back_off=BackOff(timedelta(0), HOUR)), scene.version()
    assert [pause(scene, scene.attempt(run, version, span(7, 8))) for _ in range(2)] == [timedelta(0)] * 2


def test_any_number_of_failures_has_a_pause(scene: Scene) -> None:
    """The ten thousandth failure of a model with long pauses is recorded like the first."""
    run, version = scene.run(back_off=BackOff(timedelta(days=20), timedelta(days=90))), scene.version()
    scene.attempt(run, version, span(7, 8))
    scene.database.execute("UPDATE meshgate.mark SET attempts = 9999")
    mark = scene.attempt(run, version, span(7, 8))
    assert (mark.attempts, pause(scene, mark)) == (10000, timedelta(days=90))


def test_the_pause_is_the_intervals_own(scene: Scene) -> None:
    """A poisoned interval does not slow its neighbours down, nor another model's same hour."""
    run, version, other = scene.run(), scene.version(), scene.version("q")
    for _ in range(4):
        scene.attempt(run, version, span(7, 8))
    for model, interval in ((version, span(8, 9)), (version, span(6, 7)), (other, span(7, 8))):
        mark = scene.attempt(run, model, interval)
        assert (mark.attempts, pause(scene, mark)) == (1, MINUTE)


def test_a_failure_next_to_a_pause_leaves_it_alone(scene: Scene) -> None:
    """A wider failure takes over what it covers; what it does not cover keeps its own end of the pause."""
    run, version = scene.run(), scene.version()
    first = scene.attempt(run, version, span(5, 8))
    scene.pass_time(30)
    scene.attempt(run, version, span(7, 9))
    assert scene.known(version, span(5, 7), "failed").retry_at == first.retry_at


def test_a_whole_table_has_one_pause(scene: Scene) -> None:
    """Whatever part of its time fails, it is the table that is tried again."""
    run, version = scene.run(), scene.version(kind="full")
    for cell in (3, 8):
        scene.work(run, version, span(cell, cell + 1))
        scene.ledger.fail(run, version, span(cell, cell + 1), {})
    mark = scene.known(version, WHOLE, "failed")
    assert (mark.attempts, pause(scene, mark)) == (2, 2 * MINUTE)


def test_the_pause_is_counted_from_the_instant_that_the_run_stands_for(scene: Scene) -> None:
    """A run that replays the past pauses in the past: whoever replays the next tick tries again."""
    as_of = scene.now - 6 * HOUR
    run, version = scene.run(as_of=as_of), scene.version()
    assert scene.attempt(run, version, span(2, 3)).retry_at == as_of + MINUTE


def test_a_commit_ends_the_pause_and_forgets_the_failures(scene: Scene) -> None:
    """The next failure is a first one."""
    run, version = scene.run(), scene.version()
    for _ in range(3):
        scene.attempt(run, version, span(7, 8))
    scene.record(run, version, span(7, 8))
    assert scene.marks(version) == set()
    mark = scene.attempt(run, version, span(7, 8))
    assert (mark.attempts, pause(scene, mark)) == (1, MINUTE)


def test_a_part_that_was_committed_leaves_the_rest_of_a_pause_as_it_was(scene: Scene) -> None:
    """A mark that is cut keeps its count and its end."""
    run, version = scene.run(), scene.version()
    scene.attempt(run, version, span(5, 8))
    mark = scene.attempt(run, version, span(5, 8))
    scene.record(run, version, span(5, 6))
    rest = scene.known(version, span(6, 8), "failed")
    assert (rest.attempts, rest.retry_at) == (2, mark.retry_at)


# -- deaths


@pytest.mark.parametrize("how", DEATHS)
def test_the_second_death_at_the_same_time_pauses_and_the_first_does_not(scene: Scene, how: str) -> None:
    """One run may die of reasons of its own; of two, the interval is the likelier reason."""
    version = scene.version()
    assert die(scene, version, span(7, 8), how).retry_at is None
    died_at = scene.now + (timedelta(seconds=61) if how == "expired" else timedelta(0))
    second = die(scene, version, span(7, 8), how)
    assert (second.attempts, second.retry_at) == (2, died_at + MINUTE)


def test_the_pause_doubles_with_each_further_death(scene: Scene) -> None:
    """An interval that kills every run is tried once an hour in the end."""
    version = scene.version()
    pauses = []
    for _ in range(9):
        died_at = scene.now
        mark = die(scene, version, span(7, 8))
        pauses.append(mark.retry_at - died_at if mark.retry_at else None)
    assert pauses == [None, *(min(2**n * MINUTE, HOUR) for n in range(8))]


def test_deaths_at_other_times_do_not_add_up(scene: Scene) -> None:
    """Two runs that die in different hours say nothing about either hour."""
    version = scene.version()
    assert [die(scene, version, span(c, c + 1)).retry_at for c in (3, 4)] == [None, None]


def test_deaths_and_failures_are_counted_apart(scene: Scene) -> None:
    """An interval that failed once and then was in the hands of a run that died has failed once."""
    run, version = scene.run(), scene.version()
    failed = scene.attempt(run, version, span(7, 8))
    scene.ledger.finish(run, "failed", {})
    assert die(scene, version, span(7, 8)).retry_at is None
    assert scene.known(version, span(7, 8), "failed") == failed


def test_what_was_only_reserved_by_a_dead_run_was_not_tried(scene: Scene) -> None:
    """A claim that never began leaves nothing to pause for."""
    version = scene.version()
    for _ in range(3):
        run = scene.run()
        scene.open(run, version, span(7, 8))
        scene.ledger.bury(run, engine_gone=True)
    assert scene.marks(version) == set()


# -- what is no attempt


@pytest.mark.parametrize("deaths", [1, 2])
def test_the_refused_write_of_a_zombie_is_no_attempt(scene: Scene, deaths: int) -> None:
    """That it reports what is known already neither counts nor moves the pause."""
    version = scene.version()
    for _ in range(deaths):
        mark = die(scene, version, span(7, 8))
    assert mark.run_id is not None
    with pytest.raises(LeaseLostError):
        scene.commit(mark.run_id, version, span(7, 8))
    again = scene.known(version, span(7, 8), "suspect")
    assert again.revision > mark.revision
    assert (again.attempts, again.retry_at) == (deaths, mark.retry_at)


def test_a_write_that_is_refused_before_anybody_took_over_is_one_attempt(scene: Scene) -> None:
    """The loss of the lease and the report of the write are about one and the same try."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(7, 8))
    scene.pass_time(61)
    with pytest.raises(LeaseLostError):
        scene.ledger.fail(run, version, span(7, 8), {})
    mark = scene.known(version, span(7, 8), "suspect")
    assert (mark.attempts, mark.retry_at) == (1, None)


def test_a_failure_that_was_told_without_a_try_is_no_attempt(scene: Scene) -> None:
    """The rest of a batch that an outage ended is failed, and left alone for no time."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(7, 8))
    scene.ledger.fail(run, version, span(7, 8), {"error": "no", "tried": False})
    assert scene.known(version, span(7, 8), "failed").retry_at is None


def test_what_was_given_up_is_no_attempt(scene: Scene) -> None:
    """That a half is not ready any more is nobody's failure."""
    run, version = scene.run(), scene.version()
    for _ in range(2):
        scene.work(run, version, span(7, 8))
        assert scene.ledger.give_up(run, version, span(7, 8))
    assert scene.known(version, span(7, 8), "suspect").retry_at is None


def test_what_plain_sqlmesh_did_is_no_attempt(scene: Scene) -> None:
    """Nobody tried and failed where somebody else wrote."""
    version = scene.version()
    scene.mark(version, span(7, 8), "suspect")
    scene.reconcile(version, [span(7, 8)])
    mark = scene.known(version, span(7, 8), "suspect")
    assert (mark.attempts, mark.retry_at) == (0, None)
    run = scene.run()
    scene.work(run, version, span(7, 8))
    scene.ledger.finish(run, "failed", {})
    mark = scene.known(version, span(7, 8), "suspect")
    assert (mark.attempts, mark.retry_at) == (1, None), "the first run that dies of it is no reason to wait"


# -- retry


def test_whoever_repaired_it_ends_the_pause(scene: Scene) -> None:
    """`retry` lets the next run try at once, and says how many marks that concerned."""
    run, version = scene.run(), scene.version()
    scene.attempt(run, version, span(3, 4))
    scene.attempt(run, version, span(7, 8))
    assert scene.ledger.retry([version], WHOLE) == 2
    assert {m.retry_at for m in scene.ledger.states([version])[version].marks} == {None}
    assert scene.ledger.retry([version], WHOLE) == 0


def test_only_what_is_asked_for_is_tried_at_once(scene: Scene) -> None:
    """Other time and other models stay paused."""
    run, version, other = scene.run(), scene.version(), scene.version("q")
    paused = [scene.attempt(run, version, span(3, 4)), scene.attempt(run, other, span(7, 8))]
    scene.attempt(run, version, span(7, 8))
    assert scene.ledger.retry([version], span(6, 9)) == 1
    left = [scene.known(version, span(3, 4), "failed"), scene.known(other, span(7, 8), "failed")]
    assert left == paused


def test_retry_ends_what_runs_died_of_too(scene: Scene) -> None:
    """The memory that was too small is larger now."""
    version = scene.version()
    die(scene, version, span(7, 8))
    die(scene, version, span(7, 8))
    assert scene.ledger.retry([version], span(7, 8)) == 1
    assert scene.known(version, span(7, 8), "suspect").retry_at is None


def test_retry_does_not_forget_how_often_it_failed(scene: Scene) -> None:
    """Who was wrong about the repair waits longer than before."""
    run, version = scene.run(), scene.version()
    scene.attempt(run, version, span(7, 8))
    scene.attempt(run, version, span(7, 8))
    scene.ledger.retry([version], WHOLE)
    mark = scene.attempt(run, version, span(7, 8))
    assert (mark.attempts, pause(scene, mark)) == (3, 4 * MINUTE)


def test_retry_opens_no_gate(scene: Scene) -> None:
    """What failed stays failed until it is computed again."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(7, 8))
    scene.attempt(run, version, span(7, 8))
    scene.ledger.retry([version], WHOLE)
    assert scene.unclean(version, span(7, 8)) == {("failed", 7)}


def test_the_history_tells_that_somebody_wanted_a_retry(scene: Scene) -> None:
    """An event for each mark, and none where nothing was paused."""
    run, version = scene.run(), scene.version()
    scene.attempt(run, version, span(7, 8))
    scene.ledger.retry([version], WHOLE)
    scene.ledger.retry([version], WHOLE)
    told = [row for row in scene.ledger.events() if row["kind"] == "interval.retried"]
    assert [(row["model"], row["detail"]) for row in told] == [("p", {"mark": "failed"})]
