"""The gate as a signal, with the real `sqlmesh` command line: a second line of defence where nothing is enforced."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from duck_mesh import DuckMesh, Rows, copied, naive, ranged
from meshgate.interval import IntervalSet
from test_enforced import FIVE, PROJECTS, plan, sqlmesh
from tiny_mesh import at, span

if TYPE_CHECKING:
    from pathlib import Path

    from meshgate.local_postgres import LocalPostgres

SILVER, GOLD, BOTH = (f'"house"."lake"."{name}"' for name in ("silver", "gold", "both"))
pytestmark = pytest.mark.cli
SIGNAL = """
from meshgate.signals import ready
from sqlmesh import signal

@signal()
def meshgate_ready(batch, context, snapshot):
    return ready(batch, context, snapshot, mesh={mesh!r})
"""
SELECTED = ("--select-model", "lake.gold", "--no-auto-upstream")


@pytest.fixture
def duck(tmp_path: Path, postgres: LocalPostgres) -> DuckMesh:
    """Upstream, every 5 minutes, under meshgate; downstream, hourly, on plain SQLMesh with the signal."""
    signal = SIGNAL.format(mesh=str(tmp_path))
    duck = DuckMesh(
        tmp_path, postgres,
        upstream={"silver": copied("lake.silver", "raw.events", cron=FIVE)},
        downstream={
            "gold": copied("lake.gold", "lake.silver", model="signals (meshgate_ready())"),
            "other": copied("lake.other", "raw.events"),
            "signals/meshgate.py": signal,
        },
    )  # fmt: skip
    duck.feed(0, 300)
    with duck.mesh() as mesh:
        for project in PROJECTS:
            mesh.deploy(project, now=at(60))
    return duck


def source(duck: DuckMesh, upto: float, more: int = 0) -> Rows:
    """What each table holds when everything before an instant is done."""
    return duck.sql("SELECT id, ts, value + ? FROM raw.events WHERE ts < ? ORDER BY id", [more, naive(upto)])


def test_only_what_the_gate_lets_through_is_evaluated(duck: DuckMesh) -> None:
    """Upstream has reached 02:05; plain SQLMesh would record the hour to 03:00 with five minutes of data."""
    with duck.mesh() as mesh:
        mesh.run("upstream", now=at(125))
    sqlmesh(duck, "downstream", 180, "run", *SELECTED)
    assert duck.table("lake.gold") == source(duck, 120)
    with duck.mesh() as mesh:
        mesh.run("upstream", now=at(180))
    sqlmesh(duck, "downstream", 180, "run", *SELECTED)
    assert duck.table("lake.gold") == source(duck, 180)


def test_what_the_same_run_makes_counts(duck: DuckMesh) -> None:
    """Plain `sqlmesh run` of everything evaluates the parent before: its readers need not wait for the ledger."""
    sqlmesh(duck, "downstream", 120, "run")
    assert duck.table("lake.silver") == duck.table("lake.gold") == source(duck, 120)


def test_a_plan_promotes_full_tables(duck: DuckMesh) -> None:
    """A breaking change upstream: the ledger does not know the new version, and the plan fills its readers behind it."""
    higher = copied("lake.silver", "raw.events", cron=FIVE).replace(
        "id, ts, value", "id, ts, value + 1000 AS value"
    )
    duck.write("upstream", "silver", higher)
    plan(duck, "upstream", 60)
    assert duck.table("lake.gold") == source(duck, 60, 1000)


def test_without_a_ledger_nothing_waits_but_what_asks_it(duck: DuckMesh) -> None:
    """A ledger that does not answer: not ready, with the reason in the log; the run goes on with the other models."""
    with duck.mesh() as mesh:
        mesh.run("upstream", now=at(120))
    file = duck.folder / "meshgate.yaml"
    facts = json.loads(file.read_text())
    facts["ledger"]["url"] = "postgresql://nobody@127.0.0.1:1/nowhere"
    file.write_text(json.dumps(facts))
    loud = "import logging; logging.basicConfig(level=logging.WARNING)"
    said = sqlmesh(duck, "downstream", 120, "run", prelude=loud)
    assert "is not ready: the ledger could not be asked" in said
    assert duck.table("lake.gold") == source(duck, 60)
    assert duck.table("lake.other") == source(duck, 120)


def test_it_passes_under_meshgates_own_runs(duck: DuckMesh) -> None:
    """There the gate has spoken, and holds the claims: what the same run makes is not refused, also of several parents."""
    both = "SELECT g.id, g.ts, g.value FROM lake.gold AS g JOIN lake.other AS o ON o.id = g.id"
    text = ranged("lake.both", f"{both} WHERE g.ts >= @start_dt AND g.ts < @end_dt")
    duck.write("downstream", "both", text.replace("cron", "signals (meshgate_ready()), cron", 1))
    with duck.mesh() as mesh:
        mesh.deploy("downstream", now=at(60))
        mesh.run("upstream", now=at(120))
        committed = mesh.run("downstream", now=at(120)).committed
        assert committed[GOLD] == committed[BOTH] == IntervalSet([span(60, 120)])
    assert duck.table("lake.gold") == duck.table("lake.both") == source(duck, 120)
