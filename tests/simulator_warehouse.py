"""The rows of a simulated mesh: one number for each cell, the same for the same computation of the same rows.

What a table should hold is what its query makes of the rows that its parents hold now, down to the source.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from simulator_ledger import SimulatedLedger
    from simulator_table import Table

NOTHING = 0


class Warehouse:
    """All tables, whoever wrote them.

    Attributes:
        source: How often the rows behind a cell of a model without parents were changed.
        rows: Of each table, by key, the number of each cell; negative: rows that no query makes.
        copies: How often a cell was appended to a table that only grows.
    """

    def __init__(self, ledger: SimulatedLedger) -> None:
        self.ledger = ledger
        self.geometry = ledger.geometry
        self.source: dict[str, defaultdict[int, int]] = {n: defaultdict(int) for n in ledger.tables}
        self.rows: defaultdict[int, dict[int, int]] = defaultdict(dict)
        self.copies: defaultdict[int, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        self.sources = frozenset(n for n in ledger.tables if not ledger.graph.gates(n))
        self._numbers: dict[tuple[object, ...], int] = {}
        self._garbage = 0

    def compute(self, table: Table, cells: Collection[int], parents: Mapping[str, Table]) -> dict[int, int]:
        """What an evaluation finds when it reads its parents: of a table that is refreshed, all of it."""
        name, size = table.node.name, self.geometry.size[table.node.name]
        everything = table.refreshed
        units = range(0, max(cells) + 1, size) if everything else self.geometry.units(name, cells)
        before = NOTHING if everything else self.rows[table.key].get(min(cells) - 1, NOTHING)
        found: dict[int, int] = {}
        for start in units:
            found.update(dict.fromkeys(range(start, start + size), self._unit(table, start, before, parents)))
            before = found[start]
        return found

    def expected(self, table: Table, start: int) -> int:
        """What a unit should hold, by what stands before it and in the parents now."""
        before = self.rows[table.key].get(start - 1, NOTHING)
        return self._unit(table, start, before, self.ledger.tables)

    def _unit(self, table: Table, start: int, before: int, parents: Mapping[str, Table]) -> int:
        name = table.node.name
        chained = table.refreshed or table.node.depends_on_past
        read: list[object] = [name, table.recipe, start, before if chained else NOTHING]
        if name in self.sources:
            source = self.source[name]
            read += [source.get(cell, 0) for cell in self.geometry.unit(name, start)]
        for parent, window in self.geometry.feeds(name, start):
            rows = self.rows[parents[parent].key]
            read.append(tuple(rows.get(cell, NOTHING) for cell in window))
        return self._numbers.setdefault(tuple(read), len(self._numbers) + 1)

    def write(self, table: Table, rows: Mapping[int, int]) -> None:
        self.rows[table.key].update(rows)
        if table.appended:
            for cell in rows:
                self.copies[table.key][cell] += 1

    def spoil(self, table: Table, cells: Iterable[int]) -> None:
        """Rows that an audit will reject."""
        self._garbage -= 1
        self.rows[table.key].update(dict.fromkeys(cells, self._garbage))
