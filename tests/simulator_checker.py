"""What must hold of any simulated history, judged by what really happened and not by what the ledger thinks.

It keeps its own books: which run may still work, whose rows lie in which cell, what they were computed from, what is
owed. The guarantees are those of `docs/explanation/contract.md`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from simulator_geometry import CELL_S, cells_of, end_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from meshgate.coordinator.plan import Plan
    from simulator_geometry import Cells
    from simulator_ledger import Run, SimulatedLedger


class Violation(AssertionError):  # noqa: N818 - it is a finding
    """A guarantee that did not hold; its first argument names it."""


@dataclass
class Delays:
    """Durations in seconds, and how many there are."""

    seconds: list[int] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return sum(self.seconds) / len(self.seconds) if self.seconds else 0.0

    @property
    def longest(self) -> int:
        return max(self.seconds, default=0)


class Checker:
    """Watches one history.

    Args:
        ledger: What the decisions are made from.
        patience_s: How long each model waits for parents that are to be computed again; None for ever.
    """

    def __init__(self, ledger: SimulatedLedger, patience_s: dict[str, int | None]) -> None:
        self.ledger = ledger
        self.patience_s = patience_s
        self.geometry = ledger.geometry
        models = list(ledger.tables)
        # Who writes where, by what was seen of the runs alone: None once a run is known to have been superseded.
        self.writers: dict[str, dict[int, Run]] = {name: {} for name in models}
        self.content: dict[str, dict[int, int]] = {name: {} for name in models}
        self.recorded: dict[str, dict[int, int]] = {name: {} for name in models}
        self.sources: dict[int, dict[tuple[str, int], int]] = {}
        self.owed: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in models}
        self.waits: dict[str, Delays] = {name: Delays() for name in models}
        self.redo: dict[str, Delays] = {name: Delays() for name in models}
        self.evaluations: dict[str, dict[int, int]] = {name: defaultdict(int) for name in models}
        self._writes = 0
        self._missing: dict[str, set[int]] = {name: set() for name in models}
        self._known_until = dict.fromkeys(models, 0)

    # When a run plans

    def planned(self, run: Run, plan: Plan, now: int) -> None:
        """Nothing is ready that may not be read, and what is due and not ready has a reason."""
        made: dict[str, set[int]] = {}
        for model in plan.models:
            name = model.name
            table = self.ledger.tables[name]
            ready = cells_of(model.ready)
            for start in self.geometry.units(name, ready):
                for parent, window in self.geometry.reads(name, start):
                    self._may_be_read(parent, window, made.get(parent, ()), name, start, now)
            for claim in table.claims:
                live = claim.state != "lost" or claim.until > now
                if live and claim.run != run.run_id and (table.whole or claim.cells & ready) and ready:
                    raise Violation("G2 planned twice", name, sorted(ready), claim)
            if ready:
                made[name] = ready | (set(table.revision) if table.whole else set())
            silent = self._due(name, now) - ready
            if silent:
                silent -= cells_of(blocked.interval for blocked in model.blocked)
            if silent:
                raise Violation("G3 skipped in silence", name, sorted(silent), now)

    def _due(self, model: str, now: int) -> set[int]:
        """What is over and was never recorded. Do not change it."""
        end = min(now // CELL_S, end_of(self.ledger.tables[model].node))
        end -= end % self.geometry.size[model]
        self._missing[model].update(range(self._known_until[model], end))
        self._known_until[model] = max(end, self._known_until[model])
        return self._missing[model]

    def _may_be_read(
        self, parent: str, window: range, made: Collection[int], child: str, start: int, now: int
    ) -> None:
        bad = {
            (reason, cell)
            for reason, cell in self.ledger.unclean(parent, window)
            if reason == "begun" or cell not in made
        }
        if bad:
            raise Violation("G1 planned on a parent that is not clean", child, start, parent, sorted(bad)[:5])
        table = self.ledger.tables[parent]
        patience = self.patience_s[child]
        over = patience is not None and (start + self.geometry.size[child]) * CELL_S + patience <= now
        if not over:
            marked = {c for kind in ("lookback", "requested") for c in table.marks.get(kind, ())}
            if marked & (set(window) - set(made)):
                raise Violation("G1 planned on an unsettled parent", child, start, parent)

    # When a batch begins, lands, is recorded

    def begun(self, run: Run, model: str, cells: Cells) -> int:
        """The number of the evaluation."""
        for parent, window in self.geometry.needs(model, cells):
            bad = self.ledger.unclean(parent, window)
            if bad:
                raise Violation("G1 begun on a parent that is not clean", model, sorted(cells), parent, bad)
        writers = self.writers[model]
        for cell in [-1] if self.ledger.tables[model].whole else cells:
            other = writers.get(cell)
            if other is not None and other is not run and other.state == "running":
                raise Violation("G2 two runs write the same", model, cell, other.run_id, run.run_id)
            writers[cell] = run
        for start in self.geometry.units(model, cells):
            self.evaluations[model][start] += 1
        self._writes += 1
        return self._writes

    def read(self, write: int, model: str, cells: Cells) -> None:
        """What an evaluation finds in its parents when it reads them."""
        self.sources[write] = {
            (parent, cell): self.content[parent].get(cell, 0)
            for parent, window in self.geometry.needs(model, cells)
            if not self.ledger.tables[parent].whole
            for cell in window
        }

    def landed(self, write: int, model: str, cells: Collection[int]) -> None:
        """Rows are in the warehouse, whoever wrote them and whatever becomes of it."""
        table = self.ledger.tables[model]
        self.content[model].update(dict.fromkeys([*table.revision, *cells] if table.whole else cells, write))

    def ended(self, run: Run, model: str, cells: Cells) -> None:
        """A run will not write there any more."""
        for cell in [-1] if self.ledger.tables[model].whole else cells:
            if self.writers[model].get(cell) is run:
                del self.writers[model][cell]

    def committed(
        self, run: Run, write: int, model: str, cells: Cells, lookback: Cells, opened: int, now: int
    ) -> None:
        """Called after the ledger has recorded a batch."""
        if run.state != "running":
            raise Violation("G4 a lost run recorded", model, sorted(cells), run)
        table = self.ledger.tables[model]
        end = (max(cells) + 1) * CELL_S
        size = self.geometry.size[model]
        for start in self.geometry.units(model, cells):
            if start not in self.recorded[model]:
                self.waits[model].seconds.append(now - (start + size) * CELL_S)
        owed = self.owed[model]
        for cell in lookback:
            if cell in self.recorded[model] and table.read[cell] < opened:
                since = owed[cell][1] if cell in owed else now
                owed[cell] = (opened, since)
        for cell in cells & owed.keys():
            if table.read[cell] >= owed[cell][0]:
                self.redo[model].seconds.append(now - owed.pop(cell)[1])
        if end > now:
            raise Violation("computed before it was over", model, sorted(cells), now)
        self._due(model, now)
        self._missing[model] -= cells
        stamped = [*table.revision] if table.whole else cells
        self.recorded[model].update(dict.fromkeys(stamped, write))

    # At rest

    def at_rest(
        self, plan: Plan, doomed: dict[str, set[int]], projects: Collection[str], *, staleness: bool
    ) -> None:
        """Nothing runs, and nothing of the projects that run at all is ready but what fails for ever."""
        told: dict[str, set[int]] = {}
        for blocked in plan.blocked:
            told.setdefault(blocked.model, set()).update(cells_of([blocked.interval]))
        for name, table in self.ledger.tables.items():
            marked = {kind: set(marks) for kind, marks in table.marks.items() if marks}
            doubtful = marked.get("failed", set()) | marked.get("suspect", set())
            excused = told.get(name, set()) | doomed[name]
            if table.node.project not in projects:
                continue
            if -1 in doubtful and doomed[name]:
                continue
            end = end_of(table.node)
            if lost := set(range(end)) - set(table.revision) - excused:
                raise Violation("G3 lost", name, sorted(lost))
            if wrong := doubtful - excused:
                raise Violation("G3 never healed", name, sorted(wrong), marked)
            if owed := set(self.owed[name]) - excused - doubtful:
                raise Violation("G3 late rows never read", name, sorted(owed))
            if open_ := {kind: cells - excused for kind, cells in marked.items() if cells - excused}:
                raise Violation("G3 a mark that nobody works off", name, open_)
            recorded, content = self.recorded[name], self.content[name]
            for cell in table.revision:
                if cell not in doubtful | excused and recorded[cell] != content[cell]:
                    raise Violation("G4 rows that nobody recorded", name, cell, recorded[cell], content[cell])
            if table.covered != table.covered.clip(table.node.life.start, table.node.life.end):
                raise Violation("the record leaves the model's life", name)
            if cells_of(table.covered) != set(table.revision):
                raise Violation("the record as ranges is not the record as cells", name)
            if staleness:
                self._is_fresh(name, excused | doubtful)

    def _is_fresh(self, name: str, excused: set[int]) -> None:
        table = self.ledger.tables[name]
        for cell in set(table.revision) - excused:
            read = self.sources[self.recorded[name][cell]]
            unit = self.geometry.reads(name, self.geometry.unit(name, cell).start)
            for parent, window in unit:
                if self.ledger.tables[parent].whole or self._in_doubt(parent):
                    continue
                for source in window:
                    if read[parent, source] != self.content[parent][source]:
                        raise Violation("G5 computed from rows that are gone", name, cell, parent, source)

    def _in_doubt(self, model: str) -> bool:
        return any(self.ledger.tables[model].marks.get(kind) for kind in ("failed", "suspect"))
