"""Standalone audits under the ledger: real SQLMesh, DuckDB and Postgres."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from duck_mesh import DuckMesh, copied
from ledger_story import Story, fqn, mesh_graph, node
from meshgate.coordinator.allowance import allowance
from meshgate.coordinator.staleness import Policy
from meshgate.errors import LeaseLostError, MeshgateError, ProjectError
from meshgate.graph import Kind, MeshGraph
from meshgate.interval import Interval, IntervalSet
from meshgate.ledger import Judged
from tiny_mesh import at, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.coordinator.run import RunReport
    from meshgate.ledger import Lease
    from meshgate.local_postgres import LocalPostgres

A, B, C, GOLD = (f'"house"."{name}"' for name in ('lake"."a', 'lake"."b', 'lake"."c', 'gold"."g'))
WHOLE_B = "MODEL (name lake.b, kind FULL, cron '@hourly'); SELECT id, ts, value FROM raw.events"


def audit(name: str, where: str, cron: str = "@hourly", more: str = "") -> str:
    """The file of a standalone audit over an interval."""
    return (
        f"AUDIT (name {name}, standalone TRUE, cron '{cron}'{more});\n"
        f"SELECT * FROM {where} AND ts >= @start_dt AND ts < @end_dt"
    )


def mesh_of(
    folder: Path,
    postgres: LocalPostgres,
    *,
    audits: dict[str, str],
    b: str = "",
    policy: str = "pass",
    **files: str,
) -> DuckMesh:
    """`a` from the source, `b` and `c` from `a`; `gold.g` of the other project reads `b`; ten hours of source."""
    folder.mkdir(exist_ok=True)
    models = {
        "a": copied("lake.a", "raw.events"),
        "b": b or copied("lake.b", "lake.a"),
        "c": copied("lake.c", "lake.a"),
    }
    found = {f"audits/{name}.sql": text for name, text in audits.items()}
    duck = DuckMesh(
        folder, postgres, upstream=models | found, downstream={"g": copied("gold.g", "lake.b"), **files}
    )
    duck.write_mesh(
        {name: {"stale_throttle": "0s", "on_audit_warning": policy} for name in ("upstream", "downstream")}
    )
    duck.feed(0, 600)
    return duck


def deploy(mesh: Any, now: float) -> None:
    for project in ("upstream", "downstream"):
        assert mesh.deploy(project, now=at(now)).state == "done"


def told(report: RunReport) -> list[tuple[str, Interval, int]]:
    """What was warned of: who, when, how many rows."""
    return [(w.model, w.interval, a["count"]) for w in report.warned for a in w.detail["audits"]]


def held(mesh: Any, now: float) -> dict[str, IntervalSet]:
    found: dict[str, IntervalSet] = {}
    for model, _, hold in mesh.status(now=at(now)).holds:
        found[model] = found.get(model, IntervalSet()) | IntervalSet([hold.interval])
    return found


def both(name: str = "both", cron: str = "@hourly") -> dict[str, str]:
    """An audit of two models."""
    query = "(SELECT b.* FROM lake.b AS b JOIN lake.c AS c USING (id) WHERE b.value < 0 OR c.value < 0) AS x WHERE TRUE"
    return {name: audit(name, query, cron)}


# Recorded and told


def test_what_it_rejects_is_recorded_and_told_and_closes_no_gate(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """By the run, the status, `why` and the history; the reader in the other project goes on, and the exit code is 0."""
    duck = mesh_of(tmp_path, postgres, audits={"alone": audit("alone", "lake.b WHERE value < 0")})
    with duck.mesh() as mesh:
        deploy(mesh, 120)
        duck.set_value(130, -4)
        report = mesh.run("upstream", now=at(181))
        assert (report.state, report.exit_code) == ("done", 0)
        assert told(report) == [("alone", span(120, 180), 1)]
        assert report.committed["alone"] == IntervalSet([span(120, 180)])
        (status,) = (m for p in mesh.status(now=at(181)).projects for m in p.models if m.model == "alone")
        assert (status.kind, status.warned, status.ready) == (
            "audit",
            IntervalSet([span(120, 180)]),
            IntervalSet(),
        )
        rows = mesh.ledger.coverage_rows(mesh.ledger.manifest("prod").version_id("alone"), span(0, 180))
        assert [(r.interval, r.verdict, r.audits[0]["count"]) for r in rows] == [
            (span(0, 120), "passed", 0),
            (span(120, 180), "warned", 1),
        ]
        assert mesh.why("alone", span(120, 180), now=at(181)).state == "recorded"
        events = [e for e in mesh.ledger.events() if e["model"] == "alone"]
        assert [e["detail"]["verdict"] for e in events] == ["warned", "passed"]
        assert held(mesh, 181) == {}
        assert mesh.run("downstream", now=at(181)).committed == {GOLD: IntervalSet([span(120, 180)])}
        assert mesh.run("upstream", now=at(182)).state == "nothing_to_do"


@pytest.mark.slow
@pytest.mark.parametrize("cron", ["@hourly", "30 */2 * * *", "@daily"])
def test_it_is_asked_about_what_plain_sqlmesh_asks_about(
    tmp_path: Path, postgres: LocalPostgres, cron: str
) -> None:
    """At the same instants SQLMesh's record of it is the one that SQLMesh alone makes of the same project."""
    instants = (181, 215, 395, 24 * 60 + 31, 24 * 60 + 95)
    texts = {"alone": audit("alone", "lake.b WHERE value < 0", cron)}
    ours, theirs = (mesh_of(tmp_path / name, postgres, audits=texts) for name in ("ours", "theirs"))
    with ours.mesh() as mesh:
        assert mesh.deploy("upstream", now=at(120)).state == "done"
        recorded = [sqlmesh_record(ours)]
        for now in instants:
            mesh.run("upstream", now=at(now))
            recorded.append(sqlmesh_record(ours))
    with plain(theirs, load=True) as context:
        context.plan("prod", execution_time=at(120), auto_apply=True, no_prompts=True)
    alone = [sqlmesh_record(theirs)]
    for now in instants:
        with plain(theirs) as context:
            context.run("prod", execution_time=at(now), skip_janitor=True)
        alone.append(sqlmesh_record(theirs))
    assert recorded == alone
    assert recorded[-1]


@contextmanager
def plain(duck: DuckMesh, *, load: bool = False) -> Iterator[Any]:
    """SQLMesh as somebody else would use it."""
    from sqlmesh.core.console import NoopConsole, get_console, set_console
    from sqlmesh.core.context import Context

    before = get_console()
    set_console(NoopConsole())
    context = Context(paths=[str(duck.folder / "upstream")], load=load)
    try:
        yield context
    finally:
        context.close()
        set_console(before)


def sqlmesh_record(duck: DuckMesh) -> IntervalSet:
    """What SQLMesh's state says the audit was asked about."""
    from meshgate.bridge.translate import interval_set

    with plain(duck) as context:
        snapshots = context.state_sync.get_snapshots(context.state_sync.get_environment("prod").snapshots)
        return next(interval_set(s.intervals) for s in snapshots.values() if s.is_audit)


def test_it_waits_for_what_it_reads_and_fails_like_a_model(tmp_path: Path, postgres: LocalPostgres) -> None:
    """What its parent lacks it is not asked about; a query that breaks fails the run, and stands alone."""
    texts = {"alone": audit("alone", "lake.b WHERE CASE WHEN value = 5 THEN error('five') ELSE FALSE END")}
    duck = mesh_of(
        tmp_path,
        postgres,
        audits=texts,
        b=copied("lake.b", "lake.a", model="audits (not_null(columns := (value)))"),
    )
    with duck.mesh() as mesh:
        deploy(mesh, 120)
        duck.sql("UPDATE raw.events SET value = NULL WHERE id = 130")
        report = mesh.run("upstream", now=at(181))
        assert [f.model for f in report.failed] == [B]
        assert "alone" not in report.committed
        assert {(b.model, b.parent) for b in report.blocked if b.model == "alone"} == {("alone", B)}
        duck.set_value(130, 5)
        mesh.restate("lake.a", span(120, 180), by="ann", apply=True)
        report = mesh.run("upstream", now=at(182))
        assert [f.model for f in report.failed] == ["alone"]
        assert (report.exit_code, set(report.committed)) == (1, {A, B, C})
        duck.set_value(130, 6)
        mesh.restate("lake.a", span(120, 180), by="ann", apply=True)
        report = mesh.run("upstream", now=at(183))
        assert report.failed == ()
        assert report.committed["alone"] == IntervalSet([span(120, 180)])


# Held


def test_by_policy_what_it_reads_is_held_until_it_passes(tmp_path: Path, postgres: LocalPostgres) -> None:
    """Both tables that it reads: also the one that nobody has made anew meanwhile, and what is held is judged again."""
    duck = mesh_of(tmp_path, postgres, audits=both(), policy="hold")
    with duck.mesh() as mesh:
        deploy(mesh, 120)
        duck.set_value(130, -4)
        report = mesh.run("upstream", now=at(181))
        assert told(report) == [("both", span(120, 180), 1)]
        third = IntervalSet([span(120, 180)])
        assert held(mesh, 181) == {B: third, C: third}
        report = mesh.run("downstream", now=at(181))
        assert report.state == "nothing_to_do"
        assert {(b.parent, b.reason, b.detail["reason"]) for b in report.blocked} == {
            (B, "held", "audit both found 1")
        }
        # Made anew and no better: it stays held.
        mesh.restate("lake.b", span(120, 180), by="ann", apply=True)
        assert told(mesh.run("upstream", now=at(182))) == [("both", span(120, 180), 1)]
        assert held(mesh, 182) == {B: third, C: third}
        duck.set_value(130, 4)
        mesh.restate("lake.a", span(120, 180), by="ann", apply=True)
        report = mesh.run("upstream", now=at(183))
        assert report.warned == ()
        assert report.committed["both"] == third
        assert held(mesh, 183) == {}
        assert mesh.run("downstream", now=at(183)).committed == {GOLD: third}


@pytest.mark.parametrize("by_time", [True, False])
def test_of_several_intervals_those_that_it_rejects_are_held(
    tmp_path: Path, postgres: LocalPostgres, by_time: bool
) -> None:
    """All of them where the query does not go by the interval."""
    where = "ts >= @start_dt AND ts < @end_dt" if by_time else "TRUE"
    texts = {
        "alone": f"AUDIT (name alone, standalone TRUE, cron '@hourly'); SELECT * FROM lake.b WHERE value < 0 AND {where}"
    }
    duck = mesh_of(tmp_path, postgres, audits=texts, policy="hold")
    duck.set_value(130, -4)
    with duck.mesh() as mesh:
        report = mesh.deploy("upstream", now=at(360))
        rejected = span(120, 180) if by_time else span(0, 360)
        assert told(report) == [("alone", rejected, 1)]
        assert held(mesh, 360) == {B: IntervalSet([rejected])}


def test_of_a_table_that_is_one_whole_the_newest_verdict_counts(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """Held as a whole, and had again as a whole when the next interval passes."""
    texts = {
        "whole": "AUDIT (name whole, standalone TRUE, cron '@hourly'); SELECT * FROM lake.b WHERE value < 0"
    }
    duck = mesh_of(tmp_path, postgres, audits=texts, b=WHOLE_B, policy="hold")
    with duck.mesh() as mesh:
        deploy(mesh, 120)
        duck.sql("INSERT INTO raw.events VALUES (-1, '2026-01-05 02:30:00', -7)")
        mesh.run("upstream", now=at(181))
        assert set(held(mesh, 181)) == {B}
        assert mesh.run("downstream", now=at(181)).state == "nothing_to_do"
        duck.sql("DELETE FROM raw.events WHERE id = -1")
        # Nobody asks about the hour in question once more: the table as it is now has passed.
        assert mesh.run("upstream", now=at(241)).committed["whole"] == IntervalSet([span(180, 240)])
        assert held(mesh, 241) == {}
        assert mesh.run("downstream", now=at(241)).state == "done"


def test_another_projects_models_are_judged_and_not_held(tmp_path: Path, postgres: LocalPostgres) -> None:
    """It is run by its own project, when what it reads there has come; what others hold of their own is theirs to decide."""
    query = "(SELECT g.* FROM gold.g AS g JOIN lake.b AS b USING (id) WHERE g.value <> b.value OR g.value < 0) AS x WHERE TRUE"
    files = {"audits/across.sql": audit("across", query)}
    duck = mesh_of(tmp_path, postgres, audits={}, policy="hold", **files)
    with duck.mesh() as mesh:
        deploy(mesh, 120)
        duck.set_value(130, -4)
        assert "across" not in mesh.run("upstream", now=at(181)).committed
        report = mesh.run("downstream", now=at(181))
        assert told(report) == [("across", span(120, 180), 1)]
        assert held(mesh, 181) == {GOLD: IntervalSet([span(120, 180)])}


def test_a_run_that_lost_its_lease_holds_nothing(database_url: str, tmp_path: Path) -> None:
    """Verdict and hold are one transaction, under the fence."""
    graph = mesh_graph(more=[evolve(node("x", "downstream", "hour"), name="x", kind=Kind.AUDIT)])
    story = Story(
        database_url, tmp_path, MeshGraph(graph.nodes, [e for n in graph.nodes for e in graph.parents(n)])
    )
    story.time("2026-01-05 02:00")
    judge, model = story.ids["x"], story.ids[fqn("gold.fact_sales")]
    seen = (Judged(model, span(0, 60), "audit x found 1"),)
    lease = story.acquire("downstream")
    story.ledger.open_claims(lease.run_id, judge, [span(0, 60)])
    story.ledger.begin(lease.run_id, judge, span(0, 60), needs=[], loaded=[], environment="prod")
    story.time("2026-01-05 05:00")
    with pytest.raises(LeaseLostError):
        story.ledger.commit(lease.run_id, judge, span(0, 60), verdict="warned", judged=seen)
    assert story.ledger.states([model])[model].holds == ()
    story.time("2026-01-05 09:00")
    lease = story.acquire("downstream")
    for verdict, judged in (("warned", seen), ("passed", (Judged(model, span(30, 60), None),))):
        story.ledger.open_claims(lease.run_id, judge, [span(0, 60)])
        story.ledger.begin(lease.run_id, judge, span(0, 60), needs=[], loaded=[], environment="prod")
        story.ledger.commit(lease.run_id, judge, span(0, 60), verdict=verdict, judged=judged)
    (hold,) = story.ledger.states([model])[model].holds
    assert (hold.interval, hold.by, hold.reason) == (span(0, 30), "on_audit_warning", "audit x found 1")


def test_rows_that_are_made_anew_stay_held_until_the_audit_has_passed(
    database_url: str, tmp_path: Path
) -> None:
    """Whether they are better, it has to say; and it may look at what is held."""
    judge = evolve(node("x", "downstream", "hour"), kind=Kind.AUDIT)
    story = Story(database_url, tmp_path, mesh_graph(more=[judge], reads=[("x", "gold.fact_sales")]))
    story.time("2026-01-05 02:00")
    model = story.ids[fqn("gold.fact_sales")]

    def ask(lease: Lease, verdict: str, why: str | None) -> None:
        key = story.ids[fqn("x")]
        story.ledger.open_claims(lease.run_id, key, [span(0, 60)])
        begun = story.ledger.begin(
            lease.run_id, key, span(0, 60), needs=[(model, span(0, 60))], loaded=[], environment="prod"
        )
        assert begun.refused == ()
        story.ledger.commit(
            lease.run_id, key, span(0, 60), verdict=verdict, judged=[Judged(model, span(0, 60), why)]
        )

    with story.run("downstream") as lease:
        story.commit(lease, "gold.fact_sales", "2026-01-05/2026-01-05T01:00")
        ask(lease, "warned", "audit x found 1")
        story.commit(lease, "gold.fact_sales", "2026-01-05/2026-01-05T01:00")
        assert [h.interval for h in story.ledger.states([model])[model].holds] == [span(0, 60)]
        ask(lease, "passed", None)
        assert story.ledger.states([model])[model].holds == ()


def test_an_audit_is_asked_again_at_once() -> None:
    """What it holds should not wait for a day because it is asked once a day; unless a throttle is declared."""
    once_a_day = node("x", "downstream", "day", "audit")
    assert Policy().again_at(once_a_day, at(0), at(1)) is None
    assert Policy().again_at(evolve(once_a_day, kind=Kind.INCREMENTAL_BY_TIME_RANGE), at(0), at(1)) == at(
        24 * 60
    )
    assert Policy(throttle=timedelta(minutes=5)).again_at(once_a_day, at(0), at(1)) == at(5)


@pytest.mark.parametrize(
    ("manifest", "holding"),
    [
        ({}, set()),
        ({"on_audit_warning": "hold"}, {"gold.fact_sales", "gold.dim_customer"}),
        ({"models": {"gold.fact_sales": {"on_audit_warning": "hold"}}}, {"gold.fact_sales"}),
        (
            {"on_audit_warning": "hold", "models": {"gold.fact_sales": {"on_audit_warning": "pass"}}},
            {"gold.dim_customer"},
        ),
        ({"on_audit_warning": "hold", "models": {"x": {"on_audit_warning": "pass"}}}, set()),
        ({"models": {"x": {"on_audit_warning": "hold"}}}, {"gold.fact_sales", "gold.dim_customer"}),
    ],
)
def test_the_models_policy_decides_unless_the_audit_has_one(
    manifest: dict[str, Any], holding: set[str]
) -> None:
    """Of the audit's own project, whatever the others declare."""
    reads = [("x", parent) for parent in ("gold.fact_sales", "gold.dim_customer", "silver.orders")]
    graph = mesh_graph(more=[evolve(node("x", "downstream", "hour"), kind=Kind.AUDIT)], reads=reads)
    found = allowance(graph, {"downstream": manifest, "upstream": {"on_audit_warning": "hold"}}, "downstream")
    assert found.judging == {fqn("x"): {fqn(name) for name in holding}}


# Beside SQLMesh


def test_what_plain_sqlmesh_asked_is_asked_again(tmp_path: Path, postgres: LocalPostgres) -> None:
    """Its record does not say what the audit found."""
    duck = mesh_of(
        tmp_path, postgres, audits={"alone": audit("alone", "lake.b WHERE value < 0")}, policy="hold"
    )
    with duck.mesh() as mesh:
        assert mesh.deploy("upstream", now=at(120)).state == "done"
        duck.set_value(130, -4)
        with plain(duck) as context:
            context.run("prod", execution_time=at(181), skip_janitor=True)
        report = mesh.run("upstream", now=at(182))
        assert ("alone", "suspect") in {(f.model, f.what) for f in report.findings}
        assert told(report) == [("alone", span(120, 180), 1)]
        assert held(mesh, 182) == {B: IntervalSet([span(120, 180)])}


def test_a_development_environment_asks_what_it_does_not_share_by_its_deploy_only(
    tmp_path: Path, postgres: LocalPostgres
) -> None:
    """As with previews of models; production's goes on."""
    duck = mesh_of(tmp_path, postgres, audits={"alone": audit("alone", "lake.b WHERE value < 0")})
    with duck.mesh() as mesh:
        assert mesh.deploy("upstream", now=at(120)).state == "done"
        duck.write(
            "upstream",
            "b",
            copied("lake.b", "lake.a", model="description 'new'").replace(
                "value FROM", "value + 0 AS value FROM"
            ),
        )
        assert mesh.deploy("upstream", environment="dev", now=at(121)).state == "done"
        mesh.run("upstream", environment="dev", now=at(181))
        report = mesh.run("upstream", now=at(182))
        assert report.committed["alone"] == IntervalSet([span(120, 180)])
        assert mesh.run("upstream", now=at(183)).state == "nothing_to_do"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (audit("alone", "lake.b WHERE value < 0", more=", blocking TRUE"), "cannot be blocking"),
        (audit("mine", "lake.b WHERE value < 0"), "mine is owned twice"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, postgres: LocalPostgres, text: str, cause: str) -> None:
    """SQLMesh knows no standalone audit that blocks; and one name is one audit, in the whole mesh."""
    duck = mesh_of(tmp_path, postgres, audits={"mine": audit("mine", "lake.a WHERE value < 0")})
    with duck.mesh() as mesh:
        deploy(mesh, 120)
        duck.write("downstream", "audits/theirs.sql", text)
        with pytest.raises((ProjectError, MeshgateError), match=cause):
            mesh.deploy("downstream", now=at(130))
