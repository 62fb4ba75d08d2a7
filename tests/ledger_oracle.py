"""The ledger as anybody would keep it on paper: sets of numbered cells, no SQL, no ranges, no index.

Every method of `Oracle` predicts the answer of one function of `schema.sql`, refusals included, and changes the
paper as that function must change the ledger. It is written from `docs` and the comments, cell by cell: what is
clever in the schema (carving, splitting, multiranges) has no counterpart here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from ledger_scene import CELLS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from datetime import datetime, timedelta

Cells = frozenset[int]
GRID: Cells = frozenset(range(CELLS))
WHOLE: Cells = frozenset(range(-1, CELLS + 1))
"""All of time: the grid, what is before it and what is after it."""


class Refused(Exception):  # noqa: N818 - it is an answer
    """The oracle's word for an error; its argument names it."""


class Fact(NamedTuple):
    """What is recorded of one cell."""

    revision: int
    read: int
    run: int | None
    verdict: str
    committed: datetime
    mirrored: datetime | None


class Reason(NamedTuple):
    """Why one cell is to be computed again."""

    revision: int
    attempts: int


@dataclass(frozen=True)
class Claim:
    """Some cells that a run has reserved."""

    run: int
    version: int
    cells: Cells
    state: str
    opened: int
    read: int | None = None
    quarantine: datetime | None = None

    @property
    def lives(self) -> bool:
        return self.state in ("open", "begun")


@dataclass
class Run:
    """One attempt."""

    project: str
    expires: datetime
    ttl: timedelta
    grace: timedelta
    engine_in_process: bool
    state: str = "running"


@dataclass
class Version:
    """One table.

    Attributes:
        kind: SQLMesh's, in lower case.
    """

    kind: str = "incremental_by_time_range"
    facts: dict[int, Fact] = field(default_factory=dict)
    marks: dict[str, dict[int, Reason]] = field(default_factory=dict)
    dirty: dict[int, int | None] = field(default_factory=dict)

    @property
    def as_of(self) -> bool:
        """Whether it is one whole."""
        return self.kind != "incremental_by_time_range"

    @property
    def refreshed(self) -> bool:
        """Whether each evaluation makes all of it anew."""
        return self.kind == "full"

    @property
    def appended(self) -> bool:
        """Whether an evaluation mends nothing that was written before."""
        return self.kind == "incremental_unmanaged"

    def rows(self) -> list[Cells]:
        """Neighbouring cells that were recorded together, in order."""
        return [
            piece
            for revision in {fact.revision for fact in self.facts.values()}
            for piece in runs_of(c for c, fact in self.facts.items() if fact.revision == revision)
        ]


def runs_of(cells: Iterable[int]) -> list[Cells]:
    """Neighbouring cells together, in order."""
    found: list[set[int]] = []
    for cell in sorted(cells):
        if found and cell - 1 in found[-1]:
            found[-1].add(cell)
        else:
            found.append({cell})
    return [frozenset(piece) for piece in found]


@dataclass
class Oracle:
    """The whole ledger.

    Attributes:
        now: The one clock.
        revision: The last number that was handed out.
    """

    now: datetime
    revision: int = 0
    runs: dict[int, Run] = field(default_factory=dict)
    versions: dict[int, Version] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    # pieces

    def next(self) -> int:
        self.revision += 1
        return self.revision

    def holds(self, run: int) -> bool:
        return self.runs[run].state == "running" and self.runs[run].expires > self.now

    def must_hold(self, run: int) -> None:
        if not self.holds(run):
            raise Refused("lost")

    def mark(self, version: int, cells: Cells, kind: str) -> int:
        table = self.versions[version]
        number = self.next()
        if table.as_of and kind in ("failed", "suspect"):
            cells = WHOLE
        marks = table.marks.setdefault(kind, {})
        before = max((marks[c].attempts for c in cells if c in marks), default=0)
        marks.update(dict.fromkeys(cells, Reason(number, before + 1)))
        return number

    def taint(self, version: int, since: int) -> None:
        if self.versions[version].as_of:
            self.versions[version].dirty[since] = None

    def change(self, claim: Claim, **changes: object) -> Claim:
        new = replace(claim, **changes)
        self.claims[self.claims.index(claim)] = new
        return new

    def piece(self, run: int, version: int, cells: Cells, states: Collection[str]) -> Claim | None:
        for claim in self.claims:
            if (
                (claim.run, claim.version) == (run, version)
                and claim.state in states
                and claim.cells >= cells
            ):
                if self.versions[version].as_of:
                    return claim
                self.claims += [replace(claim, cells=rest) for rest in runs_of(claim.cells - cells)]
                return self.change(claim, cells=cells)
        return None

    def distrust(self, claim: Claim, kind: str) -> None:
        self.mark(claim.version, claim.cells, kind)
        assert claim.read is not None
        self.taint(claim.version, claim.read)

    def end_claims(self, run: int, free_at: datetime) -> None:
        mine = [c for c in self.claims if c.run == run]
        for claim in sorted((c for c in mine if c.state == "begun"), key=lambda c: (c.version, min(c.cells))):
            self.distrust(claim, "suspect")
            self.change(claim, state="lost", quarantine=free_at)
        for claim in mine:
            if claim.state == "open":
                self.change(claim, state="abandoned")

    def lose(self, run: int, *, gone: bool) -> None:
        lost = self.runs[run]
        if lost.state == "running":
            lost.state = "lost"
            self.end_claims(run, self.now if gone else lost.expires + lost.grace)

    def release(self, run: int, version: int | None = None, cells: Cells = frozenset()) -> None:
        for claim in [c for c in self.claims if c.run == run and c.state == "lost" and c.cells >= cells]:
            if version in (None, claim.version):
                assert claim.quarantine is not None
                self.change(claim, quarantine=min(claim.quarantine, self.now))

    def refuse(self, run: int, version: int, cells: Cells) -> None:
        self.lose(run, gone=False)
        self.mark(version, cells, "suspect")
        lost = [c.read for c in self.claims if (c.run, c.version, c.state) == (run, version, "lost")]
        self.taint(version, min((read for read in lost if read is not None), default=self.revision))
        self.release(run, version, cells)

    def unclean(self, version: int, cells: Cells) -> set[tuple[str, int]]:
        """What nobody may read: reason and cell."""
        table = self.versions[version]
        found = {("missing", c) for c in cells if c not in table.facts}
        for kind in ("failed", "suspect", "removed"):
            found |= {(kind, c) for c in cells & set(table.marks.get(kind, {}))}
        for claim in self.claims:
            if claim.version == version and claim.state == "begun":
                found |= {("begun", c) for c in cells & claim.cells}
        return found

    # runs

    def acquire(
        self,
        project: str,
        ttl: timedelta,
        grace: timedelta,
        as_of: datetime | None,
        *,
        engine_in_process: bool,
    ) -> tuple[str, int, datetime]:
        if as_of is not None and as_of > self.now:
            raise Refused("future")
        for run, known in self.runs.items():
            if known.state == "running" and known.expires <= self.now:
                self.lose(run, gone=False)
        for run, known in self.runs.items():
            if known.state == "running" and known.project == project:
                return "busy", run, known.expires
        run = len(self.runs) + 1
        self.runs[run] = Run(project, self.now + ttl, ttl, grace, engine_in_process)
        return "lease", run, self.now + ttl

    def renew(self, run: int) -> datetime:
        self.must_hold(run)
        self.runs[run].expires = self.now + self.runs[run].ttl
        return self.runs[run].expires

    def finish(self, run: int, state: str) -> str:
        if self.holds(run):
            over = self.runs[run].engine_in_process
            self.end_claims(run, self.now if over else self.now + self.runs[run].grace)
            self.runs[run].state = state
        else:
            self.bury(run, engine_gone=self.runs[run].engine_in_process)
        return self.runs[run].state

    def bury(self, run: int, *, engine_gone: bool) -> None:
        self.lose(run, gone=engine_gone)
        if engine_gone:
            self.release(run)

    # claims

    def open(
        self, run: int, version: int, asked: list[Cells]
    ) -> list[tuple[set[int | None], set[datetime | None]]]:
        """For each range: who may be named as the one that has it, and when it may be said to be free."""
        self.must_hold(run)
        answers: list[tuple[set[int | None], set[datetime | None]]] = []
        for wanted in asked:
            cells = WHOLE if self.versions[version].as_of else wanted
            here = [c for c in self.claims if c.version == version and c.cells & cells]
            live = [c for c in here if c.lives]
            waiting = [c for c in here if c.state == "lost" and c.quarantine and c.quarantine > self.now]
            if any(c.run == run and (self.versions[version].as_of or c.cells == cells) for c in live):
                answers.append(({None}, {None}))
            elif waiting:
                last = max(c.quarantine for c in waiting if c.quarantine)
                answers.append(({c.run for c in waiting if c.quarantine == last}, {last}))
            elif live:
                answers.append(({c.run for c in live}, {self.runs[c.run].expires for c in live}))
            else:
                self.claims.append(Claim(run, version, cells, "open", self.revision))
                answers.append(({None}, {None}))
        return answers

    def begin(
        self, run: int, version: int, cells: Cells, needs: list[tuple[int, Cells]], loaded: list[int]
    ) -> int | set[tuple[int, str, int]]:
        """What was read up to, or why not: version, reason, cell."""
        self.must_hold(run)
        why = {(parent, *found) for parent, read in needs for found in self.unclean(parent, read)}
        for parent in loaded:
            if not self.versions[parent].facts:
                why |= {(parent, "missing", c) for c in cells}
            why |= {(parent, *found) for found in self.unclean(parent, WHOLE) if found[0] != "missing"}
        if why:
            return why
        claim = self.piece(run, version, cells, ("open", "begun"))
        if claim is None:
            raise Refused("no claim")
        self.change(claim, state="begun", read=self.revision)
        return self.revision

    def commit(self, run: int, version: int, cells: Cells, verdict: str, lookback: Cells) -> int:
        table = self.versions[version]
        if not self.holds(run):
            self.refuse(run, version, cells)
            raise Refused("lost")
        claim = self.piece(run, version, cells, ("begun",))
        if claim is None:
            said = [row for row in table.rows() if row >= cells and table.facts[min(row)].run == run]
            if not said:
                raise Refused("no claim")
            return max(table.facts[min(row)].revision for row in said)
        read = claim.read
        assert read is not None
        made = self.next()
        stamped = cells
        if table.refreshed and table.facts:
            first = min(table.facts)
            asked = [
                max(c, first)
                for kind in ("requested", "removed")
                for c, reason in table.marks.get(kind, {}).items()
                if reason.revision <= read
            ]
            if asked:
                begin, end = min(*asked, *cells), max(*table.facts, *cells)
                stamped = frozenset(range(begin, end + 1))
        table.facts.update(dict.fromkeys(stamped, Fact(made, read, run, verdict, self.now, None)))
        for kind, marks in table.marks.items():
            mended = table.as_of and kind in ("failed", "suspect")
            for c in list(marks):
                here = c in cells or table.refreshed or mended
                if marks[c].revision <= read and here and not table.appended:
                    del marks[c]
        if table.as_of:
            if not table.marks.get("failed") and not table.marks.get("suspect"):
                table.dirty = {
                    since: made if until is None else until for since, until in table.dirty.items()
                }
            self.change(claim, state="open")
        else:
            self.change(claim, state="committed")
        for row in sorted(table.rows(), key=min):
            if row & lookback and table.facts[min(row)].read < claim.opened:
                self.mark(version, row & lookback, "lookback")
        return made

    def fail(self, run: int, version: int, cells: Cells) -> None:
        if not self.holds(run):
            self.refuse(run, version, cells)
            raise Refused("lost")
        claim = self.piece(run, version, cells, ("begun",))
        if claim is None:
            raise Refused("no claim")
        self.distrust(claim, "failed")
        self.change(claim, state="failed")

    def abandon(self, run: int, version: int | None, cells: Cells | None) -> int:
        whole = version is not None and self.versions[version].as_of
        if cells is not None and version is not None and not whole:
            self.piece(run, version, cells, ("open",))
        gone = [
            c
            for c in self.claims
            if c.run == run
            and c.state == "open"
            and version in (None, c.version)
            and (cells is None or whole or c.cells <= cells)
        ]
        for claim in gone:
            self.change(claim, state="abandoned")
        return len(gone)

    def mirrored(self, run: int, version: int, cells: Cells) -> None:
        table = self.versions[version]
        for row in table.rows():
            fact = table.facts[min(row)]
            if row & cells and (fact.run == run or table.refreshed) and fact.mirrored is None:
                table.facts.update(dict.fromkeys(row, fact._replace(mirrored=self.now)))

    # reconciliation

    def reconcile(
        self, version: int, recorded: Cells, trusted: Cells, *, gated: bool, read_at: datetime
    ) -> list[tuple[str, Cells]]:
        table = self.versions[version]
        found: list[tuple[str, Cells]] = []
        new = recorded - set(table.facts)
        for piece in sorted([*runs_of(new & trusted), *runs_of(new - trusted)], key=min):
            proven = piece <= trusted
            made = self.next()
            fact = Fact(made, made - 1 if proven else 0, None, "foreign", self.now, self.now)
            table.facts.update(dict.fromkeys(piece, fact))
            found.append(("added", piece))
            met = any(piece & set(marks) for marks in table.marks.values()) or any(
                c.version == version
                and c.cells & piece
                and (c.state == "begun" or (c.state == "lost" and c.quarantine and c.quarantine > self.now))
                for c in self.claims
            )
            if met or (gated and not proven):
                self.mark(version, piece, "suspect")
                self.taint(version, 0)
                found.append(("suspect", piece))
        lacking = []
        for row in table.rows():
            fact = table.facts[min(row)]
            if fact.mirrored is not None:
                gone = fact.mirrored < read_at
            else:
                owner = self.runs[fact.run] if fact.run else None
                working = owner is not None and owner.state == "running" and owner.expires > self.now
                gone = fact.committed < read_at and not working
            if gone:
                lacking += [(piece, fact) for piece in runs_of(row - recorded if fact.mirrored else row)]
        for piece, fact in sorted(lacking, key=lambda each: min(each[0])):
            if any(
                self._one_mark_holds(table.marks.get(kind, {}), piece, fact.revision)
                for kind in ("removed", "suspect", "failed")
            ):
                continue
            self.mark(version, piece, "removed" if fact.mirrored or table.as_of else "suspect")
            found.append(("removed" if fact.mirrored else "unmirrored", piece))
        return found

    @staticmethod
    def _one_mark_holds(marks: dict[int, Reason], piece: Cells, revision: int) -> bool:
        numbers = {marks[c].revision for c in piece if c in marks}
        return piece <= set(marks) and len(numbers) == 1 and numbers.pop() > revision
