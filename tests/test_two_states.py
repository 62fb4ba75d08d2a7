"""Two projects with a SQLMesh state each: the one reads the other's tables by their names, and only the ledger knows whose they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from duck_mesh import DuckMesh, copied
from meshgate.errors import MeshgateError
from meshgate.interval import IntervalSet
from test_environments import GOLD_TEXT, PROJECTS, SILVER_TEXT, changed, done
from tiny_mesh import at, span

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from meshgate.ledger import Ledger
    from meshgate.local_postgres import LocalPostgres
    from meshgate.mesh import Mesh

GOLD, SIDE = '"house"."lake"."gold"', copied("lake.side", "raw.events")
HOUR = IntervalSet([span(60, 120)])


def more(text: str) -> str:
    """A model with a column more, which breaks nobody."""
    return text.replace("value FROM", "value, 1 AS more FROM")


@pytest.fixture
def duck(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """Upstream makes silver every 5 minutes, downstream reads it hourly, both deployed up to 01:00."""
    duck = DuckMesh(
        tmp_path, postgres,
        upstream={"bronze": copied("lake.bronze", "raw.events", cron="*/5 * * * *"), "silver": SILVER_TEXT, "side": SIDE},
        downstream={"gold": GOLD_TEXT},
    )  # fmt: skip
    own = duck.config("downstream")
    own["gateways"]["local"]["state_schema"] = "sqlmesh_down"
    duck.write("downstream", "config.yaml", json.dumps(own))
    duck.write_mesh({p: {"stale_throttle": "0s"} for p in PROJECTS})
    duck.feed(0, 300)
    return duck


def both(mesh: Mesh, now: int) -> list[dict[str, IntervalSet]]:
    """What runs of both record."""
    return [done(mesh, project, "prod", now) for project in PROJECTS]


@pytest.mark.parametrize("noticed", [True, False])
def test_a_model_that_another_state_reads_is_taken_away_and_brought_back(
    duck: DuckMesh, noticed: bool
) -> None:
    """Nothing but its reader fails meanwhile; what comes back is other data, and is read anew, all of it.

    What comes back was built in dev before its reader read what stood there then. Fails without `borrowed` in
    `Ledger.manifest`, and where `sync_environment` gives what is new there no new revision.
    """
    with duck.mesh() as mesh:
        mesh.deploy("upstream", now=at(60))
        duck.write("upstream", "silver", changed(SILVER_TEXT))
        mesh.deploy("upstream", environment="dev", now=at(60))
        duck.write("upstream", "silver", SILVER_TEXT)
        mesh.deploy("downstream", now=at(60))
        silver = duck.folder / "upstream" / "models" / "silver.sql"
        silver.unlink()
        take_away(mesh)
        assert mesh.run("upstream", now=at(120)).state == "done"
        if noticed:
            (failed,) = mesh.run("downstream", now=at(120)).failed
            assert (failed.model, "silver does not exist" in str(failed.detail)) == (GOLD, True)
        assert mesh.status().environment == "prod"
        duck.write("upstream", "silver", changed(SILVER_TEXT))
        mesh.deploy("upstream", now=at(120))
        done(mesh, "downstream", "prod", 120)
        assert {value for (value,) in duck.sql("SELECT DISTINCT value FROM lake.gold")} == {1001}
        assert duck.sql("SELECT count(*) FROM lake.gold") == [(120,)]
        assert both(mesh, 120) == [{}, {}]
        assert mesh.verify().differences == ()


def take_away(mesh: Mesh) -> None:
    """Deploy upstream without silver: by SQLMesh's own hand, where a deploy refuses to."""
    try:
        mesh.deploy("upstream", now=at(60))
    except MeshgateError:
        from sqlmesh import Context

        project = mesh.config.project("upstream")
        context = Context(paths=[str(project.path)])
        context.plan(auto_apply=True, no_prompts=True, execution_time=at(60), skip_tests=True)
        context.close()


def test_a_deploy_looks_through_the_views_of_another_state(duck: DuckMesh) -> None:
    """What it builds waits for what stands behind them. Fails without `behind` in `build_graph`."""
    duck.write(
        "upstream",
        "seen",
        "MODEL (name lake.seen, kind VIEW, cron '*/5 * * * *');\nSELECT * FROM lake.silver",
    )
    gold = copied("lake.gold", "lake.seen")
    duck.write("downstream", "gold", gold)
    with duck.mesh() as mesh:
        for project in PROJECTS:
            mesh.deploy(project, now=at(60))
        duck.write("downstream", "gold", changed(gold))
        done_by_deploy = mesh.deploy("downstream", now=at(120)).committed
        assert done_by_deploy == {GOLD: IntervalSet([span(0, 60)])}
        assert both(mesh, 120)[1] == {GOLD: HOUR}
        assert duck.sql("SELECT count(*) FROM lake.gold") == [(120,)]


@pytest.mark.parametrize("there", ["missing", "held"])
def test_a_dev_environment_of_the_reader_is_gated_by_production(duck: DuckMesh, there: str) -> None:
    """What it reads by that name is production's, and what it writes is production's table.

    Fails where `elsewhere` looks only in the environment itself.
    """
    with duck.mesh() as mesh:
        for project in PROJECTS:
            mesh.deploy(project, now=at(60))
        duck.write("downstream", "other", copied("lake.other", "lake.gold"))
        mesh.deploy("downstream", environment="dev", now=at(60))
        if there == "held":
            done(mesh, "upstream", "prod", 120)
            mesh.hold("lake.silver", span(60, 120), reason="rubbish", by="tester")
        assert done(mesh, "downstream", "dev", 120) == {}
        if there == "held":
            mesh.release("lake.silver", span(60, 120), by="tester")
        else:
            done(mesh, "upstream", "prod", 120)
        assert done(mesh, "downstream", "dev", 120)[GOLD] == HOUR
        assert both(mesh, 120) == [{}, {}]
        assert duck.sql("SELECT count(*) FROM lake__dev.other") == [(120,)]


def test_a_model_that_is_tried_in_dev_leaves_production_as_it_is(duck: DuckMesh) -> None:
    """Also where production reads a table of that name that nobody in the mesh makes.

    Fails without `borrowed` in `Ledger.manifest`: the name is upstream's now, whose plan for production does not have it.
    """
    (duck.folder / "upstream" / "models" / "silver.sql").unlink()
    duck.sql("CREATE SCHEMA lake; CREATE TABLE lake.silver AS SELECT id, ts, value FROM raw.events")
    with duck.mesh() as mesh:
        for project in PROJECTS:
            mesh.deploy(project, now=at(60))
        duck.write("upstream", "silver", changed(SILVER_TEXT))
        mesh.deploy("upstream", environment="dev", now=at(60))
        done(mesh, "upstream", "prod", 120)
        assert done(mesh, "downstream", "prod", 120) == {GOLD: HOUR}
        assert mesh.verify().differences == ()


@pytest.mark.parametrize(
    "deploys",
    [[("prod", "silver", more)], [("dev", "silver", more), ("dev", "silver", str), ("prod", "side", more)]],
    ids=["a change that breaks nothing", "an unrelated one, after one in dev was taken back"],
)
def test_readers_of_another_state_stay_settled(
    duck: DuckMesh, deploys: list[tuple[str, str, Callable[[str], str]]]
) -> None:
    """As they do within one state. Fails where `after_promotion` speaks of its own state's models only."""
    texts = {"silver": SILVER_TEXT, "side": SIDE}
    with duck.mesh() as mesh:
        for project in PROJECTS:
            mesh.deploy(project, now=at(60))
        for environment, name, change in deploys:
            duck.write("upstream", name, change(texts[name]))
            mesh.deploy("upstream", environment=environment, now=at(60))
            assert both(mesh, 60) == [{}, {}]


def test_an_environment_of_its_own_that_is_another_one_now(ledger: Ledger) -> None:
    """What was declared for it as some environment is no longer said beside; its former one keeps its own."""

    def declare(what: str, home: str, environment: str | None = None) -> None:
        manifest = {"environment": environment or home, "schedule": what}
        ledger.save_manifest("up", manifest, sqlmesh="0", sqlglot="0", environment=environment)

    declare("first", "prod")
    declare("tried", "prod", "staging")
    assert ledger.homes() == ("prod",)
    declare("moved", "staging")
    assert ledger.homes() == ("staging",)
    assert ledger.manifests("staging")["up"]["schedule"] == "moved"
    assert ledger.manifests("prod")["up"]["schedule"] == "first"
    declare("back", "prod")
    assert ledger.manifests("prod")["up"]["schedule"] == "back"
    assert ledger.manifests("staging")["up"]["schedule"] == "moved"
