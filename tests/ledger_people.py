"""What the oracle of the ledger makes of what people decide: hold, release, accept, undo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ledger_oracle import Refused
from ledger_paper import Cells, Fact, repaired, runs_of, taken_as_is
from ledger_scene import at

if TYPE_CHECKING:
    from ledger_oracle import Oracle

_DOUBTS = ("failed", "suspect")


def hold(oracle: Oracle, version: int, cells: Cells) -> None:
    oracle.versions[version].held |= cells


def release(oracle: Oracle, version: int, cells: Cells) -> None:
    oracle.versions[version].held -= cells


def accept(oracle: Oracle, version: int, cells: Cells, lookback: Cells) -> list[Cells] | None:
    """The cells that count as recorded from now on; None where all of them are clean."""
    table = oracle.versions[version]
    if at(max(cells) + 1) > oracle.now:
        raise Refused("future")
    for claim in oracle.claims:
        writing = claim.state == "begun" and (table.as_of or claim.begun & cells)
        waited_for = claim.state == "lost" and claim.quarantine is not None and claim.quarantine > oracle.now
        if claim.version == version and claim.cells & cells and (writing or waited_for):
            raise Refused("busy")
    removed = frozenset(table.marks.get("removed", {}))
    known = [kind for kind in _DOUBTS if table.marks.get(kind)]
    if table.as_of:
        spoilt = frozenset(c for kind in known for c in table.doubt[kind])
    else:
        spoilt = frozenset(c for kind in known for c in table.marks[kind])
    doubted = bool(removed & cells or spoilt & cells or (table.as_of and known))
    holes = frozenset(c for c in cells if c not in table.facts or c in spoilt | removed)
    if not holes and not doubted:
        return None
    read, made = oracle.revision, oracle.next()
    for c in holes:
        seen = c in table.facts and table.facts[c].mirrored is not None and c not in removed
        table.facts[c] = Fact(made, read, None, "accepted", oracle.now, oracle.now if seen else None)
        for marks in table.marks.values():
            marks.pop(c, None)
    if table.as_of:
        for kind in _DOUBTS:
            table.marks.pop(kind, None)
        table.dirty = (taken_as_is if table.refreshed else repaired)(table.dirty, made)
    for row in sorted(table.rows(), key=min):
        if holes and row & lookback and table.facts[min(row)].verdict != "accepted":
            oracle.mark(version, row & lookback, "lookback")
    return runs_of(holes)


def undo_accept(oracle: Oracle, version: int, cells: Cells) -> list[Cells]:
    table = oracle.versions[version]
    rows = sorted(table.rows(), key=min)
    found = [row & cells for row in rows if row & cells and table.facts[min(row)].verdict == "accepted"]
    for piece in found:
        oracle.mark(version, piece, "requested")
    return found


def adopt(oracle: Oracle, run: int, version: int) -> Cells:
    """The accepted cells that a run takes along to SQLMesh."""
    oracle.must_hold(run)
    facts = oracle.versions[version].facts
    mine = [c for c, f in facts.items() if (f.verdict, f.run, f.mirrored) == ("accepted", None, None)]
    facts.update({c: facts[c]._replace(run=run) for c in mine})
    return frozenset(mine)
