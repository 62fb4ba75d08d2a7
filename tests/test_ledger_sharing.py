"""Who may live beside whom, and how a lease is taken away: sharing, deploys, takeover, break; on a real Postgres."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg2
import pytest

from ledger_scene import (
    GRACE,
    TTL,
    Scene,
    at,
    cells,
    locked,
    meanwhile,
    other_session,
    span,
    wait_until_blocked,
)
from meshgate.errors import LeaseLostError, LedgerError
from meshgate.ledger import Busy, Lease, Ledger

DEPLOY = {"purpose": "deploy"}


@pytest.fixture
def scene(ledger: Ledger) -> Scene:
    """A session whose clock stands still."""
    return Scene(ledger)


# -- beside whom


@pytest.mark.parametrize(
    ("lives", "asks", "starts"),
    [
        pytest.param({}, {}, False, id="run beside run"),
        pytest.param({}, {"share": True}, True, id="sharing run beside run"),
        pytest.param({"share": True}, {}, False, id="run beside sharing run"),
        pytest.param({"share": True}, {"share": True}, True, id="sharing run beside sharing run"),
        pytest.param({}, {"project": "down"}, True, id="other project's run"),
        pytest.param({}, {"environment": "dev"}, True, id="other environment's run"),
        pytest.param({}, {"purpose": "deploy"}, True, id="deploy beside run"),
        pytest.param({}, {"purpose": "deploy", "project": "down"}, True, id="deploy beside other run"),
        pytest.param(DEPLOY, {}, False, id="run beside deploy"),
        pytest.param(DEPLOY, {"share": True}, False, id="sharing run beside deploy"),
        pytest.param(DEPLOY, {"project": "down"}, True, id="run beside other project's deploy"),
        pytest.param(DEPLOY, {"environment": "dev"}, True, id="run beside other environment's deploy"),
        pytest.param(DEPLOY, DEPLOY, False, id="deploy beside deploy"),
        pytest.param(DEPLOY, {**DEPLOY, "share": True}, False, id="sharing deploy beside deploy"),
        pytest.param(DEPLOY, {**DEPLOY, "project": "down"}, False, id="deploy beside other project's"),
        pytest.param(DEPLOY, {**DEPLOY, "environment": "dev"}, True, id="deploy beside other environment's"),
    ],
)
def test_who_may_live_beside_whom(
    scene: Scene, lives: dict[str, str], asks: dict[str, str], starts: bool
) -> None:
    """One run of a project unless the newcomer shares, one deploy of an environment, no run beside its project's."""
    first = scene.run(**lives)
    answer = scene.acquire(**asks)
    assert isinstance(answer, Lease) is starts
    if isinstance(answer, Busy):
        assert answer.run_id == first


def test_of_many_that_share_all_get_a_lease(ledger: Ledger) -> None:
    """Eight runs of one project ask together and live together."""
    scene = Scene(ledger)
    ledger.database.execute("RESET meshgate.now")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: scene.acquire(share=True), range(8)))
    assert len({a.run_id for a in answers if isinstance(a, Lease)}) == 8


def test_of_many_deploys_at_once_one_gets_the_lease(ledger: Ledger) -> None:
    """Eight projects are deployed together into one environment: one deploy, seven that know it."""
    scene = Scene(ledger)
    ledger.database.execute("RESET meshgate.now")
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: scene.acquire(f"p{n}", purpose="deploy"), range(8)))
    (lease,) = [a for a in answers if isinstance(a, Lease)]
    assert [a.run_id for a in answers if isinstance(a, Busy)] == [lease.run_id] * 7


def test_runs_that_share_a_project_share_no_interval(scene: Scene) -> None:
    """Each takes what is unclaimed: what one has, the other is refused."""
    version, one, two = scene.version(), scene.run(), scene.run(share=True)
    scene.open(one, version, span(0, 2))
    assert scene.open(two, version, span(1, 2), span(2, 3)) == [one, None]


def test_a_run_that_is_kept_out_by_a_deploy_is_told_of_the_deploy(scene: Scene) -> None:
    """Of a run and a deploy that both live, the deploy is the one to wait for: it keeps out those that share too."""
    scene.run()
    deploy = scene.run(purpose="deploy")
    assert (scene.busy().run_id, scene.busy().purpose) == (deploy, "deploy")


def test_a_deploy_that_is_kept_out_is_told_whose_deploy_it_is(scene: Scene) -> None:
    """It may be another project's."""
    deploy = scene.run("down", purpose="deploy")
    busy = scene.busy("up", purpose="deploy")
    assert (busy.run_id, busy.project, busy.expires_at) == (deploy, "down", scene.now + TTL)


def test_a_deploy_that_has_expired_keeps_nobody_out(scene: Scene) -> None:
    """Whoever asks takes it over."""
    deploy = scene.run("down", purpose="deploy")
    scene.pass_time(60)
    scene.run("up", purpose="deploy")
    assert scene.state(deploy) == "lost"


def test_the_runs_that_live_are_told_with_what_they_hold(scene: Scene) -> None:
    """For people: who lives, since when, until when, and how much it has reserved and begun."""
    version = scene.version()
    run = scene.run("up")
    scene.open(run, version, span(0, 4))
    scene.begin(run, version, span(1, 2))
    deploy = scene.run("down", purpose="deploy")
    scene.ledger.pause(deploy, ["p"])
    ended = scene.run("other")
    scene.ledger.finish(ended, "done", {})
    first, second = scene.ledger.live_runs()
    assert (first.run_id, first.project, first.purpose, first.promoting) == (run, "up", "run", False)
    assert (first.open, first.begun, first.expires_at) == (2, 1, scene.now + TTL)
    assert (second.run_id, second.purpose, second.promoting) == (deploy, "deploy", True)


# -- takeover


def test_a_takeover_ends_what_has_expired_and_nothing_else(scene: Scene) -> None:
    """Of all projects and environments, runs and deploys; the answer names them."""
    expired = [
        scene.run("up"),
        scene.run("down", environment="dev"),
        scene.run("other", purpose="deploy"),
    ]
    alive = scene.run("alive", ttl=2 * TTL)
    scene.pass_time(60)
    assert scene.ledger.take_over() == tuple(expired)
    assert [scene.state(run) for run in [*expired, alive]] == ["lost", "lost", "lost", "running"]


def test_a_second_takeover_finds_nothing(scene: Scene) -> None:
    """Whoever waits may look as often as it likes."""
    scene.run()
    scene.pass_time(60)
    assert len(scene.ledger.take_over()) == 1
    assert scene.ledger.take_over() == ()


def test_a_takeover_frees_what_was_reserved_and_marks_what_was_begun(scene: Scene) -> None:
    """Gates and claims do not stay closed for nothing until somebody starts a run."""
    version, run = scene.version(), scene.run("down")
    scene.work(run, version, span(0, 1))
    scene.open(run, version, span(1, 2))
    other = scene.run("up", ttl=2 * TTL)
    scene.pass_time(60)
    scene.ledger.take_over()
    assert scene.open(other, version, span(1, 2)) == [None]
    assert scene.marks(version) == {("suspect", 0)}


def test_a_takeover_leaves_a_run_alone_whose_renewal_is_under_way(scene: Scene) -> None:
    """It waits for the row of the run, and then sees the new end."""
    run = scene.run()
    late = scene.now + timedelta(seconds=61)
    with (
        other_session(scene.ledger, late) as other,
        locked(
            scene.ledger, f"UPDATE meshgate.run SET expires_at = '{late + TTL}' WHERE run_id = {run}"
        ) as renewal,
        meanwhile(other.take_over) as takeover,
    ):
        wait_until_blocked(scene.ledger)
        renewal.commit()
        assert takeover.result() == ()


# -- break


@pytest.mark.parametrize("purpose", ["run", "deploy"])
def test_a_lease_is_taken_away_by_hand(scene: Scene, purpose: str) -> None:
    """Any run that lives may be broken; it is lost, and may not go on."""
    run = scene.run(purpose=purpose)
    assert scene.ledger.break_lease(run, "somebody")
    assert scene.state(run) == "lost"
    with pytest.raises(LeaseLostError):
        scene.ledger.renew(run)


def test_whoever_was_kept_out_may_start_after_a_break(scene: Scene) -> None:
    """That is what it is for."""
    run = scene.run(ttl=timedelta(hours=9))
    assert scene.busy().run_id == run
    scene.ledger.break_lease(run, "somebody")
    assert scene.run() > run


@pytest.mark.parametrize("state", ["done", "failed", "stopped", "lost"])
def test_a_run_that_has_ended_cannot_be_broken(scene: Scene, state: str) -> None:
    """The answer says so, and nothing changes."""
    run = scene.run()
    if state == "lost":
        scene.ledger.bury(run, engine_gone=True)
    else:
        scene.ledger.finish(run, state, {})
    assert not scene.ledger.break_lease(run, "somebody")
    assert scene.state(run) == state


def test_a_run_whose_lease_has_ended_may_be_broken(scene: Scene) -> None:
    """Nobody has taken it over yet."""
    run = scene.run()
    scene.pass_time(61)
    assert scene.ledger.break_lease(run, "somebody")
    assert scene.state(run) == "lost"


def test_a_run_that_never_was_cannot_be_broken(scene: Scene) -> None:
    """A number that names no run is a mistake, and told as one."""
    with pytest.raises(LedgerError):
        scene.ledger.break_lease(17, "somebody")


@pytest.fixture
def broken(scene: Scene) -> tuple[int, int]:
    """A version of which a run that was broken had begun [0, 2) and reserved [2, 4); run and version."""
    version, run = scene.version(), scene.run("down")
    scene.work(run, version, span(0, 2))
    scene.open(run, version, span(2, 4))
    scene.ledger.break_lease(run, "somebody")
    return run, version


def test_what_a_broken_run_had_begun_is_suspect(scene: Scene, broken: tuple[int, int]) -> None:
    """It may have written, and what it had only reserved has not."""
    assert scene.marks(broken[1]) == {("suspect", 0), ("suspect", 1)}
    assert scene.open(scene.run(), broken[1], span(2, 4)) == [None]


def test_what_a_broken_run_had_begun_is_waited_out_as_after_an_expiry(
    scene: Scene, broken: tuple[int, int]
) -> None:
    """Its process may live, and its last statement with it: until its lease and the grace are over."""
    run, version = broken
    (answer,) = scene.ledger.open_claims(scene.run(), version, [span(0, 1)])
    assert (answer.refused_by, answer.free_at) == (run, at(12) + TTL + GRACE)
    scene.set_clock(at(12) + TTL + GRACE)
    assert scene.open(scene.run("other"), version, span(0, 1)) == [None]


def test_a_broken_run_whose_process_is_gone_is_not_waited_for(scene: Scene, broken: tuple[int, int]) -> None:
    """Proof that it cannot write any more ends the quarantine here too."""
    run, version = broken
    scene.ledger.bury(run, engine_gone=True)
    assert scene.open(scene.run(), version, span(0, 2)) == [None]


def test_the_commit_of_a_broken_run_is_refused_and_remembered(scene: Scene, broken: tuple[int, int]) -> None:
    """Nothing is recorded, and whoever had computed the range since has to do so again."""
    run, version = broken
    scene.set_clock(at(12) + TTL + GRACE)
    scene.record(scene.run(), version, span(0, 2))
    with pytest.raises(LeaseLostError):
        scene.commit(run, version, span(0, 2))
    assert {m for m in scene.marks(version) if m[1] in cells(span(0, 2))} == {("suspect", 0), ("suspect", 1)}


def test_a_broken_run_ends_as_lost(scene: Scene, broken: tuple[int, int]) -> None:
    """Its own report comes too late."""
    assert scene.ledger.finish(broken[0], "done", {}) == "lost"


def test_the_history_tells_who_broke_a_lease(scene: Scene, broken: tuple[int, int]) -> None:
    """In the run's error, and in its event."""
    assert scene.ledger.runs()[0]["error"] == "its lease was broken by somebody"
    (told,) = [row for row in scene.ledger.events() if row["kind"] == "run.lost"]
    assert (told["run_id"], told["detail"]["cause"]) == (broken[0], "its lease was broken by somebody")


# -- stopped


def test_a_run_that_was_told_to_stop_says_so(scene: Scene) -> None:
    """It is neither done nor failed, and its error says who stopped it."""
    run = scene.run()
    assert scene.ledger.finish(run, "stopped", {}, "ended by signal 15") == "stopped"
    (row,) = scene.ledger.runs()
    assert (row["state"], row["error"]) == ("stopped", "ended by signal 15")


def test_a_run_cannot_end_in_a_state_that_nobody_knows(ledger: Ledger) -> None:
    """The table refuses it by name."""
    run = Scene(ledger).run()
    connection = ledger.database.connect()
    with connection.cursor() as cursor, pytest.raises(psycopg2.IntegrityError) as refused:
        cursor.execute(f"UPDATE meshgate.run SET state = 'tired', ended_at = now() WHERE run_id = {run}")
    connection.close()
    assert refused.value.diag.constraint_name == "a run has a known state"
