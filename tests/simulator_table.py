"""What the simulated ledger writes down: cells by number, facts, reasons, claims, runs, tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshgate.graph import Kind
from meshgate.interval import IntervalSet
from simulator_geometry import interval_of, runs_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshgate.graph import ModelNode
    from meshgate.interval import Interval
    from meshgate.ledger import VersionState
    from simulator_geometry import Cells

WHOLE = frozenset({-1})
"""What a claim or a failure of a table is on that is one whole."""

DOUBTS = ("failed", "suspect")


@dataclass(slots=True, eq=False)
class Fact:
    """What is recorded of some cells by one commit. Instants are seconds; None: nobody knows.

    Attributes:
        read: The revision up to which the parents were read; 0 for unknown.
        run: Who recorded it; None for plain SQLMesh and for people.
        mirrored: When SQLMesh's own record was known to hold it.
    """

    revision: int
    read: int
    run: int | None
    verdict: str
    committed: int
    mirrored: int | None
    read_at: int | None


@dataclass(slots=True)
class Reason:
    """Why one cell is to be computed again."""

    revision: int
    attempts: int
    made_at: int
    retry_at: int | None = None


@dataclass(slots=True, eq=False)
class Claim:
    """Some cells that a run has reserved, and those of them that it has begun and not ended."""

    run: int
    cells: Cells
    state: str
    opened: int
    read: int = 0
    until: int = 0
    batch: Cells = frozenset()
    begun_at: int = 0


@dataclass(slots=True)
class Request:
    """Somebody wants cells of a model computed again, whatever its version."""

    model: str
    cells: Cells
    revision: int


@dataclass(slots=True)
class Run:
    """One attempt; `expires` is None while its lease is being renewed."""

    run_id: int
    project: str
    expires: int | None = None
    state: str = "running"
    purpose: str = "run"
    unheard: list[tuple[Table, Claim]] = field(default_factory=list)
    """What it had begun when it was lost: it may be writing it still."""


@dataclass(eq=False)
class Table:
    """One model's version.

    Attributes:
        doubt: Of one whole: what was being written when it went wrong, by the kind of mark.
        dirty: Of one whole: from which revision on it held rows that nobody had judged, until it was repaired, or (the second)
            until a person took a refreshed one as it was.
        settled_revision: What was not stale at this revision has, in effect, read up to there.
        unsettled: What was stale then.
        changes: How often it was written down.
        recipe: What its query is: versions of one recipe make the same rows of the same rows.
    """

    key: int
    node: ModelNode
    facts: dict[int, Fact] = field(default_factory=dict)
    marks: dict[str, dict[int, Reason]] = field(default_factory=dict)
    doubt: dict[str, Cells] = field(default_factory=dict)
    dirty: dict[int, tuple[int | None, int | None]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    covered: IntervalSet = field(default_factory=IntervalSet.empty)
    settled_revision: int = 0
    unsettled: set[int] = field(default_factory=set)
    changes: int = 0
    recipe: int = 0
    view: VersionState | None = None
    view_until: int = 0
    _rows: list[tuple[Fact, Cells]] | None = None
    _upto: dict[int, int] | None = None
    _floor: int = 0
    _taken: bool = False

    @property
    def whole(self) -> bool:
        return self.node.kind.as_of

    @property
    def refreshed(self) -> bool:
        """Whether each evaluation makes all of it anew."""
        return self.node.kind.reads_everything

    @property
    def appended(self) -> bool:
        """Whether an evaluation mends nothing that was written before."""
        return self.node.kind is Kind.INCREMENTAL_UNMANAGED

    def repaired(self, made: int) -> None:
        """From here on nobody meets rows that nobody had judged."""
        self.dirty = {
            since: (made if end is None else end, taken) for since, (end, taken) in self.dirty.items()
        }

    def taken_as_it_is(self, made: int) -> None:
        """The same of one that is refreshed, until it is; what was taken before and is not what stands there now, ends."""
        written_over = (None, None) in self.dirty.values()
        for since, (end, taken) in list(self.dirty.items()):
            if end is None and (taken is None or written_over):
                self.dirty[since] = (None, made) if taken is None else (made, taken)

    def forget(self) -> None:
        """What was derived from it: it has changed."""
        self.view = self._rows = self._upto = None

    def record(self, cells: Iterable[int], fact: Fact) -> None:
        new = dict.fromkeys(cells, fact)
        self._taken = self._taken or fact.verdict == "accepted"
        self.facts.update(new)
        self.covered |= IntervalSet(interval_of(piece) for piece in runs_of(new))
        self.forget()

    def rows(self) -> list[tuple[Fact, Cells]]:
        """Neighbouring cells that were recorded together, in order."""
        if self._rows is None:
            found: list[tuple[Fact, list[int]]] = []
            for cell in sorted(self.facts):
                fact = self.facts[cell]
                if found and found[-1][0] is fact and found[-1][1][-1] == cell - 1:
                    found[-1][1].append(cell)
                else:
                    found.append((fact, [cell]))
            self._rows = [(fact, frozenset(cells)) for fact, cells in found]
        return self._rows

    def upto(self) -> dict[int, int]:
        """Up to which revision each cell has read, in effect."""
        if self._upto is None:
            since, unsettled = self.settled_revision, self.unsettled
            self._upto = {
                cell: since
                if fact.read < since and fact.revision <= since and cell not in unsettled
                else fact.read
                for cell, fact in self.facts.items()
            }
            self._floor = min(self._upto.values(), default=0)
        return self._upto

    def floor(self) -> int:
        """The least of `upto`."""
        self.upto()
        return self._floor

    def accepted(self) -> IntervalSet:
        """What a person took as it was."""
        if not self._taken:
            return IntervalSet.empty()
        return IntervalSet(interval_of(cells) for fact, cells in self.rows() if fact.verdict == "accepted")

    def last_read(self) -> int | None:
        facts = set(self.facts.values())
        return max((fact.read_at for fact in facts if fact.read_at is not None), default=None)

    def parts(self, cells: Iterable[int]) -> list[tuple[Fact, Cells]]:
        """What was recorded of some cells, neighbours together that were recorded together, in order."""
        found: dict[Fact, list[int]] = {}
        for cell in cells:
            if cell in self.facts:
                found.setdefault(self.facts[cell], []).append(cell)
        parts = [(fact, piece) for fact, mine in found.items() for piece in runs_of(mine)]
        return sorted(parts, key=lambda part: min(part[1]))


def stretch(cells: Iterable[int]) -> Cells:
    """All cells from the first to the last."""
    found = sorted(cells)
    return frozenset(range(found[0], found[-1] + 1)) if found else frozenset()


def neighbours(reasons: dict[int, Reason]) -> Iterable[tuple[Interval | None, Reason]]:
    """Neighbouring cells that are marked for the same reason; None for all of time."""
    by_reason: dict[int, list[int]] = {}
    for cell, reason in reasons.items():
        by_reason.setdefault(id(reason), []).append(cell)
    for cells in by_reason.values():
        for piece in runs_of(cells):
            yield (None if piece == WHOLE else interval_of(piece)), reasons[cells[0]]
