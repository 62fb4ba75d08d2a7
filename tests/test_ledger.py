"""What each function of the ledger does, one property a test, on a real Postgres.

Histories of many steps are in `test_ledger_stateful`; the promises G1 to G8 in `test_guarantees`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from ledger_scene import (
    CELLS,
    GRACE,
    TTL,
    Scene,
    at,
    cells,
    eventually,
    locked,
    meanwhile,
    other_session,
    span,
    wait_until_blocked,
)

from meshgate.db import Database, json, queries
from meshgate.errors import ConfigError, LeaseLostError, LedgerError, LedgerUnreachableError
from meshgate.ledger import WHOLE, Busy, Lease, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = timedelta(milliseconds=200)


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


def outlived(ledger: Ledger, run: int) -> bool:
    """Whether the database's real clock has passed the end of a lease."""
    return bool(
        ledger.database.execute("SELECT expires_at < clock_timestamp() AS over FROM meshgate.run WHERE run_id = %(r)s", {"r": run})[0]["over"]
    )


def events(scene: Scene) -> list[str]:
    """The kinds of all events, oldest first."""
    return [row["kind"] for row in reversed(scene.ledger.events())]


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
        cursor.execute("SELECT meshgate.acquire_run('up', 'prod', 'run', '{}', '1m', '1m', NULL)")
    connection.close()
    assert refused.value.pgcode == "MG005"


# -- order


def test_revisions_are_handed_out_in_the_order_of_commits(scene: Scene) -> None:
    """A commit waits for the one before it, so nobody ever sees a later number without an earlier one."""
    version = scene.version()
    one, two = scene.run("up"), scene.run("down")
    scene.work(one, version, span(0, 1))
    scene.work(two, version, span(1, 2))
    commit = "SELECT meshgate.commit_claim({}, {}, tstzrange('{}', '{}'), 'passed', NULL, NULL, NULL, NULL)"
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
    commit = f"SELECT meshgate.commit_claim({one}, {parent}, tstzrange('{at(0)}', '{at(1)}'), 'passed', NULL, NULL, NULL, NULL)"
    with (
        other_session(scene.ledger, scene.now) as other,
        locked(scene.ledger, f"SET meshgate.now = '{scene.now.isoformat()}'; {commit}") as first,
        meanwhile(
            lambda: other.begin(two, child, span(0, 1), needs=[(parent, span(0, 1))], loaded=[], environment=None)
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
            lambda: other.begin(two, child, span(0, 1), needs=[(parent, span(0, 1))], loaded=[], environment=None)
        ) as begin,
    ):
        wait_until_blocked(scene.ledger)
        first.commit()
        assert [r.reason for r in begin.result().refused] == ["failed"]


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


# -- reconciliation


def test_foreign_time_of_a_gated_model_is_added_and_suspect(scene: Scene) -> None:
    """Nothing proves what it had read: it has a revision, and has read up to nothing."""
    version = scene.version()
    assert scene.reconcile(version, [span(0, 2)]) == [("added", cells(span(0, 2))), ("suspect", cells(span(0, 2)))]
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


# -- the manifest


def test_a_version_is_registered_once_whoever_asks(ledger: Ledger) -> None:
    """Eight threads meet a version at the same time; it has one key."""
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: Scene(ledger).version("new"), range(8)))
    assert len(keys) == 1


def test_a_promotion_gives_the_new_version_its_own_revision(scene: Scene) -> None:
    """Whoever read the old version before reads anew: the build's own revision would hide it."""
    run = scene.run()
    scene.version("p")
    scene.promote({"p": "1"})
    new = scene.version("p", version="2")
    built = scene.record(run, new, span(0, 4))
    scene.record(run, scene.version("reader"), span(0, 1))
    assert scene.promote({"p": "2"}) == ["p"]
    assert scene.revisions(new) == dict.fromkeys(range(4), scene.ledger.revision())
    assert scene.ledger.revision() > built + 1


def test_a_promotion_of_the_same_versions_changes_nothing(scene: Scene) -> None:
    """Looking again makes nobody stale."""
    run, version = scene.run(), scene.version("p")
    scene.promote({"p": "1"})
    revision = scene.record(run, version, span(0, 4))
    assert scene.promote({"p": "1"}) == []
    assert scene.revisions(version) == dict.fromkeys(range(4), revision)


def test_a_new_version_that_read_before_the_old_one_was_made_again_is_suspect(scene: Scene) -> None:
    """It holds older data under a newer number: only the range that was made again since."""
    run, old = scene.run(), scene.version("p")
    scene.promote({"p": "1"})
    scene.record(run, old, span(0, 4))
    new = scene.version("p", version="2")
    scene.record(run, new, span(0, 4))
    scene.record(run, old, span(1, 2))
    scene.promote({"p": "2"})
    assert scene.marks(new) == {("suspect", 1)}


@pytest.mark.parametrize(
    ("kind", "carried"), [("requested", "requested"), ("lookback", "lookback"), ("failed", "suspect")]
)
def test_a_mark_goes_over_to_the_version_that_had_read_before_it(
    scene: Scene, kind: str, carried: str
) -> None:
    """Marks belong to the model: a deploy between request and work does not answer the request."""
    run, old = scene.run(), scene.version("p")
    scene.promote({"p": "1"})
    scene.record(run, old, span(0, 4))
    new = scene.version("p", version="2")
    scene.record(run, new, span(0, 4))
    scene.mark(old, span(2, 3), kind)
    scene.promote({"p": "2"})
    assert scene.marks(new) == {(carried, 2)}


def test_a_mark_does_not_go_over_to_a_version_that_was_built_after_it(scene: Scene) -> None:
    """The build has done what the mark asks for."""
    run, old = scene.run(), scene.version("p")
    scene.promote({"p": "1"})
    scene.record(run, old, span(0, 4))
    scene.mark(old, span(2, 3))
    new = scene.version("p", version="2")
    scene.record(run, new, span(0, 4))
    scene.promote({"p": "2"})
    assert scene.marks(new) == set()


def test_a_model_that_is_not_promoted_any_more_leaves_the_manifest(scene: Scene) -> None:
    """The picture of an environment is what SQLMesh promotes there, no more."""
    scene.version("p")
    scene.version("q")
    scene.promote({"p": "1", "q": "1"})
    scene.promote({"p": "1"})
    assert set(scene.ledger.manifest("prod").version_ids) == {"p"}


def test_the_models_of_a_project_with_another_state_are_left_alone(scene: Scene) -> None:
    """One SQLMesh state says nothing about what another one promotes."""
    scene.version("p", project="up")
    scene.version("q", project="down")
    scene.promote({"p": "1"}, project="up")
    scene.promote({"q": "1"}, project="down")
    assert set(scene.ledger.manifest("prod").version_ids) == {"p", "q"}


# -- what the tables themselves refuse


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        (
            "INSERT INTO meshgate.claim (run_id, version_id, span, opened_revision, opened_at)"
            " VALUES (1, 1, '[2026-01-05 01:00Z,2026-01-05 03:00Z)', 0, now())",
            "two live claims never overlap",
        ),
        (
            "INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, verdict, committed_at)"
            " VALUES (1, '[2026-01-05 05:00Z,2026-01-05 06:00Z)', 9, 0, 'passed', now())",
            "coverage never overlaps",
        ),
        (
            "INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, verdict, committed_at)"
            " VALUES (1, '[2026-01-05 06:00Z,2026-01-05 07:00Z)', 9, 9, 'passed', now())",
            "data is read before it is made",
        ),
        (
            "INSERT INTO meshgate.coverage (version_id, span, revision, read_revision, verdict, committed_at)"
            " VALUES (1, '[2026-01-05 06:00Z,2026-01-05 07:00Z]', 9, 0, 'passed', now())",
            "coverage is half-open and bounded",
        ),
        (
            "INSERT INTO meshgate.mark (version_id, span, kind, revision, made_at) VALUES (1, 'empty', 'failed', 1, now())",
            "a mark is about some time",
        ),
        ("UPDATE meshgate.run SET state = 'done'", "a run that ended says when"),
        ("INSERT INTO meshgate.ledger (schema_version) VALUES (1)", "ledger_pkey"),
        ("INSERT INTO meshgate.ledger (schema_version, singleton) VALUES (1, false)", "there is one ledger"),
    ],
)  # fmt: skip
def test_the_tables_refuse_what_no_function_should_ask_for(
    scene: Scene, statement: str, constraint: str
) -> None:
    """Whatever the code does, a constraint holds, and its name is the reason."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(5, 6))
    scene.open(run, version, span(0, 2))
    connection = scene.database.connect()
    with connection.cursor() as cursor, pytest.raises(psycopg2.IntegrityError) as refused:
        cursor.execute(statement)
    connection.close()
    assert refused.value.diag.constraint_name == constraint


# -- history, size, speed


def test_the_history_tells_what_happened_in_order(scene: Scene) -> None:
    """Every change that a person may ask about is an event."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    scene.work(run, version, span(1, 2))
    scene.ledger.fail(run, version, span(1, 2), {})
    scene.ledger.finish(run, "failed", {})
    assert events(scene) == ["interval.committed", "interval.failed", "run.finished"]


def test_pruning_forgets_what_nothing_needs(scene: Scene) -> None:
    """Ended claims, events and runs that recorded nothing go after their time."""
    run, version = scene.run(), scene.version()
    scene.work(run, version, span(0, 1))
    scene.ledger.fail(run, version, span(0, 1), {})
    scene.ledger.finish(run, "failed", {})
    scene.record(scene.run("down"), version, span(0, 1))
    scene.pass_time(3600)
    scene.ledger.prune(timedelta(minutes=30))
    assert events(scene) == []
    assert [row["project"] for row in scene.ledger.runs()] == ["down"]


def test_pruning_keeps_what_is_young(scene: Scene) -> None:
    """Nothing goes before its time."""
    run, version = scene.run(), scene.version()
    scene.record(run, version, span(0, 1))
    scene.ledger.finish(run, "done", {})
    scene.pass_time(60)
    scene.ledger.prune(timedelta(minutes=30))
    assert events(scene) == ["interval.committed", "run.finished"]


def test_pruning_keeps_a_quarantine(scene: Scene) -> None:
    """A range that may still be written to stays closed, however old the claim is."""
    version, run = scene.version(), scene.run("down", grace=timedelta(hours=2))
    scene.work(run, version, span(0, 1))
    scene.pass_time(3600)
    scene.run("other")
    scene.ledger.prune(timedelta(seconds=-1))
    assert scene.open(scene.run("up"), version, span(0, 1)) == [run]


def many_rows(scene: Scene) -> int:
    """A ledger with 40 versions of 20 days each, and a run that lives; the run."""
    versions = [scene.version(f"m{n}", kind="full" if n == 3 else "incremental_by_time_range") for n in range(40)]
    run = scene.run()
    hours = "generate_series('2020-01-01Z'::timestamptz, '2020-01-21Z', '1h') t"
    for statement in (
        "INSERT INTO meshgate.claim (run_id, version_id, span, state, opened_revision, opened_at, read_revision, ended_at)"
        f" SELECT {run}, v, tstzrange(t, t + '1h'), 'committed', 0, t, 0, t FROM unnest(%(v)s) v, {hours}",
        "INSERT INTO meshgate.coverage (run_id, version_id, span, revision, read_revision, verdict, committed_at, mirrored_at)"
        f" SELECT {run}, v, tstzrange(t, t + '1h'), 1, 0, 'passed', t, t FROM unnest(%(v)s) v, {hours}",
        "INSERT INTO meshgate.mark (version_id, span, revision, kind, made_at)"
        f" SELECT v, tstzrange(t, t + '1h'), 1, 'failed', t FROM unnest(%(v)s) v, {hours}",
        "INSERT INTO meshgate.run (project_id, environment, purpose, holder, started_at, expires_at, ttl, grace, state, ended_at)"
        f" SELECT project_id, environment, purpose, holder, t, t, ttl, grace, 'done', t FROM meshgate.run, {hours}",
        "UPDATE meshgate.ledger SET revision = 5",
        "ANALYZE",
    ):
        scene.database.execute(statement, {"v": versions})
    return run


def test_no_hot_statement_reads_a_table_from_end_to_end(scene: Scene) -> None:
    """On a ledger with many rows every function and query of a tick finds what it needs through an index."""
    run = many_rows(scene)
    hour, past = "'[2026-01-01 00:00Z,2026-01-01 01:00Z)'::tstzrange", "'[2020-01-11 00:00Z,2020-01-11 01:00Z)'::tstzrange"
    some = {"versions": [3, 7], "version_id": 3, "revision": 7, "span": "[2020-01-11,2020-01-12)"}
    calls: list[tuple[str, dict[str, Any]]] = [
        (f"SELECT meshgate.open_claims({run}, 2, ARRAY[{hour}])", {}),
        (f"SELECT meshgate.open_claims({run}, 4, ARRAY[{hour}])", {}),
        (f"SELECT meshgate.open_claims({run}, 2, ARRAY[{hour}])", {}),
        (f"SELECT meshgate.begin_claim({run}, 2, {hour}, '{{5}}', ARRAY[{past}], '{{6}}', NULL)", {}),
        (f"SELECT meshgate.begin_claim({run}, 2, {hour}, '{{}}', '{{}}', '{{}}', NULL)", {}),
        (f"SELECT meshgate.begin_claim({run}, 4, {hour}, '{{}}', '{{}}', '{{}}', NULL)", {}),
        (f"SELECT meshgate.commit_claim({run}, 2, {hour}, 'passed', NULL, NULL, NULL, {past})", {}),
        (f"SELECT meshgate.commit_claim({run}, 2, {hour}, 'passed', NULL, NULL, NULL, NULL)", {}),
        (f"SELECT meshgate.commit_claim({run}, 4, {hour}, 'passed', NULL, NULL, NULL, NULL)", {}),
        (f"SELECT meshgate.note_mirrored({run}, 2, {hour})", {}),
        (f"SELECT meshgate.begin_claim({run}, 4, {hour}, '{{}}', '{{}}', '{{}}', NULL)", {}),
        (f"SELECT meshgate.fail_claim({run}, 4, {hour}, NULL)", {}),
        (f"SELECT meshgate.reconcile_version(9, ARRAY[{past}], '{{}}', true, '2020-01-01Z')", {}),
        (f"SELECT meshgate.abandon_claims({run}, NULL, NULL)", {}),
        ("SELECT meshgate.acquire_run('q', 'prod', 'run', '{}', '1m', '1m', NULL)", {}),
        *((queries()[name], some) for name in ("covered", "coverage_rows", "marks", "live_claims")),
        (queries()["runs"], {"project": None, "environment": None, "limit": 5}),
        (f"SELECT meshgate.finish_run({run}, 'done', '{{}}', NULL)", {}),
    ]  # fmt: skip
    read_whole: list[Any] = []
    counted = (
        "SELECT relname, seq_tup_read FROM pg_stat_xact_user_tables"
        " WHERE schemaname = 'meshgate' AND relname IN ('claim', 'coverage', 'mark')"
    )
    connection = scene.database.connect()
    connection.autocommit = False
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('meshgate.now', %s, false)", [scene.now.isoformat()])
        for statement, parameters in calls:
            cursor.execute(counted)
            before = dict(cursor.fetchall())
            cursor.execute(statement, parameters)
            cursor.execute(counted)
            read_whole += [(statement, table) for table, rows in cursor.fetchall() if rows > before[table]]
    connection.rollback()
    connection.close()
    assert read_whole == []


# -- typed access


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda ledger: ledger.begin(1, 1, span(0, 1), needs=[], loaded=[], environment=None), LedgerError),
        (lambda ledger: ledger.abandon(99), None),
    ],
)
def test_refusals_are_typed(ledger: Ledger, call: Callable[[Ledger], Any], error: type[Exception] | None) -> None:
    """No driver's error leaves the ledger."""
    if error is None:
        call(ledger)
    else:
        with pytest.raises(error):
            call(ledger)


def test_a_role_without_rights_is_told_so(ledger: Ledger) -> None:
    """Missing rights are a matter of setup, not a refusal of the ledger."""
    ledger.database.execute("DROP ROLE IF EXISTS meshgate_nobody")
    ledger.database.execute("CREATE ROLE meshgate_nobody")
    ledger.database.execute("SET ROLE meshgate_nobody")
    with pytest.raises(ConfigError):
        ledger.revision()
    ledger.database.execute("RESET ROLE")
    ledger.database.execute("DROP ROLE meshgate_nobody")


def test_no_error_shows_the_password() -> None:
    """What cannot be reached is named without its secret."""
    database = Database("postgresql://me:secret-word@127.0.0.1:1/none")
    with pytest.raises(LedgerUnreachableError) as unreachable:
        database.execute("SELECT 1")
    assert "secret-word" not in str(unreachable.value) + repr(database)


def test_a_manifest_comes_back_as_it_was_saved(scene: Scene) -> None:
    """What a project declared is what the others read."""
    scene.database.rows("save_manifest", project="up", manifest=json({"edges": []}), sqlmesh="1", sqlglot="2")
    assert scene.ledger.projects()["up"]["manifest"] == {"edges": []}
