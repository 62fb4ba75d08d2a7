"""The ledger of a simulated mesh: numbered five-minute cells in plain sets, quick enough for thousands of ticks.

It says what `schema.sql` says, for tables by time and for tables that are refreshed as a whole, and hands what it knows
to the decisions in the records that the real ledger uses. Unlike `ledger_oracle`, which is for short histories, it
forgets what has ended. Each protecting rule can be taken away, to see that somebody notices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshgate.interval import IntervalSet
from meshgate.ledger import WHOLE as ALL_TIME
from meshgate.ledger import LiveClaim, Mark, VersionState
from simulator_geometry import Geometry, at, interval_of, runs_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from meshgate.graph import MeshGraph, ModelNode
    from simulator_geometry import Cells

WHOLE = frozenset({-1})
"""What a claim or a failure of a table is on that is refreshed as a whole."""

RULES = frozenset(
    {
        "two live claims never overlap",
        "a lost lease records nothing",
        "the gate is asked again at begin",
        "what was begun and not committed is suspect",
        "a lost claim is waited out",
        "a refused write is suspect",
        "a mark outlives an evaluation that read before it",
        "a fresh unit owes its lookback",
    }
)


@dataclass(slots=True)
class Reason:
    """Why one cell is to be computed again."""

    revision: int
    attempts: int
    made_at: int
    retry_at: int | None = None


@dataclass(slots=True, eq=False)
class Claim:
    """Some cells that a run has reserved."""

    run: int
    cells: Cells
    state: str
    opened: int
    read: int = 0
    until: int = 0
    batch: Cells = frozenset()


@dataclass(slots=True)
class Run:
    """One attempt; `expires` is None while its lease is being renewed."""

    run_id: int
    project: str
    expires: int | None = None
    state: str = "running"
    unheard: list[tuple[Table, Claim]] = field(default_factory=list)
    """What it had begun when it was lost: it may be writing it still."""


@dataclass
class Table:
    """One model's version."""

    key: int
    node: ModelNode
    revision: dict[int, int] = field(default_factory=dict)
    read: dict[int, int] = field(default_factory=dict)
    read_at: dict[int, int] = field(default_factory=dict)
    marks: dict[str, dict[int, Reason]] = field(default_factory=dict)
    stale: dict[int, int] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    covered: IntervalSet = field(default_factory=IntervalSet.empty)
    changes: int = 0
    view: VersionState | None = None
    view_until: int = 0

    @property
    def whole(self) -> bool:
        return self.node.kind.as_of


class SimulatedLedger:
    """All of it, told second by second.

    Args:
        graph: The mesh; every model is promoted from the beginning.
        grace_s: How long after its end a lost run may still write.
        back_off_s: The pause after the first failure, and the longest one.
        staleness: Whether what read a parent before it was computed again is asked for again, one unit after its last
            read at the earliest: a stand-in for what the product does not decide yet.
        without: Rules that are taken away.
    """

    def __init__(
        self,
        graph: MeshGraph,
        *,
        grace_s: int = 300,
        back_off_s: tuple[int, int] = (60, 3600),
        staleness: bool = False,
        without: Collection[str] = (),
    ) -> None:
        assert set(without) <= RULES, set(without) - RULES
        self.graph = graph
        self.geometry = Geometry(graph)
        self.tables = {name: Table(key, graph[name]) for key, name in enumerate(graph.order())}
        self.ids = {name: table.key for name, table in self.tables.items()}
        self.revision = 0
        self.running: dict[int, Run] = {}
        self._runs = 0
        self._grace_s = grace_s
        self._back_off_s = back_off_s
        self._staleness = staleness
        self._without = frozenset(without)

    # What the decisions are told

    def states(self, now: int) -> dict[int, VersionState]:
        return {table.key: self._state(table, now) for table in self.tables.values()}

    def _state(self, table: Table, now: int) -> VersionState:
        if table.view is not None and not table.stale and now < table.view_until:
            return table.view
        table.claims = [c for c in table.claims if c.state != "lost" or c.until > now]
        claims = tuple(
            LiveClaim(
                table.key, ALL_TIME if c.cells == WHOLE else interval_of(c.cells), c.state, c.run,
                "", {}, at(c.until),
            )
            for c in table.claims
        )  # fmt: skip
        marks = [
            Mark(
                table.key, ALL_TIME if piece == WHOLE else interval_of(piece), kind, reason.revision, None,
                reason.attempts, {}, at(reason.made_at), None if reason.retry_at is None else at(reason.retry_at),
            )
            for kind, reasons in table.marks.items()
            for piece, reason in _alike(reasons)
        ]  # fmt: skip
        if table.stale:
            rests = int(table.node.unit.approximate.total_seconds())
            due = [cell for cell in table.stale if table.read_at[cell] + rests <= now]
            marks += [
                Mark(table.key, interval_of(piece), "requested", self.revision, None, 1, {}, at(now))
                for piece in runs_of(due)
            ]
        table.view = VersionState(table.covered, tuple(marks), claims)
        table.view_until = min((c.until for c in table.claims if c.state == "lost"), default=1 << 60)
        return table.view

    def unclean(self, model: str, cells: range) -> set[tuple[str, int]]:
        """What nobody may read: reason and cell."""
        table = self.tables[model]
        revision = table.revision
        found = {("missing", cell) for cell in cells if cell not in revision}
        for kind in ("failed", "suspect", "removed"):
            marks = table.marks.get(kind)
            if marks:
                found |= {(kind, cell) for cell in cells if cell in marks or -1 in marks}
        for claim in table.claims:
            if claim.state == "begun":
                found |= {("begun", cell) for cell in cells if claim.cells == WHOLE or cell in claim.cells}
        return found

    # Runs

    def holds(self, run: Run, now: int) -> bool:
        return run.state == "running" and (run.expires is None or run.expires > now)

    def take_over(self, now: int) -> None:
        for run in [r for r in self.running.values() if r.expires is not None and r.expires <= now]:
            self.lose(run, now, gone=False)

    def acquire(self, project: str, now: int, *, share: bool) -> Run | None:
        self.take_over(now)
        if not share and any(r.project == project for r in self.running.values()):
            return None
        self._runs += 1
        run = self.running[self._runs] = Run(self._runs, project)
        return run

    def lose(self, run: Run, now: int, *, gone: bool, heard: bool = False) -> None:
        if run.state != "running":
            return
        run.state = "lost"
        del self.running[run.run_id]
        until = now if gone or run.expires is None else run.expires + self._grace_s
        for table in self.tables.values():
            mine = [c for c in table.claims if c.run == run.run_id]
            for claim in sorted(mine, key=lambda c: min(c.cells)):
                if claim.state == "begun":
                    self._distrust(table, claim, "suspect", now)
                    claim.state = "lost"
                    claim.until = 0 if "a lost claim is waited out" in self._without else until
                    if not (gone or heard):
                        run.unheard.append((table, claim))
                else:
                    table.claims.remove(claim)
                table.view = None

    def finish(self, run: Run, now: int) -> None:
        if not self.holds(run, now):
            self.lose(run, now, gone=False, heard=True)
            self._hear_of(run, now)
            return
        run.state = "done"
        del self.running[run.run_id]
        for table in self.tables.values():
            mine = [c for c in table.claims if c.run == run.run_id and c.state != "lost"]
            for claim in sorted(mine, key=lambda c: min(c.cells)):
                if claim.state == "begun":
                    self._distrust(table, claim, "suspect", now)
                    claim.state, claim.until = "lost", now + self._grace_s
                else:
                    table.claims.remove(claim)
                table.view = None

    def _hear_of(self, run: Run, now: int) -> None:
        """Its last word: it may have written until now, though others have begun the same since."""
        for table, claim in run.unheard:
            self._mark(table, claim.cells, "suspect", now)
        run.unheard.clear()

    # Claims

    def open(self, run: Run, model: str, pieces: Iterable[Cells], now: int) -> list[bool]:
        """For each piece whether the run has it now."""
        table = self.tables[model]
        table.view = None
        answers = []
        for piece in pieces:
            cells = WHOLE if table.whole else piece
            here = [c for c in table.claims if c.cells & cells and (c.state != "lost" or c.until > now)]
            mine = any(c.run == run.run_id and c.cells == cells and c.state != "lost" for c in here)
            free = not here or "two live claims never overlap" in self._without
            if not mine and free:
                table.claims.append(Claim(run.run_id, cells, "open", self.revision))
            answers.append(mine or free)
        return answers

    def begin(
        self, run: Run, model: str, cells: Cells, needs: Iterable[tuple[str, range]]
    ) -> set[tuple[str, str, int]]:
        """Why not: parent, reason, cell; nothing: it has begun."""
        if "the gate is asked again at begin" not in self._without:
            refused = {(parent, *found) for parent, read in needs for found in self.unclean(parent, read)}
            if refused:
                return refused
        table = self.tables[model]
        claim = self._piece(run, table, cells, ("open", "begun"))
        claim.state, claim.read, claim.batch = "begun", self.revision, cells
        table.view = None
        return set()

    def commit(self, run: Run, model: str, cells: Cells, lookback: Cells, now: int) -> int | None:
        """The revision of what was recorded; None where the lease was lost, and nothing was."""
        table = self.tables[model]
        if not self.holds(run, now) and "a lost lease records nothing" not in self._without:
            self._refuse(run, table, cells, now)
            return None
        if self.holds(run, now):
            claim = self._piece(run, table, cells, ("begun",))
        else:
            claim = Claim(run.run_id, cells, "begun", self.revision, self.revision)
            table.claims.append(claim)
        made = self._next(table)
        stamped = set(cells)
        if table.whole and table.revision:
            asked = [c for c, m in table.marks.get("requested", {}).items() if m.revision <= claim.read]
            asked += [c for c, revision in table.stale.items() if revision <= claim.read]
            if asked:
                stamped |= set(range(min(asked), max(table.revision) + 1))
        for cell in stamped:
            table.revision[cell] = made
            table.read[cell] = claim.read
            table.read_at[cell] = now
        table.covered |= IntervalSet(interval_of(piece) for piece in runs_of(stamped))
        ignored = "a mark outlives an evaluation that read before it" in self._without
        for marks in table.marks.values():
            for cell in [c for c in marks if table.whole or c in cells]:
                if marks[cell].revision <= claim.read or ignored:
                    del marks[cell]
        for cell in [c for c in table.stale if table.whole or c in cells]:
            if table.stale[cell] <= claim.read:
                del table.stale[cell]
        if table.whole:
            claim.state = "open"
        else:
            table.claims.remove(claim)
        if "a fresh unit owes its lookback" not in self._without:
            late = [c for c in lookback if c in table.read and table.read[c] < claim.opened]
            rows = [
                row
                for n in {table.revision[c] for c in late}
                for row in runs_of(c for c in late if table.revision[c] == n)
            ]
            for row in sorted(rows, key=min):
                self._mark(table, row, "lookback", now)
        if self._staleness:
            self._make_stale(table, stamped, claim.read, made)
        return made

    def fail(self, run: Run, model: str, cells: Cells, now: int) -> bool:
        """Whether the failure was recorded; False where the lease was lost, and the time is suspect."""
        table = self.tables[model]
        if not self.holds(run, now):
            self._refuse(run, table, cells, now)
            return False
        claim = self._piece(run, table, cells, ("begun",))
        self._distrust(table, claim, "failed", now)
        table.claims.remove(claim)
        return True

    def give_back(self, run: Run, model: str, cells: Cells) -> None:
        """What was written already stays begun, and is suspect when the run ends."""
        table = self.tables[model]
        claim = None if table.whole else self._piece(run, table, cells, ("open", "begun"))
        if claim is not None and claim.state == "open":
            table.claims.remove(claim)
            table.view = None

    # Pieces

    def _next(self, table: Table) -> int:
        self.revision += 1
        table.changes += 1
        table.view = None
        return self.revision

    def _piece(self, run: Run, table: Table, cells: Cells, states: Collection[str]) -> Claim:
        for claim in table.claims:
            if claim.run != run.run_id or claim.state not in states:
                continue
            if claim.cells in (WHOLE, cells):
                return claim
            if claim.cells >= cells:
                for rest in runs_of(claim.cells - cells):
                    table.claims.append(
                        Claim(claim.run, rest, claim.state, claim.opened, claim.read, claim.until)
                    )
                claim.cells = cells
                return claim
        raise AssertionError(f"run {run.run_id} has no claim on {sorted(cells)} of {table.node.name}")

    def _mark(self, table: Table, cells: Cells, kind: str, now: int, *, tried: bool = False) -> None:
        if table.whole and kind in ("failed", "suspect"):
            cells = WHOLE
        marks = table.marks.setdefault(kind, {})
        before = [marks[c] for c in cells if c in marks]
        attempts = max((reason.attempts for reason in before), default=0)
        retry_at = max((r.retry_at for r in before if r.retry_at is not None), default=None)
        if tried:
            attempts += 1
            doublings = attempts - (2 if kind == "suspect" else 1)
            first, longest = self._back_off_s
            retry_at = now + min(first << doublings, longest) if doublings >= 0 else None
        reason = Reason(self._next(table), attempts, now, retry_at)
        marks.update(dict.fromkeys(cells, reason))

    def _distrust(self, table: Table, claim: Claim, kind: str, now: int) -> None:
        if "what was begun and not committed is suspect" not in self._without or kind == "failed":
            self._mark(table, claim.cells, kind, now, tried=True)

    def _refuse(self, run: Run, table: Table, cells: Cells, now: int) -> None:
        self.lose(run, now, gone=False)
        if "a refused write is suspect" not in self._without:
            self._mark(table, cells, "suspect", now)
        for claim in table.claims:
            if claim.run == run.run_id and claim.state == "lost" and (table.whole or claim.cells >= cells):
                claim.until = min(claim.until, now)
        table.view = None

    def _make_stale(self, table: Table, cells: Collection[int], read: int, made: int) -> None:
        """Ask again for what read this before, and for this where a parent was written while it read."""
        name = table.node.name
        first, last = min(cells), max(cells)
        for edge in self.graph.children(name):
            child = self.tables[edge.child]
            child_cells = cells if not child.whole else [first]
            for start in self.geometry.units(edge.child, child_cells):
                reads = self.geometry.reads(edge.child, start)
                met = any(p == name and r.start <= last and first < r.stop for p, r in reads)
                if met and start in child.revision:
                    child.stale.update(dict.fromkeys(self.geometry.unit(edge.child, start), made))
        for start in self.geometry.units(name, cells):
            for parent, window in self.geometry.reads(name, start):
                newer = self.tables[parent].revision
                late = max((newer.get(cell, 0) for cell in window), default=0)
                if late > read and not self.tables[parent].whole:
                    table.stale.update(dict.fromkeys(self.geometry.unit(name, start), late))


def _alike(reasons: dict[int, Reason]) -> Iterable[tuple[Cells, Reason]]:
    """Neighbouring cells that are marked for the same reason."""
    by_reason: dict[int, list[int]] = {}
    for cell, reason in reasons.items():
        by_reason.setdefault(id(reason), []).append(cell)
    for cells in by_reason.values():
        for piece in runs_of(cells):
            yield piece, reasons[cells[0]]
