"""Random histories of a small mesh whose tables know what they were computed from, over a real ledger."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from attrs import evolve

from guarantee_mesh import AUDIT, BRONZE, DIMENSION, SILVER, Mesh, minutes, node
from meshgate.coordinator.staleness import Policy
from meshgate.graph import Edge, Window, window_of
from meshgate.interval import Interval

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshgate.ledger import Ledger

BALANCE, FACT, DAILY = '"lake"."balance"', '"lake"."fact"', '"lake"."daily"'


class Rows:
    """Tables in memory. Each cell of five minutes holds what it was computed from; the source changes behind everybody."""

    def __init__(self, mesh: Mesh, chance: random.Random) -> None:
        self.mesh = mesh
        self.chance = chance
        self.source: defaultdict[int, int] = defaultdict(int)
        self.bad: set[int] = set()
        self.tables: dict[str, dict[Interval, Any]] = defaultdict(dict)

    def __call__(self, name: str, piece: Interval) -> dict[str, Any] | None:
        """Evaluate as an engine does: write first, judge afterwards."""
        kind = self.mesh.graph[name].kind
        first = self.mesh.graph[name].life.start if kind.reads_everything else piece.start
        bad = False
        for unit in self.mesh.graph[name].unit.split(Interval(first, piece.end)):
            self.tables[name][unit] = self.row(name, unit, self.tables)
            bad = bad or (name == BRONZE and self.cell(unit) in self.bad)
        return AUDIT if bad else None

    def cell(self, unit: Interval) -> int:
        return int((unit.start - minutes(0, 5).start) / timedelta(minutes=5))

    def row(self, name: str, unit: Interval, tables: dict[str, dict[Interval, Any]]) -> Any:
        if name == BRONZE:
            return self.source[self.cell(unit)]
        graph = self.mesh.graph
        read = []
        for edge in graph.parents(name):
            if edge.parent == name:
                before = Interval(unit.start - timedelta(minutes=5), unit.start)
                read.append(hash(tables[name].get(before)))
                continue
            parent = graph[edge.parent]
            for piece in window_of(graph[name], parent, edge.window, unit):
                read += [(edge.parent, u.start, tables[edge.parent].get(u)) for u in parent.unit.split(piece)]
        return tuple(read)

    def recomputed(self, upto: Interval) -> dict[str, dict[Interval, Any]]:
        """Everything from the source."""
        tables: dict[str, dict[Interval, Any]] = defaultdict(dict)
        for name in self.mesh.graph.order():
            for unit in self.mesh.graph[name].unit.split(upto):
                tables[name][unit] = self.row(name, unit, tables)
        return tables

    def disturb(self, hours: int) -> None:
        """Late rows, which somebody tells; rows that an audit rejects, and their repair."""
        cell = self.chance.randrange(hours * 12)
        self.source[cell] += 1
        self.mesh.mark(BRONZE, minutes(cell * 5, cell * 5 + 5), "requested")
        if self.bad and self.chance.random() < 0.7:
            self.bad.clear()
        elif self.chance.random() < 0.4:
            self.bad.add(cell)


def starry(ledger: Ledger) -> Mesh:
    """With facts of a dimension, of its latest state, and a table that reads its own past."""
    latest = node(DAILY, "down", "hour")
    balance = evolve(node(BALANCE, "up", "five_minute"), depends_on_past=True)
    return Mesh(
        ledger,
        (
            [node(FACT, "down", "hour"), latest, balance],
            [
                Edge(FACT, DIMENSION), Edge(FACT, SILVER), Edge(DAILY, DIMENSION, Window("latest")),
                Edge(BALANCE, SILVER), Edge(BALANCE, BALANCE),
            ],
        ),
    )  # fmt: skip


def play(
    ledger: Ledger,
    seed: int,
    look: Callable[[Mesh], object],
    each: Callable[[Mesh], object] = lambda _: None,
) -> Mesh:
    """Late rows, failures, crashes in the middle, looks: at rest nothing is stale, and every row is as if all were anew.

    Args:
        ledger: An empty one.
        seed: Which history.
        look: Done now and then.
        each: Done after each step.
    """
    chance = random.Random(seed)  # noqa: S311 - so that a history can be had again
    mesh = starry(ledger)
    mesh.policy = Policy(throttle=timedelta(minutes=chance.choice((0, 10, 60))))
    rows = Rows(mesh, chance)
    passed = 60
    mesh.time(passed)
    for _ in range(40):
        passed += chance.choice((0, 5, 5, 30))
        mesh.time(passed)
        if chance.random() < 0.5:
            rows.disturb(passed // 60)
        project = chance.choice(("up", "down"))
        if chance.random() < 0.15:
            dies(mesh, project, rows, chance)
            passed += 40
        else:
            mesh.run(project, rows)
        if chance.random() < 0.3:
            look(mesh)
        each(mesh)
    rows.bad.clear()
    passed = (passed // 60 + 2) * 60
    for _ in range(12):
        passed += 60
        mesh.time(passed)
        mesh.run("up", rows)
        mesh.run("down", rows)
        if mesh.plan().is_empty and not mesh.stale():
            break
    assert mesh.stale() == {}
    assert rows.tables == rows.recomputed(minutes(0, passed))
    return mesh


def dies(mesh: Mesh, project: str, rows: Rows, chance: random.Random) -> None:
    """A run that is gone after some batch was written and not recorded."""
    lease = mesh.acquire(project)
    plan = mesh.plan(project)
    journal = mesh.journal(lease, project)
    journal.stale_from = {m.name: m.stale_from for m in plan.models if m.stale_from is not None}
    for name, pieces in mesh.claim(journal, plan).items():
        for piece in pieces:
            if chance.random() < 0.3:
                for ready in journal.begin(name, piece):
                    rows(name, ready)
                return
            mesh.evaluate(journal, name, piece, rows)
    mesh.ledger.finish(lease.run_id, "done", {})
