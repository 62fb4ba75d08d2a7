"""G6 on real tables: what plain SQLMesh adds, removes, or computes again, and its janitor, are told apart, and healed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from duck_mesh import DuckMesh, Rows, copied, naive
from meshgate.coordinator.progress import Batch
from meshgate.interval import IntervalSet
from meshgate.mesh import Mesh
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from meshgate.coordinator.progress import Progress
    from meshgate.coordinator.reconcile import Finding
    from meshgate.local_postgres import LocalPostgres

BASE, FULL, SUM = '"house"."lake"."base"', '"house"."lake"."whole"', '"house"."lake"."reader"'
PROJECTS = ("upstream", "downstream")
HOURS = 3


@pytest.fixture
def duck(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """Upstream, hourly, from the source: a table with a lookback of two, one that is refreshed whole. Downstream: a reader."""
    whole = "MODEL (name lake.whole, kind FULL, cron '@hourly');\nSELECT id, ts, value FROM raw.events"
    duck = DuckMesh(
        tmp_path, postgres,
        upstream={"base": copied("lake.base", "raw.events", kind="lookback 2"), "whole": whole},
        downstream={"reader": copied("lake.reader", "lake.base")},
    )  # fmt: skip
    configure(duck)
    duck.feed(0, 60 * HOURS)
    with duck.mesh() as mesh:
        for project in PROJECTS:
            mesh.deploy(project, now=at(60 * HOURS))
    return duck


def configure(duck: DuckMesh, **policy: str) -> None:
    """What both projects declare."""
    duck.write_mesh({p: {"stale_throttle": "0s", **policy} for p in PROJECTS})


def source(duck: DuckMesh, upto: float) -> Rows:
    """What each table holds when everything before an instant is done."""
    return duck.sql("SELECT id, ts, value FROM raw.events WHERE ts < ? ORDER BY id", [naive(upto)])


def plain_run(duck: DuckMesh, minutes: float, *, environment: str = "prod", **more: Any) -> None:
    """Plain `sqlmesh run` of upstream's models; in production its janitor compacts the record."""
    chosen = {"select_models": ["lake.base", "lake.whole"], "no_auto_upstream": True, **more}
    with TinyMesh.plain(duck, "upstream") as context:  # type: ignore[arg-type]
        assert not context.run(environment, execution_time=at(minutes), **chosen).is_failure


def plain_restates(duck: DuckMesh, start: float, end: float, now: float) -> None:
    """A restating plan of plain SQLMesh, of upstream's first table alone."""
    with TinyMesh.plain(duck, "upstream", load=True) as context:  # type: ignore[arg-type]
        context.plan(
            "prod", restate_models=["lake.base"], start=at(start), end=at(end - 0.01), execution_time=at(now),
            backfill_models=["lake.base"], auto_apply=True, no_prompts=True, skip_tests=True,
        )  # fmt: skip


def remove(duck: DuckMesh, start: float, end: float) -> None:
    """Somebody removes time of upstream's first table from SQLMesh's record."""
    with TinyMesh.plain(duck, "upstream") as context:  # type: ignore[arg-type]
        state = context.state_sync
        (info,) = (s for s in state.get_environment("prod").snapshots if s.name == BASE)
        snapshot = state.get_snapshots([info])[info.snapshot_id]
        time = (int(at(start).timestamp() * 1000), int(at(end).timestamp() * 1000))
        state.remove_intervals([(snapshot, time)])


def run(mesh: Mesh, project: str, minutes: float) -> tuple[Mapping[str, IntervalSet], set[tuple[str, str]]]:
    """What a run records, and what it has found."""
    report = mesh.run(project, now=at(minutes))
    return report.committed, told(report.findings)


def told(findings: tuple[Finding, ...]) -> set[tuple[str, str]]:
    """Findings without their time."""
    return {(f.model, f.what) for f in findings}


def rest(duck: DuckMesh, mesh: Mesh, minutes: float) -> None:
    """Nothing is left to do or to find, and each table holds what the source does."""
    for project in (*PROJECTS, *PROJECTS):
        run(mesh, project, minutes)
    for project in PROJECTS:
        assert run(mesh, project, minutes) == ({}, set())
        assert mesh.run(project, now=at(minutes)).state == "nothing_to_do"
    # Nobody asks for the whole table where its source says something else about the past.
    for table in ("base", "reader", *(["whole"] if minutes > 60 * HOURS else [])):
        assert duck.table(f"lake.{table}") == source(duck, minutes), table


def test_a_foreign_addition_counts_as_rewriting_the_lookback(duck: DuckMesh) -> None:
    """Late rows of two hours ago come, plain SQLMesh reads them by its lookback, and the reader follows.

    Fails without `_again` in reconciliation: SQLMesh's record shows the new hour alone.
    """
    duck.set_value(70, 50)
    duck.feed(180, 240)
    plain_run(duck, 240)
    assert duck.table("lake.base") == source(duck, 240)
    with duck.mesh() as mesh:
        report = mesh.run("upstream", now=at(240))
        found = {(f.model, f.what, f.interval) for f in report.findings}
        assert (BASE, "added", span(180, 240)) in found
        assert (BASE, "suspect", span(60, 180)) in found
        assert (FULL, "suspect") in told(report.findings)
        assert report.committed[BASE] >= IntervalSet([span(60, 180)])
        assert run(mesh, "downstream", 240)[0] == {SUM: IntervalSet([span(60, 240)])}
        rest(duck, mesh, 240)


@pytest.mark.parametrize("policy", ["report", "suspect"])
def test_what_is_computed_again_without_an_addition_is_told(duck: DuckMesh, policy: str) -> None:
    """A restating plan leaves no trace but the time of the last write: told by default, all done again where wished."""
    configure(duck, foreign_rewrite=policy)
    with duck.mesh() as mesh:
        for project in PROJECTS:
            mesh.deploy(project, now=at(180))
    duck.set_value(70, 50)
    plain_restates(duck, 60, 120, 180)
    assert duck.table("lake.base") == source(duck, 180)
    with duck.mesh() as mesh:
        report = mesh.run("upstream", now=at(180))
        assert (BASE, "rewritten", None) in {(f.model, f.what, f.interval) for f in report.findings}
        assert (FULL, "rewritten") not in told(report.findings)
        if policy == "suspect":
            assert report.committed == {BASE: IntervalSet([span(0, 180)])}
            assert run(mesh, "downstream", 180)[0] == {SUM: IntervalSet([span(0, 180)])}
        else:
            assert report.committed == {}
            # Whoever reads the report can say what was computed again.
            mesh.restate("lake.base", span(60, 120), reason="restated by hand", by="tester", apply=True)
        rest(duck, mesh, 180)


def test_the_janitor_is_nobody(duck: DuckMesh) -> None:
    """Compaction rewrites the rows of SQLMesh's record, and is found to have done nothing."""
    with duck.mesh() as mesh:
        mesh.run("upstream", now=at(180))
    with TinyMesh.plain(duck, "upstream") as context:  # type: ignore[arg-type]
        context.run_janitor(ignore_ttl=True)
    with duck.mesh() as mesh:
        for project in PROJECTS:
            assert run(mesh, project, 180) == ({}, set())
        duck.feed(180, 240)
        assert set(run(mesh, "upstream", 240)[0]) == {BASE, FULL}
        rest(duck, mesh, 240)


def test_what_is_removed_is_computed_again(duck: DuckMesh) -> None:
    """An interval that somebody removes from SQLMesh's record is due again, and is not called rewritten."""
    duck.set_value(70, 50)
    remove(duck, 60, 120)
    with duck.mesh() as mesh:
        committed, found = run(mesh, "upstream", 180)
        assert found == {(BASE, "removed")}
        assert committed[BASE] >= IntervalSet([span(60, 120)])
        rest(duck, mesh, 180)


def removing(duck: DuckMesh, start: float, end: float) -> Callable[[Progress], None]:
    """Somebody removes time of the first table from SQLMesh's record as soon as a run has begun to evaluate it."""
    left = [(start, end)]

    def tell(what: Progress) -> None:
        if left and isinstance(what, Batch) and (what.model, what.what) == (BASE, "begun"):
            left.clear()
            remove(duck, start, end)

    return tell


@pytest.mark.parametrize("janitor", [False, True])
def test_what_is_removed_while_it_is_evaluated_is_computed_again(duck: DuckMesh, *, janitor: bool) -> None:
    """The evaluation writes it back into SQLMesh's record, so that nothing lacks there; the removal is not lost for that."""
    with duck.mesh() as mesh:
        mesh.restate("lake.base", span(60, 120), reason="odd", by="tester", apply=True)
    with Mesh.open(duck.folder, tell=removing(duck, 60, 120)) as mesh:
        report = mesh.run("upstream", now=at(180))
        assert report.committed == {BASE: IntervalSet([span(60, 120)])}
        assert {(f.model, f.what, f.interval) for f in report.findings} == {(BASE, "removed", span(60, 120))}
    if janitor:
        with TinyMesh.plain(duck, "upstream") as context:  # type: ignore[arg-type]
            context.run_janitor(ignore_ttl=True)
    duck.set_value(70, 50)
    with duck.mesh() as mesh:
        assert run(mesh, "upstream", 180) == ({BASE: IntervalSet([span(60, 120)])}, set())
        rest(duck, mesh, 180)


def test_what_is_removed_while_it_is_evaluated_for_the_first_time_is_computed_again(duck: DuckMesh) -> None:
    """Nothing is recorded of it yet; whoever removed it wants it computed later than it was."""
    duck.feed(180, 240)
    with Mesh.open(duck.folder, tell=removing(duck, 180, 240)) as mesh:
        report = mesh.run("upstream", now=at(240))
        assert (BASE, "removed", span(180, 240)) in {(f.model, f.what, f.interval) for f in report.findings}
    duck.set_value(190, 50)
    with duck.mesh() as mesh:
        assert run(mesh, "upstream", 240)[0] == {BASE: IntervalSet([span(180, 240)])}
        assert run(mesh, "upstream", 240) == ({}, set())


def test_what_was_removed_and_computed_again_by_others_is_not_taken_for_untouched(duck: DuckMesh) -> None:
    """Plain SQLMesh removes an hour and computes it again before anybody looks: its record is as it was."""
    duck.set_value(70, 50)
    remove(duck, 60, 120)
    plain_run(duck, 180, skip_janitor=True)
    with duck.mesh() as mesh:
        committed, found = run(mesh, "upstream", 180)
        assert found == {(BASE, "removed")}
        assert committed == {BASE: IntervalSet([span(60, 120)])}
        rest(duck, mesh, 180)


def test_a_second_plain_run_without_work_is_not_told(duck: DuckMesh) -> None:
    """`sqlmesh run` with nothing due changes nothing that is found; nor do our own runs and deploys."""
    plain_run(duck, 180)
    with duck.mesh() as mesh:
        for project in PROJECTS:
            assert run(mesh, project, 180) == ({}, set())
        duck.feed(180, 300)
        for minutes in (240, 300):
            for project in PROJECTS:
                assert run(mesh, project, minutes)[1] == set()
        duck.write(
            "upstream",
            "base",
            copied("lake.base", "raw.events", kind="lookback 2").replace(
                "value FROM", "value, 1 AS more FROM"
            ),
        )
        mesh.deploy("upstream", now=at(300))
        for project in PROJECTS:
            assert run(mesh, project, 300)[1] == set()


def test_a_plain_plan_of_a_development_environment_is_not_a_rewrite(duck: DuckMesh) -> None:
    """A preview has a table of its own: production's was not written. A dev run of what is shared is an addition."""
    with TinyMesh.plain(duck, "upstream", load=True) as context:  # type: ignore[arg-type]
        context.plan("dev", include_unmodified=True, execution_time=at(180), auto_apply=True, no_prompts=True)
    with duck.mesh() as mesh:
        assert run(mesh, "upstream", 180) == ({}, set())
    duck.set_value(130, 50)
    duck.feed(180, 240)
    plain_run(duck, 240, environment="dev", select_models=["lake.base"])
    with duck.mesh() as mesh:
        _, found = run(mesh, "upstream", 240)
        assert found == {(BASE, "added"), (BASE, "suspect")}
        rest(duck, mesh, 240)
