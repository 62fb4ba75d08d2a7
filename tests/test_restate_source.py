"""`meshgate restate --source`: whatever reads a table that no model of the mesh makes, in every project."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import structlog
from attrs import evolve

from command_line import Answer, answer_of
from ledger_story import Story, fqn, mesh_graph, node
from meshgate.graph import Edge, MeshGraph
from meshgate.interval import Interval
from tiny_mesh import TinyMesh, at, span

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

HOUR = ("--from", "2026-01-05T03:10", "--to", "2026-01-05T03:20")
ORDERS, RATES = '"raw"."shop"."orders"', '"raw"."shop"."rates"'


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No line is wrapped, and what the command line does to structlog is undone."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("MESHGATE_DEBUG", raising=False)
    yield
    structlog.reset_defaults()


@pytest.fixture
def story(database_url: str, tmp_path: Path) -> Story:
    """Six hours; one source is read by models of both projects, through a view too, another one by one model."""
    sources = [
        evolve(node("x", "", "day", "external"), name=name, version="", start=None)
        for name in (ORDERS, RATES)
    ]
    graph = mesh_graph(
        more=[
            *sources,
            node("gold.raw_orders", "downstream", "hour"),
            node("gold.view", "downstream", "hour", "view"),
        ],
    )
    edges = [edge for name in graph.nodes for edge in graph.parents(name)]
    edges += [
        Edge(fqn("bronze.transactions"), ORDERS),
        Edge(fqn("gold.raw_orders"), ORDERS),
        Edge(fqn("bronze.customers"), RATES),
    ]
    found = Story(database_url, tmp_path, MeshGraph(graph.nodes, edges))
    found.time("2026-01-05 06:01")
    found.upstream_until("2026-01-05T06:00")
    with found.run("downstream") as lease:
        for model in ("fact_sales", "sales_by_hour", "dim_customer", "raw_orders"):
            found.commit(lease, f"gold.{model}", "2026-01-05/2026-01-05T06:00")
    return found


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """Calls the command line on the configuration in this test's folder."""

    def run(*arguments: str) -> Answer:
        return answer_of(capsys, tmp_path, "restate", *arguments)

    return run


def test_all_direct_readers_are_asked_for_in_their_own_units(story: Story, call: Any) -> None:
    """The preview changes nothing; what follows from the readers follows as ever."""
    answer = call("--source", "shop.orders", *HOUR, "--json")
    assert answer.code == 0, answer.err
    asked = {r["model"]: (r["interval"]["start"], r["interval"]["end"]) for r in answer.document["requests"]}
    assert asked == {
        fqn("bronze.transactions"): ("2026-01-05T03:10:00Z", "2026-01-05T03:20:00Z"),
        fqn("gold.raw_orders"): ("2026-01-05T03:00:00Z", "2026-01-05T04:00:00Z"),
    }
    assert {s["model"] for s in answer.document["steps"]} == {
        *asked, fqn("silver.orders"), fqn("gold.fact_sales"), fqn("gold.sales_by_hour"),
    }  # fmt: skip
    assert answer.document["made"] == []
    assert story.ledger.requests("prod") == ()
    text = call("--source", "raw.shop.orders", *HOUR).out
    assert "a source, which no model of the mesh makes" in text
    assert text.count("reads it") == 2
    assert call("--source", "orders", *HOUR, "--reason", "patched", "--apply").code == 0
    assert {(r.model, r.reason) for r in story.ledger.requests("prod")} == {
        (name, "patched") for name in asked
    }


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("shop.oders", "did you mean shop.orders"),
        ("raw.shop.rate", "did you mean raw.shop.rates"),
        ("zzz", "the mesh reads raw.shop.orders, raw.shop.rates"),
        ("silver.orders", "ask for the model: `meshgate restate lake.silver.orders`"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest_source(
    story: Story, call: Any, table: str, told: str
) -> None:
    """Nearest among sources, and a model is told to be one."""
    assert story
    answer = call("--source", table, *HOUR)
    assert answer.code == 2
    assert told in answer.err


def test_a_model_or_a_source_is_asked_for(story: Story, call: Any) -> None:
    """One of them, and only one."""
    assert story
    assert call(*HOUR).code == 2
    both = call("silver.orders", "--source", "shop.orders", *HOUR)
    assert (both.code, "both given" in both.err) == (2, True)


def test_rows_that_were_patched_in_the_source_come_through(
    tmp_path: Path, postgres: LocalPostgres, extensions: None
) -> None:
    """From the source's table to the last one of the other project."""
    tiny = TinyMesh(tmp_path, postgres, policies={"stale_throttle": "0s"})
    tiny.feed(0, 180)
    with tiny.mesh() as mesh:
        for project in ("upstream", "downstream"):
            mesh.deploy(project, now=at(180))
        tiny.change(70, 80)
        found = mesh.restate("public.events", span(70, 80), source=True, by="tester", apply=True)
        assert found.requests == (('"lake"."bronze"."events"', Interval(at(70), at(80))),)
        for project in ("upstream", "downstream"):
            assert mesh.run(project, now=at(180)).state == "done"
    tiny.check(180)
