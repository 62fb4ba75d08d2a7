"""G5 on real tables: what upstream computes again, downstream computes again; deploys make nobody stale without need."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from command_line import answer_of
from meshgate.interval import IntervalSet
from tiny_mesh import BRONZE, SILVER, TinyMesh, at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

BRONZE_EVENTS, SILVER_EVENTS, GOLD_HOURLY = (
    '"lake"."bronze"."events"',
    '"lake"."silver"."events"',
    '"lake"."gold"."hourly"',
)


@pytest.fixture
def tiny(tmp_path: Path, postgres: LocalPostgres, extensions: None) -> TinyMesh:
    return TinyMesh(tmp_path, postgres, policies={"stale_throttle": "0s", "retry": {"first": "0s"}})


def ask(mesh: Mesh, model: str, start: float, end: float) -> None:
    """Ask for time of a model to be computed again."""
    mesh.restate(model, span(start, end), reason="the source was mended", by="tester", apply=True)


def change(tiny: TinyMesh, minute: float) -> None:
    """Let the source say something else about a minute."""
    tiny.sql(tiny.source_url, f"UPDATE events SET value = value + 100 WHERE id = {int(minute * 60)}")


def test_g5_no_silent_staleness_across_projects(tiny: TinyMesh) -> None:
    """A changed source row, and one interval asked for: everything that follows from it is computed again, once."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(180))
        change(tiny, 72)
        ask(mesh, BRONZE_EVENTS, 70, 75)
        done = mesh.run("upstream", now=at(180)).committed
        assert done == dict.fromkeys((BRONZE_EVENTS, SILVER_EVENTS), IntervalSet([span(70, 75)]))
        (gold,) = (m for p in mesh.status(now=at(180)).projects for m in p.models if m.model == GOLD_HOURLY)
        assert gold.stale == IntervalSet([span(60, 120)])
        assert mesh.run("downstream", now=at(180)).committed == {GOLD_HOURLY: IntervalSet([span(60, 120)])}
        for project in ("upstream", "downstream"):
            assert mesh.run(project, now=at(180)).state == "nothing_to_do"
        assert [request.state for request in mesh.requests()] == ["done"]
    tiny.check(180)


def test_twelve_restated_five_minute_intervals_cause_one_hourly_evaluation(tiny: TinyMesh) -> None:
    """Twelve requests, done by as many runs upstream: downstream evaluates its hour once, and both hours are right."""
    tiny.feed(0, 180)
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(180))
        before = mesh.ledger.revision()
        tiny.change(60, 120)
        for start in range(60, 120, 5):
            ask(mesh, BRONZE_EVENTS, start, start + 5)
            mesh.run("upstream", now=at(180))
        for _ in range(3):
            mesh.run("downstream", now=at(180))
        done = [
            e
            for e in mesh.ledger.events(limit=1000)
            if e["revision"] > before and e["kind"] == "interval.committed"
        ]
        assert [e["model"] for e in done].count(BRONZE_EVENTS) == 12
        assert [e["model"] for e in done].count(GOLD_HOURLY) == 1
        assert mesh.verify().differences == ()
    tiny.check(180)


def test_what_is_stale_is_told(tiny: TinyMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """`why` and `status` name the parent's interval that was computed again, and who evaluates it."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(180))
        ask(mesh, SILVER_EVENTS, 70, 75)
        mesh.run("upstream", now=at(180))
        told = mesh.why("gold.hourly", span(60, 120), now=at(180))
    (cause,) = told.causes
    assert (cause.reason, cause.detail["parent"], cause.ready) == ("stale", SILVER_EVENTS, True)
    assert cause.detail["parent_interval"].overlaps(span(70, 75))
    said = answer_of(capsys, tiny.folder, "status", "--now", "2026-01-05T03:00Z")
    line = "gold.hourly [01:00, 02:00): silver.events [01:10, 01:15) was computed again at"
    assert line in " ".join(said.out.split())
    assert "; the next run of downstream computes it again" in " ".join(said.out.split())
    answer = answer_of(capsys, tiny.folder, "status", "--json", "--now", "2026-01-05T03:00Z")
    (one,) = (s for s in answer.document["stale"] if s["model"] == GOLD_HOURLY)
    assert (one["parent"], one["accepted"], one["again_at"]) == (SILVER_EVENTS, False, None)


@pytest.mark.parametrize("breaking", [False, True])
def test_a_deploy_makes_stale_what_reads_other_data_now_and_nothing_else(
    tiny: TinyMesh, *, breaking: bool
) -> None:
    """A column more is no other data: nobody reads again. Breaking, the plan makes the readers anew, and they are fresh."""
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(180))
        changed = "value + 0 AS value FROM" if breaking else "value, 1 AS more FROM"
        tiny.write("upstream", "silver", SILVER.replace("value FROM", changed))
        done = mesh.deploy("upstream", now=at(180)).committed
        assert (GOLD_HOURLY in done) is breaking
        for project in ("upstream", "downstream"):
            assert mesh.run(project, now=at(180)).state == "nothing_to_do"
        # What comes after the deploy is noticed as before.
        change(tiny, 72)
        ask(mesh, BRONZE_EVENTS, 70, 75)
        mesh.run("upstream", now=at(180))
        assert mesh.run("downstream", now=at(180)).committed == {GOLD_HOURLY: IntervalSet([span(60, 120)])}
    rows = [row[:3] for row in tiny.table("silver.events")]
    assert rows == tiny.expected(180)["silver.events"]
    assert tiny.table("gold.hourly") == tiny.expected(180)["gold.hourly"]


def test_a_non_breaking_deploy_hides_no_staleness(tiny: TinyMesh) -> None:
    """7a: the new version is built from newer rows than the old one had read; the old one's readers are stale.

    Fails without `before` in what `after_promotion` takes from what is kept.
    """
    tiny.feed(0, 240)
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(180))
        change(tiny, 72)
        ask(mesh, BRONZE_EVENTS, 70, 75)
        told = """UPDATE meshgate.project SET manifest = manifest || '{"stale": "report"}' WHERE name = 'upstream'"""
        tiny.sql(tiny.state_url, told)
        assert mesh.run("upstream", now=at(180)).committed == {BRONZE_EVENTS: IntervalSet([span(70, 75)])}
        tiny.write("upstream", "silver", SILVER.replace("value FROM", "value, 1 AS more FROM"))
        mesh.deploy("upstream", now=at(180))
        assert mesh.run("downstream", now=at(180)).committed == {GOLD_HOURLY: IntervalSet([span(60, 120)])}
    assert tiny.table("gold.hourly") == tiny.expected(180)["gold.hourly"]


def test_a_deploy_that_looks_back_owes_no_further_lookback(tiny: TinyMesh) -> None:
    """Its plan evaluates new time together with what it looks back at; nothing before that is to be read again.

    Fails without the frontier in `RunJournal.commit`.
    """
    looking_back = BRONZE.format(source=tiny.source).replace("FALSE)", "FALSE, lookback 2)")
    tiny.write("upstream", "bronze", looking_back)
    tiny.feed(0, 180)
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(120))
        tiny.write("upstream", "silver", SILVER.replace("value FROM", "value, 1 AS more FROM"))
        done = mesh.deploy("upstream", now=at(130)).committed
        assert done[BRONZE_EVENTS] == IntervalSet([span(110, 130)])
        assert BRONZE_EVENTS not in mesh.run("upstream", now=at(130)).committed
