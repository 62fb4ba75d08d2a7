"""What must hold of any simulated history, judged by what really happened and not by what the ledger thinks.

It keeps its own books: which run may still work, whose rows lie in which cell, what they were computed from, what is
owed. The guarantees are those of `docs/explanation/contract.md`; what begins with B costs time and not rows.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshgate.ledger import WHOLE as ALL_TIME
from simulator_geometry import CELL_S, cells_of, end_of
from simulator_warehouse import Warehouse

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from meshgate.coordinator.plan import ModelPlan, Plan
    from meshgate.ledger import Stale
    from simulator_geometry import Cells
    from simulator_ledger import SimulatedLedger
    from simulator_scene import Bounds
    from simulator_table import Run, Table


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
        bounds: Of a calm history; None: it is not.
    """

    def __init__(
        self, ledger: SimulatedLedger, patience_s: dict[str, int | None], bounds: Bounds | None
    ) -> None:
        self.ledger = ledger
        self.patience_s = patience_s
        self.bounds = bounds
        self.geometry = ledger.geometry
        self.warehouse = Warehouse(ledger)
        models = list(ledger.tables)
        # Who writes where, by what was seen of the runs alone: gone once a run is known to have been superseded.
        self.writers: dict[int, dict[int, Run]] = defaultdict(dict)
        self.content: dict[int, dict[int, int]] = defaultdict(dict)
        self.recorded: dict[int, dict[int, int]] = defaultdict(dict)
        self.computed: dict[int, dict[int, int]] = {}
        self.owed: dict[str, dict[int, tuple[int, int]]] = {name: {} for name in models}
        self.waits: dict[str, Delays] = {name: Delays() for name in models}
        self.redo: dict[str, Delays] = {name: Delays() for name in models}
        self.evaluations: dict[str, dict[int, int]] = {name: defaultdict(int) for name in models}
        self._writes = 0
        self._missing: dict[str, set[int]] = {name: set() for name in models}
        self._known_until = dict.fromkeys(models, 0)
        self._read: dict[int, dict[int, int]] = defaultdict(dict)
        self._begun: dict[int, int] = {}
        self._followed: dict[str, set[int]] = {name: set() for name in models}

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
                made[name] = ready | (set(table.facts) if table.whole else set())
            silent = self._due(name, now) - ready
            if silent:
                silent -= cells_of(blocked.interval for blocked in model.blocked)
            if silent:
                raise Violation("G3 skipped in silence", name, sorted(silent), now)
            if self.bounds is not None:
                self._is_patient(self.bounds, model, table, now)
            for start in self.geometry.units(name, table.marks.get("suspect", ())):
                if start >= 0 and start not in table.facts and start not in self.evaluations[name]:
                    raise Violation("B in doubt though nobody began it", name, start)

    def _is_patient(self, bounds: Bounds, model: ModelPlan, table: Table, now: int) -> None:
        """What is only stale is left alone for a while; what follows a fresh unit is remembered."""
        node, size = table.node, self.geometry.size[model.name]
        frontier = max(table.facts, default=-1) + 1
        late = any(cell >= frontier for cell in cells_of(model.fresh))
        self._followed[model.name] = set(range(frontier - node.lookback * size, frontier)) if late else set()
        if node.kind.as_of or node.depends_on_past:
            return
        for cell in cells_of(model.redo):
            read_at = table.facts[cell].read_at if cell in table.facts else None
            marked = any(cell in marks for marks in table.marks.values())
            if read_at is not None and not marked and now - read_at < bounds.rests_s:
                raise Violation("B computed again too soon", model.name, cell, now - read_at)

    def _due(self, model: str, now: int) -> set[int]:
        """What is over and was never recorded. Do not change it."""
        end = min(now // CELL_S, end_of(self.ledger.tables[model].node))
        end -= end % self.geometry.size[model]
        self._missing[model].update(range(self._known_until[model], end))
        self._known_until[model] = max(end, self._known_until[model])
        return self._missing[model]

    def replaced(self, model: str) -> None:
        """Another version is promoted: what it lacks is due."""
        facts = self.ledger.tables[model].facts
        self._missing[model] = {c for c in range(self._known_until[model]) if c not in facts}
        self.owed[model].clear()

    def _may_be_read(
        self, parent: str, window: range, made: Collection[int], child: str, start: int, now: int
    ) -> None:
        table = self.ledger.tables[parent]
        bad = {
            (reason, cell)
            for reason, cell in self.ledger.unclean(table, window)
            if reason in ("begun", "held") or cell not in made
        }
        if bad:
            raise Violation("G1 planned on a parent that is not clean", child, start, parent, sorted(bad)[:5])
        patience = self.patience_s[child]
        over = patience is not None and (start + self.geometry.size[child]) * CELL_S + patience <= now
        if not over:
            marked = {c for kind in ("lookback", "requested") for c in table.marks.get(kind, ())}
            if marked & (set(window) - set(made)):
                raise Violation("G1 planned on an unsettled parent", child, start, parent)

    # When a batch begins, lands, is recorded

    def begun(self, run: Run, table: Table, cells: Cells, parents: Mapping[str, Table]) -> int:
        """The number of the evaluation."""
        model = table.node.name
        for parent, window in self.geometry.needs(model, cells):
            bad = self.ledger.unclean(parents[parent], window)
            bad |= {("held", c) for c in window if c in self.ledger.held[parent]}
            if bad:
                raise Violation("G1 begun on a parent that is not clean", model, sorted(cells), parent, bad)
        first = min(cells)
        if table.node.depends_on_past and first and first - 1 not in table.facts:
            raise Violation("G1 begun before its own past", model, first)
        writers = self.writers[table.key]
        for cell in [-1] if table.whole else cells:
            other = writers.get(cell)
            if other is not None and other is not run and other.state == "running":
                raise Violation("G2 two runs write the same", model, cell, other.run_id, run.run_id)
            writers[cell] = run
        for start in self.geometry.units(model, cells):
            self.evaluations[model][start] += 1
        if run.purpose == "run":
            self._has_cause(table, cells)
        self._writes += 1
        self._begun[self._writes] = self.ledger.revision_
        return self._writes

    def _has_cause(self, table: Table, cells: Cells) -> None:
        model, again = table.node.name, cells & table.facts.keys()
        asked = any(request.model == model for request in self.ledger.requests)
        marked = {
            c
            for kind, marks in table.marks.items()
            for c in marks
            if kind != "requested" or asked or not table.whole
        }
        if again and table.whole and not table.refreshed and not marked:
            raise Violation("B merged again though nobody asked for it", model, sorted(again))
        if self.bounds is None or self.bounds.causeless or table.whole:
            return
        units = self.geometry.units(model, again)
        for start in units[:1] if table.node.depends_on_past else units:
            unit = self.geometry.unit(model, start)
            if (
                marked.isdisjoint(unit)
                and self._followed[model].isdisjoint(unit)
                and not self._has_newer(table, start)
            ):
                raise Violation("B computed again without a cause", model, start)

    def _has_newer(self, table: Table, start: int) -> bool:
        """Whether anything that a unit waits for was recorded since the unit was read, or was in doubt meanwhile."""
        read = self._read[table.key].get(start, 0)
        for parent, window in self.geometry.reads(table.node.name, start):
            found = self.ledger.tables[parent]
            if found.dirty or any(c in found.facts and found.facts[c].revision > read for c in window):
                return True
        made = table.facts[start].revision
        own = range(start) if table.node.depends_on_past else ()
        return any(c in table.facts and table.facts[c].revision > max(read, made) for c in own)

    def read(self, write: int, table: Table, cells: Cells, parents: Mapping[str, Table]) -> None:
        """What an evaluation finds in its parents when it reads them."""
        self.computed[write] = self.warehouse.compute(table, cells, parents)

    def landed(self, write: int, table: Table, cells: Collection[int], bad: Collection[int] = ()) -> None:
        """Rows are in the warehouse, whoever wrote them and whatever becomes of it; some of them wrong."""
        self.warehouse.write(table, self.computed.pop(write))
        if bad:
            self.warehouse.spoil(table, [*table.facts, *cells] if table.refreshed else bad)
        self.content[table.key].update(
            dict.fromkeys([*table.facts, *cells] if table.refreshed else cells, write)
        )

    def ended(self, run: Run, table: Table, cells: Cells) -> None:
        """A run will not write there any more."""
        for cell in [-1] if table.whole else cells:
            if self.writers[table.key].get(cell) is run:
                del self.writers[table.key][cell]

    def committed(
        self, run: Run, write: int, table: Table, cells: Cells, lookback: Cells, opened: int, now: int
    ) -> None:
        """Called after the ledger has recorded a batch."""
        model = table.node.name
        if run.state != "running":
            raise Violation("G4 a lost run recorded", model, sorted(cells), run)
        if (max(cells) + 1) * CELL_S > now:
            raise Violation("computed before it was over", model, sorted(cells), now)
        if doubled := {c: n for c, n in self.warehouse.copies[table.key].items() if n > 1}:
            raise Violation("G4 rows appended twice", model, doubled)
        size = self.geometry.size[model]
        begun = self._begun.pop(write)
        recorded = self.recorded[table.key]
        promoted = self.ledger.tables[model] is table
        longest = self.bounds.waits_s.get(model) if self.bounds is not None else None
        for start in self.geometry.units(model, cells):
            if start not in recorded and promoted:
                waited = now - (start + size) * CELL_S
                self.waits[model].seconds.append(waited)
                if longest is not None and waited > longest:
                    raise Violation("B waited too long", model, start, waited)
            self._read[table.key][start] = begun
        if promoted:
            self._pay(table, cells, lookback, opened, now)
            self._due(model, now)
            self._missing[model] -= cells
        recorded.update(dict.fromkeys([*table.facts] if table.refreshed else cells, write))

    def _pay(self, table: Table, cells: Cells, lookback: Cells, opened: int, now: int) -> None:
        owed, facts = self.owed[table.node.name], table.facts
        for cell in lookback:
            if cell in facts and facts[cell].read < opened and facts[cell].verdict != "accepted":
                since = owed[cell][1] if cell in owed else now
                owed[cell] = (opened, since)
        for cell in cells & owed.keys():
            if facts[cell].read >= owed[cell][0]:
                self.redo[table.node.name].seconds.append(now - owed.pop(cell)[1])

    def taken(self, table: Table, cells: Iterable[int]) -> None:
        """Somebody else than a run vouches for rows as they are."""
        content = self.content[table.key]
        model = table.node.name
        for cell in cells:
            self.recorded[table.key][cell] = content.get(cell, 0)
            self.owed[model].pop(cell, None)
        if self.ledger.tables[model] is table:
            self._due(model, self.ledger.now)
            self._missing[model] -= set(cells)
        if table.appended:
            self.warehouse.copies[table.key].clear()

    # When a run ends

    def finished(self, run: Run, stale: Mapping[str, Iterable[Stale]]) -> None:
        """A run that nothing hindered leaves nothing stale that it made stale itself."""
        if self.bounds is None or not self.bounds.in_one_run:
            return
        for name, found in stale.items():
            child = self.ledger.tables[name]
            for each in found:
                parent = self.ledger.tables[each.parent]
                if child.node.project == parent.node.project == run.project and not child.whole:
                    made = {
                        parent.facts[c].run for c in cells_of([each.parent_interval]) if c in parent.facts
                    }
                    if made == {run.run_id}:
                        raise Violation("B left stale by its own run", name, each.interval, each.parent)

    # At rest

    def at_rest(
        self,
        plan: Plan,
        doomed: dict[str, set[int]],
        projects: Collection[str],
        accepted: Mapping[str, set[int]],
        *,
        staleness: bool,
    ) -> None:
        """Nothing runs, and nothing of the projects that run at all is ready but what fails for ever.

        Args:
            plan: Of all projects.
            doomed: What fails for ever, and what reads it.
            projects: Those that run.
            accepted: What policy leaves stale.
            staleness: Whether what is stale is computed again at all.
        """
        told: dict[str, set[int]] = {}
        for blocked in plan.blocked:
            told.setdefault(blocked.model, set()).update(cells_of([blocked.interval]))
            if blocked.interval == ALL_TIME:
                told[blocked.model].add(-1)
        for name, table in self.ledger.tables.items():
            marked = {kind: set(marks) for kind, marks in table.marks.items() if marks}
            doubtful = marked.get("failed", set()) | marked.get("suspect", set())
            excused = told.get(name, set()) | doomed[name]
            if table.node.project not in projects:
                continue
            if -1 in doubtful and doomed[name]:
                continue
            if lost := set(range(end_of(table.node))) - set(table.facts) - excused:
                raise Violation("G3 lost", name, sorted(lost))
            if self.bounds is not None and (waiting := told.get(name)):
                raise Violation("G3 left blocked", name, sorted(waiting))
            if wrong := doubtful - excused:
                raise Violation("G3 never healed", name, sorted(wrong), marked)
            if owed := set(self.owed[name]) - excused - doubtful:
                raise Violation("G3 late rows never read", name, sorted(owed))
            if open_ := {kind: cells - excused for kind, cells in marked.items() if cells - excused}:
                raise Violation("G3 a mark that nobody works off", name, open_)
            recorded, content = self.recorded[table.key], self.content[table.key]
            for cell in table.facts:
                if cell not in doubtful | excused and recorded[cell] != content.get(cell, 0):
                    raise Violation("G4 rows that nobody recorded", name, cell, recorded[cell], content[cell])
            if table.covered != table.covered.clip(table.node.life.start, table.node.life.end):
                raise Violation("the record leaves the model's life", name)
            if cells_of(table.covered) != set(table.facts):
                raise Violation("the record as ranges is not the record as cells", name)
            if staleness:
                self._is_right(table, excused | doubtful | accepted.get(name, set()))

    def _is_right(self, table: Table, excused: set[int]) -> None:
        """Every cell is what its query makes of what the parents hold now; so all is what it makes of the source."""
        if -1 in excused:
            return
        name, rows = table.node.name, self.warehouse.rows[table.key]
        for start in self.geometry.units(name, set(table.facts) - excused):
            if table.facts[start].verdict == "accepted":
                continue
            if rows[start] != self.warehouse.expected(table, start):
                raise Violation("G5 not what its parents make of it", name, start, table.facts[start])
