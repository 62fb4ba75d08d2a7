"""Runs that meet: of one project, of two, of a run and a deploy; and runs that wait. Real processes, a real lake."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from ledger_scene import eventually, meanwhile
from meshgate.coordinator.progress import Waiting
from meshgate.errors import EvaluationError, RunInProgressError
from meshgate.interval import IntervalSet
from meshgate.ledger import Lease
from meshgate.mesh import Mesh
from tiny_mesh import BRONZE, SILVER, TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.coordinator import RunReport
    from meshgate.local_postgres import LocalPostgres

BRONZE_EVENTS, SILVER_EVENTS, GOLD_HOURLY = (
    '"lake"."bronze"."events"',
    '"lake"."silver"."events"',
    '"lake"."gold"."hourly"',
)
SHORT, LONG = timedelta(milliseconds=1), timedelta(seconds=60)


@pytest.fixture
def tiny(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> TinyMesh:
    return TinyMesh(tmp_path, postgres)


@contextmanager
def held(tiny: TinyMesh, start: float, end: float) -> Iterator[None]:
    """While the block runs, whoever reads events of this time from the source waits: its statement is under way.

    For meshes that are opened in it: DuckDB remembers what it knew of a table, its number of pages once it was analysed,
    and then asks a view for `ctid`.
    """
    tiny.sql(
        tiny.source_url,
        "ALTER TABLE events RENAME TO stored; CREATE FUNCTION held() RETURNS boolean LANGUAGE sql VOLATILE COST 100000 AS "
        "$$ SELECT true FROM (SELECT pg_advisory_xact_lock_shared(7)) AS gate $$; CREATE VIEW events AS SELECT * FROM stored "
        f"WHERE CASE WHEN ts >= '{at(start):%F %T}' AND ts < '{at(end):%F %T}' THEN held() ELSE true END",
    )
    keeper = psycopg2.connect(tiny.source_url)
    with keeper.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(7)")
    try:
        yield
    finally:
        keeper.close()


def reading(tiny: TinyMesh) -> bool:
    """Whether a statement waits in the source."""
    return bool(
        tiny.sql(
            tiny.state_url,
            f"SELECT 1 FROM pg_stat_activity WHERE datname = 'src_{tiny.key}' AND wait_event = 'advisory'",
        )
    )


@contextmanager
def at_work(tiny: TinyMesh, minutes: float, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A run of upstream in a process of its own that is inside the second hour as long as the block is; it must end well."""
    with held(tiny, 60, 120):
        process = started(tiny, "upstream", minutes, **options)
        try:
            eventually(lambda: reading(tiny) or process.poll() is not None, "a statement at work")
            assert process.poll() is None, process.communicate()
            yield process
        except BaseException:
            process.kill()
            process.communicate()
            raise
    out, errors = process.communicate(timeout=100)
    assert out.startswith("done"), out + errors


def started(tiny: TinyMesh, project: str, minutes: float, **options: Any) -> subprocess.Popen[str]:
    """A run in a process of its own."""
    code = (
        "from datetime import datetime\nfrom meshgate.mesh import Mesh\n"
        f"with Mesh.open({str(tiny.folder)!r}) as mesh:\n"
        f"    report = mesh.run({project!r}, now=datetime.fromisoformat({at(minutes).isoformat()!r}), **{options!r})\n"
        "    print(report.state, {m.split('.')[-1]: str(s) for m, s in report.committed.items()})\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=tiny.environment(),
    )  # fmt: skip


def committed_twice(mesh: Mesh, report: RunReport) -> set[str]:
    """The models of which some time was committed by more than one run since the deploy."""
    twice: set[str] = set()
    for name, version in mesh.ledger.manifest(report.environment).version_ids.items():
        seen = IntervalSet()
        for event in mesh.ledger.events(version_id=version, limit=1000):
            if event["kind"] == "interval.committed" and event["run_id"] != 1:
                done = IntervalSet.of(event["span"].lower, event["span"].upper)
                if seen & done:
                    twice.add(name)
                seen |= done
    return twice


def test_two_runs_that_share_both_make_progress_and_do_nothing_twice(tiny: TinyMesh) -> None:
    """While the first is inside an hour, the second does what has become due since; each interval once."""
    tiny.feed(0, 240)
    tiny.sql(tiny.source_url, "ANALYZE events")
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
    with tiny.mesh() as mesh:
        with at_work(tiny, 120, overlap="share"):
            second = mesh.run("upstream", now=at(150), overlap="share")
            assert second.failed == ()
            assert second.committed == {
                BRONZE_EVENTS: IntervalSet([span(120, 150)]), SILVER_EVENTS: IntervalSet([span(120, 150)]),
            }  # fmt: skip
            assert {b.reason for b in second.blocked} == {"begun"}
            assert len(mesh.leases()) == 1
        assert mesh.run("upstream", now=at(150)).state == "nothing_to_do"
        assert committed_twice(mesh, second) == set()
        assert mesh.leases() == ()
    assert tiny.table("silver.events") == tiny.expected(150)["silver.events"]


def test_a_run_that_shares_takes_part_in_a_run_that_does_not(tiny: TinyMesh) -> None:
    """The policy is the newcomer's; without `share` it is skipped, or refused by name."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
    with tiny.mesh() as mesh, at_work(tiny, 120) as first:
        assert mesh.run("upstream", now=at(130)).state == "skipped"
        with pytest.raises(RunInProgressError, match=f"pid {first.pid}"):
            mesh.run("upstream", now=at(130), overlap="fail")
        second = mesh.run("upstream", now=at(130), overlap="share")
        assert (second.state, second.failed) == ("done", ())


def test_a_run_that_waits_starts_when_the_other_has_ended(tiny: TinyMesh) -> None:
    """`overlap: wait` is woken by the end of the run in its way, and says meanwhile what it waits for."""
    tiny.feed(0, 240)
    told: list[Any] = []
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
    with Mesh.open(tiny.folder, tell=told.append) as mesh:
        with at_work(tiny, 120):
            waiting = meanwhile(lambda: mesh.run("upstream", now=at(130), overlap="wait"))
            future = waiting.__enter__()
            eventually(lambda: any(isinstance(t, Waiting) for t in told), "it waits")
            assert not future.done()
        waiting.__exit__(None, None, None)
        assert future.result().committed[BRONZE_EVENTS] == IntervalSet([span(120, 130)])
    busy = next(t for t in told if isinstance(t, Waiting))
    assert (busy.reason, busy.of, busy.notified) == ("busy", "upstream", True)


def test_waiting_for_a_run_has_a_limit(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> None:
    """When the limit of the policy is over, the run is skipped (exit code 4)."""
    tiny = TinyMesh(tmp_path, postgres, policies={"overlap": "wait", "overlap_limit": "1ms"})
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        with at_work(tiny, 120):
            report = mesh.run("upstream", now=at(130))
            assert (report.state, report.exit_code) == ("skipped", 4)


def test_downstream_waits_for_upstream_and_starts_when_its_data_is_there(tiny: TinyMesh) -> None:
    """`--wait`: what was due at the start is done as soon as its parents are; the rest of the waiting is spared."""
    tiny.feed(0, 240)
    told: list[Any] = []
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
    with Mesh.open(tiny.folder, tell=told.append) as mesh, tiny.mesh() as other:
        with meanwhile(lambda: mesh.run("downstream", now=at(120), wait=LONG)) as future:
            eventually(lambda: any(isinstance(t, Waiting) for t in told), "it waits")
            assert other.leases() == ()  # who waits holds nothing
            assert other.run("upstream", now=at(115)).state == "done"
            eventually(
                lambda: told[-1].time == IntervalSet([span(115, 120)]), "five minutes are missing still"
            )
            assert not future.done()
            assert other.run("upstream", now=at(120)).state == "done"
        assert future.result().state == "done"
        assert future.result().committed == {GOLD_HOURLY: IntervalSet([span(60, 120)])}
    tiny.check(120)
    waited = [t for t in told if isinstance(t, Waiting)]
    assert {(t.of, t.model) for t in waited} <= {("upstream", BRONZE_EVENTS), ("upstream", SILVER_EVENTS)}


def test_waiting_ends_when_somebody_else_has_done_the_work(tiny: TinyMesh) -> None:
    """The next tick of the same project does it meanwhile: nothing is left to wait for."""
    tiny.feed(0, 240)
    told: list[Any] = []
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
    with Mesh.open(tiny.folder, tell=told.append) as mesh, tiny.mesh() as other:
        for name, version in other.ledger.manifest("prod").version_ids.items():
            if name != GOLD_HOURLY:
                other.ledger.database.execute(
                    "SELECT meshgate.put_mark(%(v)s, '[2026-01-05 01:00Z,2026-01-05 01:05Z)', 'suspect', NULL, '{}')",
                    {"v": version},
                )
        with meanwhile(lambda: mesh.run("downstream", now=at(120), wait=LONG)) as future:
            eventually(lambda: any(isinstance(t, Waiting) for t in told), "it waits")
            lease = other.ledger.acquire("downstream", "prod", "run", {}, ttl=LONG, grace=LONG)
            assert isinstance(lease, Lease)
            other.run("upstream", now=at(120))
            version = other.ledger.manifest("prod").version_id(GOLD_HOURLY)
            other.ledger.open_claims(lease.run_id, version, [span(60, 120)])
            other.ledger.begin(lease.run_id, version, span(60, 120), needs=[], loaded=[], environment="prod")
            other.ledger.commit(lease.run_id, version, span(60, 120), verdict="passed")
            other.ledger.finish(lease.run_id, "done", {})
        # Long before its time was over. (SQLMesh's record lacks what was done here, so that it may be done once more.)
        assert future.result().exit_code == 0
        assert future.result().blocked == ()


def test_waiting_ends_at_its_limit_and_says_what_was_missing(tiny: TinyMesh) -> None:
    """What is ready is done at once, the rest is blocked when the time is over."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(120))
        mesh.deploy("downstream", now=at(60))
        report = mesh.run("downstream", now=at(180), wait=SHORT)
        assert report.committed == {GOLD_HOURLY: IntervalSet([span(60, 120)])}
        assert [b.interval for b in report.blocked] == [span(120, 180)]


def test_a_wait_that_is_told_to_stop_ends_at_once(tiny: TinyMesh) -> None:
    """A request from another thread wakes it; what was done before is reported."""
    told: list[Any] = []
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
    with Mesh.open(tiny.folder, tell=told.append) as mesh:
        with meanwhile(lambda: mesh.run("downstream", now=at(120), wait=LONG)) as future:
            eventually(lambda: any(isinstance(t, Waiting) for t in told), "it waits")
            mesh.stop.request("a test")
        assert future.result().state == "nothing_to_do"


def test_a_failure_is_left_alone_for_a_while_and_retried_by_hand(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """A poisoned interval does not burn every tick: it is tried again after its pause, or when somebody says so."""
    tiny = TinyMesh(tmp_path, postgres, policies={"retry": {"first": "10m", "longest": "30m"}})
    tiny.feed(0, 240)
    tiny.poison(62)
    bad = span(60, 65)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        assert [f.interval for f in mesh.run("upstream", now=at(65)).failed] == [bad]
        left_alone = mesh.run("upstream", now=at(70))
        assert left_alone.failed == ()
        assert left_alone.committed[BRONZE_EVENTS] == IntervalSet([span(65, 70)])
        paused = next(b for b in left_alone.blocked if b.model == BRONZE_EVENTS)
        assert (paused.reason, paused.detail["retry_at"]) == ("failed", at(75))
        assert [f.interval for f in mesh.run("upstream", now=at(80)).failed] == [bad]  # its second try
        tiny.repair(62)
        assert mesh.run("upstream", now=at(95)).failed == ()  # 20 minutes, then at most 30
        assert mesh.retry("bronze.events") == (BRONZE_EVENTS, 1)
        report = mesh.run("upstream", now=at(95))
        assert report.committed[BRONZE_EVENTS] == IntervalSet([bad])
    assert tiny.table("silver.events") == tiny.expected(95)["silver.events"]


def test_a_deploy_replaces_a_model_when_its_batch_has_ended_and_no_later(tiny: TinyMesh) -> None:
    """It builds while a run works, waits for the batch under way, and the run goes on with what is promoted then."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
    told: list[Any] = []
    with Mesh.open(tiny.folder, tell=told.append) as mesh, tiny.mesh() as other:
        tiny.write(
            "upstream",
            "bronze",
            BRONZE.format(source=tiny.source).replace("SELECT id", "SELECT id + 0 AS id"),
        )
        tiny.write("upstream", "silver", SILVER)
        with at_work(tiny, 120):
            deploying = meanwhile(lambda: mesh.deploy("upstream", now=at(60)))
            future = deploying.__enter__()
            eventually(lambda: any(r.promoting for r in other.leases()), "the deploy waits for the batch")
            assert other.run("upstream", now=at(120)).state == "skipped"
            assert not future.done()
        deploying.__exit__(None, None, None)
        assert future.result().state == "done", future.result()
        assert mesh.run("upstream", now=at(120)).exit_code == 0
        mesh.run("downstream", now=at(120))
    tiny.check(120)


def test_only_so_many_batches_are_under_way_at_once(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """A warehouse at its limit makes the next batch wait, not fail; and it goes on when a place is free."""
    tiny = TinyMesh(tmp_path, postgres, policies={"limits": {"warehouse": 1}})
    tiny.feed(0, 240)
    told: list[Any] = []
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(0))
    with Mesh.open(tiny.folder, tell=told.append) as mesh:
        with at_work(tiny, 120):
            waiting = meanwhile(lambda: mesh.run("downstream", now=at(60)))
            future = waiting.__enter__()
            eventually(lambda: any(getattr(t, "what", "") == "waiting" for t in told), "it waits for a place")
            assert not future.done()
        waiting.__exit__(None, None, None)
        assert future.result().committed == {GOLD_HOURLY: IntervalSet([span(0, 60)])}


def test_deploys_of_two_projects_wait_for_each_other(tiny: TinyMesh) -> None:
    """Two continuous integrations deploy at once: one after the other, and neither has to be repeated by hand."""
    tiny.feed(0, 240)
    told: list[Any] = []
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        other = mesh.ledger.acquire("elsewhere", "prod", "deploy", {}, ttl=LONG, grace=LONG)
        assert isinstance(other, Lease)
        with Mesh.open(tiny.folder, tell=told.append) as second:
            with meanwhile(lambda: second.deploy("downstream", now=at(60))) as future:
                eventually(lambda: any(isinstance(t, Waiting) for t in told), "it waits")
                assert (told[0].reason, told[0].of) == ("busy", "elsewhere")
                assert mesh.run("upstream", now=at(70)).state == "done"  # runs of other projects go on
                mesh.ledger.finish(other.run_id, "done", {})
            assert future.result().state == "done"


def test_a_deploy_that_died_while_it_replaced_models_is_finished_by_the_next(tiny: TinyMesh) -> None:
    """SQLMesh's environment is half changed: runs say so and touch nothing, and deploying again makes it whole."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", now=at(60))
        tiny.write(
            "upstream",
            "bronze",
            BRONZE.format(source=tiny.source).replace("SELECT id", "SELECT id + 0 AS id"),
        )
        die = (
            "import os, signal\nfrom meshgate.bridge.scheduler import AskingState\n"
            "AskingState.finalize = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
        )
        assert (
            tiny.cli("deploy", "upstream", "--now", f"{at(60):%FT%TZ}", python=die, check=False).returncode
            == -9
        )
        with pytest.raises(EvaluationError, match="that plan died") as refused:
            mesh.run("upstream", now=at(120))
        assert "meshgate deploy upstream" in str(refused.value)
        assert mesh.deploy("upstream", now=at(60)).state == "done"
        assert mesh.run("upstream", now=at(120)).state == "done"
        assert mesh.run("downstream", now=at(120)).state == "done"
    tiny.check(120)


def test_statements_are_limited_where_the_engine_outlives_the_process(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """A lost run's last statement is over when its grace is: the limit is set on the sessions that evaluate."""
    tiny = TinyMesh(tmp_path, postgres, engine="postgres", settings={"statement_timeout": "7m"})
    tiny.feed(0, 60)
    limited = BRONZE.format(source=tiny.source).replace(
        "value FROM", "length(current_setting('statement_timeout')) AS value FROM"
    )
    tiny.write("upstream", "bronze", limited)
    with tiny.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
    assert {value for *_, value in tiny.table("bronze.events")} == {len("7min")}
