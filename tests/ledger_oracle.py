"""The ledger as anybody would keep it on paper: sets of numbered cells, no SQL, no ranges, no index.

Every method of `Oracle` predicts the answer of one function of `schema.sql`, refusals included, and changes the
paper as that function must change the ledger. It is written from `docs` and the comments, cell by cell: what is
clever in the schema (carving, splitting, multiranges) has no counterpart here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ledger_paper import (
    GRID,
    WHOLE,
    Asked,
    Cells,
    Claim,
    Fact,
    Reason,
    Run,
    Version,
    repaired,
    runs_of,
    stretch,
)

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime


class Refused(Exception):  # noqa: N818 - it is an answer
    """The oracle's word for an error; its argument names it."""


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

    def mark(self, version: int, cells: Cells, kind: str, tried_by: int | None = None) -> int:
        table = self.versions[version]
        number = self.next()
        marks = table.marks.setdefault(kind, {})
        if table.as_of and kind in ("failed", "suspect"):
            table.doubt[kind] = stretch(cells | (table.doubt[kind] if marks else frozenset()))
            cells = WHOLE
        known = [marks[c] for c in cells if c in marks]
        attempts = max((reason.attempts for reason in known), default=0)
        retry = max((reason.retry for reason in known if reason.retry), default=None)
        if tried_by is not None:
            attempts += 1
            retry = self.pause_after(self.runs[tried_by], attempts - (kind == "suspect"))
        marks.update(dict.fromkeys(cells, Reason(number, attempts, retry)))
        return number

    def pause_after(self, run: Run, failures: int) -> datetime | None:
        """Until when something is left alone that failed so many times in a row."""
        if failures < 1:
            return None
        pause = run.first
        for _ in range(failures - 1):
            pause *= 2
        return (run.as_of or self.now) + min(pause, run.longest)

    def taint(self, version: int, since: int) -> None:
        if self.versions[version].as_of:
            self.versions[version].dirty[since] = (None, None)

    def change(self, claim: Claim, **changes: object) -> Claim:
        new = replace(claim, **changes)
        self.claims[self.claims.index(claim)] = new
        return new

    def piece(self, run: int, version: int, cells: Cells, states: tuple[str, ...]) -> Claim | None:
        for claim in self.claims:
            held = claim.begun if states == ("begun",) else claim.cells
            if (claim.run, claim.version) == (run, version) and claim.state in states and held >= cells:
                if self.versions[version].as_of:
                    return claim
                for rest in runs_of(claim.cells - cells):
                    self.claims.append(replace(claim, cells=rest, begun=claim.begun & rest))
                return self.change(claim, cells=cells, begun=claim.begun & cells)
        return None

    def distrust(self, claim: Claim, kind: str, *, tried: bool = True) -> None:
        self.mark(claim.version, claim.begun, kind, tried_by=claim.run if tried else None)
        assert claim.read is not None
        self.taint(claim.version, claim.read)

    def end_claims(self, run: int, free_at: datetime, *, heard: bool) -> None:
        mine = [c for c in self.claims if c.run == run]
        for claim in sorted((c for c in mine if c.state == "begun"), key=lambda c: (c.version, min(c.cells))):
            self.distrust(claim, "suspect")
            begun = frozenset() if heard else claim.begun
            self.change(claim, state="lost", quarantine=free_at, begun=begun)
        for claim in mine:
            if claim.state == "open":
                self.change(claim, state="abandoned")

    def lose(self, run: int, *, gone: bool, heard: bool = False) -> None:
        lost = self.runs[run]
        if lost.state == "running":
            lost.state = "lost"
            self.end_claims(run, self.now if gone else lost.expires + lost.grace, heard=heard)

    def hear_of(self, run: int) -> None:
        """The last word about a run that had been lost before: what it had begun may have been written until now."""
        mine = [c for c in self.claims if (c.run, c.state) == (run, "lost") and c.begun]
        for claim in sorted(mine, key=lambda c: (c.version, min(c.cells))):
            self.distrust(claim, "suspect", tried=False)
            self.change(claim, begun=frozenset())

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
        held = cells if table.as_of and table.held else cells & table.held
        return found | {("held", c) for c in held}

    # runs

    def living(self) -> list[int]:
        """Runs that have not ended; the leases of some may have."""
        return [key for key, run in self.runs.items() if run.state == "running"]

    def deploys(self) -> list[int]:
        return [key for key, run in self.runs.items() if run.purpose == "deploy"]

    def pauses(self) -> list[tuple[int, int]]:
        """What is left alone for a while: version and cell."""
        return [
            (version, cell)
            for version, table in self.versions.items()
            for marks in table.marks.values()
            for cell, reason in marks.items()
            if reason.retry and cell in GRID
        ]

    def take_over(self) -> list[int]:
        over = [run for run in self.living() if self.runs[run].expires <= self.now]
        for run in over:
            self.lose(run, gone=False)
        return over

    def acquire(self, asked: Asked) -> tuple[str, int, datetime]:
        if asked.as_of is not None and asked.as_of > self.now:
            raise Refused("future")
        self.take_over()
        deploys, runs = [], []
        for run in self.living():
            known = self.runs[run]
            if known.environment == asked.environment:
                ours = known.project == asked.project
                if known.purpose == "deploy" and (ours or asked.purpose == "deploy"):
                    deploys.append(run)
                elif known.purpose == asked.purpose == "run" and ours and not asked.share:
                    runs.append(run)
        for run in [*deploys, *runs]:
            return "busy", run, self.runs[run].expires
        run = len(self.runs) + 1
        self.runs[run] = Run(**vars(asked), expires=self.now + asked.ttl)
        return "lease", run, self.now + asked.ttl

    def renew(self, run: int) -> datetime:
        self.must_hold(run)
        self.runs[run].expires = self.now + self.runs[run].ttl
        return self.runs[run].expires

    def finish(self, run: int, state: str, *, writing: bool = False) -> str:
        over = self.runs[run].engine_in_process and not writing
        if self.holds(run):
            self.end_claims(run, self.now if over else self.now + self.runs[run].grace, heard=not writing)
            self.runs[run].state = state
        elif writing:
            self.lose(run, gone=False)
        else:
            self.bury(run, engine_gone=over)
        return self.runs[run].state

    def bury(self, run: int, *, engine_gone: bool) -> None:
        self.lose(run, gone=engine_gone, heard=True)
        self.hear_of(run)
        if engine_gone:
            self.release(run)

    def break_lease(self, run: int) -> bool:
        lived = self.runs[run].state == "running"
        self.lose(run, gone=False)
        return lived

    def pause(self, run: int, models: Collection[int]) -> list[tuple[int, int, Cells]]:
        """What others are writing of these models: run, model, cells."""
        self.must_hold(run)
        self.runs[run].promoting = frozenset(models)
        here = self.runs[run].environment
        return [
            (c.run, c.version, c.cells)
            for c in self.under_way()
            if c.run != run and c.version in models and self.runs[c.run].environment == here
        ]

    def retry(self, versions: Collection[int], cells: Cells) -> int:
        """End the pauses of whole marks that the cells meet; how many marks."""
        ended = 0
        for version in versions:
            for marks in self.versions[version].marks.values():
                for number in {reason.revision for reason in marks.values() if reason.retry}:
                    told = (c for c, reason in marks.items() if reason.revision == number and reason.retry)
                    for piece in runs_of(told):
                        if piece & cells:
                            marks.update({c: marks[c]._replace(retry=None) for c in piece})
                            ended += 1
        return ended

    # claims

    def under_way(self) -> list[Claim]:
        """What runs that live have begun."""
        return [c for c in self.claims if c.state == "begun" and self.holds(c.run)]

    def open(
        self, run: int, version: int, asked: list[Cells], *, whole: bool
    ) -> list[tuple[set[int | None], set[datetime | None]]]:
        """For each range: who may be named as the one that has it, and when it may be said to be free."""
        self.must_hold(run)
        answers: list[tuple[set[int | None], set[datetime | None]]] = []
        whole = whole or self.versions[version].as_of
        for wanted in asked:
            cells = WHOLE if whole else wanted
            here = [c for c in self.claims if c.version == version and c.cells & cells]
            live = [c for c in here if c.lives]
            waiting = [c for c in here if c.state == "lost" and c.quarantine and c.quarantine > self.now]
            if any(c.run == run and (whole or c.cells == cells) for c in live):
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
        self,
        run: int,
        version: int,
        cells: Cells,
        needs: list[tuple[int, Cells]],
        loaded: list[int],
        environment: str | None = None,
        limits: tuple[int | None, int | None] = (None, None),
    ) -> int | dict[str, object] | set[tuple[int, str, int]]:
        """What was read up to; or what to wait for; or why not: version, reason, cell."""
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
        if claim.state == "open":
            wait = self.wait(run, version, environment, *limits)
            if wait:
                return wait
        # Of one whole, what was begun before and did not end has not been read anew.
        goes_on = claim.state == "begun" and self.versions[version].as_of
        read = claim.read if goes_on else self.revision
        assert read is not None
        self.change(claim, state="begun", read=read, begun=stretch(claim.begun | cells if goes_on else cells))
        return read

    def wait(
        self,
        run: int,
        version: int,
        environment: str | None,
        of_model: int | None,
        of_warehouse: int | None,
    ) -> dict[str, object] | None:
        for deploy, known in self.runs.items():
            here = known.purpose == "deploy" and known.environment == environment
            if here and deploy != run and self.holds(deploy) and version in known.promoting:
                return {"for": "promotion", "run_id": deploy}
        under_way = self.under_way()
        if of_model is not None and sum(c.version == version for c in under_way) >= of_model:
            return {"for": "limit", "of": "model", "most": of_model}
        name = self.runs[run].warehouse
        if of_warehouse is not None:
            busy = sum(self.runs[c.run].warehouse == name for c in under_way)
            if busy >= of_warehouse:
                return {"for": "limit", "of": "warehouse", "name": name, "most": of_warehouse}
        return None

    def commit(self, run: int, version: int, cells: Cells, verdict: str, lookback: Cells) -> int:
        table = self.versions[version]
        if not self.holds(run):
            self.refuse(run, version, cells)
            raise Refused("lost")
        claim = self.piece(run, version, cells, ("begun",))
        if claim is None:
            said = [table.facts[c] for c in cells if c in table.facts and table.facts[c].run == run]
            if len(said) < len(cells):
                raise Refused("no claim")
            return max(fact.revision for fact in said)
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
            answered = {c for c in marks if marks[c].revision <= read and not table.appended}
            if table.as_of and not table.refreshed and kind in ("failed", "suspect") and answered:
                # All that was being written has to be written once more.
                table.doubt[kind] = stretch(table.doubt[kind] - cells)
                gone = set() if table.doubt[kind] else answered
            else:
                gone = answered if table.refreshed else answered & cells
            for c in gone:
                del marks[c]
        if table.as_of:
            if not table.marks.get("failed") and not table.marks.get("suspect"):
                table.dirty = repaired(table.dirty, made)
            rest = frozenset() if table.refreshed else stretch(claim.begun - cells)
            self.change(claim, state="begun" if rest else "open", begun=rest)
        else:
            self.change(claim, state="committed")
        for row in sorted(table.rows(), key=min):
            fact = table.facts[min(row)]
            if row & lookback and fact.read < claim.opened and fact.verdict != "accepted":
                self.mark(version, row & lookback, "lookback")
        return made

    def give_up(self, run: int, version: int, cells: Cells) -> bool:
        if not self.holds(run):
            self.refuse(run, version, cells)
            return False
        claim = self.piece(run, version, cells, ("begun",))
        if claim is None:
            return False
        self.distrust(claim, "suspect", tried=False)
        self.change(claim, state="failed")
        return True

    def fail(self, run: int, version: int, cells: Cells, *, tried: bool = True) -> None:
        if not self.holds(run):
            self.refuse(run, version, cells)
            raise Refused("lost")
        claim = self.piece(run, version, cells, ("begun",))
        if claim is None:
            # Said twice, it is done once.
            if any(
                (c.run, c.version, c.state) == (run, version, "failed") and c.cells >= cells
                for c in self.claims
            ):
                return
            raise Refused("no claim")
        self.distrust(claim, "failed", tried=tried)
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
        for row in sorted(table.rows(), key=min):
            fact = table.facts[min(row)]
            untold = (fact.verdict, fact.run, fact.mirrored) == ("accepted", None, None)
            for piece in runs_of(row & recorded if untold and fact.committed < read_at else ()):
                if not self._one_mark_holds(table.marks.get("suspect", {}), piece, fact.revision):
                    self.mark(version, piece, "suspect")
                    found.append(("suspect", piece))
        lacking = []
        for row in table.rows():
            fact = table.facts[min(row)]
            if fact.mirrored is not None:
                gone = fact.mirrored < read_at
            else:
                owner = self.runs[fact.run] if fact.run else None
                working = owner is not None and owner.state == "running" and owner.expires > self.now
                gone = fact.committed < read_at and fact.run is not None and not working
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
