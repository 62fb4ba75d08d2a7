"""What keeps an interval back, in meshes of other shapes: every kind of model, wide ones, deep ones, random ones."""

from __future__ import annotations

import json
import random
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from ledger_story import Story, fqn, mesh_graph, node
from meshgate.coordinator.causes import Scene
from meshgate.graph import Window
from meshgate.interval import Interval, IntervalSet
from meshgate.report import data

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.coordinator.explain import Why
    from meshgate.coordinator.status import Status

HOUR = "2026-01-05T03:00/2026-01-05T04:00"


@pytest.fixture
def story(database_url: str, tmp_path: Path) -> Story:
    """The mesh of `ledger_story`, promoted, with nothing recorded."""
    return Story(database_url, tmp_path)


def why(story: Story, model: str, interval: str | None = None, **options: Any) -> Why:
    with story.mesh() as mesh:
        return mesh.why(model, Interval.parse(interval) if interval else None, **options)


def status(story: Story) -> Status:
    with story.mesh() as mesh:
        return mesh.status()


# Kinds


def test_an_as_of_table_fails_as_a_whole(story: Story) -> None:
    """The failure of a refresh is told for any of its time, and once."""
    story.time("2026-01-05 04:02")
    story.upstream_until("2026-01-05T04:00")
    with story.run("downstream", "failed") as lease:
        story.fail(lease, "gold.dim_customer", "2026-01-05/2026-01-05T04:00")
    found = why(story, "dim_customer")
    assert (found.state, str(found.interval)) == ("failed", "[2026-01-05 00:00, 04:00)")
    assert why(story, "dim_customer", HOUR).state == "failed"
    (wait,) = status(story).waits
    assert (wait.causes[0].model, wait.waiting) == (fqn("gold.dim_customer"), ())


def test_unmanaged_models_are_held_and_say_why(database_url: str, tmp_path: Path) -> None:
    """Evaluating one twice doubles its rows, so a person decides; its readers name it as the root."""
    graph = mesh_graph(
        more=[
            node("gold.log", "downstream", "hour", "incremental_unmanaged"),
            node("gold.after", "downstream", "hour"),
        ],
        reads=[("gold.after", "gold.log")],
    )
    story = Story(database_url, tmp_path, graph)
    story.time("2026-01-05 04:02")
    with story.run("downstream") as lease:
        story.begin(lease, "gold.log", "2026-01-05/2026-01-05T01:00")
    (root,) = why(story, "gold.after").roots
    assert (root.model, root.reason) == (fqn("gold.log"), "held")
    assert "would double its rows" in root.detail["cause"]
    assert "the run ended before it was committed" in root.detail["cause"]


def test_a_model_that_needs_its_past_is_explained_by_its_own_earlier_interval(
    database_url: str, tmp_path: Path
) -> None:
    """Hour three waits for hour one, which waits for a hole upstream; the root is the hole's own root."""
    graph = mesh_graph(
        more=[node("gold.balance", "downstream", "hour", depends_on_past=True)],
        reads=[("gold.balance", "silver.orders")],
    )
    story = Story(database_url, tmp_path, graph)
    story.time("2026-01-05 04:02")
    story.upstream_until("2026-01-05T04:00", without="2026-01-05T01:10/2026-01-05T01:15")
    with story.run("downstream") as lease:
        story.commit(lease, "gold.balance", "2026-01-05/2026-01-05T01:00")
    found = why(story, "gold.balance", HOUR)
    assert [c.model for c in found.roots] == [fqn("bronze.transactions")]
    assert fqn("gold.balance") in {inner.model for cause in found.causes for inner in cause.because}


def test_a_seed_that_was_never_loaded_is_a_root_of_its_own(database_url: str, tmp_path: Path) -> None:
    """Its readers wait for the deploy that loads it."""
    graph = mesh_graph(
        more=[node("ref.currencies", "upstream", "day", "seed"), node("gold.money", "downstream", "hour")],
        reads=[("gold.money", "ref.currencies")],
    )
    story = Story(database_url, tmp_path, graph)
    story.time("2026-01-05 04:02")
    (root,) = why(story, "gold.money").roots
    assert (root.model, root.remedy) == (fqn("ref.currencies"), "`meshgate deploy upstream` loads it")


def test_time_before_what_is_recorded_of_a_model_without_a_start_is_never_due(
    database_url: str, tmp_path: Path
) -> None:
    """Nothing evaluates it by itself, and waiting for it would be for ever: that is told, and what to change."""
    old = evolve(node("silver.old", "upstream"), start=None)
    graph = mesh_graph(
        more=[old, node("gold.ages", "downstream", "hour")], reads=[("gold.ages", "silver.old")]
    )
    story = Story(database_url, tmp_path, graph)
    story.time("2026-01-05 04:02")
    with story.run("upstream") as lease:
        story.commit(lease, "silver.old", "2026-01-05T02:00/2026-01-05T04:00")
    (root,) = why(story, "gold.ages").roots
    assert (root.model, root.reason, root.ready) == (fqn("silver.old"), "missing", False)
    assert "give the model a `start`" in (root.remedy or "")


# Many


def test_many_failed_intervals_are_one_cause_with_the_sum_of_their_counts(story: Story) -> None:
    """A day of the same audit failing is one line, and another audit is another."""
    story.time("2026-01-06 04:02")
    with story.run("upstream", "failed") as lease:
        for hour in range(24):
            story.fail(
                lease, "bronze.customers", f"2026-01-05T{hour:02}:10/2026-01-05T{hour:02}:15", count=hour + 1
            )
        story.fail(lease, "bronze.customers", "2026-01-05T05:20/2026-01-05T05:25", audit="unique_values")
    failed = [c for w in status(story).waits for c in w.causes if c.reason == "failed"]
    assert sorted((len(c.time), c.detail["audits"][0]["count"]) for c in failed) == [(1, 3), (24, 300)]


def test_a_mesh_with_a_million_paths_is_explained_in_its_own_size(database_url: str, tmp_path: Path) -> None:
    """Ten layers of four models, each reading all four before it: every model is explained once."""
    layers = [[f"l{i}.m{j}" for j in range(4)] for i in range(10)]
    graph = mesh_graph(
        more=[
            node(name, "upstream" if name < "l5" else "downstream", "hour")
            for layer in layers
            for name in layer
        ],
        reads=[(c, p) for above, below in pairwise(layers) for c in below for p in above],
    )
    story = Story(database_url, tmp_path, graph)
    story.time("2026-01-05 04:02")
    with story.run("upstream", "failed") as lease:
        story.fail(lease, "l0.m0", "2026-01-05/2026-01-05T01:00")
    found = why(story, "l9.m3")
    assert len(json.dumps(data.why(found))) < 200_000
    assert {c.model for c in found.roots} == {fqn(f"l0.m{j}") for j in range(4)}
    assert [c.reason for c in found.roots if c.model == fqn("l0.m0")] == ["failed"]


def test_a_very_deep_mesh_is_explained_as_deep_as_anybody_reads(database_url: str, tmp_path: Path) -> None:
    """Three hundred models in a row: no recursion error; where the tree ends it says how to ask on."""
    names = [f"c.m{i}" for i in range(300)]
    graph = mesh_graph(
        more=[node(n, "upstream", "hour") for n in names], reads=[(c, p) for p, c in pairwise(names)]
    )
    story = Story(database_url, tmp_path, graph)
    story.time("2026-01-05 04:02")
    (root,) = why(story, "c.m299").roots
    assert root.remedy == f"`meshgate why {root.model.split('.', 1)[1].replace(chr(34), '')}` tells more"
    assert json.loads(data.dumped(data.why(why(story, "c.m299"))))["state"] == "blocked"


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happened_every_unclean_interval_has_a_root_and_a_remedy(
    database_url: str, tmp_path: Path, seed: int
) -> None:
    """In random histories: causes cover exactly what is not settled, what a run leaves out is told, each root can be ended."""
    chance = random.Random(seed)  # noqa: S311 - a history, not a secret
    graph = mesh_graph(
        more=[
            node("gold.balance", "downstream", "hour", depends_on_past=True),
            node("gold.scd", "downstream", "hour", "scd_type_2"),
            node("gold.latest", "downstream", "hour"),
        ],
        reads=[
            ("gold.balance", "gold.fact_sales"),
            ("gold.balance", "gold.dim_customer"),
            ("gold.scd", "silver.orders"),
            ("gold.latest", "gold.dim_customer"),
            ("gold.latest", "bronze.transactions"),
        ],
        windows={
            ("gold.latest", "gold.dim_customer"): Window("latest"),
            ("gold.latest", "bronze.transactions"): Window("interval", timedelta(hours=-2)),
        },
    )
    story = Story(database_url, tmp_path, graph)
    for minute in range(5, 60 * 5, 25):
        story.time(f"2026-01-05 {minute // 60:02}:{minute % 60:02}")
        for project in ("upstream", "downstream"):
            lease = story.ledger.acquire(
                project,
                "prod",
                "run",
                {"host": "h", "pid": 1},
                ttl=timedelta(minutes=20),
                grace=timedelta(minutes=30),
            )
            if not hasattr(lease, "ttl"):
                continue
            _random_run(story, project, lease, chance)
    with story.mesh() as mesh:
        scene = Scene(mesh._bench, "prod", None)
        found = mesh.status()
    blamed = {m for w in found.waits for m in (*(c.model for c in w.causes), *(w[0] for w in w.waiting))}
    for name in scene.graph.order():
        unclean = scene.unclean(name)
        causes = scene.causes(name, unclean)
        told = IntervalSet(piece for cause in causes for piece in cause.time)
        assert unclean - scene.standing(name).settled <= told, name
        assert all(cause.roots and all(root.remedy for root in cause.roots) for cause in causes), name
        planned = scene.planned(name)
        assert IntervalSet(b.interval for b in planned.blocked) & unclean <= told, name
        # What a run has claimed is told with that run, and is a wait only of somebody else.
        # Nobody has to do anything about what is stale and will be computed again by itself.
        trouble = [c for c in causes if c.because or c.reason != "stale"]
        if any(not cause.in_order and cause.reason not in ("marked", "begun") for cause in trouble):
            assert name in blamed, name


def _random_run(story: Story, project: str, lease: Any, chance: random.Random) -> None:
    with story.mesh() as mesh:
        plan = Scene(mesh._bench, "prod", None).plan
    for planned in plan.models:
        if planned.project != project or not planned.pieces:
            continue
        for piece in planned.pieces:
            what = chance.random()
            name = planned.name.replace('"', "").removeprefix("lake.")
            text = f"{piece.start:%Y-%m-%dT%H:%M}/{piece.end:%Y-%m-%dT%H:%M}"
            if what < 0.15:
                continue
            if what < 0.3:
                story.fail(lease, name, text, audit=chance.choice(["a", "b"]))
                break
            if what < 0.4:
                story.begin(lease, name, text)
                break
            story.commit(lease, name, text)
    if chance.random() < 0.7:
        story.ledger.finish(lease.run_id, "done", {})
