"""The ledger rebuilt from its history, transaction by transaction, and where a promise was broken on the way.

Plain sets of five-minute cells and dictionaries: nothing here asks the product's SQL what it thinks.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from chaos_history import (
    BEFORE,
    Cells,
    Change,
    Evaluation,
    Model,
    Outside,
    Violation,
    cells_of,
    length_s,
    said,
    seconds,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from datetime import datetime

SLACK_S = 0.5
"""Between the moment at which a function reads the clock and the one at which its first row is written."""


@dataclass
class _Claim:
    run: int
    version: int
    cells: Cells
    state: str
    read: int | None
    begun: str | None
    batch: Cells | None

    @property
    def lives(self) -> bool:
        return self.state in ("open", "begun")

    def written(self) -> Cells:
        """What may have been written: a claim on the whole says which part of it was begun."""
        return self.cells if self.batch is None or BEFORE not in self.cells else self.batch


@dataclass
class _Mark:
    version: int
    cells: Cells
    kind: str
    revision: int


@dataclass(frozen=True)
class _Fact:
    row: int
    revision: int
    read: int


@dataclass
class _Run:
    project: int
    environment: str
    purpose: str
    state: str
    expires: float
    grace: float
    process: tuple[int, str]


@dataclass
class _Moment:
    """What one transaction did, for what must hold at its end."""

    at: float
    touched: set[tuple[int, int]] = field(default_factory=set)
    gone: set[tuple[int, int]] = field(default_factory=set)
    old_revisions: set[int] = field(default_factory=set)
    discharged: list[_Mark] = field(default_factory=list)
    marked: list[_Mark] = field(default_factory=list)
    recorded: dict[tuple[int, int], int] = field(default_factory=dict)
    begun: dict[int, _Claim] = field(default_factory=dict)
    split: list[_Claim] = field(default_factory=list)
    state: dict[int, _Claim] = field(default_factory=dict)
    made: list[int] = field(default_factory=list)


class Replay:
    """The ledger, rebuilt from its history, and what was wrong on the way.

    Args:
        models: What is promoted.
        outside: What the workers saw.
        origin: The first instant of the grid, UTC.
    """

    def __init__(self, models: Iterable[Model], outside: Outside, origin: datetime) -> None:
        self.models = {model.version: model for model in models}
        self.outside = outside
        self.origin = origin
        self.violations: list[Violation] = []
        self.revision = 0
        self.runs: dict[int, _Run] = {}
        self.claims: dict[int, _Claim] = {}
        self.marks: dict[int, _Mark] = {}
        self.facts: dict[int, dict[int, _Fact]] = defaultdict(dict)
        self.transactions = 0
        self._live: dict[tuple[int, int], set[int]] = defaultdict(set)
        self._lost_at: dict[int, float] = {}
        # When somebody said of a cell that it must be evaluated again, or began to.
        self._again: dict[tuple[int, int], list[float]] = defaultdict(list)

    def play(self, changes: Iterable[Change]) -> list[Violation]:
        """Apply everything; what was wrong, in order."""
        for _, rows in groupby(changes, key=lambda change: change.xid):
            self._transaction(list(rows))
        self._judge_the_engine()
        return self.violations

    def _say(self, check: str, text: str, at: float) -> None:
        self.violations.append(Violation(check, text, at))

    def _name(self, version: int) -> str:
        return self.models[version].name if version in self.models else f"version {version}"

    def _transaction(self, rows: list[Change]) -> None:
        self.transactions += 1
        moment = _Moment(rows[0].at)
        # A piece of an older row keeps its number, and may be written before the older row is taken away.
        for row in rows:
            if row.was is not None and row.table in ("coverage", "mark"):
                moment.old_revisions.add(row.was["revision"])
        before = self.revision
        for row in rows:
            getattr(self, f"_{row.table}")(row, moment)
        for number in moment.made:
            if number <= before:
                self._say("revisions strictly grow", f"{number} was handed out after {before}", moment.at)
        self.revision = max([self.revision, *moment.made])
        self._judge(moment)

    # one method a table

    def _ledger(self, row: Change, _: _Moment) -> None:
        if row.became is not None and row.was is not None and row.became["revision"] != row.was["revision"]:
            if row.was["revision"] != self.revision:
                text = f"{row.became['revision']} follows {row.was['revision']}, but {self.revision} had been committed"
                self._say("revisions strictly grow", text, row.at)
            self.revision = row.became["revision"]

    def _run(self, row: Change, _: _Moment) -> None:
        if row.became is None:
            return
        key, now = row.became["run_id"], row.became
        expires = seconds(now["expires_at"]) or 0.0
        known = self.runs.get(key)
        new = _Run(
            now["project_id"],
            now["environment"],
            now["purpose"],
            now["state"],
            expires,
            length_s(now["grace"]),
            (now["holder"].get("pid", 0), now["holder"].get("started", "")),
        )
        if known is None:
            self._judge_company(key, new, row.at)
        elif known.state != "running" and (new.state, new.expires) != (known.state, known.expires):
            self._say("a run ends once", f"run {key} went from {known.state} to {new.state}", row.at)
        elif known.state == "running" and new.state == "running" and known.expires < row.at - SLACK_S:
            self._say(
                "a lease that ended stays ended",
                f"run {key} was renewed {row.at - known.expires:.2f} s late",
                row.at,
            )
        elif known.state == "running" and new.state == "lost":
            self._lost_at[key] = row.at
            if known.expires > row.at + SLACK_S and not self._was_over(key, row.at):
                self._say(
                    "a lease is taken only from the dead",
                    f"run {key} lived until {known.expires:.2f}",
                    row.at,
                )
        self.runs[key] = new

    def _was_over(self, run: int, at: float) -> bool:
        # Who died with the answer to its first question never wrote down which run it was. The run may then even have
        # begun after its process was gone: the question had been waiting for a lock.
        over = self.outside.over.get(run, self.outside.deaths.get(self.runs[run].process))
        return over is not None and over <= at + SLACK_S

    def _judge_company(self, key: int, new: _Run, at: float) -> None:
        for other, known in self.runs.items():
            if known.state != "running" or known.expires <= at or known.environment != new.environment:
                continue
            if new.purpose == "deploy":
                bad = known.purpose == "deploy"
            else:
                alone = self.outside.overlap.get(key, "share") != "share"
                bad = known.project == new.project and (alone or known.purpose == "deploy")
            if bad:
                self._say("who wants to be alone is alone", f"run {key} began beside run {other}", at)

    def _claim(self, row: Change, moment: _Moment) -> None:
        key = (row.became or row.was or {})["claim_id"]
        old = self.claims.pop(key, None)
        if old is not None and old.lives:
            for cell in old.cells:
                self._live[old.version, cell].discard(key)
                moment.touched.add((old.version, cell))
        if row.became is None:
            return
        now = row.became
        new = _Claim(
            now["run_id"], now["version_id"], cells_of(now["span"], self.origin), now["state"],
            now["read_revision"], now["begun_at"], self._batch(now),
        )  # fmt: skip
        if new.lives or new.state == "lost":
            self.claims[key] = new
        if new.lives:
            for cell in new.cells:
                self._live[new.version, cell].add(key)
                moment.touched.add((new.version, cell))
        if row.was is None and new.state == "open":
            self._judge_quarantine(new, row.at)
        if new.state == "begun" and row.was is not None and row.was["begun_at"] != new.begun:
            self._judge_begin(new, old, row.at)
        if old is not None and old.state == "begun" and key not in moment.begun:
            moment.begun[key] = old
        if new.state == "begun" and row.was is None:
            moment.split.append(new)
        moment.state[key] = new

    def _batch(self, row: Mapping[str, Any]) -> Cells | None:
        whole = row["version_id"] in self.models and self.models[row["version_id"]].whole
        given = None if whole else row.get("batch")
        return cells_of(given, self.origin) if given and given != "empty" else None

    def _coverage(self, row: Change, moment: _Moment) -> None:
        if row.was is not None:
            version, key = row.was["version_id"], row.was["coverage_id"]
            for cell in cells_of(row.was["span"], self.origin):
                fact = self.facts[version].get(cell)
                if fact is not None and fact.row == key:
                    del self.facts[version][cell]
                    moment.gone.add((version, cell))
        if row.became is None:
            return
        version, now = row.became["version_id"], row.became
        cells = cells_of(now["span"], self.origin)
        fact = _Fact(now["coverage_id"], now["revision"], now["read_revision"])
        twice = [cell for cell in cells if cell in self.facts[version]]
        if twice:
            self._say("nothing is recorded twice", f"{self._name(version)} {said(twice)}", row.at)
        self.facts[version].update(dict.fromkeys(cells, fact))
        if now["revision"] in moment.old_revisions:
            return
        moment.made.append(now["revision"])
        for cell in cells:
            moment.recorded[version, cell] = now["read_revision"]
        # A promotion gives older rows a new number, and is not a run's commit.
        if row.was is None and now["run_id"] is not None and now["verdict"] != "accepted":
            self._judge_commit(now["run_id"], version, cells, moment.at)

    def _mark(self, row: Change, moment: _Moment) -> None:
        if row.was is not None:
            gone = self.marks.pop(row.was["mark_id"], None)
            if gone is not None:
                moment.discharged.append(gone)
        if row.became is None:
            return
        now = row.became
        new = _Mark(now["version_id"], cells_of(now["span"], self.origin), now["kind"], now["revision"])
        self.marks[now["mark_id"]] = new
        moment.marked.append(new)
        if new.revision not in moment.old_revisions:
            moment.made.append(new.revision)
            if new.kind in ("suspect", "failed"):
                self._note_again(new.version, new.cells, row.at)

    def _note_again(self, version: int, cells: Cells, at: float) -> None:
        for cell in cells:
            self._again[version, cell].append(at)

    # what must hold when a claim is opened, begun, committed

    def _judge_quarantine(self, claim: _Claim, at: float) -> None:
        for lost in self.claims.values():
            if lost.state != "lost" or lost.version != claim.version or not lost.cells & claim.cells:
                continue
            run = self.runs[lost.run]
            if at + SLACK_S < run.expires + run.grace and not self._landed(lost, at):
                text = f"run {claim.run} took {self._name(claim.version)} {said(lost.cells & claim.cells)} of run {lost.run}"
                self._say("a late write is waited out", text, at)

    def _landed(self, lost: _Claim, at: float) -> bool:
        """Whether nothing of what a lost run had begun there could still be written."""
        if self._was_over(lost.run, at):
            return True
        name = self._name(lost.version)
        mine = [
            e
            for e in self.outside.evaluations
            if (e.run, e.model) == (lost.run, name) and e.cells & lost.cells
        ]
        return bool(mine) and all(e.end is not None and e.end <= at + SLACK_S for e in mine)

    def _judge_begin(self, claim: _Claim, old: _Claim | None, at: float) -> None:
        self._note_again(claim.version, claim.written(), at)
        # A claim on the whole that goes on keeps what it read first: the older number is the safe one.
        goes_on = (
            old is not None and old.state == "begun" and BEFORE in claim.cells and claim.read == old.read
        )
        if claim.read != self.revision and not goes_on:
            text = f"run {claim.run} began at {claim.read}, and {self.revision} had been committed"
            self._say("who begins knows what was committed", text, at)
        model = self.models.get(claim.version)
        if model is None or model.whole:
            return
        for parent in model.parents:
            bad = {cell: why for cell in claim.written() if (why := self._unclean(parent, cell))}
            if bad:
                text = f"run {claim.run} read {self._name(parent)} {said(bad)} ({', '.join(sorted(set(bad.values())))})"
                self._say("no child reads a parent that is not committed", f"{model.name}: {text}", at)

    def _unclean(self, version: int, cell: int) -> str | None:
        if cell not in self.facts[version]:
            return "missing"
        for mark in self.marks.values():
            unclean = mark.version == version and mark.kind in ("failed", "suspect", "removed")
            if unclean and (cell in mark.cells or BEFORE in mark.cells):
                return mark.kind
        for at in (cell, BEFORE):
            for claim in map(self.claims.__getitem__, self._live[version, at]):
                if claim.state == "begun" and (cell in claim.written() or BEFORE in claim.written()):
                    return "begun"
        return None

    def _judge_commit(self, key: int, version: int, cells: Cells, at: float) -> None:
        run = self.runs[key]
        where = f"run {key}, {self._name(version)} {said(cells)}"
        if run.state != "running":
            self._say("only a live run records", f"{where}: the run was {run.state}", at)
        elif run.expires < at - SLACK_S:
            self._say(
                "only a live run records", f"{where}: its lease had ended {at - run.expires:.2f} s before", at
            )
        whole = version in self.models and self.models[version].whole
        held = {
            cell
            for claim in self.claims.values()
            if (claim.run, claim.version, claim.state) == (key, version, "begun")
            for cell in (cells if whole else claim.written())
        }
        if cells - held:
            self._say("only what was begun is recorded", f"{where}: not {said(cells - held)}", at)

    # what must hold at the end of a transaction

    def _judge(self, moment: _Moment) -> None:
        double: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
        for version, cell in moment.touched:
            if len(self._live[version, cell]) > 1:
                runs = tuple(sorted(self.claims[key].run for key in self._live[version, cell]))
                double[version, runs].append(cell)
        for (version, runs), cells in double.items():
            self._say("no two hold one range", f"{self._name(version)} {said(cells)}: runs {runs}", moment.at)
        gone: dict[int, list[int]] = defaultdict(list)
        for version, cell in moment.gone:
            if cell not in self.facts[version]:
                gone[version].append(cell)
        for version, cells in gone.items():
            self._say("what was recorded stays recorded", f"{self._name(version)} {said(cells)}", moment.at)
        for key, claim in moment.begun.items():
            self._judge_end(claim, moment.state.get(key), moment)
        for mark in moment.discharged:
            self._judge_discharge(mark, moment)

    def _judge_end(self, claim: _Claim, after: _Claim | None, moment: _Moment) -> None:
        """What was begun before a transaction and is not after it must be recorded by it, or marked."""
        still = {
            cell
            for other in (after, *moment.split)
            if other is not None
            and (other.state, other.run, other.version) == ("begun", claim.run, claim.version)
            for cell in other.written()
        }
        kinds = {"lost": ("suspect",), "failed": ("failed",)}.get(
            after.state if after else "", ("failed", "suspect")
        )
        told = {
            cell
            for mark in moment.marked
            if mark.version == claim.version
            and mark.kind in kinds
            and mark.revision not in moment.old_revisions
            for cell in mark.cells
        }
        recorded = {cell for version, cell in moment.recorded if version == claim.version}
        if recorded and claim.version in self.models and self.models[claim.version].whole:
            return
        if after is not None and after.state in ("committed", "open", "begun"):
            told |= recorded
        open_ = claim.written() - still - told
        if open_ and BEFORE not in told:
            text = f"run {claim.run}, {self._name(claim.version)} {said(open_)}: now {after.state if after else 'gone'}"
            self._say("what was begun is recorded or marked", text, moment.at)

    def _judge_discharge(self, gone: _Mark, moment: _Moment) -> None:
        held = {
            cell
            for mark in self.marks.values()
            if mark.version == gone.version and mark.kind == gone.kind and mark.revision >= gone.revision
            for cell in mark.cells
        }
        whole = BEFORE in gone.cells
        reads = [read for (version, _), read in moment.recorded.items() if version == gone.version]
        for cell in gone.cells - held:
            read = max(reads, default=-1) if whole else moment.recorded.get((gone.version, cell), -1)
            if read < gone.revision:
                text = f"{gone.kind} {gone.revision} on {self._name(gone.version)} {cell}, by a commit that read {read}"
                self._say("a mark is discharged by who read after it", text, moment.at)
                return

    # what the engine was made to do

    def _judge_the_engine(self) -> None:
        by_name = {model.name: model.version for model in self.models.values()}
        for name, evaluations in self._by_model():
            spans: dict[int, list[tuple[float, float, int]]] = defaultdict(list)
            for one in evaluations:
                until = self._until(one)
                for cell in self._table_cells(one, by_name.get(name)):
                    spans[cell].append((one.begin, until, one.run))
                self._judge_late(one, by_name.get(name))
            told: set[tuple[int, int]] = set()
            for cell, found in spans.items():
                for (begin, until, run), (later, _, other) in _neighbours(sorted(found)):
                    if later < until and run != other and (run, other) not in told:
                        told.add((run, other))
                        text = f"{name} {cell}: run {run} from {begin:.2f} to {until:.2f}, run {other} from {later:.2f}"
                        self._say("nothing is evaluated by two at once", text, later)

    def _table_cells(self, one: Evaluation, version: int | None) -> Cells:
        whole = version is not None and self.models[version].whole
        return frozenset({BEFORE}) if whole else one.cells

    def _by_model(self) -> Iterator[tuple[str, list[Evaluation]]]:
        found: dict[str, list[Evaluation]] = defaultdict(list)
        for one in self.outside.evaluations:
            found[one.model].append(one)
        yield from found.items()

    def _until(self, one: Evaluation) -> float:
        """Up to when it counts: a run that lost its lease is waited for no longer than its grace."""
        end = one.end if one.end is not None else self.outside.over.get(one.run, float("inf"))
        run = self.runs.get(one.run)
        return min(end, run.expires + run.grace) if run else end

    def _judge_late(self, one: Evaluation, version: int | None) -> None:
        """What a lost run wrote after it was taken over is evaluated again, unless it died with the report."""
        lost = self._lost_at.get(one.run)
        if version is None or lost is None or one.end is None or one.end <= lost:
            return
        if one.error is not None and "onflict" in one.error:
            return  # the engine itself refused what it had written
        if one.end >= self.outside.over.get(one.run, float("inf")):
            return
        for cell in self._table_cells(one, version):
            if not any(at >= one.end - SLACK_S for at in self._again[version, cell]):
                text = f"run {one.run}, {one.model} {cell}: it ended {one.end - lost:.2f} s after the run was lost ({one.error})"
                self._say("a late write is remembered", text, one.end)
                return


def _neighbours(spans: list[tuple[float, float, int]]) -> Iterator[tuple[Any, Any]]:
    """Each span with those that begin before it ends."""
    for index, one in enumerate(spans):
        for other in spans[index + 1 :]:
            if other[0] >= one[1]:
                break
            yield one, other
