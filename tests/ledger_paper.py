"""What the oracle of the ledger writes down: cells by number, facts, reasons, claims, runs, tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ledger_scene import CELLS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime, timedelta

Cells = frozenset[int]
Dirty = dict[int, tuple[int | None, int | None]]
GRID: Cells = frozenset(range(CELLS))
WHOLE: Cells = frozenset(range(-1, CELLS + 1))
"""All of time: the grid, what is before it and what is after it."""


class Fact(NamedTuple):
    """What is recorded of one cell."""

    revision: int
    read: int
    run: int | None
    verdict: str
    committed: datetime
    mirrored: datetime | None


class Reason(NamedTuple):
    """Why one cell is to be computed again, how often that was tried, and until when it is left alone."""

    revision: int
    attempts: int
    retry: datetime | None = None


@dataclass(frozen=True)
class Claim:
    """Some cells that a run has reserved, and those of them that it has begun and not ended."""

    run: int
    version: int
    cells: Cells
    state: str
    opened: int
    read: int | None = None
    quarantine: datetime | None = None
    begun: Cells = frozenset()

    @property
    def lives(self) -> bool:
        return self.state in ("open", "begun")


@dataclass(kw_only=True)
class Asked:
    """What somebody asks a new run for."""

    project: str
    environment: str = "prod"
    purpose: str = "run"
    ttl: timedelta
    grace: timedelta
    engine_in_process: bool
    as_of: datetime | None = None
    share: bool = False
    warehouse: str = "default"
    first: timedelta
    longest: timedelta


@dataclass(kw_only=True)
class Run(Asked):
    """One attempt."""

    expires: datetime
    state: str = "running"
    promoting: frozenset[int] = frozenset()


@dataclass
class Version:
    """One table.

    Attributes:
        kind: SQLMesh's, in lower case.
        doubt: Of one whole: what was being written when it went wrong, by the kind of mark. One stretch.
        dirty: Of one whole: by the revision since when it held rows that nobody had judged, when it was repaired, and
            when a person took it as it was.
    """

    kind: str = "incremental_by_time_range"
    facts: dict[int, Fact] = field(default_factory=dict)
    marks: dict[str, dict[int, Reason]] = field(default_factory=dict)
    doubt: dict[str, Cells] = field(default_factory=dict)
    dirty: Dirty = field(default_factory=dict)
    held: Cells = frozenset()

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
            for known in set(self.facts.values())
            for piece in runs_of(c for c, fact in self.facts.items() if fact == known)
        ]


def repaired(dirty: Dirty, made: int) -> Dirty:
    """What was dirty, when the table is repaired at a revision."""
    return {since: (made if until is None else until, taken) for since, (until, taken) in dirty.items()}


def taken_as_is(dirty: Dirty, made: int) -> Dirty:
    """What was dirty, when a person takes a refreshed table as it is. What was taken before and written over since is over."""
    again = (None, None) in dirty.values()
    found = dict(dirty)
    for since, (until, taken) in dirty.items():
        if until is None and taken is None:
            found[since] = (None, made)
        elif until is None and again:
            found[since] = (made, taken)
    return found


def stretch(cells: Iterable[int]) -> Cells:
    """All cells from the first to the last."""
    found = sorted(cells)
    return frozenset(range(found[0], found[-1] + 1)) if found else frozenset()


def runs_of(cells: Iterable[int]) -> list[Cells]:
    """Neighbouring cells together, in order."""
    found: list[set[int]] = []
    for cell in sorted(cells):
        if found and cell - 1 in found[-1]:
            found[-1].add(cell)
        else:
            found.append({cell})
    return [frozenset(piece) for piece in found]
