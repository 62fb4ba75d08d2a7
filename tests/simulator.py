"""A mesh of several projects, played second by second in one thread, with the product's own decisions.

The clock, the warehouse, the ledger and the troubles are made up and follow a seed; what is due, what is ready and what
a run takes is `make_plan`. A *tick* is one scheduled run of one project.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any

import meshgate.coordinator.plan as planning
from meshgate.graph import readers_of
from meshgate.interval import IntervalSet
from simulator_checker import Checker, Violation
from simulator_geometry import CELL_S, at, cell_at, cells_of, end_of, interval_of, runs_of
from simulator_ledger import SimulatedLedger

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from meshgate.coordinator.plan import Plan
    from meshgate.graph import MeshGraph
    from simulator_geometry import Cells
    from simulator_ledger import Run

NEVER = timedelta.max
_REST_S = 48 * 3600  # that long after the last trouble everything must be at rest


@dataclass(frozen=True)
class Project:
    """When a project runs, seconds.

    Attributes:
        overlap: `skip` or `share`.
    """

    period_s: int
    phase_s: int = 0
    overlap: str = "skip"


@dataclass(frozen=True)
class Troubles:
    """Chances: of each evaluation, but for `poisoned` and `hopeless`, which are of each unit.

    Attributes:
        failing: It fails, and the next one need not.
        poisoned: Evaluations of the unit fail for a few hours.
        hopeless: Evaluations of the unit fail for ever.
        crash: Its process dies; in half of the cases nobody can prove it, and in half of those its write lands later.
        pause: Its process stands still for up to an hour, and then goes on as if nothing had been.
    """

    failing: float = 0.0
    poisoned: float = 0.0
    hopeless: float = 0.0
    crash: float = 0.0
    pause: float = 0.0


@dataclass(frozen=True)
class Scenario:
    """What is played.

    Attributes:
        graph: Every model with a start at the origin and an end.
        projects: By name.
        takes_s: The shortest and the longest evaluation of each model, seconds.
        patience: For every model; None for the product's default, `NEVER` to be patient for ever.
        staleness: See `SimulatedLedger`.
    """

    graph: MeshGraph
    projects: Mapping[str, Project]
    takes_s: Mapping[str, tuple[int, int]]
    troubles: Troubles = Troubles()
    patience: timedelta | None = None
    staleness: bool = False
    ttl_s: int = 300
    grace_s: int = 300
    thinks_s: int = 20


@dataclass
class Work:
    """One run under way."""

    run: Run
    project: str
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
        self.graph = scenario.graph
        self.chance = random.Random(seed)  # noqa: S311 - a history, not a secret
        self.ledger = SimulatedLedger(
            scenario.graph, grace_s=scenario.grace_s, staleness=scenario.staleness, without=without
        )
        self.checker = Checker(self.ledger, {name: self._patience_s(name) for name in self.ledger.tables})
        self.geometry = self.ledger.geometry
        self.now = 0
        self.works: dict[int, Work] = {}
        self.report = Report(0, 0, 0, 0, self.checker)
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self._end = max(end_of(node) for node in self.graph.nodes.values()) * CELL_S
        self._quiet: set[str] = set()
        self._over = False
        self._bad_until = {name: self._poison(name) for name in self.ledger.tables}
        self._doomed = self._find_doomed()

    def _patience_s(self, model: str) -> int | None:
        patience = self.scenario.patience
        if patience is None:
            patience = 2 * self.graph[model].unit.approximate
        return None if patience == NEVER else int(patience.total_seconds())

    def _poison(self, model: str) -> dict[int, int]:
        """Until when each unit fails; a negative number for ever."""
        troubles = self.scenario.troubles
        found = {}
        for start in range(0, self._end // CELL_S, self.geometry.size[model]):
            drawn = self.chance.random()
            if drawn < troubles.hopeless:
                found[start] = -1
            elif drawn < troubles.hopeless + troubles.poisoned:
                found[start] = start * CELL_S + self.chance.randrange(6 * 3600)
        return found

    # The clock

    def _later(self, delay_s: int, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._numbers), what, arguments))

    def play(self) -> Report:
        """Play until everything is at rest, and check it.

        Raises:
            Violation: A guarantee did not hold.
        """
        for name, project in self.scenario.projects.items():
            self._later(project.phase_s, self._tick, name)
        while not self._over:
            self.now, _, what, arguments = heapq.heappop(self._events)
            if self.now > self._end + _REST_S:
                raise Violation("livelock", {n: t.marks for n, t in self.ledger.tables.items()})
            what(*arguments)
        self.report.ended_s = self.now
        return self.report

    # One tick

    def _tick(self, project: str) -> None:
        schedule = self.scenario.projects[project]
        self._later(schedule.period_s, self._tick, project)
        self.report.ticks += 1
        self._quiet.discard(project)
        for work in [w for w in self.works.values() if w.project == project and w.gone and w.provable]:
            self.ledger.lose(work.run, self.now, gone=True)
        run = self.ledger.acquire(project, self.now, share=schedule.overlap == "share")
        for run_id in self.works.keys() - self.ledger.running.keys():
            if self.works[run_id].gone:
                del self.works[run_id]
        if run is None:
            self.report.skipped += 1
            return
        plan = self._plan({project})
        self.checker.planned(run, plan, self.now)
        if plan.is_empty:
            self.report.idle += 1
            self.ledger.finish(run, self.now)
            self._settle(project)
            return
        self.works[run.run_id] = work = Work(run, project)
        changes = {m.name: self.ledger.tables[m.name].changes for m in plan.models}
        self._later(self.chance.randint(0, self.scenario.thinks_s), self._claim, work, plan, changes)
        if self.now > self._end and self._is_doomed(plan):
            work.hopeless = True
            self._settle(project)

    def _plan(self, projects: set[str] | None) -> Plan:
        return planning.make_plan(
            self.graph, self.ledger.ids, self.ledger.states(self.now), projects,
            environment="prod", now=at(self.now), patience=lambda _: self.scenario.patience,
        )  # fmt: skip

    def _settle(self, project: str) -> None:
        """The history is over when every project had nothing to do but what fails for ever, and nothing waits."""
        waiting = any(
            reason.retry_at is not None and reason.retry_at > self.now and start not in self._doomed[name]
            for name, table in self.ledger.tables.items()
            for marks in table.marks.values()
            for start, reason in marks.items()
        )
        lost = any(c.state == "lost" for t in self.ledger.tables.values() for c in t.claims)
        owing = any(
            ({*t.stale, *t.marks.get("lookback", ()), *t.marks.get("requested", ())}) - self._doomed[name]
            for name, t in self.ledger.tables.items()
            # A table that is refreshed as a whole is not refreshed while its next part is blocked.
            if t.node.project in self.scenario.projects and not (t.whole and self._doomed[name])
        )
        if self.now <= self._end or waiting or lost or owing:
            self._quiet.clear()
            return
        self._quiet.add(project)
        others = [w for w in self.works.values() if not w.hopeless and not w.gone]
        if self._quiet == set(self.scenario.projects) and not others:
            self._over = True
            self.checker.at_rest(
                self._plan(None), self._doomed, self.scenario.projects, staleness=self.scenario.staleness
            )

    def _find_doomed(self) -> dict[str, set[int]]:
        """What fails for ever, and what reads it; -1 where that is a whole table."""
        found: dict[str, set[int]] = {}
        everything = range(self._end // CELL_S)
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
            table = self.ledger.tables[name]
            pieces = [frozenset(cells_of([piece])) for piece in model.pieces]
            work.opened[name] = self.ledger.revision
            held = self.ledger.open(work.run, name, pieces, self.now)
            before = plan.standings[name].covered
            work.frontier[name] = cell_at(before.last.end) if before.last else 0
            for piece in (p for p, mine in zip(pieces, held, strict=True) if mine):
                done: set[int] = set()
                if changes[name] != table.changes:
                    done = piece & (set(table.revision) - cells_of(before))
                for part in runs_of(done):
                    self.ledger.give_back(work.run, name, part)
                for part in runs_of(piece - done):
                    work.queue += [(name, batch, False) for batch in self._batches(name, part)]
        self._next(work)

    def _batches(self, model: str, cells: Cells) -> list[Cells]:
        size = self.graph[model].batch_size
        if size is None:
            return [cells]
        length = size * self.geometry.size[model]
        ordered = sorted(cells)
        return [frozenset(ordered[k : k + length]) for k in range(0, len(ordered), length)]

    def _alive(self, work: Work) -> bool:
        if not work.gone and self.ledger.holds(work.run, self.now):
            return True
        work.gone = True
        self.works.pop(work.run.run_id, None)
        return False

    def _next(self, work: Work) -> None:
        """Begin the next batch of a run, or end it."""
        while work.queue:
            if not self._alive(work):
                return
            model, cells, again = work.queue.popleft()
            sequential = self.graph.sequential(model) or self.graph[model].kind.as_of
            if model in work.stopped:
                self.ledger.give_back(work.run, model, cells)
                continue
            refused = self.ledger.begin(work.run, model, cells, self.geometry.needs(model, cells))
            if not refused:
                self._evaluate(work, model, cells)
                return
            closed = set(cells) if again else self._closed(model, cells, refused)
            for piece in runs_of(closed):
                self.ledger.give_back(work.run, model, piece)
            ready = runs_of(cells - closed)
            if sequential:
                # Whatever comes after the first gap has to wait for it.
                later = [p for p in ready if min(p) > min(closed)]
                later += [c for m, c, _ in work.queue if m == model]
                work.queue = deque(entry for entry in work.queue if entry[0] != model)
                ready = [p for p in ready if min(p) < min(closed)]
                for piece in later:
                    self.ledger.give_back(work.run, model, piece)
            work.queue.extendleft((model, piece, True) for piece in reversed(ready))
        self.works.pop(work.run.run_id, None)
        self.ledger.finish(work.run, self.now)

    def _closed(self, model: str, cells: Cells, refused: set[tuple[str, str, int]]) -> set[int]:
        """The units that read what is not clean."""
        whole = IntervalSet([interval_of(cells)])
        closed: set[int] = set()
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
        write = self.checker.begun(work.run, model, cells)
        if chance.random() < 0.5:
            self.checker.read(write, model, cells)
        takes = chance.randint(*self.scenario.takes_s[model])
        fate = chance.random() if self.now < self._end else 1.0
        if fate < troubles.crash:
            died = chance.randrange(takes)
            left = chance.randint(2 * self.scenario.ttl_s // 3, self.scenario.ttl_s)
            work.provable = chance.random() < 0.5
            self._later(died, self._die, work, left, write, model, cells)
        elif fate < troubles.crash + troubles.pause:
            stands = chance.randrange(takes)
            self._later(stands, self._stand_still, work)
            takes += chance.randrange(3600)
            self._later(takes, self._ended, work, write, model, cells)
        else:
            self._later(takes, self._ended, work, write, model, cells)

    def _die(self, work: Work, left: int, write: int, model: str, cells: Cells) -> None:
        work.gone = True
        work.run.expires = self.now + left
        if not work.provable and self.chance.random() < 0.5:
            # Its last statement is still under way in the engine.
            latest = left + self.scenario.grace_s
            self._later(self.chance.randrange(latest), self.checker.landed, write, model, cells)
        elif self.chance.random() < 0.5:
            self.checker.landed(write, model, cells)

    def _stand_still(self, work: Work) -> None:
        work.run.expires = self.now + self.chance.randint(2 * self.scenario.ttl_s // 3, self.scenario.ttl_s)

    def _ended(self, work: Work, write: int, model: str, cells: Cells) -> None:
        """An evaluation is over: its rows are there, good or bad."""
        if not work.hopeless:
            self._quiet.clear()
        if write not in self.checker.sources:
            self.checker.read(write, model, cells)
        self.checker.landed(write, model, cells)
        run = work.run
        if self.ledger.holds(run, self.now):
            run.expires = None
        bad = [s for s in self.geometry.units(model, cells) if self._is_bad(model, s)]
        failing = self.now < self._end and self.chance.random() < self.scenario.troubles.failing
        table = self.ledger.tables[model]
        if bad or failing:
            units = self.geometry.units(model, cells)
            if len(units) > 1 and not table.whole and self.ledger.holds(run, self.now):
                middle = units[len(units) // 2]
                work.queue.appendleft((model, frozenset(c for c in cells if c >= middle), False))
                work.queue.appendleft((model, frozenset(c for c in cells if c < middle), False))
            else:
                recorded = self.ledger.fail(run, model, cells, self.now)
                self.checker.ended(run, model, cells)
                if recorded and (table.whole or self.graph.sequential(model)):
                    work.stopped.add(model)
        else:
            node = self.graph[model]
            lookback: Cells = frozenset()
            if node.lookback and max(cells) >= work.frontier[model]:
                first = min(cells) - node.lookback * self.geometry.size[model]
                lookback = frozenset(range(max(0, first), min(cells)))
            made = self.ledger.commit(run, model, cells, lookback, self.now)
            if made is not None:
                self.checker.committed(run, write, model, cells, lookback, work.opened[model], self.now)
            self.checker.ended(run, model, cells)
        if self._alive(work):
            self._next(work)

    def _is_bad(self, model: str, start: int) -> bool:
        until = self._bad_until[model].get(start)
        return until is not None and (until < 0 or self.now < until)
