"""Who may work: runs, leases, order, takeover, quarantine and zombies, on a real Postgres."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg2
import pytest

from ledger_scene import (
    CELLS,
    GRACE,
    TTL,
    Scene,
    at,
    eventually,
    locked,
    meanwhile,
    other_session,
    span,
    wait_until_blocked,
)
from meshgate.errors import LeaseLostError, LedgerError
from meshgate.ledger import Busy, Lease, Ledger

SHORT = timedelta(milliseconds=200)


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


def outlived(ledger: Ledger, run: int) -> bool:
    """Whether the database's real clock has passed the end of a lease."""
    return bool(
        ledger.database.execute(
            "SELECT expires_at < clock_timestamp() AS over FROM meshgate.run WHERE run_id = %(r)s", {"r": run}
        )[0]["over"]
    )


# -- runs


def test_a_second_run_of_a_project_is_told_which_one_lives(scene: Scene) -> None:
    """One live run per project and environment, and the answer names it."""
    first = scene.run()
    assert scene.busy().run_id == first


def test_runs_of_other_projects_and_environments_live_side_by_side(scene: Scene) -> None:
    """A lease keeps out runs of its own project in its own environment only."""
    scene.run("up")
    scene.run("down")
    assert isinstance(scene.ledger.acquire("up", "dev", "run", {}, ttl=TTL, grace=GRACE), Lease)


def test_of_many_that_ask_at_once_one_gets_the_lease(ledger: Ledger) -> None:
    """Eight threads ask together: one lease, seven that know its run."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: ledger.acquire("up", "prod", "run", {}, ttl=TTL, grace=GRACE), range(8))
        )
    (lease,) = [a for a in answers if isinstance(a, Lease)]
    assert [a.run_id for a in answers if isinstance(a, Busy)] == [lease.run_id] * 7


def test_a_renewal_counts_from_now(scene: Scene) -> None:
    """The new end is the present plus the lease's length."""
    run = scene.run()
    scene.pass_time(50)
    assert scene.ledger.renew(run) == scene.now + TTL


def test_a_renewal_after_the_end_is_refused_though_nobody_took_over(scene: Scene) -> None:
    """A lease that ended is not revived."""
    run = scene.run()
    scene.pass_time(60)
    with pytest.raises(LeaseLostError):
        scene.ledger.renew(run)


def test_a_renewal_does_not_queue_behind_the_ledgers_lock(ledger: Ledger) -> None:
    """Whoever holds the ledger's lock starves no lease."""
    run = Scene(ledger).run()
    with locked(ledger):
        ledger.database.execute("SET lock_timeout = '5s'")
        ledger.renew(run)


def test_a_renewal_that_waits_beyond_its_lease_is_refused(ledger: Ledger) -> None:
    """The clock is read after the wait for the run's row, so a lease that died in the queue is dead."""
    lease = ledger.acquire("up", "prod", "run", {}, ttl=SHORT, grace=GRACE)
    with (
        other_session(ledger) as other,
        locked(ledger, f"SELECT FROM meshgate.run WHERE run_id = {lease.run_id} FOR UPDATE") as blocker,
        meanwhile(lambda: other.renew(lease.run_id)) as renewal,
    ):
        wait_until_blocked(ledger)
        eventually(lambda: outlived(ledger, lease.run_id), "the lease ends")
        blocker.commit()
        with pytest.raises(LeaseLostError):
            renewal.result()


def test_a_commit_that_waits_beyond_its_lease_is_refused(ledger: Ledger) -> None:
    """The clock is read after the wait for the ledger's lock, so nothing is recorded under a dead lease."""
    scene = Scene(ledger)
    ledger.database.execute("RESET meshgate.now")
    version = scene.version()
    run = scene.run(ttl=2 * SHORT)
    scene.work(run, version, span(0, 1))
    with (
        other_session(ledger) as other,
        locked(ledger) as blocker,
        meanwhile(lambda: other.commit(run, version, span(0, 1), verdict="passed")) as commit,
    ):
        wait_until_blocked(ledger)
        eventually(lambda: outlived(ledger, run), "the lease ends")
        blocker.commit()
        with pytest.raises(LeaseLostError):
            commit.result()
    assert scene.revisions(version) == {}


def test_a_takeover_waits_for_a_renewal_and_then_leaves_the_run_alone(scene: Scene) -> None:
    """An expired run whose renewal is under way is judged by what that renewal leaves behind."""
    run = scene.run()
    late = scene.now + timedelta(seconds=61)
    with (
        other_session(scene.ledger, late) as other,
        locked(
            scene.ledger,
            f"UPDATE meshgate.run SET expires_at = '{late + TTL}' WHERE run_id = {run}",
        ) as renewal,
        meanwhile(lambda: other.acquire("down", "prod", "run", {}, ttl=TTL, grace=GRACE)) as takeover,
    ):
        wait_until_blocked(scene.ledger)
        renewal.commit()
        takeover.result()
    assert scene.state(run) == "running"


def test_any_run_that_starts_takes_over_what_has_expired(scene: Scene) -> None:
    """An expired run of another project is lost as soon as somebody starts: its claims would be in the way."""
    run = scene.run("down")
    scene.pass_time(61)
    scene.run("up")
    assert scene.state(run) == "lost"


def test_a_live_run_is_not_taken_over(scene: Scene) -> None:
    """One microsecond before the end of its lease a run is still its own master."""
    run = scene.run("down")
    scene.pass_time(59.999999)
    scene.run("up")
    assert scene.state(run) == "running"


def test_the_end_of_a_run_is_told_once(scene: Scene) -> None:
    """A second `finish` changes nothing and answers with how the run ended."""
    run = scene.run()
    assert scene.ledger.finish(run, "done", {"committed": 3}) == "done"
    assert scene.ledger.finish(run, "failed", {}) == "done"


def test_a_run_that_was_taken_over_ends_as_lost(scene: Scene) -> None:
    """`finish` tells the truth to a run that believed it was alive."""
    run = scene.run()
    scene.pass_time(61)
    scene.run()
    assert scene.ledger.finish(run, "done", {}) == "lost"


def test_what_a_run_began_and_did_not_commit_is_suspect_when_it_ends(scene: Scene) -> None:
    """A clean end proves no write: the batch is evaluated again."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 2))
    scene.ledger.finish(run, "done", {})
    assert scene.marks(version) == {("suspect", 0), ("suspect", 1)}


def test_a_run_that_ends_in_the_middle_leaves_a_quarantine(scene: Scene) -> None:
    """An engine elsewhere may go on with a statement whose client has given up."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 2))
    scene.ledger.finish(run, "failed", {})
    assert scene.open(scene.run(), version, span(0, 2)) == [run]


def test_the_grace_of_a_run_that_ends_is_counted_from_its_end(ledger: Ledger) -> None:
    """Where the end waits for a renewal under way, it is the end of the wait that counts."""
    scene = Scene(ledger)
    ledger.database.execute("RESET meshgate.now")
    version, run = scene.version(), scene.run()
    scene.work(run, version, span(0, 1))
    with (
        other_session(ledger) as other,
        locked(ledger, f"SELECT FROM meshgate.run WHERE run_id = {run} FOR UPDATE") as renewal,
        meanwhile(lambda: other.finish(run, "failed", {})) as end,
    ):
        wait_until_blocked(ledger)
        waited_until = ledger.clock()
        renewal.commit()
        end.result()
    (answer,) = ledger.open_claims(scene.run(), version, [span(0, 1)])
    assert answer.free_at is not None
    assert answer.free_at >= waited_until + GRACE


def test_a_lease_needs_a_length(scene: Scene) -> None:
    """A lease of no length, or a negative grace, is refused."""
    with pytest.raises(LedgerError):
        scene.run(ttl=timedelta(0))
    with pytest.raises(LedgerError):
        scene.run(grace=timedelta(seconds=-1))


def test_a_run_that_was_never_started_is_unknown(scene: Scene) -> None:
    """A fence that nobody was given opens nothing."""
    with pytest.raises(LedgerError):
        scene.ledger.renew(17)


def test_a_stricter_isolation_level_is_refused(ledger: Ledger) -> None:
    """Under REPEATABLE READ a function would not see what was committed while it waited (MG005)."""
    connection = ledger.database.connect()
    connection.set_session(isolation_level="REPEATABLE READ")
    with connection.cursor() as cursor, pytest.raises(psycopg2.Error) as refused:
        cursor.execute("SELECT meshgate.take_over()")
    connection.close()
    assert refused.value.pgcode == "MG005"


# -- order


def test_revisions_are_handed_out_in_the_order_of_commits(scene: Scene) -> None:
    """A commit waits for the one before it, so nobody ever sees a later number without an earlier one."""
    version = scene.version()
    one, two = scene.run("up"), scene.run("down")
    scene.work(one, version, span(0, 1))
    scene.work(two, version, span(1, 2))
    commit = (
        "SELECT meshgate.commit_claim({}, {}, tstzrange('{}', '{}'), 'passed', NULL, NULL, NULL, NULL, NULL)"
    )
    clock = f"SET meshgate.now = '{scene.now.isoformat()}';"
    with (
        other_session(scene.ledger, scene.now) as other,
        locked(scene.ledger, clock + commit.format(one, version, at(0), at(1))) as first,
        meanwhile(lambda: other.commit(two, version, span(1, 2), verdict="passed")) as second,
    ):
        wait_until_blocked(scene.ledger)
        assert scene.revisions(version) == {}
        first.commit()
        assert scene.revisions(version)[0] < second.result()


def test_a_begin_waits_for_a_commit_under_way_and_reads_up_to_it(scene: Scene) -> None:
    """What is committed while a `begin` waits counts as read."""
    parent, child = scene.version("p"), scene.version("c")
    one, two = scene.run("up"), scene.run("down")
    scene.work(one, parent, span(0, 1))
    scene.open(two, child, span(0, 1))
    commit = f"SELECT meshgate.commit_claim({one}, {parent}, tstzrange('{at(0)}', '{at(1)}'), 'passed', NULL, NULL, NULL, NULL, NULL)"
    with (
        other_session(scene.ledger, scene.now) as other,
        locked(scene.ledger, f"SET meshgate.now = '{scene.now.isoformat()}'; {commit}") as first,
        meanwhile(
            lambda: other.begin(
                two, child, span(0, 1), needs=[(parent, span(0, 1))], loaded=[], environment=None
            )
        ) as begin,
    ):
        wait_until_blocked(scene.ledger)
        first.commit()
        assert begin.result().read_revision == scene.revisions(parent)[0]


def test_a_begin_waits_for_a_failure_under_way_and_is_refused(scene: Scene) -> None:
    """What goes wrong while a `begin` waits closes the gate."""
    parent, child = scene.version("p"), scene.version("c")
    one, two = scene.run("up"), scene.run("down")
    scene.record(one, parent, span(0, 1))
    scene.open(two, child, span(0, 1))
    mark = f"SELECT meshgate.lock_ledger(), meshgate.put_mark({parent}, tstzrange('{at(0)}', '{at(1)}'), 'failed', NULL, NULL)"
    with (
        other_session(scene.ledger, scene.now) as other,
        locked(scene.ledger, mark) as first,
        meanwhile(
            lambda: other.begin(
                two, child, span(0, 1), needs=[(parent, span(0, 1))], loaded=[], environment=None
            )
        ) as begin,
    ):
        wait_until_blocked(scene.ledger)
        first.commit()
        assert [r.reason for r in begin.result().refused] == ["failed"]


# -- takeover, quarantine, zombies


@pytest.fixture
def lost(scene: Scene) -> tuple[int, int]:
    """A version of which a run that was taken over had begun [0, 2) and reserved [2, 4); run and version."""
    version = scene.version()
    run = scene.run("down")
    scene.work(run, version, span(0, 2))
    scene.open(run, version, span(2, 4))
    scene.pass_time(61)
    scene.run("other")
    return run, version


def test_what_a_lost_run_had_begun_is_suspect(scene: Scene, lost: tuple[int, int]) -> None:
    """It may have written; it is evaluated again before it opens a gate."""
    assert scene.marks(lost[1]) == {("suspect", 0), ("suspect", 1)}


def test_what_a_lost_run_had_only_reserved_is_free_at_once(scene: Scene, lost: tuple[int, int]) -> None:
    """A claim that never began has written nothing."""
    assert scene.open(scene.run(), lost[1], span(2, 4)) == [None]


def test_what_a_lost_run_had_begun_is_not_claimed_before_its_grace_is_over(
    scene: Scene, lost: tuple[int, int]
) -> None:
    """A mute zombie's write is waited out, and the answer says until when."""
    run, version = lost
    (answer,) = scene.ledger.open_claims(scene.run(), version, [span(1, 2)])
    assert (answer.refused_by, answer.free_at) == (run, at(CELLS) + TTL + GRACE)


def test_after_the_grace_it_is_claimed(scene: Scene, lost: tuple[int, int]) -> None:
    """Expiry plus grace, and not an instant longer."""
    scene.set_clock(at(CELLS) + TTL + GRACE)
    assert scene.open(scene.run(), lost[1], span(0, 2)) == [None]


def test_a_zombie_that_reports_ends_the_quarantine(scene: Scene, lost: tuple[int, int]) -> None:
    """Its write has landed, so nothing is left to wait for."""
    run, version = lost
    with pytest.raises(LeaseLostError):
        scene.commit(run, version, span(0, 2))
    assert scene.open(scene.run(), version, span(0, 2)) == [None]


@pytest.mark.parametrize(("engine_in_process", "waited_for"), [(True, False), (False, True)])
@pytest.mark.parametrize("taken_over", [False, True])
def test_the_end_of_a_run_is_the_end_of_its_writes_where_the_engine_is_in_its_process(
    scene: Scene, engine_in_process: bool, waited_for: bool, taken_over: bool
) -> None:
    """An engine elsewhere may go on with a statement whose client has given up: its range waits for the grace."""
    version, run = scene.version(), scene.run("down", engine_in_process=engine_in_process)
    scene.work(run, version, span(0, 2))
    if taken_over:
        scene.pass_time(61)
        scene.run("other")
    scene.ledger.finish(run, "failed", {})
    scene.ledger.finish(run, "failed", {})
    assert scene.open(scene.run(), version, span(0, 2)) == [run if waited_for else None]


@pytest.mark.parametrize("taken_over", [False, True])
def test_a_run_that_ends_while_it_still_writes_is_waited_for(scene: Scene, taken_over: bool) -> None:
    """A thread inside a statement outlives the end that another thread reports, also of an engine in the process."""
    version, run = scene.version(), scene.run("down", engine_in_process=True)
    scene.work(run, version, span(0, 2))
    if taken_over:
        scene.pass_time(61)
        scene.run("other")
    scene.ledger.finish(run, "stopped", {}, writing=True)
    assert scene.open(scene.run(), version, span(0, 2)) == [run]


def test_a_proven_death_ends_the_quarantine(scene: Scene, lost: tuple[int, int]) -> None:
    """A run that was lost by expiry and is then proven to be gone, engine and all, is not waited for."""
    run, version = lost
    scene.ledger.bury(run, engine_gone=True)
    assert scene.open(scene.run(), version, span(0, 2)) == [None]


def test_the_death_of_the_process_alone_does_not_end_the_quarantine(scene: Scene) -> None:
    """A statement on a server outlives the process that sent it."""
    version, run = scene.version(), scene.run("down")
    scene.work(run, version, span(0, 2))
    scene.ledger.bury(run, engine_gone=False)
    assert scene.state(run) == "lost"
    assert scene.open(scene.run(), version, span(0, 2)) == [run]


def test_the_suspicion_of_a_zombies_write_outlives_the_successors_commit(
    scene: Scene, lost: tuple[int, int]
) -> None:
    """The successor had read before the late write; only whoever reads after it discharges the mark."""
    run, version = lost
    scene.set_clock(at(CELLS) + TTL + GRACE)
    successor = scene.run()
    scene.work(successor, version, span(0, 2))
    with pytest.raises(LeaseLostError):
        scene.commit(run, version, span(0, 2))
    scene.commit(successor, version, span(0, 2))
    assert scene.marks(version) == {("suspect", 0), ("suspect", 1)}


LAST_WORDS = {
    "says that it ends": lambda scene, run: scene.ledger.finish(run, "failed", {}),
    "is proven gone": lambda scene, run: scene.ledger.bury(run, engine_gone=True),
    "is proven gone, but not its engine": lambda scene, run: scene.ledger.bury(run, engine_gone=False),
}


@pytest.mark.parametrize("heard", LAST_WORDS)
def test_what_a_zombie_had_begun_is_suspect_anew_when_it_is_heard_of_for_the_last_time(
    scene: Scene, lost: tuple[int, int], heard: str
) -> None:
    """G4: it may have written after its successor, and then have failed, or died, before it could say so. Told once.

    Fails without the loop in `hear_of`, or without its call in `finish_run` or `bury_run`.
    """
    run, version = lost
    scene.set_clock(at(CELLS) + TTL + GRACE)
    scene.record(scene.run(), version, span(0, 2))
    assert scene.marks(version) == set()
    assert run in scene.ledger.watched()
    LAST_WORDS[heard](scene, run)
    assert scene.marks(version) == {("suspect", 0), ("suspect", 1)}
    assert run not in scene.ledger.watched()
    scene.record(scene.run("third"), version, span(0, 2))
    LAST_WORDS[heard](scene, run)
    assert scene.marks(version) == set()


def test_a_run_that_still_writes_has_not_said_its_last_word(scene: Scene, lost: tuple[int, int]) -> None:
    """Its thread may be inside a statement: it is watched until its process is gone."""
    run, version = lost
    scene.set_clock(at(CELLS) + TTL + GRACE)
    scene.record(scene.run(), version, span(0, 2))
    scene.ledger.finish(run, "stopped", {}, writing=True)
    assert run in scene.ledger.watched()
    scene.ledger.bury(run, engine_gone=True)
    assert scene.marks(version) == {("suspect", 0), ("suspect", 1)}


def test_a_zombies_failure_is_remembered_like_its_commit(scene: Scene, lost: tuple[int, int]) -> None:
    """Who failed has written as well."""
    run, version = lost
    scene.set_clock(at(CELLS) + TTL + GRACE)
    scene.record(scene.run(), version, span(0, 2))
    with pytest.raises(LeaseLostError):
        scene.ledger.fail(run, version, span(0, 1), {})
    assert scene.marks(version) == {("suspect", 0)}


def test_a_zombie_is_remembered_after_the_history_was_pruned(scene: Scene, lost: tuple[int, int]) -> None:
    """The fence of a lost run is never forgotten: its late write would go unseen."""
    run, version = lost
    scene.pass_time(3600)
    scene.record(scene.run(), version, span(0, 2))
    scene.ledger.prune(timedelta(seconds=1))
    with pytest.raises(LeaseLostError):
        scene.commit(run, version, span(0, 2))
    assert scene.marks(version) == {("suspect", 0), ("suspect", 1)}
