"""The meshes that the simulator plays: three projects, a parent with a lookback, readers by time and as of an instant."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from attrs import evolve

from meshgate.graph import Edge, Kind, MeshGraph, ModelNode, Window
from meshgate.interval import IntervalUnit
from simulator_geometry import ORIGIN
from simulator_scene import Events, Project, Scenario, Troubles

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from typing import Any

LATE_ROWS, SAME_PROJECT, CHILD, AS_OF, GRANDCHILD = "orders", "lines", "gold", "dim", "report"
PRICES, PAST, FACT, ROLLING, MERGED, APPENDED = "prices", "balance", "fact", "rolling", "keyed", "log"
TROUBLES = Troubles(failing=0.01, poisoned=0.005, hopeless=0.001, crash=0.01, pause=0.005)
SHORT_S, LONG_S = (20, 100), (150, 400)
"""An evaluation of the parent; a run makes two of them, and its period is 300 seconds."""
ALL_TROUBLES = Troubles(failing=0.03, poisoned=0.004, crash=0.02, pause=0.02, unmirrored=0.02)
ALL_EVENTS = Events(late=1200, request=5000, removal=7000, plain=4000, deploy=9000, accept=5000, hold=9000)


def mesh(hours: float, lookback: int, *, chain: bool = False) -> MeshGraph:
    """Five models in three projects.

    Args:
        hours: How long all models live.
        lookback: Of the parent, in units of five minutes.
        chain: Only the parent, its child and its grandchild, one model in each project.
    """
    end = ORIGIN + timedelta(hours=hours)
    by_time, full = Kind.INCREMENTAL_BY_TIME_RANGE, Kind.FULL
    five, hour = (IntervalUnit.FIVE_MINUTE, "*/5 * * * *"), (IntervalUnit.HOUR, "@hourly")

    def node(
        name: str, project: str, kind: Kind, rhythm: tuple[IntervalUnit, str], back: int = 0
    ) -> ModelNode:
        unit, cron = rhythm
        return ModelNode(
            name=name, project=project, version="1", kind=kind, unit=unit, cron=cron,
            start=ORIGIN, end=end, lookback=back,
        )  # fmt: skip

    nodes = [
        node(LATE_ROWS, "up", by_time, five, lookback),
        node(SAME_PROJECT, "up", by_time, five),
        node(CHILD, "down", by_time, hour),
        node(AS_OF, "down", full, hour),
        node(GRANDCHILD, "far", by_time, hour),
    ]
    edges = [
        Edge(SAME_PROJECT, LATE_ROWS),
        Edge(CHILD, LATE_ROWS),
        Edge(CHILD, SAME_PROJECT),
        Edge(AS_OF, LATE_ROWS),
        Edge(GRANDCHILD, CHILD),
        Edge(GRANDCHILD, AS_OF, Window("latest")),
    ]
    if chain:
        nodes = [n for n in nodes if n.name in (LATE_ROWS, CHILD, GRANDCHILD)]
        kept = {n.name for n in nodes}
        edges = [e for e in edges if {e.child, e.parent} <= kept]
    return MeshGraph({n.name: n for n in nodes}, edges)


def scenario(
    seed: int,
    *,
    hours: float = 24,
    lookback: int = 12,
    overlap: str = "skip",
    takes_s: tuple[int, int] = SHORT_S,
    readers_every_s: int = 3600,
    chain: bool = False,
    **others: Any,
) -> Scenario:
    """A history of the mesh; the seed says how many minutes after the full hour the readers' projects run.

    Args:
        seed: Of the phases; the simulation has its own.
        hours: As in `mesh`.
        lookback: As in `mesh`.
        overlap: `skip` or `share`, for every project.
        takes_s: The shortest and the longest evaluation of the parent.
        readers_every_s: The period of the two projects that read.
        chain: As in `mesh`.
        others: Fields of `Scenario`.
    """
    chance = random.Random(seed)  # noqa: S311 - a history, not a secret
    down = chance.randrange(min(readers_every_s, 900))
    # Ten minutes later: a reader that always comes while its as-of parent is refreshed would measure nothing else.
    far = (down + chance.randrange(600, 900)) % readers_every_s
    projects = {
        "up": Project(300, 0, overlap),
        "down": Project(readers_every_s, down, overlap),
        "far": Project(readers_every_s, far, overlap),
    }
    takes = {
        LATE_ROWS: takes_s, SAME_PROJECT: (10, 60), CHILD: (30, 200), AS_OF: (30, 200), GRANDCHILD: (30, 200),
    }  # fmt: skip
    fields = {"graph": mesh(hours, lookback, chain=chain), "projects": projects, "takes_s": takes} | others
    return Scenario(**fields)


def everything(hours: float, lookback: int = 12) -> MeshGraph:
    """Models of every sort: what reads itself, a fact of a dimension, a rolling window, what merges and what appends."""
    end = ORIGIN + timedelta(hours=hours)
    small = mesh(hours, lookback)
    five, hour = small[LATE_ROWS], small[CHILD]
    nodes = [
        *small.nodes.values(),
        evolve(five, name=PRICES, lookback=0),
        evolve(five, name=PAST, lookback=0, depends_on_past=True),
        evolve(hour, name=FACT),
        evolve(hour, name=ROLLING, project="far"),
        evolve(hour, name=MERGED, kind=Kind.INCREMENTAL_BY_UNIQUE_KEY),
        evolve(hour, name=APPENDED, project="far", kind=Kind.INCREMENTAL_UNMANAGED),
    ]
    assert all(n.end == end for n in nodes)
    edges = [
        *(e for name in small.order() for e in small.parents(name)),
        Edge(PAST, SAME_PROJECT),
        Edge(PAST, PRICES),
        Edge(FACT, AS_OF),
        Edge(FACT, PRICES),
        Edge(ROLLING, CHILD, Window("interval", timedelta(hours=-3))),
        Edge(MERGED, SAME_PROJECT),
        Edge(APPENDED, CHILD),
    ]
    return MeshGraph({n.name: n for n in nodes}, edges)


def some_of(graph: MeshGraph, models: Collection[str]) -> MeshGraph:
    """Those models of a mesh alone."""
    edges = (e for name in graph.order() for e in graph.parents(name) if {e.child, e.parent} <= set(models))
    return MeshGraph({name: graph[name] for name in models}, edges)


def daily(hours: float) -> MeshGraph:
    """Hourly facts that look up a dimension which is refreshed once a day."""
    hour = mesh(hours, 0)[CHILD]
    day = {"unit": IntervalUnit.DAY, "cron": "@daily", "kind": Kind.FULL}
    nodes = [
        evolve(hour, name=LATE_ROWS, project="up"),
        evolve(hour, name=AS_OF, **day),
        evolve(hour, name=FACT),
    ]
    edges = [Edge(AS_OF, LATE_ROWS), Edge(FACT, LATE_ROWS), Edge(FACT, AS_OF, Window("latest"))]
    return MeshGraph({n.name: n for n in nodes}, edges)


def eventful(
    seed: int,
    *,
    hours: float = 8,
    models: Collection[str] = (),
    slow: Mapping[str, tuple[int, int]] | None = None,
    **others: Any,
) -> Scenario:
    """A history of that mesh, with all troubles and all events.

    Args:
        seed: As of `scenario`.
        hours: As of `scenario`.
        models: Only these.
        slow: Models that take as long as is told.
        others: As of `scenario`.
    """
    fields = {
        "overlap": ("skip", "share")[seed % 2], "takes_s": (SHORT_S, LONG_S)[seed // 2 % 2], "readers_every_s": 900,
        "troubles": ALL_TROUBLES, "events": ALL_EVENTS, "staleness": True,
    } | others  # fmt: skip
    played = scenario(seed, hours=hours, **fields)
    graph = others.get("graph") or everything(hours, others.get("lookback", 12))
    graph = some_of(graph, models) if models else graph
    projects = {n.project for n in graph.nodes.values()}
    played = replace(played, projects={n: p for n, p in played.projects.items() if n in projects})
    takes = {
        name: (30, 200) if node.unit is IntervalUnit.HOUR else (10, 60) for name, node in graph.nodes.items()
    }
    return replace(played, graph=graph, takes_s=takes | dict(played.takes_s) | dict(slow or {}))
