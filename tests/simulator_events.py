"""What happens to a simulated mesh while its runs go on: the source changes, people decide, plain SQLMesh runs, deploys."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from attrs import evolve

import simulator_people as people
from simulator_geometry import CELL_S, end_of, runs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator import Simulation, Work
    from simulator_geometry import Cells
    from simulator_scene import Events
    from simulator_table import Table


class Happenings:
    """All of that for one history.

    Attributes:
        foreign: Whether SQLMesh's record may differ from the ledger.
        under_way: What has begun and is not over.
    """

    def __init__(self, simulation: Simulation, events: Events) -> None:
        self.simulation = simulation
        self.events = events
        self.chance = simulation.chance
        self.ledger = simulation.ledger
        self.checker = simulation.checker
        self.geometry = simulation.geometry
        self.warehouse = simulation.checker.warehouse
        told = simulation.scenario.troubles.unmirrored
        self.foreign = bool(events.removal or events.plain or told or events.accept)
        self.under_way = 0
        self._new: dict[int, tuple[Table, bool]] = {}
        self._last_hour = simulation.end - 3600

    def start(self) -> None:
        for each in fields(self.events):
            if every_s := getattr(self.events, each.name):
                self._again(every_s, getattr(self, each.name))

    def _again(self, every_s: int, what: Callable[[], None]) -> None:
        self.simulation.later(1 + int(self.chance.expovariate(1 / every_s)), self._happen, every_s, what)

    def _happen(self, every_s: int, what: Callable[[], None]) -> None:
        if self.simulation.now < self._last_hour:
            what()
            self._again(every_s, what)

    def _later(self, delay_s: int, what: Callable[..., None], *arguments: object) -> None:
        """Something that has to be over before the history is."""
        self.under_way += 1
        self.simulation.later(delay_s, self._end, what, arguments)

    def _end(self, what: Callable[..., None], arguments: tuple[object, ...]) -> None:
        self.under_way -= 1
        what(*arguments)

    def _some(self, cells: set[int], model: str, most: int = 6) -> Cells:
        """Some neighbouring units, or none."""
        starts = self.geometry.units(model, cells)
        if not starts:
            return frozenset()
        first = self.chance.choice(starts)
        size = self.geometry.size[model]
        found = range(first, first + size * self.chance.randint(1, most))
        return next(p for p in runs_of(cells & set(found)) if first in p)

    def _any_model(self) -> Table:
        return self.ledger.tables[self.chance.choice(self.ledger.graph.order())]

    def _any_source(self) -> Table:
        return self.ledger.tables[self.chance.choice(sorted(self.warehouse.sources))]

    # The source

    def late(self) -> None:
        table = self._any_source()
        name, lookback = table.node.name, table.node.lookback * self.geometry.size[table.node.name]
        present = self.simulation.now // CELL_S
        present -= present % self.geometry.size[name]
        # A unit that fails for hours is no new one when it passes; half of the lookback leaves time for some of those.
        first = max(0, present - lookback // 2)
        if lookback and first < present:
            self.warehouse.source[name][self.chance.randrange(first, present)] += 1

    def _mend(self, table: Table, cells: Cells) -> None:
        if table.node.name in self.warehouse.sources:
            for cell in cells:
                self.warehouse.source[table.node.name][cell] += 1

    # People

    def request(self) -> None:
        table = self._any_model() if self.chance.random() < 0.5 else self._any_source()
        cells = self._some(set(table.facts), table.node.name)
        if cells:
            self._mend(table, cells)
            people.request(self.ledger, table.node.name, cells)

    def accept(self) -> None:
        tables = list(self.ledger.tables.values())
        self.chance.shuffle(tables)
        for table in tables:
            wrong = {c for kind in ("failed", "suspect") for c in table.marks.get(kind, ())}
            if -1 in wrong:
                wrong = {c for doubt in table.doubt.values() for c in doubt}
            wrong = {c for c in wrong if (c + 1) * CELL_S <= self.simulation.now}
            cells = self._some(wrong, table.node.name, 1)
            if cells and (not table.whole or table.appended):
                self._accept(table, cells)
                return

    def _accept(self, table: Table, cells: Cells) -> None:
        node, size = table.node, self.geometry.size[table.node.name]
        frontier = max(table.facts, default=-1) + 1
        lookback: Cells = frozenset()
        if node.lookback and max(cells) >= frontier:
            fresh = max(min(cells), frontier)
            lookback = frozenset(range(max(0, fresh - node.lookback * size), fresh))
        taken = people.accept(self.ledger, table, cells, lookback)
        if taken:
            self.checker.taken(table, taken)
            if self.chance.random() < 0.4:
                self._later(self.chance.randrange(3600), people.undo_accept, self.ledger, table, taken)

    def hold(self) -> None:
        table = self._any_model()
        cells = self._some(set(table.facts) or {0}, table.node.name)
        people.hold(self.ledger, table.node.name, cells)
        self._later(self.chance.randrange(3 * 3600), people.release, self.ledger, table.node.name, cells)

    # Plain SQLMesh

    def removal(self) -> None:
        """What nobody has told SQLMesh is not in its record anyway: who removes it does not see that.

        Not what is just being computed: its commit would put it back into SQLMesh's record, without a trace.
        """
        table = self._any_model() if self.chance.random() < 0.3 else self._any_source()
        untold = {c for fact, cells in table.rows() if fact.mirrored is None for c in cells}
        chosen = untold if untold and self.chance.random() < 0.7 else set(table.facts)
        versions = [t for t in self.ledger.versions.values() if t.node.name == table.node.name]
        claims = [claim for t in versions for claim in t.claims if claim.state == "begun"]
        writing = {c for claim in claims for c in claim.cells}
        chosen = set() if -1 in writing else chosen - writing
        cells = self._some(chosen, table.node.name, 3)
        if cells and not table.appended:
            self._mend(table, cells)
            for each in versions:
                self.ledger.state[each.key] -= cells

    def plain(self) -> None:
        table = self._any_model()
        name = table.node.name
        over = min(self.simulation.now // CELL_S, end_of(table.node))
        over -= over % self.geometry.size[name]
        lacking = set(range(over)) - self._known(table)
        if not table.node.kind.time_partitioned or table.node.depends_on_past:
            lacking &= set(range(min(lacking, default=0), over))
            cells = frozenset(sorted(lacking)[: self.geometry.size[name]])
            if cells and min(cells) <= max(table.facts, default=-1):
                return  # a hole of a table that must be filled in order is nobody's next interval
        else:
            cells = self._some(lacking, name, 3)
        if not cells or table.appended:
            return
        rows = self.warehouse.compute(table, cells, self.ledger.tables)
        self.under_way += 1
        self.simulation.later(self.chance.randrange(900), self._write, table, cells, rows)

    def _known(self, table: Table) -> set[int]:
        """What plain SQLMesh would not evaluate, or not without rewriting what a run has recorded."""
        untold = ("accepted", None, None)
        facts = {c for c, f in table.facts.items() if (f.verdict, f.run, f.mirrored) != untold}
        return self.ledger.state[table.key] | facts

    def _write(self, table: Table, cells: Cells, rows: dict[int, int]) -> None:
        """Not over what is recorded: SQLMesh keeps no trace of that, and neither rule is about it."""
        if self._known(table) & cells or self.ledger.tables[table.node.name] is not table:
            self.under_way -= 1
            return
        self.warehouse.write(table, rows)
        written = rows if table.refreshed else cells
        self.checker.content[table.key].update(dict.fromkeys(written, -self.ledger.revision_ - 1))
        # A run that tells SQLMesh what was accepted would hide that it stands there because of somebody else.
        wait_s = 0 if table.whole or cells & table.facts.keys() else self.chance.randrange(900)
        self.simulation.later(wait_s, self._record, table, cells)

    def _record(self, table: Table, cells: Cells) -> None:
        self.under_way -= 1
        self.ledger.state[table.key] |= cells

    # Deploys

    def deploy(self) -> None:
        """Build a new version of one model; its readers keep theirs, as where each project has its own state."""
        from simulator import Work

        table = self._any_model()
        node = table.node
        if table.appended or not table.facts:
            return
        run = self.ledger.acquire(node.project, share=True, purpose="deploy")
        if run is None:
            return
        breaking = self.chance.random() < 0.5
        version = str(
            int(node.version) + 1 + sum(t.node.name == node.name for t in self.ledger.versions.values())
        )
        new = self.ledger.add(evolve(node, version=version), table.recipe + breaking)
        work = Work(run, node.project, {**self.ledger.tables, node.name: new})
        ready: set[int] = set()
        for start in self.geometry.units(node.name, table.facts):
            needs = self.geometry.reads(node.name, start)
            if any(self.ledger.unclean(self.ledger.tables[p], window) for p, window in needs):
                break
            ready |= set(self.geometry.unit(node.name, start))
        pieces = runs_of(ready)[:1]
        if not pieces or min(pieces[0]):
            self.ledger.finish(run)
            return
        self.simulation.works[run.run_id] = work
        work.opened[node.name], work.frontier[node.name] = self.ledger.revision_, 0
        self.ledger.open(run, new, pieces)
        work.queue.append((node.name, pieces[0], False))
        self._new[run.run_id] = (new, breaking)
        self.simulation.next(work)

    def built(self, work: Work) -> None:
        """It is promoted when nobody writes what it replaces."""
        self.simulation.later(self.chance.randrange(1200), self._promote, work)

    def _promote(self, work: Work) -> None:
        new, breaking = self._new[work.run.run_id]
        if not self.ledger.holds(work.run):
            return
        old = self.ledger.tables[new.node.name]
        writing = any(
            c.state == "begun"
            and c.run in self.ledger.running
            and self.ledger.holds(self.ledger.running[c.run])
            for c in old.claims
        )
        if writing:
            self.simulation.later(30, self._promote, work)
            return
        if new.facts:
            people.promote(self.ledger, new, breaking=breaking)
            self.checker.replaced(new.node.name)
        self.ledger.finish(work.run)
        self.simulation.works.pop(work.run.run_id, None)
