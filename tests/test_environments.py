"""A development environment of one project under meshgate: what it promotes gates it, what it writes counts for production."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from duck_mesh import DuckMesh, Rows, copied, naive
from meshgate.interval import IntervalSet
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

BRONZE, SILVER, GOLD = '"house"."lake"."bronze"', '"house"."lake"."silver"', '"house"."lake"."gold"'
HOUR = IntervalSet([span(60, 120)])
PROJECTS = ("upstream", "downstream")
SILVER_TEXT = copied("lake.silver", "lake.bronze", cron="*/5 * * * *")
GOLD_TEXT = copied("lake.gold", "lake.silver")


def changed(text: str) -> str:
    """A model whose values are higher by a thousand."""
    return text.replace("id, ts, value", "id, ts, value + 1000 AS value")


@pytest.fixture
def duck(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """Upstream, every 5 minutes: bronze, silver from it. Downstream, hourly: gold. Production is deployed up to 01:00."""
    duck = DuckMesh(
        tmp_path, postgres,
        upstream={"bronze": copied("lake.bronze", "raw.events", cron="*/5 * * * *"), "silver": SILVER_TEXT},
        downstream={"gold": GOLD_TEXT},
    )  # fmt: skip
    duck.write_mesh({p: {"stale_throttle": "0s"} for p in PROJECTS})
    duck.feed(0, 300)
    with duck.mesh() as mesh:
        for project in PROJECTS:
            mesh.deploy(project, now=at(60))
    return duck


def source(duck: DuckMesh, upto: float, more: int = 0) -> Rows:
    """What a table holds when everything before an instant is done."""
    return duck.sql("SELECT id, ts, value + ? FROM raw.events WHERE ts < ? ORDER BY id", [more, naive(upto)])


def done(mesh: Mesh, project: str, environment: str, now: float) -> dict[str, Any]:
    """What a run records."""
    return dict(mesh.run(project, environment=environment, now=at(now)).committed)


@pytest.mark.parametrize("environment", ["prod", "dev"])
def test_models_of_which_nothing_is_due_yet_are_deployed_empty(duck: DuckMesh, environment: str) -> None:
    """A daily table on its first day, a table and a view of next month, beside work that is due; runs fill them when it is.

    Fails where `_admitted` names only what misses something: SQLMesh makes no table for the others then, and no view on it.
    """
    daily, later = "cron '@daily', start '2026-01-05'", "cron '@daily', start '2026-02-01'"
    duck.write("downstream", "gold", changed(GOLD_TEXT))
    duck.write(
        "downstream", "today", copied("lake.today", "lake.silver", cron="@daily", model="start '2026-01-05'")
    )
    duck.write(
        "downstream", "full", f"MODEL (name lake.full, kind FULL, {daily});\nSELECT id, ts FROM lake.silver"
    )
    duck.write(
        "downstream", "seen", f"MODEL (name lake.seen, kind VIEW, {later});\nSELECT id, ts FROM lake.today"
    )
    duck.write(
        "downstream", "month", copied("lake.month", "lake.silver", cron="@daily", model="start '2026-02-01'")
    )
    schema = "lake" if environment == "prod" else "lake__dev"
    with duck.mesh() as mesh:
        assert mesh.deploy("downstream", environment=environment, now=at(65)).exit_code == 0
        for name in ("today", "full", "seen", "month"):
            assert duck.sql(f"SELECT * FROM {schema}.{name}") == [], name
        mesh.run("upstream", now=at(24 * 60))
        report = mesh.run("downstream", environment=environment, now=at(24 * 60))
        assert (report.failed, report.blocked) == ((), ())
        assert duck.sql(f"SELECT count(*) FROM {schema}.full") == [(300,)]
        assert duck.sql(f"SELECT count(*) FROM {schema}.seen") == [(300,)]
        assert mesh.verify().differences == ()


def test_what_would_be_evaluated_after_the_promotion_has_its_table_before(duck: DuckMesh) -> None:
    """Nothing is due yet of a forward-only table and its reader, while something else is: the deploy makes both, and a run fills them.

    Fails where `_admitted` looks only at what SQLMesh chose for the stage: it leaves new forward-only models and their descendants to the
    one that follows the promotion, and has none where nothing is due of them.
    """
    kind = "kind INCREMENTAL_BY_UNIQUE_KEY (unique_key id, forward_only TRUE)"
    text = f"MODEL (name lake.keyed, {kind}, cron '@daily', start '2026-01-05');\nSELECT id, ts, value FROM lake.silver"
    duck.write("downstream", "keyed", f"{text} WHERE ts >= @start_dt AND ts < @end_dt")
    duck.write("downstream", "gold", changed(GOLD_TEXT))
    duck.write(
        "downstream", "today", copied("lake.today", "lake.keyed", cron="@daily", model="start '2026-01-05'")
    )
    with duck.mesh() as mesh:
        assert mesh.deploy("downstream", now=at(65)).exit_code == 0
        assert duck.sql("SELECT * FROM lake.today") == []
        mesh.run("upstream", now=at(24 * 60))
        assert mesh.run("downstream", now=at(24 * 60)).failed == ()
        assert duck.sql("SELECT count(*) FROM lake.today") == [(300,)]


def test_a_dev_environment_of_downstream_is_gated_by_what_it_promotes(duck: DuckMesh) -> None:
    """Its changed model reads production's silver there, and waits for it; upstream's production run opens its gate."""
    duck.write("downstream", "gold", changed(GOLD_TEXT))
    with duck.mesh() as mesh:
        assert mesh.deploy("downstream", environment="dev", now=at(60)).committed[GOLD]
        waiting = mesh.run("downstream", environment="dev", now=at(120))
        assert (waiting.committed, {b.parent for b in waiting.blocked}) == ({}, {SILVER})
        done(mesh, "upstream", "prod", 120)
        assert done(mesh, "downstream", "dev", 120) == {GOLD: HOUR}
        assert done(mesh, "downstream", "prod", 120) == {GOLD: HOUR}
    assert (duck.table("lake.gold"), duck.table("lake__dev.gold")) == (
        source(duck, 120),
        source(duck, 120, 1000),
    )


def test_a_dev_environment_waits_for_its_own_version_of_a_parent(duck: DuckMesh) -> None:
    """What production has of another version opens no gate in dev, and the other way round."""
    duck.write("upstream", "silver", changed(SILVER_TEXT))
    with duck.mesh() as mesh:
        mesh.deploy("upstream", environment="dev", now=at(60))
        done(mesh, "upstream", "prod", 120)
        waiting = mesh.run("downstream", environment="dev", now=at(120))
        assert (waiting.committed, {b.parent for b in waiting.blocked}) == ({}, {SILVER})
        assert done(mesh, "upstream", "dev", 120) == {SILVER: HOUR}  # bronze is shared, and there
        assert done(mesh, "downstream", "dev", 120) == {GOLD: HOUR}
        done(mesh, "upstream", "dev", 180)  # bronze too, for both
        report = mesh.run("downstream", environment="prod", now=at(180))
        assert (report.committed, {b.parent for b in report.blocked}) == ({GOLD: HOUR}, {SILVER})
    assert duck.table("lake__dev.gold") == source(duck, 120, 1000)
    assert duck.table("lake.gold") == source(duck, 120)


def test_what_a_dev_run_writes_into_shared_versions_counts_for_production(duck: DuckMesh) -> None:
    """Production's reader goes on from what dev's run recorded; what dev's run computes again makes it stale."""
    duck.write("downstream", "gold", changed(GOLD_TEXT))
    with duck.mesh() as mesh:
        mesh.deploy("downstream", environment="dev", now=at(60))
        assert set(done(mesh, "upstream", "dev", 120)) == {BRONZE, SILVER}
        assert mesh.run("upstream", now=at(120)).state == "nothing_to_do"
        assert done(mesh, "downstream", "prod", 120) == {GOLD: HOUR}
        duck.set_value(61, 50)
        mesh.restate("lake.bronze", span(60, 65), reason="late", by="tester", apply=True, environment="dev")
        done(mesh, "upstream", "dev", 120)
        assert done(mesh, "downstream", "prod", 120) == {GOLD: HOUR}
        assert mesh.run("downstream", now=at(120)).state == "nothing_to_do"
        assert done(mesh, "downstream", "dev", 120) == {GOLD: HOUR}
    assert (duck.table("lake.gold"), duck.table("lake__dev.gold")) == (
        source(duck, 120),
        source(duck, 120, 1000),
    )


@pytest.mark.parametrize("looker", ["prod", "dev"])
def test_what_plain_sqlmesh_does_in_dev_is_reconciled_for_production(duck: DuckMesh, looker: str) -> None:
    """`sqlmesh run dev` fills production's tables: whoever looks first, production takes it for foreign, and heals it."""
    duck.write("downstream", "gold", changed(GOLD_TEXT))
    with duck.mesh() as mesh:
        mesh.deploy("downstream", environment="dev", now=at(60))
    with TinyMesh.plain(duck, "upstream") as context:  # type: ignore[arg-type]
        assert context.run("dev", execution_time=at(120)).is_success
    assert duck.table("lake.silver") == source(duck, 120)
    with duck.mesh() as mesh:
        report = mesh.run("upstream", environment=looker, now=at(120))
        assert {(f.model, f.what) for f in report.findings} >= {(BRONZE, "added"), (SILVER, "suspect")}
        assert report.committed == {SILVER: HOUR}
        assert mesh.run("upstream", now=at(120)).state == "nothing_to_do"
        assert done(mesh, "downstream", "prod", 120) == {GOLD: HOUR}
        assert done(mesh, "downstream", "dev", 120) == {GOLD: HOUR}
    assert (duck.table("lake.gold"), duck.table("lake__dev.gold")) == (
        source(duck, 120),
        source(duck, 120, 1000),
    )


def test_what_dev_declares_is_not_what_production_goes_by(duck: DuckMesh) -> None:
    """A window that is tried in dev, for a reader that production does not have, changes nothing there."""
    edges = [{"reader": "lake.extra", "parent": "lake.silver", "window": {"from": "-1h"}}]
    duck.write("downstream", "extra", copied("lake.extra", "lake.silver"))
    duck.write_mesh({"downstream": {"edges": edges, "stale": "report"}})
    with duck.mesh() as mesh:
        mesh.deploy("downstream", environment="dev", now=at(60))
        done(mesh, "upstream", "prod", 120)
        assert done(mesh, "downstream", "prod", 120) == {GOLD: HOUR}
        assert mesh.ledger.manifest("dev").graph.parents('"house"."lake"."extra"')[0].window.from_offset
        assert done(mesh, "downstream", "dev", 120) == {'"house"."lake"."extra"': HOUR}
        # And production's policies are its own still.
        mesh.restate("lake.silver", span(60, 65), reason="late", by="tester", apply=True)
        done(mesh, "upstream", "prod", 120)
        assert done(mesh, "downstream", "prod", 120) == {GOLD: HOUR}


def test_what_was_built_in_dev_is_promoted_without_building_it_again(duck: DuckMesh) -> None:
    """The version that dev advanced is production's after its deploy, with what dev's runs recorded of it."""
    duck.write("downstream", "gold", changed(GOLD_TEXT))
    with duck.mesh() as mesh:
        mesh.deploy("downstream", environment="dev", now=at(60))
        done(mesh, "upstream", "prod", 120)
        done(mesh, "downstream", "dev", 120)
        assert mesh.deploy("downstream", now=at(120)).committed == {}
        assert mesh.run("downstream", now=at(120)).state == "nothing_to_do"
    assert duck.table("lake.gold") == source(duck, 120, 1000)


@pytest.mark.parametrize("change", ["breaking", "a column more"])
def test_a_dev_environment_that_goes_back_changes_nothing_in_production(duck: DuckMesh, change: str) -> None:
    """It finds production's table, which production's own runs keep up; production's readers have nothing new to read.

    Fails without `meshgate.lives_at_home`, and where the other environments are not settled.
    """
    more = (
        changed(SILVER_TEXT)
        if change == "breaking"
        else SILVER_TEXT.replace("value FROM", "value, 1 AS more FROM")
    )
    with duck.mesh() as mesh:
        for text in (more, SILVER_TEXT):
            duck.write("upstream", "silver", text)
            mesh.deploy("upstream", environment="dev", now=at(60))
        assert [done(mesh, project, "prod", 60) for project in PROJECTS] == [{}, {}]
        assert not mesh.verify().differences


def test_a_reader_in_dev_reads_again_what_dev_goes_back_to(duck: DuckMesh) -> None:
    """What it had read was the version that is gone from there."""
    with duck.mesh() as mesh:
        duck.write("upstream", "silver", changed(SILVER_TEXT))
        mesh.deploy("upstream", environment="dev", now=at(60))
        duck.write("downstream", "gold", GOLD_TEXT.replace("value FROM", "value, 1 AS more FROM"))
        mesh.deploy("downstream", environment="dev", now=at(60), dropping=True)
        duck.write("upstream", "silver", SILVER_TEXT)
        mesh.deploy("upstream", environment="dev", now=at(60), dropping=True)
        mesh.run("downstream", environment="dev", now=at(60))
        assert not mesh.verify().differences
    assert duck.sql("SELECT id, ts, value FROM lake__dev.gold ORDER BY id") == source(duck, 60)


def test_a_dev_environment_made_after_a_change_that_breaks_nothing_is_settled(duck: DuckMesh) -> None:
    """What production's readers need not read again, a reader that is new there need not either; each hour is computed once.

    Fails where what begins takes over nothing, and where production's tables are held for previews.
    """
    duck.write("upstream", "silver", SILVER_TEXT.replace("value FROM", "value, 1 AS more FROM"))
    duck.write("downstream", "other", copied("lake.other", "lake.gold"))
    other = '"house"."lake"."other"'
    with duck.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        mesh.deploy("downstream", environment="dev", now=at(60))
        assert [done(mesh, p, "dev", 60) for p in PROJECTS] == [{}, {}]
        done(mesh, "upstream", "prod", 120)
        assert done(mesh, "downstream", "dev", 120) == {GOLD: HOUR, other: HOUR}
        assert [done(mesh, p, "prod", 120) for p in PROJECTS] == [{}, {}]
        done(mesh, "upstream", "prod", 180)
        later = IntervalSet([span(120, 180)])
        assert done(mesh, "downstream", "prod", 180) == {GOLD: later}
        assert done(mesh, "downstream", "dev", 180) == {other: later}
        assert mesh.verify().differences == ()
    assert (duck.table("lake.gold"), duck.table("lake__dev.other")) == (source(duck, 180), source(duck, 180))


def test_now_runs_a_project_again_that_reads_what_another_makes_of_its_own(duck: DuckMesh) -> None:
    """`restate --apply --now`: upstream, downstream that reads it, and upstream's table that reads that.

    Fails where each project has one turn.
    """
    duck.write("upstream", "back", copied("lake.back", "lake.gold"))
    with duck.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        found = mesh.restate("lake.bronze", span(0, 5), reason="late", by="tester", apply=True)
        assert found.projects == ("upstream", "downstream", "upstream")
        did = [set(done(mesh, project, "prod", 60)) for project in found.projects]
        assert did == [{BRONZE, SILVER}, {GOLD}, {'"house"."lake"."back"'}]
