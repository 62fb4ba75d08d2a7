"""The ledger of a simulated mesh: numbered five-minute cells in plain sets, quick enough for thousands of ticks.

It says what `schema.sql` says: here about runs, claims and marks, in `simulator_answers` about what the decisions ask,
in `simulator_people` about what does not come from runs. Unlike `ledger_oracle`, which is for short histories, it
forgets what has ended. Each protecting rule can be taken away, to see that somebody notices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from simulator_answers import Answers
from simulator_geometry import Geometry, runs_of
from simulator_table import DOUBTS, WHOLE, Claim, Fact, Reason, Request, Run, Table, stretch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from meshgate.graph import MeshGraph, ModelNode
    from simulator_geometry import Cells

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
        "a refresh stamps all from the first stale instant on",
        "a claim on a whole table is on all of it",
        "a reader in flight over a failed refresh is stale",
        "what a plain run had read is unknown",
        "a plain run over known time is suspect",
        "a promotion has a revision of its own",
        "what a new version read too early is suspect",
        "what nobody told SQLMesh is evaluated again",
        "an acceptance is a commit",
        "a batch reads from its begin on",
        "what was never begun is given back clean",
        "rows of one commit do not make each other stale",
        "a request marks what was asked for",
        "a reader of older rows is stale",
        "held time is not read",
    }
)


class SimulatedLedger(Answers):
    """All of it, told second by second.

    Args:
        graph: The mesh; every model is promoted from the beginning.
        grace_s: How long after its end a lost run may still write.
        back_off_s: The pause after the first failure, and the longest one.
        without: Rules that are taken away.

    Attributes:
        now: The one clock, seconds.
        tables: What is promoted, by model.
        versions: All that there is, by key.
        state: What SQLMesh's own record holds, by key.
        held: What is kept from readers, by model.
    """

    def __init__(
        self,
        graph: MeshGraph,
        *,
        grace_s: int = 300,
        back_off_s: tuple[int, int] = (60, 3600),
        without: Collection[str] = (),
    ) -> None:
        assert set(without) <= RULES, set(without) - RULES
        self.graph = graph
        self.geometry = Geometry(graph)
        self.now = 0
        self.tables = {name: Table(key, graph[name]) for key, name in enumerate(graph.order())}
        self.ids = {name: table.key for name, table in self.tables.items()}
        self.versions = {table.key: table for table in self.tables.values()}
        self.state: dict[int, set[int]] = {key: set() for key in self.versions}
        self.held: dict[str, set[int]] = {name: set() for name in self.tables}
        self.requests: list[Request] = []
        self.revision_ = 0
        self.running: dict[int, Run] = {}
        self.without = frozenset(without)
        self._runs = 0
        self._grace_s = grace_s
        self._back_off_s = back_off_s

    def obeys(self, rule: str) -> bool:
        assert rule in RULES, rule
        return rule not in self.without

    # Runs

    def holds(self, run: Run) -> bool:
        return run.state == "running" and (run.expires is None or run.expires > self.now)

    def take_over(self) -> None:
        for run in [r for r in self.running.values() if r.expires is not None and r.expires <= self.now]:
            self.lose(run, gone=False)

    def acquire(self, project: str, *, share: bool, purpose: str = "run") -> Run | None:
        self.take_over()
        for run in self.running.values():
            ours = run.project == project and (run.purpose == "deploy" or not share)
            if run.purpose == "deploy" if purpose == "deploy" else ours:
                return None
        self._runs += 1
        made = self.running[self._runs] = Run(self._runs, project, purpose=purpose)
        return made

    def lose(self, run: Run, *, gone: bool, heard: bool = False) -> None:
        if run.state != "running":
            return
        run.state = "lost"
        del self.running[run.run_id]
        until = self.now if gone or run.expires is None else run.expires + self._grace_s
        for table in self.versions.values():
            mine = [c for c in table.claims if c.run == run.run_id]
            for claim in sorted(mine, key=lambda c: min(c.cells)):
                if claim.state == "begun":
                    self._distrust(table, claim, "suspect")
                    claim.state = "lost"
                    claim.until = until if self.obeys("a lost claim is waited out") else 0
                    if not (gone or heard):
                        run.unheard.append((table, claim))
                else:
                    table.claims.remove(claim)
                    if not self.obeys("what was never begun is given back clean"):
                        self.mark(table, claim.cells, "suspect")
                table.view = None

    def finish(self, run: Run) -> None:
        if not self.holds(run):
            self.lose(run, gone=False, heard=True)
            self.hear_of(run)
            return
        run.state = "done"
        del self.running[run.run_id]
        for table in self.versions.values():
            mine = [c for c in table.claims if c.run == run.run_id and c.state != "lost"]
            for claim in sorted(mine, key=lambda c: min(c.cells)):
                if claim.state == "begun":
                    self._distrust(table, claim, "suspect")
                    claim.state, claim.until = "lost", self.now + self._grace_s
                else:
                    table.claims.remove(claim)
                table.view = None

    def hear_of(self, run: Run) -> None:
        """Its last word: it may have written until now, though others have begun the same since."""
        for table, claim in run.unheard:
            self._distrust(table, claim, "suspect", tried=False)
        run.unheard.clear()

    # Claims

    def is_one(self, table: Table) -> bool:
        """Whether a claim on it, and whatever goes wrong in it, is on all of it."""
        return table.whole and self.obeys("a claim on a whole table is on all of it")

    def open(self, run: Run, table: Table, pieces: Iterable[Cells]) -> list[bool]:
        """For each piece whether the run has it now."""
        table.view = None
        answers = []
        for piece in pieces:
            cells = WHOLE if self.is_one(table) else piece
            here = [c for c in table.claims if c.cells & cells and (c.state != "lost" or c.until > self.now)]
            mine = any(c.run == run.run_id and c.cells == cells and c.state != "lost" for c in here)
            free = not here or not self.obeys("two live claims never overlap")
            if not mine and free:
                table.claims.append(Claim(run.run_id, cells, "open", self.revision_))
            answers.append(mine or free)
        return answers

    def begin(
        self, run: Run, table: Table, cells: Cells, needs: Iterable[tuple[Table, range]]
    ) -> set[tuple[str, str, int]]:
        """Why not: parent, reason, cell; nothing: it has begun."""
        needs = list(needs)
        if run.purpose == "run":
            for each in (table, *(parent for parent, _ in needs)):
                if self.tables[each.node.name] is not each:
                    return {(each.node.name, "superseded", cell) for cell in cells}
        if self.obeys("the gate is asked again at begin"):
            refused = {(p.node.name, *found) for p, read in needs for found in self.unclean(p, read)}
            if refused:
                return refused
        claim = self._piece(run, table, cells, ("open", "begun"))
        goes_on = claim.state == "begun" and self.is_one(table)
        if not goes_on:
            claim.read = self.revision_ if self.obeys("a batch reads from its begin on") else claim.opened
        claim.batch = stretch(claim.batch | cells) if goes_on else cells
        claim.state, claim.begun_at = "begun", self.now
        table.view = None
        return set()

    def commit(
        self, run: Run, table: Table, cells: Cells, lookback: Cells, stale_from: int | None = None
    ) -> int | None:
        """The revision of what was recorded; None where the lease was lost, and nothing was."""
        if not self.holds(run) and self.obeys("a lost lease records nothing"):
            self._refuse(run, table, cells)
            return None
        if self.holds(run):
            claim = self._piece(run, table, cells, ("begun",))
        else:
            claim = Claim(run.run_id, cells, "begun", self.revision_, self.revision_)
            table.claims.append(claim)
        made = self.next(table)
        stamped = self._stamped(table, cells, claim.read, stale_from)
        table.record(stamped, Fact(made, claim.read, run.run_id, "passed", self.now, None, claim.begun_at))
        if not self.obeys("a refresh stamps all from the first stale instant on") and table.refreshed:
            for fact, row in table.rows():
                table.record(row, replace(fact, read=claim.read))
        self._discharge(table, cells, claim.read)
        if table.whole and not any(table.marks.get(kind) for kind in DOUBTS):
            table.repaired(made)
        if self.is_one(table):
            rest = frozenset() if table.refreshed else stretch(claim.batch - cells)
            claim.state, claim.batch = ("begun" if rest else "open"), rest
        else:
            table.claims.remove(claim)
        if lookback and self.obeys("a fresh unit owes its lookback"):
            self.owe(table, lookback, claim.opened)
        return made

    def _stamped(self, table: Table, cells: Cells, read: int, stale_from: int | None) -> Cells:
        """What gets a new revision by a refresh: its new part, and all from the first stale or asked-for instant on."""
        if not (
            table.refreshed
            and table.facts
            and self.obeys("a refresh stamps all from the first stale instant on")
        ):
            return cells
        first = min(table.facts)
        asked = [] if stale_from is None else [stale_from]
        for kind in ("requested", "removed"):
            asked += [c for c, m in table.marks.get(kind, {}).items() if m.revision <= read]
        if not asked:
            return cells
        return frozenset(range(min(*cells, max(first, min(asked))), max(*cells, *table.facts) + 1))

    def _discharge(self, table: Table, cells: Cells, read: int) -> None:
        """Forget the marks that a commit has answered."""
        if table.appended:
            return  # appending mends nothing
        ignored = not self.obeys("a mark outlives an evaluation that read before it")
        for kind, marks in table.marks.items():
            answered = {c for c in marks if marks[c].revision <= read or ignored}
            if self.is_one(table) and not table.refreshed and kind in DOUBTS and answered:
                # All that was being written has to be written once more.
                table.doubt[kind] = stretch(table.doubt[kind] - cells)
                gone = set() if table.doubt[kind] else answered
            else:
                gone = answered if table.refreshed else answered & cells
            for c in gone:
                del marks[c]

    def owe(self, table: Table, lookback: Cells, opened: int | None) -> None:
        """Mark what a fresh unit obliges to read again; `opened`: but for what was read since. None: in any case."""
        for fact, row in table.parts(lookback):
            if fact.verdict != "accepted" and (opened is None or fact.read < opened):
                self.mark(table, row, "lookback")

    def mirror(self, run: Run, table: Table, cells: Cells) -> None:
        """SQLMesh's own record holds a batch too; with a refresh all that earlier runs had recorded."""
        told = {c for c in table.facts if c <= max(cells)} if table.refreshed else cells
        self.state[table.key] |= told
        for fact in {table.facts[c] for c in told if c in table.facts}:
            if (fact.run == run.run_id or table.refreshed) and fact.mirrored is None:
                fact.mirrored = self.now

    def fail(self, run: Run, table: Table, cells: Cells) -> bool:
        """Whether the failure was recorded; False where the lease was lost, and the time is suspect."""
        if not self.holds(run):
            self._refuse(run, table, cells)
            return False
        claim = self._piece(run, table, cells, ("begun",))
        self._distrust(table, claim, "failed")
        table.claims.remove(claim)
        return True

    def give_back(self, run: Run, table: Table, cells: Cells) -> None:
        """What was written already stays begun, and is suspect when the run ends."""
        claim = None if self.is_one(table) else self._piece(run, table, cells, ("open", "begun"))
        if claim is not None and claim.state == "open":
            table.claims.remove(claim)
            table.view = None

    # Pieces

    def next(self, table: Table) -> int:
        self.revision_ += 1
        table.changes += 1
        table.forget()
        return self.revision_

    def add(self, node: ModelNode, recipe: int) -> Table:
        """A version that is not promoted yet."""
        made = Table(len(self.versions), node, recipe=recipe)
        self.versions[made.key] = made
        self.state[made.key] = set()
        return made

    def _piece(self, run: Run, table: Table, cells: Cells, states: Collection[str]) -> Claim:
        for claim in table.claims:
            if claim.run != run.run_id or claim.state not in states:
                continue
            if claim.cells in (WHOLE, cells):
                return claim
            if claim.cells >= cells:
                for rest in runs_of(claim.cells - cells):
                    table.claims.append(
                        Claim(
                            claim.run, rest, claim.state, claim.opened, claim.read, claim.until,
                            claim.batch & rest, claim.begun_at,
                        )
                    )  # fmt: skip
                claim.cells, claim.batch = cells, claim.batch & cells
                return claim
        raise AssertionError(f"run {run.run_id} has no claim on {sorted(cells)} of {table.node.name}")

    def mark(self, table: Table, cells: Cells, kind: str, *, tried: bool = False) -> None:
        marks = table.marks.setdefault(kind, {})
        if self.is_one(table) and kind in DOUBTS:
            written = cells if cells != WHOLE else frozenset()
            table.doubt[kind] = stretch(written | (table.doubt[kind] if marks else frozenset()))
            cells = WHOLE
        before = [marks[c] for c in cells if c in marks]
        attempts = max((reason.attempts for reason in before), default=0)
        retry_at = max((r.retry_at for r in before if r.retry_at is not None), default=None)
        if tried:
            attempts += 1
            doublings = attempts - (2 if kind == "suspect" else 1)
            first, longest = self._back_off_s
            retry_at = self.now + min(first << doublings, longest) if doublings >= 0 else None
        reason = Reason(self.next(table), attempts, self.now, retry_at)
        marks.update(dict.fromkeys(cells, reason))

    def _distrust(self, table: Table, claim: Claim, kind: str, *, tried: bool = True) -> None:
        if self.obeys("what was begun and not committed is suspect") or kind == "failed":
            self.mark(table, claim.batch or claim.cells, kind, tried=tried)
            if table.whole:
                table.dirty[claim.read] = (None, None)

    def _refuse(self, run: Run, table: Table, cells: Cells) -> None:
        self.lose(run, gone=False)
        lost = [c for c in table.claims if c.run == run.run_id and c.state == "lost"]
        if self.obeys("a refused write is suspect"):
            self.mark(table, cells, "suspect")
            if table.whole:
                table.dirty[min((c.read for c in lost), default=self.revision_)] = (None, None)
        for claim in lost:
            if self.is_one(table) or claim.cells >= cells:
                claim.until = min(claim.until, self.now)
        table.view = None
