"""`status`, `why` and `gate` on a real ledger: what keeps an interval back, down to the root, as data."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from ledger_story import Story, fqn, mesh_graph, node
from meshgate.errors import ConfigError, IntervalError, NotDeployedError, UnknownModelError
from meshgate.interval import Interval, IntervalSet
from meshgate.report import data

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from meshgate.coordinator.causes import Cause
    from meshgate.coordinator.explain import GateAnswer, Why
    from meshgate.coordinator.status import ModelStatus, Status

HOUR = "2026-01-05T03:00/2026-01-05T04:00"
POISONED = "2026-01-05T03:10/2026-01-05T03:15"


@pytest.fixture
def story(database_url: str, tmp_path: Path) -> Story:
    """The mesh of `ledger_story`, promoted, with nothing recorded."""
    return Story(database_url, tmp_path)


def why(story: Story, model: str, interval: str | None = None, **options: Any) -> Why:
    with story.mesh() as mesh:
        return mesh.why(model, Interval.parse(interval) if interval else None, **options)


def gate(story: Story, model: str, interval: str) -> GateAnswer:
    with story.mesh() as mesh:
        return mesh.gate(model, Interval.parse(interval))


def status(story: Story) -> Status:
    with story.mesh() as mesh:
        return mesh.status()


def model_status(found: Status, name: str) -> ModelStatus:
    return next(m for p in found.projects for m in p.models if m.model == fqn(name))


def span(text: str) -> IntervalSet:
    return IntervalSet([Interval.parse(text)])


def chain(causes: Iterable[Cause]) -> list[tuple[str, str]]:
    """Model and reason down the first branch."""
    found: list[tuple[str, str]] = []
    causes = tuple(causes)
    while causes:
        found.append((causes[0].model, causes[0].reason))
        causes = causes[0].because
    return found


# G8


def test_g8_why_for_a_blocked_hour_names_the_failed_interval_its_project_the_audit_its_count_and_the_remedy(
    story: Story,
) -> None:
    """The root is the poisoned five minutes of the other project, two models away, with all its facts as data."""
    story.poisoned()
    found = why(story, "gold.fact_sales", HOUR)
    assert found.state == "blocked"
    assert chain(found.causes) == [
        (fqn("gold.fact_sales"), "late"),
        (fqn("silver.orders"), "missing"),
        (fqn("bronze.transactions"), "failed"),
    ]
    (root,) = found.roots
    assert (root.model, root.project, root.time) == (fqn("bronze.transactions"), "upstream", span(POISONED))
    assert root.detail["audits"] == [{"audit": "not_null", "count": 3}]
    assert (root.detail["attempts"], root.detail["run_id"]) == (2, 4)
    assert root.remedy == (
        "repair the rows that the audit rejects; `meshgate run upstream` evaluates it again after the pause, or at once "
        "after `meshgate retry bronze.transactions`"
    )


def test_g8_status_tells_each_root_cause_once_with_all_that_it_keeps_back(story: Story) -> None:
    """One poisoned interval is one wait, whatever the number of models and projects behind it."""
    story.poisoned()
    found = status(story)
    (wait,) = found.waits
    assert [c.model for c in wait.causes] == [fqn("bronze.transactions")]
    assert wait.waiting == (
        (fqn("silver.orders"), "upstream", span(POISONED)),
        (fqn("gold.fact_sales"), "downstream", span(HOUR)),
        (fqn("gold.sales_by_hour"), "downstream", span(HOUR)),
    )
    assert [p.project for p in found.projects] == ["upstream", "downstream"]
    poisoned = model_status(found, "bronze.transactions")
    assert (poisoned.failing, poisoned.ready, poisoned.late) == (
        span(POISONED),
        IntervalSet(),
        timedelta(minutes=47),
    )
    assert model_status(found, "silver.orders").blocked == span(POISONED)
    assert model_status(found, "gold.dim_customer").late is None
    assert {p.project: p.runs.last.state for p in found.projects if p.runs.last} == {
        "upstream": "failed",
        "downstream": "done",
    }


def test_g8_the_gate_names_the_parents_time_that_closes_it(story: Story) -> None:
    """Not ready, with the one stretch of the one parent; and it asks no root."""
    story.poisoned()
    answer = gate(story, "fact_sales", HOUR)
    assert (answer.ready, answer.open) == (False, IntervalSet())
    (entry,) = answer.blocked
    assert (entry.parent, entry.parent_project, str(entry.span)) == (
        fqn("silver.orders"),
        "upstream",
        "[2026-01-05 03:10, 03:15)",
    )


# Why: how an interval came to be


def test_why_tells_how_a_recorded_interval_came_to_be(story: Story) -> None:
    """Run, instant, revisions, verdict, audits, duration and rows of what is recorded."""
    story.time("2026-01-05 04:01")
    audits = [
        {"audit": "not_null", "count": 0, "blocking": True},
        {"audit": "odd", "count": 2, "blocking": False},
    ]
    with story.run("upstream") as lease:
        story.commit(
            lease,
            "silver.orders",
            HOUR,
            verdict="warned",
            audits=audits,
            duration=timedelta(seconds=2),
            rows=7,
        )
    found = why(story, "silver.orders", HOUR)
    assert (found.state, found.causes, found.roots) == ("recorded", (), ())
    (row,) = found.recorded
    assert (row.run_id, row.verdict, row.duration, row.rows) == (1, "warned", timedelta(seconds=2), 7)
    assert (row.committed_at, list(row.audits)) == (story.now, audits)
    assert row.read_revision < row.revision


def test_why_without_an_interval_explains_the_oldest_that_is_not_as_it_should_be(story: Story) -> None:
    """The hole of hour one before the missing hours at the end; or that all is well, and when the next is due."""
    story.time("2026-01-05 04:02")
    story.upstream_until("2026-01-05T03:00", without="2026-01-05T01:10/2026-01-05T01:15")
    found = why(story, "orders")
    assert str(found.interval) == "[2026-01-05 01:10, 01:15)"
    assert found.others == span(HOUR)
    well = why(story, "bronze.customers", now=story.now.replace(hour=3, minute=0))
    assert (well.state, well.interval, str(well.next_due)) == ("recorded", None, "2026-01-05 03:05:00+00:00")


# Why: late, begun, lost, suspect, not due


def test_a_late_parent_is_ready_and_its_projects_runs_are_told(story: Story) -> None:
    """Nobody ran upstream: that is the root, with its last run, that none is live, and the command to type."""
    story.time("2026-01-05 03:01")
    story.upstream_until("2026-01-05T03:00")
    story.time("2026-01-05 04:02")
    found = why(story, "fact_sales", HOUR)
    (root,) = found.roots
    assert (root.model, root.reason, root.ready) == (fqn("bronze.transactions"), "late", True)
    assert root.remedy == "`meshgate run upstream` evaluates it"
    upstream = next(r for r in found.runs if r.project == "upstream")
    assert upstream.live is None
    assert upstream.last is not None
    assert upstream.last.run_id == 1


def test_what_the_next_run_of_a_project_does_in_order_is_not_blocked(story: Story) -> None:
    """Between two ticks everything is late and nothing is wrong: no wait inside one project."""
    story.time("2026-01-05 00:05:30")
    found = why(story, "silver.orders")
    assert found.state == "ready"
    assert status(story).waits == ()
    assert model_status(status(story), "silver.orders").ready == span("2026-01-05/2026-01-05T00:05")


def test_one_errand_is_one_wait(story: Story) -> None:
    """Everything that one run of upstream would do is told once, though it is three models."""
    story.time("2026-01-05 04:02")
    (wait,) = status(story).waits
    assert {c.model for c in wait.causes} == {fqn("bronze.transactions"), fqn("bronze.customers")}
    assert {w[0] for w in wait.waiting} == {
        fqn(m) for m in ("gold.fact_sales", "gold.sales_by_hour", "gold.dim_customer")
    }


def test_a_begun_parent_names_the_run_its_holder_and_its_lease(story: Story) -> None:
    """Who evaluates it now, where, and until when the lease lasts; after that, that the next run takes over."""
    story.time("2026-01-05 04:02")
    lease = story.acquire("upstream")
    story.begin(lease, "bronze.transactions", "2026-01-05/2026-01-05T04:00")
    (root,) = why(story, "fact_sales", HOUR).roots
    assert (root.reason, root.detail["run_id"], root.detail["pid"], root.detail["host"]) == (
        "begun",
        1,
        4711,
        "worker-1",
    )
    assert root.remedy == "wait for run 1 to end"
    story.time("2026-01-05 04:04")
    (root,) = why(story, "fact_sales", HOUR).roots
    assert (root.detail["expired"], root.remedy) == (True, "`meshgate run upstream` takes over")


def test_a_lost_run_may_still_write_and_then_its_time_is_suspect(story: Story) -> None:
    """In quarantine until the grace is over; then suspect, and the next run evaluates it again."""
    story.time("2026-01-05 04:02")
    story.begin(story.acquire("upstream"), "bronze.transactions", "2026-01-05/2026-01-05T04:00")
    story.time("2026-01-05 04:04")
    with story.run("downstream"):
        (root,) = why(story, "fact_sales", HOUR).roots
    assert (root.reason, root.detail["claim"]) == ("begun", "lost")
    assert "may still write until then" in (root.remedy or "")
    story.time("2026-01-05 05:00")
    (root,) = why(story, "fact_sales", HOUR).roots
    assert (root.reason, root.ready) == ("suspect", True)
    assert root.remedy == "the next `meshgate run upstream` evaluates it again"
    assert model_status(status(story), "bronze.transactions").suspect == span("2026-01-05/2026-01-05T04:00")


def test_late_not_due_and_outside_its_history_are_different_answers(story: Story) -> None:
    """An hour to come has an instant at which it is due; one before the model's start never comes."""
    story.time("2026-01-05 04:02")
    (cause,) = why(story, "fact_sales", "2026-01-05T05:00/2026-01-05T06:00").causes
    assert (cause.reason, str(cause.detail["due_at"])) == ("not_due", "2026-01-05 06:00:00+00:00")
    (cause,) = why(story, "fact_sales", "2026-01-04T05:00/2026-01-04T06:00").causes
    assert (cause.reason, cause.detail["cause"]) == ("not_due", "it lies outside the model's history")


def test_a_parent_that_is_not_due_yet_says_when(database_url: str, tmp_path: Path) -> None:
    """An hourly reader of a daily parent waits for the end of the day, which is nobody's fault."""
    graph = mesh_graph(
        more=[node("silver.daily", "upstream", "day"), node("gold.by_day", "downstream", "hour")],
        reads=[("gold.by_day", "silver.daily")],
    )
    story = Story(database_url, tmp_path, graph)
    story.time("2026-01-05 04:02")
    (root,) = why(story, "gold.by_day").roots
    assert (root.model, root.reason, root.remedy) == (fqn("silver.daily"), "not_due", "wait until it is due")
    assert str(root.detail["due_at"]) == "2026-01-06 00:00:00+00:00"


# What SQLMesh did behind our back, lookback


def test_removed_and_suspect_time_says_what_happened_to_it(story: Story) -> None:
    """What plain SQLMesh removed is evaluated again by the next run; recorded rows are shown beside the cause."""
    story.time("2026-01-05 04:02")
    story.upstream_until("2026-01-05T04:00")
    version = story.ids[fqn("silver.orders")]
    whole = IntervalSet([Interval.parse("2026-01-05/2026-01-05T04:00")])
    story.ledger.reconcile_version(version, whole, trusted=IntervalSet(), gated=True, read_at=story.now)
    story.time("2026-01-05 04:03")
    story.ledger.reconcile_version(
        version, whole - span(POISONED), trusted=IntervalSet(), gated=True, read_at=story.now
    )
    found = why(story, "silver.orders")
    assert (found.state, str(found.interval), len(found.recorded)) == (
        "removed",
        "[2026-01-05 03:10, 03:15)",
        1,
    )
    (root,) = why(story, "fact_sales", HOUR).roots
    assert (root.reason, root.project) == ("removed", "upstream")
    assert root.remedy == "the next `meshgate run upstream` evaluates it again"


def test_lookback_alone_is_no_trouble(story: Story) -> None:
    """Time that is to be read again for late rows is shown on its model, and is no wait."""
    story.time("2026-01-05 04:02")
    story.upstream_until("2026-01-05T04:00")
    with story.run("downstream") as lease:
        for model in ("gold.fact_sales", "gold.sales_by_hour", "gold.dim_customer"):
            story.commit(lease, model, "2026-01-05/2026-01-05T04:00")
    story.time("2026-01-05 04:05:30")
    with story.run("upstream") as lease:
        for model in ("bronze.customers", "silver.orders"):
            story.commit(lease, model, "2026-01-05T04:00/2026-01-05T04:05")
        story.commit(
            lease,
            "bronze.transactions",
            "2026-01-05T04:00/2026-01-05T04:05",
            lookback=Interval.parse("2026-01-05T03:55/2026-01-05T04:00"),
        )
    found = status(story)
    assert model_status(found, "bronze.transactions").requested == span("2026-01-05T03:55/2026-01-05T04:00")
    assert found.waits == ()
    assert why(story, "bronze.transactions").state == "marked"


# Questions that cannot be answered


def test_an_interval_that_is_not_aligned_is_refused_with_the_nearest_one_that_is(story: Story) -> None:
    """Half an hour of an hourly model: exit code 2, and what was probably meant."""
    for ask in (why, gate):
        with pytest.raises(IntervalError) as caught:
            ask(story, "fact_sales", "2026-01-05T03:30/2026-01-05T04:00")
        assert caught.value.exit_code == 2
        assert "2026-01-05T03:00/2026-01-05T04:00" in (caught.value.hint or "")


def test_unknown_names_are_refused_with_the_nearest(story: Story) -> None:
    """A model that does not exist, an environment where nothing was deployed."""
    with pytest.raises(UnknownModelError) as caught:
        why(story, "gold.fact_sale")
    assert "gold.fact_sales" in (caught.value.hint or "")
    with pytest.raises(NotDeployedError), story.mesh() as mesh:
        mesh.status(environment="dev")
    with pytest.raises(ConfigError), story.mesh() as mesh:
        mesh.status(now=story.now + timedelta(days=1))


def test_projects_in_several_environments_need_the_environment_to_be_named(story: Story) -> None:
    """There is no environment of the mesh that could be guessed; naming one is enough."""
    path = story.folder / "meshgate.yaml"
    found = json.loads(path.read_text())
    found["projects"][0]["environment"] = "dev"
    path.write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="several environments: dev, prod"):
        status(story)
    with story.mesh() as mesh:
        assert mesh.status(environment="prod").environment == "prod"


def test_the_gate_ignores_what_is_recorded_of_the_model_itself(story: Story) -> None:
    """It is about what would be read: a recorded hour can be closed, one that is not recorded open."""
    story.time("2026-01-05 04:02")
    story.upstream_until("2026-01-05T04:00")
    assert gate(story, "fact_sales", HOUR).ready
    with story.run("downstream") as lease:
        story.commit(lease, "gold.fact_sales", HOUR)
    story.time("2026-01-05 04:03")
    with story.run("upstream", "failed") as lease:
        story.fail(lease, "silver.orders", POISONED)
    answer = gate(story, "fact_sales", HOUR)
    assert not answer.ready
    assert [(b.reason, b.detail["audits"][0]["count"]) for b in answer.blocked] == [("failed", 3)]
    assert why(story, "fact_sales", HOUR).state == "recorded"


# JSON


def test_documents_are_plain_json_with_schema_version_and_utc_instants(story: Story) -> None:
    """Each carries its schema's name and version; instants end in Z, intervals are start and end."""
    story.poisoned()
    documents = [
        data.status(status(story)),
        data.why(why(story, "fact_sales", HOUR)),
        data.gate(gate(story, "fact_sales", HOUR)),
    ]
    for found, name in zip(documents, ("status", "why", "gate"), strict=True):
        assert json.loads(data.dumped(found)) == found
        assert (found["schema"], found["version"]) == (f"meshgate.{name}", 1)
        assert found["now"] == "2026-01-05T04:02:00Z"
    root = documents[1]["roots"][0]
    assert root["intervals"] == [{"start": "2026-01-05T03:10:00Z", "end": "2026-01-05T03:15:00Z"}]
    assert root["message"] == (
        "audit `not_null` failed for 3 rows (tried 2 times, run 4 at 2026-01-05 04:01:02Z, "
        "next try 2026-01-05 04:03:02Z)"
    )
    assert documents[0]["projects"][1]["models"][0]["recorded_upto"] == "2026-01-05T04:00:00Z"


def test_the_whole_of_time_has_no_ends_in_json() -> None:
    """An open end is null, not the year 9999."""
    assert data.plain(Interval.parse("0001-01-01/9999-01-01")) == {"start": None, "end": None}
