"""Enforced mode inside one process: what keeps SQLMesh's own objects from working beside the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlmesh.core.config.root import Config
from sqlmesh.core.config.scheduler import BuiltInSchedulerConfig
from sqlmesh.utils.errors import SQLMeshError

from duck_mesh import DuckMesh, Rows, copied, naive
from meshgate.enforced import enforce
from meshgate.errors import ProjectError
from meshgate.ledger import Lease
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

SILVER, GOLD = '"house"."lake"."silver"', '"house"."lake"."gold"'
PROJECTS = ("upstream", "downstream")
SILVER_TEXT = copied("lake.silver", "raw.events")


@pytest.fixture
def duck(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """Upstream: silver. Downstream: gold from it. Both hourly, enforced, and deployed up to the first hour."""
    duck = DuckMesh(
        tmp_path, postgres,
        upstream={"silver": SILVER_TEXT}, downstream={"gold": copied("lake.gold", "lake.silver")},
    )  # fmt: skip
    duck.write_mesh({p: {"stale_throttle": "0s"} for p in PROJECTS}, statement_timeout="1s", grace="2s")
    duck.feed(0, 240)
    for project in PROJECTS:
        (duck.folder / project / "config.yaml").rename(duck.folder / project / "base.yaml")
        duck.write(
            project,
            "config.py",
            "from meshgate.enforced import enforce\nconfig = enforce('base.yaml')\n",
        )
    with duck.mesh() as mesh:
        for project in PROJECTS:
            mesh.deploy(project, now=at(60))
    return duck


@pytest.fixture
def upstream(duck: DuckMesh) -> Iterator[Any]:
    with TinyMesh.plain(duck, "upstream", load=True) as context:  # type: ignore[arg-type]
        yield context


def source(duck: DuckMesh, upto: float, more: int = 0) -> Rows:
    return duck.sql("SELECT id, ts, value + ? FROM raw.events WHERE ts < ? ORDER BY id", [more, naive(upto)])


def plan(context: Any, environment: str = "prod", *, now: float = 60, **more: Any) -> None:
    """A plan that is applied without questions."""
    context.plan(
        environment, execution_time=at(now), auto_apply=True, no_prompts=True, skip_tests=True, **more
    )


def change(duck: DuckMesh) -> None:
    duck.write("upstream", "silver", SILVER_TEXT.replace("id, ts, value", "id, ts, value + 1000 AS value"))


def test_a_run_reads_nothing_that_is_not_there(duck: DuckMesh) -> None:
    """The other project's model is not run, so the hour waits."""
    with TinyMesh.plain(duck, "downstream") as context:  # type: ignore[arg-type]
        context.run("prod", execution_time=at(120), skip_janitor=True)
    assert duck.table("lake.gold") == duck.table("lake.silver") == source(duck, 60)


def test_nothing_is_evaluated_outside_a_run_or_a_plan(duck: DuckMesh, upstream: Any) -> None:
    """SQLMesh's scheduler, called as its own tools may call it one day, refuses."""
    scheduler = upstream.create_scheduler(upstream.snapshots.values(), upstream.snapshot_evaluator)
    with pytest.raises(SQLMeshError, match="evaluated outside a run or a plan"):
        scheduler.run_merged_intervals(merged_intervals={})


def test_nothing_is_promoted_outside_a_plan(upstream: Any) -> None:
    """The ledger would not know what is read now."""
    state = upstream.state_sync
    with pytest.raises(SQLMeshError, match="promoted outside a plan"):
        state.promote(state.get_environment("prod"))


def test_a_plan_replaces_nothing_that_is_being_written(duck: DuckMesh) -> None:
    """It waits for what was begun, as a deploy does, no longer than the longest statement may take."""
    change(duck)
    with duck.mesh() as mesh:
        held = mesh.ledger.acquire(
            "downstream", "prod", "run", {}, ttl=mesh.config.projects[0].overlap_limit, grace=at(1) - at(0)
        )
        assert isinstance(held, Lease)
        version = mesh.ledger.manifest("prod").version_ids[SILVER]
        mesh.ledger.open_claims(held.run_id, version, [span(60, 120)])
        mesh.ledger.begin(held.run_id, version, span(60, 120), needs=[], loaded=[], environment="prod")
        with (
            TinyMesh.plain(duck, "upstream", load=True) as context,  # type: ignore[arg-type]
            pytest.raises(SQLMeshError, match="were not replaced"),
        ):
            plan(context)
        assert duck.table("lake.silver") == source(duck, 60)
        mesh.ledger.finish(held.run_id, "done", {})
    with TinyMesh.plain(duck, "upstream", load=True) as context:  # type: ignore[arg-type]
        plan(context)
    assert duck.table("lake.silver") == source(duck, 60, 1000)


def test_a_plan_for_the_future_is_refused(duck: DuckMesh, upstream: Any) -> None:
    """The ledger's clock counts: nothing is due that is not over."""
    change(duck)
    upstream.refresh()
    with duck.mesh() as mesh:
        minutes = (mesh.ledger.clock() - at(0)).total_seconds() / 60
    with pytest.raises(SQLMeshError, match="in the future by the ledger's clock"):
        plan(upstream, now=minutes + 90)
    assert duck.table("lake.silver") == source(duck, 60)


def test_restating_a_development_environment_is_refused(duck: DuckMesh, upstream: Any) -> None:
    """The request would not say whose time it is; `meshgate restate` does."""
    change(duck)
    upstream.refresh()
    plan(upstream, "dev")
    duck.set_value(10, 50)
    with pytest.raises(SQLMeshError, match="meshgate restate MODEL --environment dev"):
        plan(upstream, "dev", restate_models=["lake.silver"], start=at(0), end=at(59))
    assert duck.table("lake__dev.silver") != source(duck, 60, 1000)


def test_several_projects_in_one_call_are_refused(duck: DuckMesh) -> None:
    """Each has its own lease."""
    with (
        TinyMesh.plain(duck, *PROJECTS) as context,  # type: ignore[arg-type]
        pytest.raises(SQLMeshError, match="several SQLMesh projects"),
    ):
        context.run("prod", execution_time=at(120), skip_janitor=True)
    assert duck.table("lake.silver") == source(duck, 60)


def test_a_gateway_with_a_scheduler_of_its_own_is_refused(duck: DuckMesh) -> None:
    """Runs on it would go past the ledger."""
    config = Config.parse_obj(duck.config("upstream"))
    scheduler = type("Other", (BuiltInSchedulerConfig,), {})()
    gateways = {"local": config.gateways["local"].copy(update={"scheduler": scheduler})}
    with pytest.raises(ProjectError, match="scheduler of its own"):
        enforce(config.copy(update={"gateways": gateways}))
