"""Time and windows of a simulated mesh: numbered five-minute cells, and which of them a unit of a model reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from meshgate.graph import Window
from meshgate.interval import Interval
from strategies import read_by

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from meshgate.graph import MeshGraph, ModelNode

ORIGIN = datetime(2026, 1, 5, tzinfo=UTC)
CELL_S = 300
_FAR = 30 * 24 * 12
Cells = frozenset[int]


@lru_cache(maxsize=100_000)
def at(second: int) -> datetime:
    """The instant so many seconds after the origin."""
    return ORIGIN + timedelta(seconds=second)


def interval_of(cells: Collection[int]) -> Interval:
    """Neighbouring cells as time."""
    return Interval(at(min(cells) * CELL_S), at((max(cells) + 1) * CELL_S))


def cells_of(time: Iterable[Interval]) -> set[int]:
    """The cells of some time that is made of whole cells, as far as histories go."""
    return {
        cell for piece in time for cell in range(max(0, cell_at(piece.start)), min(_FAR, cell_at(piece.end)))
    }


def cell_at(instant: datetime) -> int:
    """The cell that begins at an instant."""
    return int((instant - ORIGIN).total_seconds()) // CELL_S


def end_of(node: ModelNode) -> int:
    """The first cell after a model's life."""
    return cell_at(node.life.end)


def runs_of(cells: Iterable[int]) -> list[Cells]:
    """Neighbouring cells together, in order."""
    found: list[list[int]] = []
    for cell in sorted(cells):
        if found and found[-1][-1] == cell - 1:
            found[-1].append(cell)
        else:
            found.append([cell])
    return [frozenset(piece) for piece in found]


class Geometry:
    """Which cells of its parents each unit of a model reads: by the description of windows, one unit at a time."""

    def __init__(self, graph: MeshGraph) -> None:
        self.graph = graph
        self.size = {name: _cells_in_unit(node) for name, node in graph.nodes.items()}
        self._known: dict[tuple[str, int], list[tuple[str, range]]] = {}
        self._together: dict[tuple[str, int, int], list[tuple[str, range]]] = {}
        self._fed: dict[tuple[str, int], list[tuple[str, range]]] = {}

    def unit(self, model: str, cell: int) -> range:
        """The unit that holds a cell."""
        size = self.size[model]
        start = cell - cell % size
        return range(start, start + size)

    def units(self, model: str, cells: Iterable[int]) -> list[int]:
        """The first cells of the units that some cells belong to, in order."""
        size = self.size[model]
        return sorted({cell - cell % size for cell in cells})

    def reads(self, model: str, start: int) -> list[tuple[str, range]]:
        """What the unit that begins with a cell waits for, by parent."""
        key = (model, start)
        if key not in self._known:
            self._known[key] = self._read(model, start, prefix=self.graph[model].kind.as_of)
        return self._known[key]

    def feeds(self, model: str, start: int) -> list[tuple[str, range]]:
        """What the rows of a unit are made of: of a whole table less than it waits for."""
        key = (model, start)
        if key not in self._fed:
            self._fed[key] = self._read(model, start, prefix=False)
        return self._fed[key]

    def _read(self, model: str, start: int, *, prefix: bool) -> list[tuple[str, range]]:
        unit = interval_of(self.unit(model, start))
        found = []
        for edge in self.graph.parents(model):
            window = Window("prefix") if prefix and edge.window.is_default else edge.window
            read = None if edge.parent == model else read_by(self.graph[edge.parent], window, unit)
            if read is not None:
                found.append((edge.parent, range(cell_at(read[0]), cell_at(read[1]))))
        return found

    def needs(self, model: str, cells: Cells) -> list[tuple[str, range]]:
        """What some neighbouring units of a model read together; pieces that overlap are told once."""
        key = (model, min(cells), len(cells))
        if key not in self._together:
            self._together[key] = self._needs(model, cells)
        return self._together[key]

    def _needs(self, model: str, cells: Cells) -> list[tuple[str, range]]:
        found: dict[str, list[range]] = {}
        for start in self.units(model, cells):
            for parent, read in self.reads(model, start):
                known = found.setdefault(parent, [])
                if known and known[-1].start <= read.start <= known[-1].stop:
                    known[-1] = range(known[-1].start, max(read.stop, known[-1].stop))
                else:
                    known.append(read)
        return [(parent, read) for parent, pieces in found.items() for read in pieces]


def _cells_in_unit(node: ModelNode) -> int:
    return int(node.unit.approximate.total_seconds()) // CELL_S
