"""SQLMesh's `auto_restatement_cron` under the ledger: SQLMesh's own answer at the same instants, and what a ledger adds."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from ledger_story import Story, fqn, mesh_graph
from meshgate.db import Database
from meshgate.due import cron_floor, cron_next, restated, ticked
from meshgate.errors import GraphError
from meshgate.graph import MeshGraph
from meshgate.interval import Interval, IntervalSet, IntervalUnit
from meshgate.ledger import Ledger
from strategies import examples, node
from tiny_mesh import at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.graph import ModelNode

CRONS = (
    "*/5 * * * *",
    "7,37 * * * *",
    "@hourly",
    "0 */6 * * *",
    "@daily",
    "30 7 * * *",
    "15 3 * * 1-5",
    "@weekly",
    "@monthly",
)
OF_UNIT = {
    "year": "@yearly", "month": "@monthly", "day": "@daily", "hour": "@hourly", "half_hour": "*/30 * * * *",
    "quarter_hour": "*/15 * * * *", "five_minute": "*/5 * * * *",
}  # fmt: skip


# SQLMesh's own answer


@pytest.fixture(scope="module", autouse=True)
def _sqlmesh() -> None:
    """Import it before hypothesis watches what strategies do."""
    sqlmesh_template()


@cache
def sqlmesh_template() -> Any:
    os.environ["SQLMESH__DISABLE_ANONYMIZED_ANALYTICS"] = "true"
    from sqlglot import parse_one
    from sqlmesh.core.model import IncrementalByTimeRangeKind, SqlModel

    query = parse_one("SELECT 1 AS a, CAST(ds AS TIMESTAMP) AS ds FROM x")
    kind = IncrementalByTimeRangeKind(time_column="ds")
    return SqlModel(name="db.m", kind=kind, start="2020-01-01", query=query)


def sqlmesh_snapshot(found: ModelNode, recorded: IntervalSet, last_run: datetime) -> Any:
    """A snapshot of such a model as SQLMesh's state holds it after a run."""
    from sqlmesh.core.node import IntervalUnit as Theirs
    from sqlmesh.core.snapshot import Snapshot
    from sqlmesh.utils.date import to_timestamp

    template = sqlmesh_template()
    more = {"auto_restatement_cron": found.restate_cron, "auto_restatement_intervals": found.restate_units}
    model = template.copy(
        update={
            "kind": template.kind.copy(update=more),
            "interval_unit_": Theirs(found.unit.value),
            "cron": OF_UNIT[found.unit.value],
        }
    )
    snapshot = Snapshot.from_node(model, nodes={})
    snapshot.version = "1"
    snapshot.intervals = [(to_timestamp(p.start), to_timestamp(p.end)) for p in recorded]
    snapshot.update_next_auto_restatement_ts(last_run)
    return snapshot


def sqlmesh_restates(snapshot: Any, instant: datetime) -> Interval | None:
    """What one of SQLMesh's runs restates of it; the snapshot goes on from there, its intervals as they were."""
    from sqlmesh.core.snapshot import apply_auto_restatements
    from sqlmesh.utils.date import to_datetime

    before = list(snapshot.intervals)
    found, _ = apply_auto_restatements({snapshot.snapshot_id: snapshot}, instant)
    snapshot.intervals, snapshot.pending_restatement_intervals = before, []
    pieces = [Interval(*map(to_datetime, piece)) for f in found for piece in f.pending_restatement_intervals]
    return pieces[0] if pieces else None


@st.composite
def stories(draw: st.DrawFn) -> tuple[ModelNode, IntervalSet, datetime, list[datetime]]:
    """A model, what is recorded of it, the last run, and the runs that come then."""
    unit = draw(st.sampled_from(IntervalUnit))
    begin = datetime(2025, 3, 1, tzinfo=UTC) + timedelta(minutes=draw(st.integers(0, 500_000)))
    runs, now = [], begin
    for _ in range(draw(st.integers(1, 6))):
        now += timedelta(minutes=draw(st.one_of(st.integers(1, 90), st.integers(1, 30_000))))
        runs.append(now)
    found = node(
        "m", unit, (datetime(2020, 1, 1, tzinfo=UTC), None),
        restate_cron=draw(st.sampled_from(CRONS)), restate_units=draw(st.none() | st.integers(1, 6)),
    )  # fmt: skip
    holes = draw(st.lists(st.integers(-12, 40), max_size=3))
    recorded = IntervalSet.of(unit.shift(unit.floor(begin), -draw(st.integers(0, 12))), unit.floor(begin))
    for at_unit in holes:
        start = unit.shift(unit.floor(begin), at_unit)
        recorded -= IntervalSet.of(start, unit.next(start))
    return found, recorded, begin, runs


@given(stories())
@examples(300)
def test_it_asks_when_sqlmesh_would_and_for_what_it_would_have_at_each_tick(story: Any) -> None:
    """SQLMesh restates at the same runs; and what is asked for is what it would have, had it run at each missed tick too."""
    found, recorded, answered, runs = story
    theirs = sqlmesh_snapshot(found, recorded, answered)
    for now in runs:
        restates = sqlmesh_restates(theirs, now)
        ticks = ticked(found, answered, now)
        assert (restates is not None) == (ticks is not None and bool(recorded))
        if ticks is None:
            continue
        assert (ticks.last, ticks.next) == (
            cron_floor(found.restate_cron, "UTC", now),
            cron_next(found.restate_cron, "UTC", now),
        )
        punctual = sqlmesh_snapshot(found, recorded, answered)
        # A run at each tick, and this one: those between the first and the last add nothing, as they move on.
        each = [sqlmesh_restates(punctual, t) for t in (ticks.first, ticks.last)] + [restates]
        hull = IntervalSet(piece for piece in each if piece is not None).hull
        asked = restated(found, ticks, recorded, now)
        assert (
            IntervalSet([asked] if asked else []) & recorded == IntervalSet([hull] if hull else []) & recorded
        )
        if found.unit.floor(ticks.first) == found.unit.floor(now) and asked:
            assert restates is not None
            assert IntervalSet([asked]) & recorded == IntervalSet([restates]) & recorded
        answered = ticks.last


def test_a_cron_that_never_ticks_names_its_model() -> None:
    """Also where a plan of somebody else has brought it."""
    found = node("m", IntervalUnit.HOUR, restate_cron="0 0 31 2 *")
    with pytest.raises(
        GraphError, match=r"the auto_restatement_cron of m: the cron '0 0 31 2 \*' never ticks"
    ):
        ticked(found, at(0), at(10))


# In the ledger


def nightly(**more: Any) -> MeshGraph:
    """The mesh of the stories; bronze.transactions is computed again each night at three, the last two hours of it."""
    graph = mesh_graph()
    name = fqn("bronze.transactions")
    nodes = dict(graph.nodes) | {
        name: evolve(graph[name], **{"restate_cron": "0 3 * * *", "restate_units": 24} | more)
    }
    return MeshGraph(nodes, [edge for child in nodes for edge in graph.parents(child)])


@pytest.fixture
def story(database_url: str, tmp_path: Path) -> Story:
    """Recorded up to 03:00; known since 2026-01-05T00:00."""
    found = Story(database_url, tmp_path, nightly())
    found.time("2026-01-05 03:01")
    found.upstream_until("2026-01-05T03:00")
    return found


SINCE, TICK = at(0), at(180)


def answer(
    ledger: Ledger, since: datetime = SINCE, tick: datetime = TICK, time: Interval | None = None
) -> int | None:
    return ledger.answer_ticks(
        "prod",
        fqn("bronze.transactions"),
        since,
        tick,
        time or span(60, 180),
        reason="it ticked",
        by="cron",
        origin="cron",
    )


def test_the_first_tick_is_one_that_comes(story: Story) -> None:
    """What is there when a model is first seen, or its cron is another one, is not computed again for that."""
    name = fqn("bronze.transactions")
    assert story.ledger.manifest("prod").answered == {name: at(0)}
    story.ledger.sync_environment(
        "prod", "plan-2", nightly(restate_units=3), ("upstream", "downstream"), seen_at=at(200)
    )
    assert story.ledger.manifest("prod").answered == {name: at(0)}
    story.ledger.sync_environment(
        "prod", "plan-3", nightly(restate_cron="@hourly"), ("upstream", "downstream"), seen_at=at(200)
    )
    assert story.ledger.manifest("prod").answered == {name: at(200)}
    story.ledger.sync_environment("prod", "plan-4", mesh_graph(), ("upstream", "downstream"), seen_at=at(300))
    assert story.ledger.manifest("prod").answered == {}


def test_of_all_who_see_a_tick_one_asks(story: Story) -> None:
    """However many runs there are at once."""

    def one(_: int) -> int | None:
        database = Database(story.url)
        try:
            return answer(Ledger(database))
        finally:
            database.close()

    with ThreadPoolExecutor(6) as pool:
        made = [key for key in pool.map(one, range(6)) if key is not None]
    assert len(made) == 1
    (request,) = story.ledger.requests("prod")
    assert (request.request_id, request.interval, request.state) == (made[0], span(60, 180), "open")
    assert story.ledger.manifest("prod").answered == {fqn("bronze.transactions"): TICK}


def test_a_crash_between_answer_and_request_does_neither(story: Story) -> None:
    """They are one transaction: who dies in it leaves the tick to the next one."""
    connection = psycopg2.connect(story.url)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT meshgate.answer_ticks('prod', %s, %s, %s, tstzrange(%s, %s), 'it ticked', 'cron', 'cron')",
            [fqn("bronze.transactions"), SINCE, TICK, at(60), at(180)],
        )
        assert cursor.fetchone()[0]["request"]
    connection.close()  # nothing was committed
    assert story.ledger.requests("prod") == ()
    assert answer(story.ledger) is not None
    assert len(story.ledger.requests("prod")) == 1


def test_a_tick_about_time_that_is_not_recorded_is_answered_with_nothing(story: Story) -> None:
    """It is due anyway, and will be read when it is evaluated."""
    assert answer(story.ledger, time=span(180, 240)) is None
    assert story.ledger.requests("prod") == ()
    assert story.ledger.manifest("prod").answered == {fqn("bronze.transactions"): TICK}


def test_of_a_model_there_is_one_such_request_and_nothing_of_the_last_one_is_lost(story: Story) -> None:
    """What is left of it is taken along; what is done of it is not done once more."""
    first = answer(story.ledger)
    with story.run("upstream") as lease:
        story.commit(lease, "bronze.transactions", "2026-01-05T02:00/2026-01-05T03:00")
    second = answer(story.ledger, TICK, at(200), span(150, 200))
    (request,) = story.ledger.requests("prod")
    assert (request.request_id, request.interval) == (second, span(60, 200))
    assert request.open == IntervalSet([span(60, 180)])
    with story.run("upstream") as lease:
        story.commit(lease, "bronze.transactions", "2026-01-05T01:00/2026-01-05T03:00")
    third = answer(story.ledger, at(200), at(210), span(150, 200))
    (request,) = story.ledger.requests("prod")
    assert (request.request_id, request.interval) == (third, span(150, 200))
    assert first != second != third


def test_what_somebody_cancelled_stays_so_until_the_next_tick(story: Story) -> None:
    """It was a person's decision about that one."""
    first = answer(story.ledger)
    assert first is not None
    story.ledger.cancel_request(first, "ann")
    assert answer(story.ledger) is None
    second = answer(story.ledger, TICK, at(200), span(150, 180))
    assert {(r.request_id, r.state) for r in story.ledger.requests("prod")} == {
        (first, "cancelled"),
        (second, "open"),
    }
