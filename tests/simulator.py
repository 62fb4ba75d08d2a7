"""A mesh of several projects, played second by second in one thread, with the product's own decisions.

The clock, the warehouse, the ledger and the troubles are made up and follow a seed; what is due, what is ready and what
a run takes is `make_plan`. A *tick* is one scheduled run of one project.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import meshgate.coordinator.plan as planning
from meshgate.coordinator import staleness
from meshgate.coordinator.staleness import Policy
from meshgate.graph import readers_of
from meshgate.interval import IntervalSet
from simulator_checker import Checker, Violation
from simulator_events import Happenings
from simulator_geometry import CELL_S, at, cell_at, cells_of, end_of, interval_of, runs_of
from simulator_ledger import SimulatedLedger
from simulator_people import adopt, reconcile
from simulator_scene import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from meshgate.coordinator.plan import Plan
    from meshgate.graph import MeshGraph
    from meshgate.ledger import Stale
    from simulator_geometry import Cells
    from simulator_scene import Scenario
    from simulator_table import Run, Table

_REST_S = 48 * 3600  # that long after the last trouble everything must be at rest


@dataclass
class Work:
    """One run under way."""

    run: Run
    project: str
    tables: Mapping[str, Table]
    stale_from: dict[str, int] = field(default_factory=dict)
    queue: deque[tuple[str, Cells, bool]] = field(default_factory=deque)
    opened: dict[str, int] = field(default_factory=dict)
    frontier: dict[str, int] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    gone: bool = False
    provable: bool = False
    hopeless: bool = False


@dataclass
class Report:
    """One history.

    Attributes:
        ticks: Scheduled runs of one project each.
        skipped: Those that met another run of the project.
        idle: Those that found nothing ready.
        ended_s: When everything was at rest.
        checker: Waiting times, evaluations.
    """

    ticks: int
    skipped: int
    idle: int
    ended_s: int
    checker: Checker


class Simulation:
    """One history.

    Args:
        scenario: What is played.
        seed: Of everything that happens by chance.
        without: Rules of the ledger that are taken away.
    """

    def __init__(self, scenario: Scenario, seed: int, *, without: Collection[str] = ()) -> None:
        self.scenario = scenario
        self.chance = random.Random(seed)  # noqa: S311 - a history, not a secret
        self.ledger = SimulatedLedger(scenario.graph, grace_s=scenario.grace_s, without=without)
        patience = {name: self._patience_s(name) for name in self.ledger.tables}
        self.checker = Checker(self.ledger, patience, scenario.bounds)
        self.geometry = self.ledger.geometry
        self.now = 0
        self.works: dict[int, Work] = {}
        self.report = Report(0, 0, 0, 0, self.checker)
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self.end = max(end_of(node) for node in self.graph.nodes.values()) * CELL_S
        self._quiet: set[str] = set()
        self._over = False
        self._bad_until = {name: self._poison(name) for name in self.ledger.tables}
        self._doomed = self._find_doomed()
        self.happenings = Happenings(self, scenario.events)

    @property
    def graph(self) -> MeshGraph:
        return self.ledger.graph

    def policy(self, name: str) -> Policy:
        return self.scenario.policy.get(name, Policy())

    def _patience_s(self, model: str) -> int | None:
        patience = self.scenario.patience
        if patience is None:
            patience = 2 * self.graph[model].unit.approximate
        return None if patience == NEVER else int(patience.total_seconds())

    def _poison(self, model: str) -> dict[int, int]:
        """Until when each unit fails; a negative number for ever."""
        troubles = self.scenario.troubles
        found = {}
        for start in range(0, self.end // CELL_S, self.geometry.size[model]):
            drawn = self.chance.random()
            if drawn < troubles.hopeless:
                found[start] = -1
            elif drawn < troubles.hopeless + troubles.poisoned:
                found[start] = start * CELL_S + self.chance.randrange(6 * 3600)
        return found

    # The clock

    def later(self, delay_s: int, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), what, arguments))

    def play(self) -> Report:
        """Play until everything is at rest, and check it.

        Raises:
            Violation: A guarantee did not hold.
        """
        for name, project in self.scenario.projects.items():
            self.later(project.phase_s, self._tick, name)
        self.happenings.start()
        while not self._over:
            self.now, _, what, arguments = heapq.heappop(self._events)
            if self.now > self.end + _REST_S:
                raise Violation("livelock", {n: t.marks for n, t in self.ledger.tables.items()}, self.stale())
            self.ledger.now = self.now
            what(*arguments)
        self.report.ended_s = self.now
        return self.report

    # One tick

    def _tick(self, project: str) -> None:
        schedule = self.scenario.projects[project]
        self.later(schedule.period_s, self._tick, project)
        self.report.ticks += 1
        self._quiet.discard(project)
        for work in [w for w in self.works.values() if w.project == project and w.gone and w.provable]:
            self.ledger.lose(work.run, gone=True)
        run = self.ledger.acquire(project, share=schedule.overlap == "share")
        for run_id in self.works.keys() - self.ledger.running.keys():
            if self.works[run_id].gone:
                del self.works[run_id]
        if run is None:
            self.report.skipped += 1
            return
        self._reconcile(run)
        plan = self._plan({project})
        self.checker.planned(run, plan, self.now)
        if plan.is_empty:
            self.report.idle += 1
            self.ledger.finish(run)
            self._settle(project)
            return
        self.works[run.run_id] = work = Work(run, project, dict(self.ledger.tables))
        work.stale_from = {m.name: cell_at(m.stale_from) for m in plan.models if m.stale_from is not None}
        changes = {m.name: self.ledger.tables[m.name].changes for m in plan.models}
        self.later(self.chance.randint(0, self.scenario.thinks_s), self._claim, work, plan, changes)
        if self.now > self.end and self._is_doomed(plan):
            work.hopeless = True
            self._settle(project)

    def _reconcile(self, run: Run) -> None:
        """Look at what plain SQLMesh did, and tell it what was accepted."""
        if not self.happenings.foreign:
            return
        for name in self.graph.order():
            table = self.ledger.tables[name]
            state = self.ledger.state[table.key]
            gated = name not in self.checker.warehouse.sources
            for what, piece in reconcile(self.ledger, table, state, gated=gated, read_at=self.now + 1):
                if what == "added":
                    self.checker.taken(table, piece)
            state |= (taken := adopt(self.ledger, run, table))
            if taken:
                self.ledger.mirror(run, table, taken)

    def _plan(self, projects: set[str] | None) -> Plan:
        ledger, present = self.ledger, at(self.now)
        manifest = ledger.manifest("prod")
        states, more = ledger.states(ledger.ids.values()), {}
        if self.scenario.staleness:
            ask = (ledger, manifest, present)
            states = staleness.states_of(*ask, lambda node: self.policy(node.name))  # type: ignore[arg-type]
            more = {"rested": staleness.rested_by(*ask, lambda node: self.policy(node.name))}  # type: ignore[arg-type]
        return planning.make_plan(
            self.graph, ledger.ids, states, projects,
            environment="prod", now=present, patience=lambda _: self.scenario.patience, **more,
        )  # fmt: skip

    def stale(self) -> dict[str, tuple[Stale, ...]]:
        """What is stale now."""
        if not self.scenario.staleness:
            return {}
        return staleness.find(self.ledger, "prod", self.graph, self.ledger.ids)  # type: ignore[arg-type]

    def _accepted(self, stale: Mapping[str, tuple[Stale, ...]]) -> dict[str, set[int]]:
        """What policy leaves stale."""
        left = (name for name in stale if not self.policy(name).redoes(self.graph[name]))
        return {name: cells_of(s.interval for s in stale[name]) for name in left}

    def _settle(self, project: str) -> None:
        """The history is over when every project had nothing to do but what fails for ever, and nothing waits."""
        if self.now <= self.end:
            self._quiet.clear()
            return
        waiting = any(
            reason.retry_at is not None and reason.retry_at > self.now and start not in self._doomed[name]
            for name, table in self.ledger.tables.items()
            for marks in table.marks.values()
            for start, reason in marks.items()
        )
        lost = any(c.state == "lost" for t in self.ledger.tables.values() for c in t.claims)
        stale = self.stale()
        accepted = self._accepted(stale)
        late = {
            name: cells_of(s.interval for s in found) for name, found in stale.items() if name not in accepted
        }
        owing = any(
            {*late.get(name, ()), *t.marks.get("lookback", ()), *t.marks.get("requested", ())}
            - self._doomed[name]
            for name, t in self.ledger.tables.items()
            # A table that is refreshed as a whole is not refreshed while its next part is blocked.
            if t.node.project in self.scenario.projects
            and not (t.whole and self._doomed[name])
            and not t.appended
        )
        if waiting or lost or owing or self.happenings.under_way:
            self._quiet.clear()
            return
        self._quiet.add(project)
        others = [w for w in self.works.values() if not w.hopeless and not w.gone]
        if self._quiet == set(self.scenario.projects) and not others:
            self._over = True
            self.checker.at_rest(
                self._plan(None), self._doomed, self.scenario.projects, accepted, staleness=self.scenario.staleness
            )  # fmt: skip

    def _find_doomed(self) -> dict[str, set[int]]:
        """What fails for ever, and what reads it; -1 where that is a whole table."""
        found: dict[str, set[int]] = {}
        everything = range(self.end // CELL_S)
        for name, table in self.ledger.tables.items():
            starts = {start for start, until in self._bad_until[name].items() if until < 0}
            if starts and table.whole:
                found[name] = {-1, *everything}
                continue
            for start in everything[:: self.geometry.size[name]]:
                reads = self.geometry.reads(name, start)
                if any(not found[parent].isdisjoint(window) for parent, window in reads):
                    starts.add(start)
            found[name] = {cell for start in starts for cell in self.geometry.unit(name, start)}
        return found

    def _is_doomed(self, plan: Plan) -> bool:
        return all(cells_of(model.ready) <= self._doomed[model.name] for model in plan.models)

    # One run

    def _claim(self, work: Work, plan: Plan, changes: dict[str, int]) -> None:
        if not self._alive(work):
            return
        for model in plan.models:
            if not model.ready:
                continue
            name = model.name
            table = work.tables[name]
            pieces = [frozenset(cells_of([piece])) for piece in model.pieces]
            work.opened[name] = self.ledger.revision_
            held = self.ledger.open(work.run, table, pieces)
            before = plan.standings[name].covered
            work.frontier[name] = cell_at(before.last.end) if before.last else 0
            for piece in (p for p, mine in zip(pieces, held, strict=True) if mine):
                done: set[int] = set()
                if changes[name] != table.changes:
                    done = piece & (set(table.facts) - cells_of(before))
                for part in runs_of(done):
                    self.ledger.give_back(work.run, table, part)
                for part in runs_of(piece - done):
                    work.queue += [(name, batch, False) for batch in self._batches(name, part)]
        self.next(work)

    def _batches(self, model: str, cells: Cells) -> list[Cells]:
        size = self.graph[model].batch_size
        if size is None:
            return [cells]
        length = size * self.geometry.size[model]
        ordered = sorted(cells)
        return [frozenset(ordered[k : k + length]) for k in range(0, len(ordered), length)]

    def _alive(self, work: Work) -> bool:
        if not work.gone and self.ledger.holds(work.run):
            return True
        work.gone = True
        self.works.pop(work.run.run_id, None)
        return False

    def next(self, work: Work) -> None:
        """Begin the next batch of a run, or end it."""
        while work.queue:
            if not self._alive(work):
                return
            model, cells, again = work.queue.popleft()
            table = work.tables[model]
            sequential = self.graph.sequential(model) or table.whole
            if model in work.stopped:
                self.ledger.give_back(work.run, table, cells)
                continue
            needs = [(work.tables[parent], read) for parent, read in self.geometry.needs(model, cells)]
            refused = self.ledger.begin(work.run, table, cells, needs)
            if not refused:
                self._evaluate(work, model, cells)
                return
            closed = set(cells) if again else self._closed(model, cells, refused)
            for piece in runs_of(closed):
                self.ledger.give_back(work.run, table, piece)
            ready = runs_of(cells - closed)
            if sequential:
                # Whatever comes after the first gap has to wait for it.
                later = [p for p in ready if min(p) > min(closed)]
                later += [c for m, c, _ in work.queue if m == model]
                work.queue = deque(entry for entry in work.queue if entry[0] != model)
                ready = [p for p in ready if min(p) < min(closed)]
                for piece in later:
                    self.ledger.give_back(work.run, table, piece)
            work.queue.extendleft((model, piece, True) for piece in reversed(ready))
        if work.run.purpose == "deploy":
            self.happenings.built(work)
            return
        self.works.pop(work.run.run_id, None)
        self._finish(work)

    def _finish(self, work: Work) -> None:
        if self.scenario.staleness:
            stale = self.stale()
            mine = [n for n, node in self.graph.nodes.items() if node.project == work.project]
            settled = staleness.settled(stale, mine)
            self.ledger.settle("prod", settled, self.ledger.ids, self.ledger.revision_)
            if not work.stopped:
                self.checker.finished(work.run, stale)
        self.ledger.finish(work.run)

    def _closed(self, model: str, cells: Cells, refused: set[tuple[str, str, int]]) -> set[int]:
        """The units that read what is not clean."""
        whole = IntervalSet([interval_of(cells)])
        closed: set[int] = set()
        if any(reason == "superseded" for _, reason, _ in refused):
            return set(cells)
        for gate in self.graph.gates(model):
            bad = IntervalSet(
                interval_of(piece)
                for piece in runs_of({c for parent, _, c in refused if parent == gate.parent})
            )
            node, parent = self.graph[model], self.graph[gate.parent]
            closed |= cells_of(readers_of(node, parent, gate.window, bad, whole))
        return closed & cells or set(cells)

    def _evaluate(self, work: Work, model: str, cells: Cells) -> None:
        troubles, chance = self.scenario.troubles, self.chance
        table = work.tables[model]
        write = self.checker.begun(work.run, table, cells, work.tables)
        if chance.random() < 0.5:
            self.checker.read(write, table, cells, work.tables)
        takes = chance.randint(*self.scenario.takes_s[model])
        fate = chance.random() if self.now < self.end else 1.0
        if fate < troubles.crash:
            died = chance.randrange(takes)
            left = chance.randint(2 * self.scenario.ttl_s // 3, self.scenario.ttl_s)
            work.provable = chance.random() < 0.5
            self.later(died, self._die, work, left, write, model, cells)
        elif fate < troubles.crash + troubles.pause:
            stands = chance.randrange(takes)
            self.later(stands, self._stand_still, work)
            takes += chance.randrange(3600)
            self.later(takes, self._ended, work, write, model, cells)
        else:
            self.later(takes, self._ended, work, write, model, cells)

    def _die(self, work: Work, left: int, write: int, model: str, cells: Cells) -> None:
        work.gone = True
        work.run.expires = self.now + left
        table = work.tables[model]
        if write not in self.checker.computed:
            self.checker.read(write, table, cells, work.tables)
        if not work.provable and self.chance.random() < 0.5:
            # Its last statement is still under way in the engine.
            latest = left + self.scenario.grace_s
            self.later(self.chance.randrange(latest), self.checker.landed, write, table, cells)
        elif self.chance.random() < 0.5:
            self.checker.landed(write, table, cells)

    def _stand_still(self, work: Work) -> None:
        work.run.expires = self.now + self.chance.randint(2 * self.scenario.ttl_s // 3, self.scenario.ttl_s)

    def _ended(self, work: Work, write: int, model: str, cells: Cells) -> None:
        """An evaluation is over: its rows are there, good or bad."""
        if not work.hopeless:
            self._quiet.clear()
        table, run = work.tables[model], work.run
        if write not in self.checker.computed:
            self.checker.read(write, table, cells, work.tables)
        if self.ledger.holds(run):
            run.expires = None
        units = self.geometry.units(model, cells)
        bad = [s for s in units if self._is_bad(model, s)]
        troubles = self.scenario.troubles
        failing = self.now < self.end and self.chance.random() < troubles.failing
        if failing and model in (troubles.of or (model,)):
            bad = units
        self.checker.landed(write, table, cells, [c for s in bad for c in self.geometry.unit(model, s)])
        if bad:
            if len(units) > 1 and not table.whole and self.ledger.holds(run):
                middle = units[len(units) // 2]
                work.queue.appendleft((model, frozenset(c for c in cells if c >= middle), False))
                work.queue.appendleft((model, frozenset(c for c in cells if c < middle), False))
            else:
                recorded = self.ledger.fail(run, table, cells)
                self.checker.ended(run, table, cells)
                if recorded and (table.whole or self.graph.sequential(model)):
                    work.stopped.add(model)
        else:
            self._commit(work, write, table, cells)
            self.checker.ended(run, table, cells)
        if self._alive(work):
            self.next(work)

    def _commit(self, work: Work, write: int, table: Table, cells: Cells) -> None:
        model, run = table.node.name, work.run
        lookback: Cells = frozenset()
        if table.node.lookback and max(cells) >= work.frontier[model]:
            first = min(cells) - table.node.lookback * self.geometry.size[model]
            lookback = frozenset(range(max(0, first), min(cells)))
        made = self.ledger.commit(run, table, cells, lookback, work.stale_from.get(model))
        if made is None:
            return
        self.checker.committed(run, write, table, cells, lookback, work.opened[model], self.now)
        if self.now < self.end and self.chance.random() < self.scenario.troubles.unmirrored:
            work.gone = work.provable = True
            run.expires = self.now + self.scenario.ttl_s
        else:
            self.ledger.mirror(run, table, cells)

    def _is_bad(self, model: str, start: int) -> bool:
        until = self._bad_until[model].get(start)
        return until is not None and (until < 0 or self.now < until)
