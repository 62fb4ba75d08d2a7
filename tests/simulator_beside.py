"""The simulated ledger beside the real one, told the same: what is stale, requested and promoted is the same in both."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from attrs import evolve

import simulator_people as people
from ledger_scene import Scene
from meshgate.coordinator import staleness
from meshgate.graph import MeshGraph
from meshgate.interval import IntervalSet
from simulator_geometry import at, cells_of, interval_of, runs_of
from simulator_ledger import SimulatedLedger
from simulator_scenarios import (
    AS_OF,
    FACT,
    GRANDCHILD,
    LATE_ROWS,
    MERGED,
    PAST,
    SAME_PROJECT,
    everything,
    some_of,
)

if TYPE_CHECKING:
    from meshgate.interval import Interval
    from meshgate.ledger import Ledger
    from simulator_geometry import Cells
    from simulator_table import Run, Table

HOURS = 4
TTL = timedelta(days=1)
MODELS = (LATE_ROWS, SAME_PROJECT, PAST, AS_OF, FACT, MERGED)


@dataclass
class Batch:
    """A batch under way in both."""

    ours: Run
    theirs: int
    table: Table
    cells: Cells


class Beside:
    """Both ledgers and what is done to them, by chance.

    Attributes:
        stale: How often something was stale when both were asked.
    """

    def __init__(self, ledger: Ledger, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a history, not a secret
        graph = some_of(everything(HOURS), MODELS)
        assert GRANDCHILD not in graph
        self.theirs, self.scene = ledger, Scene(ledger)
        self.ours = SimulatedLedger(graph, grace_s=0)
        self.geometry = self.ours.geometry
        self.projects = {n.project for n in graph.nodes.values()}
        self.theirs.sync_environment("prod", "plan", graph, self.projects)
        self.ids = dict(self.theirs.manifest("prod").version_ids)
        self.keys = {self.ours.ids[name]: key for name, key in self.ids.items()}
        self.batches: list[Batch] = []
        self.stale = 0
        self.now = HOURS * 3600
        self._tell_the_time()
        for name in graph.order():
            batch = self._open(self.ours.tables[name], frozenset(range((HOURS - 1) * 12)))
            assert batch is not None
            self._commit(batch)
            self._finish(batch.ours)

    def step(self) -> None:
        """One more change, of both."""
        self.now += self.chance.choice((1, 60, 600))
        self._tell_the_time()
        what = self.chance.choices(
            (self.begin, self.end, self.request, self.settle, self.promote), (6, 6, 1.5, 1, 0.7)
        )[0]
        what()

    def _tell_the_time(self) -> None:
        self.ours.now = self.now
        self.scene.set_clock(at(self.now))

    def begin(self) -> None:
        name = self.chance.choice(MODELS)
        start = self.chance.randrange(0, HOURS * 12, self.geometry.size[name])
        length = self.geometry.size[name] * self.chance.randint(1, 12)
        batch = self._open(self.ours.tables[name], frozenset(range(start, min(start + length, HOURS * 12))))
        if batch is not None:
            self.batches.append(batch)

    def _open(self, table: Table, cells: Cells, purpose: str = "run") -> Batch | None:
        """A run with one batch that has begun, or none where it may not."""
        node = table.node
        theirs = self.theirs.acquire(
            node.project, "prod", purpose, {"host": "here"}, ttl=TTL, grace=timedelta(0), share=True
        )
        ours = self.ours.acquire(node.project, share=True, purpose=purpose)
        assert ours is not None
        assert theirs.run_id == ours.run_id
        key = self.keys[table.key]
        answers = self.theirs.open_claims(ours.run_id, key, [interval_of(cells)])
        mine = self.ours.open(ours, table, [cells])
        assert mine == [answer.refused_by is None for answer in answers]
        if mine == [True]:
            needs = [(self.ours.tables[p], read) for p, read in self.geometry.needs(node.name, cells)]
            asked = [(self.keys[p.key], interval_of(read)) for p, read in needs]
            begun = self.theirs.begin(
                ours.run_id, key, interval_of(cells), needs=asked, loaded=[],
                environment="prod" if purpose == "run" else None,
            )  # fmt: skip
            refused = self.ours.begin(ours, table, cells, needs)
            assert bool(refused) == bool(begun.refused)
            if not refused:
                return Batch(ours, ours.run_id, table, cells)
        self._finish(ours)
        return None

    def _finish(self, run: Run) -> None:
        self.theirs.finish(run.run_id, "done", {})
        self.ours.finish(run)

    def end(self) -> None:
        if not self.batches:
            return
        batch = self.batches.pop(self.chance.randrange(len(self.batches)))
        fate = self.chance.random()
        if fate < 0.75:
            self._commit(batch)
        elif fate < 0.9:
            assert self.ours.fail(batch.ours, batch.table, batch.cells)
            self.theirs.fail(batch.theirs, self.keys[batch.table.key], interval_of(batch.cells), {})
        self._finish(batch.ours)

    def _commit(self, batch: Batch) -> None:
        table, cells, first = batch.table, batch.cells, min(batch.cells)
        back = frozenset(range(max(0, first - 12), first)) if table.node.lookback else frozenset()
        since = self.chance.randrange(HOURS * 12) if table.refreshed and self.chance.random() < 0.4 else None
        made = self.ours.commit(batch.ours, table, cells, back, since)
        told = self.theirs.commit(
            batch.theirs, self.keys[table.key], interval_of(cells), verdict="passed",
            lookback=interval_of(back) if back else None, stale_from=None if since is None else at(since * 300),
        )  # fmt: skip
        assert made == told

    def request(self) -> None:
        table = self.ours.tables[self.chance.choice(MODELS)]
        if table.facts:
            first = self.chance.choice(sorted(table.facts))
            cells = frozenset(range(first, min(first + self.chance.randint(1, 6), HOURS * 12)))
            people.request(self.ours, table.node.name, cells)
            self.theirs.request([(table.node.name, interval_of(cells))], reason="why", by="me")

    def settle(self) -> None:
        for ledger, ids in ((self.ours, self.ours.ids), (self.theirs, self.ids)):
            stale = staleness.find(ledger, "prod", self.ours.graph, ids)  # type: ignore[arg-type]
            ledger.settle("prod", staleness.settled(stale, MODELS), ids, ledger.revision())

    def promote(self) -> None:
        old = self.ours.tables[self.chance.choice(MODELS)]
        pieces = runs_of(old.facts)
        if not pieces or any(c.state == "begun" for c in old.claims):
            return
        node = evolve(old.node, version=str(len(self.ours.versions)))
        new = self.ours.add(node, 0)
        self.keys[new.key] = self.theirs.register_version(node)
        batch = self._open(new, self.chance.choice(pieces), "deploy")
        if batch is None:
            return
        for _ in range(self.chance.randrange(4)):
            self.end()  # what its readers and its sources do meanwhile
        self._commit(batch)
        breaking = self.chance.random() < 0.3
        edges = [e for name in self.ours.graph.order() for e in self.ours.graph.parents(name)]
        graph = MeshGraph({**self.ours.graph.nodes, node.name: node}, edges)
        unbroken = {} if breaking else {node.name: frozenset({old.node.version})}
        settled = staleness.after_promotion(self.theirs, "prod", graph, unbroken)
        changed = self.theirs.sync_environment(
            "prod", "plan", graph, self.projects, settled, self.theirs.revision()
        )
        people.promote(self.ours, new, breaking=breaking)
        assert changed == (node.name,)
        self.ids = dict(self.theirs.manifest("prod").version_ids)
        self._finish(batch.ours)

    # What both say

    def agree(self) -> None:
        """Revision, record, marks, and what is stale by whom: the same."""
        assert self.ours.revision() == self.theirs.revision()
        known = self.theirs.states(self.ids.values())
        for name, table in self.ours.tables.items():
            ours, theirs = self.ours.states([table.key])[table.key], known[self.ids[name]]
            assert (ours.covered, ours.accepted) == (theirs.covered, theirs.accepted)
            assert _told(ours.marks) == _told(theirs.marks)
            read = self.theirs.read_lately(self.ids[name], at(self.now - 3600))
            assert self.ours.read_lately(table.key, at(self.now - 3600)) == read
        ours_stale = staleness.find(self.ours, "prod", self.ours.graph, self.ours.ids)  # type: ignore[arg-type]
        self.stale += bool(ours_stale)
        assert _by_parent(ours_stale) == _by_parent(
            staleness.find(self.theirs, "prod", self.ours.graph, self.ids)
        )


def _told(marks: tuple[object, ...]) -> set[tuple[str, Interval, int, int]]:
    return {(m.kind, m.interval, m.revision, m.attempts) for m in marks}  # type: ignore[attr-defined]


def _by_parent(stale: dict[str, tuple[staleness.Stale, ...]]) -> dict[tuple[str, str], set[int]]:
    """Which cells of a model are stale because of which parent."""
    pairs = {(name, s.parent) for name, found in stale.items() for s in found}
    return {
        (name, parent): cells_of(IntervalSet(s.interval for s in stale[name] if s.parent == parent))
        for name, parent in pairs
    }
