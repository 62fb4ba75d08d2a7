"""What happens to the simulated ledger from outside of runs: people, plain SQLMesh, promotions. As `schema.sql` says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from meshgate.coordinator import staleness
from meshgate.graph import MeshGraph
from simulator_geometry import runs_of
from simulator_table import DOUBTS, Fact, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simulator_geometry import Cells
    from simulator_ledger import SimulatedLedger
    from simulator_table import Reason, Run, Table


# Requests


def request(ledger: SimulatedLedger, model: str, cells: Cells) -> None:
    """Somebody wants some recorded time computed again."""
    ledger.revision_ += 1
    asked = Request(model, cells, ledger.revision_)
    ledger.requests.append(asked)
    mark_requests(ledger, model)
    if not ledger.obeys("a request marks what was asked for"):
        _mark_descendants(ledger, asked)


def mark_requests(ledger: SimulatedLedger, model: str | None = None) -> None:
    """Put the marks that are missing: of a new request, and of a version that was promoted since."""
    for asked in ledger.requests:
        if model in (None, asked.model):
            table = ledger.tables[asked.model]
            marks = table.marks.get("requested", {})
            known = {c for c, reason in marks.items() if reason.revision >= asked.revision}
            for piece in runs_of(requested_time(ledger, table, asked) - known):
                ledger.mark(table, piece, "requested")


def requested_time(ledger: SimulatedLedger, table: Table, asked: Request) -> set[int]:
    """What of a request is open: of a table that merges rows all of it, as nothing less makes it right."""
    merges = ledger.is_one(table) and not table.refreshed
    cells = set(table.facts) if merges and not asked.cells.isdisjoint(table.facts) else asked.cells
    return {c for c in cells if c in table.facts and table.facts[c].read < asked.revision}


def _mark_descendants(ledger: SimulatedLedger, asked: Request) -> None:
    """The rule that marks every reader too, once."""
    reached = {asked.model: set(asked.cells)}
    for name in ledger.graph.order():
        if name != asked.model:
            table = ledger.tables[name]
            found = {
                cell
                for start in ledger.geometry.units(name, table.facts)
                if any(not reached.get(p, set()).isdisjoint(w) for p, w in ledger.geometry.reads(name, start))
                for cell in ledger.geometry.unit(name, start)
            }
            reached[name] = found
            for piece in runs_of(found & set(table.facts)):
                ledger.mark(table, piece, "requested")


# Holds and declared holes


def hold(ledger: SimulatedLedger, model: str, cells: Cells) -> None:
    ledger.held[model] |= cells
    ledger.tables[model].view = None


def release(ledger: SimulatedLedger, model: str, cells: Cells) -> None:
    ledger.held[model] -= cells
    ledger.tables[model].view = None


def accept(ledger: SimulatedLedger, table: Table, cells: Cells, lookback: Cells) -> Cells | None:
    """The cells that count as recorded from now on; None where somebody is writing there, or nothing is wrong."""
    one = ledger.is_one(table)
    for claim in table.claims:
        writing = claim.state == "begun" and (one or claim.batch & cells)
        waited_for = claim.state == "lost" and claim.until > ledger.now
        if (one or claim.cells & cells) and (writing or waited_for):
            return None
    removed = set(table.marks.get("removed", {}))
    known = [kind for kind in DOUBTS if table.marks.get(kind)]
    spoilt = {c for kind in known for c in (table.doubt[kind] if one else table.marks[kind])}
    holes = frozenset(c for c in cells if c not in table.facts or c in spoilt | removed)
    if not holes and not (one and known):
        return None
    read = ledger.revision_
    # Without the rule: the mark goes, and nobody is told that other rows stand there now.
    told = ledger.obeys("an acceptance is a commit")
    made = ledger.next(table)
    for seen in (True, False):
        part = {c for c in holes if _is_mirrored(table, c, removed) == seen}
        if not told:
            part -= set(table.facts)
        if part:
            table.record(
                part, Fact(made, read, None, "accepted", ledger.now, ledger.now if seen else None, None)
            )
    for marks in table.marks.values():
        for c in [c for c in marks if c in holes]:
            del marks[c]
    if one:
        for kind in DOUBTS:
            table.marks.pop(kind, None)
        if table.refreshed:
            table.taken_as_it_is(made)
        else:
            table.repaired(made)
    if holes and lookback:
        ledger.owe(table, lookback, None)
    return holes


def _is_mirrored(table: Table, cell: int, removed: set[int]) -> bool:
    return cell in table.facts and table.facts[cell].mirrored is not None and cell not in removed


def undo_accept(ledger: SimulatedLedger, table: Table, cells: Cells) -> None:
    """Make due again what was accepted."""
    for fact, row in list(table.rows()):
        if row & cells and fact.verdict == "accepted":
            ledger.mark(table, row & cells, "requested")


def adopt(ledger: SimulatedLedger, run: Run, table: Table) -> Cells:
    """The accepted cells that a run takes along to SQLMesh."""
    mine = [
        (fact, row)
        for fact, row in table.rows()
        if (fact.verdict, fact.run, fact.mirrored) == ("accepted", None, None)
    ]
    for fact, row in mine:
        table.record(row, replace(fact, run=run.run_id))
    return frozenset(c for _, row in mine for c in row)


# Plain SQLMesh


def reconcile(
    ledger: SimulatedLedger, table: Table, recorded: set[int], *, gated: bool, read_at: int
) -> list[tuple[str, Cells]]:
    """Compare SQLMesh's record of a version with ours, and take over what others did."""
    found: list[tuple[str, Cells]] = []
    for piece in runs_of(recorded - set(table.facts)):
        made = ledger.next(table)
        known = not ledger.obeys("what a plain run had read is unknown")
        table.record(
            piece, Fact(made, made - 1 if known else 0, None, "foreign", ledger.now, ledger.now, None)
        )
        found.append(("added", piece))
        doubtful = _is_known(ledger, table, piece) and ledger.obeys("a plain run over known time is suspect")
        if doubtful or (gated and not known):
            ledger.mark(table, piece, "suspect")
            if table.whole:
                table.dirty[0] = (None, None)
            found.append(("suspect", piece))
    found += _over_accepted(ledger, table, recorded, read_at)
    return found + _lacking(ledger, table, recorded, read_at)


def _is_known(ledger: SimulatedLedger, table: Table, piece: Cells) -> bool:
    """Whether the ledger knows of somebody else who wrote there: nobody can tell who came last."""
    marked = any(piece & set(marks) or -1 in marks for marks in table.marks.values())
    return marked or any(
        (claim.state == "begun" or (claim.state == "lost" and claim.until > ledger.now))
        and (ledger.is_one(table) or claim.cells & piece)
        for claim in table.claims
    )


def _over_accepted(
    ledger: SimulatedLedger, table: Table, recorded: set[int], read_at: int
) -> Iterable[tuple[str, Cells]]:
    found = []
    for fact, row in list(table.rows()):
        untold = (fact.verdict, fact.run, fact.mirrored) == ("accepted", None, None)
        for piece in runs_of(row & recorded) if untold and fact.committed < read_at else ():
            if not _one_mark_holds(table.marks.get("suspect", {}), piece, fact.revision):
                if ledger.obeys("a plain run over known time is suspect"):
                    ledger.mark(table, piece, "suspect")
                found.append(("suspect", piece))
    return found


def _lacking(
    ledger: SimulatedLedger, table: Table, recorded: set[int], read_at: int
) -> Iterable[tuple[str, Cells]]:
    lacking = []
    for fact, row in table.rows():
        if fact.mirrored is not None:
            gone = fact.mirrored < read_at
        else:
            owner = ledger.running.get(fact.run or 0)
            gone = fact.committed < read_at and fact.run is not None and not (owner and ledger.holds(owner))
        if gone:
            lacking += [
                (piece, fact) for piece in runs_of(row - recorded if fact.mirrored is not None else row)
            ]
    found = []
    for piece, fact in lacking:
        kinds = ("removed", "suspect", "failed")
        if any(_one_mark_holds(table.marks.get(kind, {}), piece, fact.revision) for kind in kinds):
            continue
        if fact.mirrored is None and not ledger.obeys("what nobody told SQLMesh is evaluated again"):
            ledger.state[table.key] |= piece
            table.record(piece, replace(fact, mirrored=ledger.now))
            continue
        ledger.mark(table, piece, "removed" if fact.mirrored is not None or table.whole else "suspect")
        found.append(("unmirrored" if fact.mirrored is None else "removed", piece))
    return found


def _one_mark_holds(marks: dict[int, Reason], piece: Cells, revision: int) -> bool:
    if -1 in marks:
        return marks[-1].revision > revision
    numbers = {marks[c].revision for c in piece if c in marks}
    return piece <= set(marks) and len(numbers) == 1 and numbers.pop() > revision


# Promotions


def promote(ledger: SimulatedLedger, new: Table, *, breaking: bool) -> None:
    """Let a version take the place of the promoted one: the product says what stays settled, as `reconcile` asks it."""
    name = new.node.name
    old = ledger.tables[name]
    graph = MeshGraph(
        {**ledger.graph.nodes, name: new.node},
        [e for n in ledger.graph.order() for e in ledger.graph.parents(n)],
    )
    unbroken = {} if breaking else {name: frozenset({old.node.version})}
    settled = staleness.after_promotion(ledger, "prod", graph, unbroken)  # type: ignore[arg-type]
    if ledger.obeys("what a new version read too early is suspect"):
        _doubt(ledger, old, new)
    made = ledger.next(new)
    if ledger.obeys("a promotion has a revision of its own"):
        for fact, cells in new.rows():
            new.record(cells, replace(fact, revision=made))
    else:
        _inherit(old, new, breaking=breaking)
    ledger.graph = graph
    ledger.tables[name] = new
    ledger.ids = {n: table.key for n, table in ledger.tables.items()}
    new.settled_revision = 0
    if settled is not None:
        for table in ledger.tables.values():
            table.settled_revision = 0
            table.forget()
        ledger.settle("prod", settled, ledger.ids, made)
    mark_requests(ledger)
    for table in (old, new):
        table.changes += 1
        table.forget()


def _doubt(ledger: SimulatedLedger, old: Table, new: Table) -> None:
    """What the new version had read before the old one was made, or was asked to be made again."""
    doubts: dict[str, set[int]] = {}
    for cell, fact in new.facts.items():
        if cell in old.facts and old.facts[cell].revision > fact.read:
            doubts.setdefault("suspect", set()).add(cell)
        for kind, marks in old.marks.items():
            reason = marks.get(cell) or marks.get(-1)
            if reason is not None and reason.revision > fact.read:
                doubts.setdefault(kind if kind in ("requested", "lookback") else "suspect", set()).add(cell)
    for kind in sorted(doubts):
        for piece in runs_of(doubts[kind]):
            ledger.mark(new, piece, kind)


def _inherit(old: Table, new: Table, *, breaking: bool) -> None:
    """The rule that a new version has the old one's revisions if its change breaks nothing, and else those of its build."""
    if not breaking:
        for cell, fact in list(new.facts.items()):
            if cell in old.facts:
                new.facts[cell] = replace(fact, revision=old.facts[cell].revision)
    new.forget()
