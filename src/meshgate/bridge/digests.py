"""What a range of a table holds, as numbers that are equal where the rows are: for early cut-off, before and after.

A range is compared by parts, so that one changed hour of a day does not send all readers of the day back to work. The parts
are told apart by the same comparisons that SQLMesh writes for the table's time column, whatever its type and format.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from sqlglot import exp

from meshgate.bridge.rows import digest_of, sums
from meshgate.bridge.translate import milliseconds
from meshgate.interval import Interval, IntervalUnit

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from sqlmesh.core.engine_adapter import EngineAdapter
    from sqlmesh.core.snapshot import Snapshot

Digest = tuple[int, int, int]
_PARTS = 64  # of one statement; more units than that are compared some together


def digests(
    adapter: EngineAdapter, snapshot: Snapshot, piece: Interval, ignored: Collection[str]
) -> dict[Interval, Digest]:
    """How many rows, and two sums of digests of them, for each part of a piece, in one statement.

    A part is one unit of the model's time, or some neighbouring ones.

    Args:
        adapter: The engine.
        snapshot: Of a model that is computed by ranges of time.
        piece: Of its time, half-open, UTC.
        ignored: The columns that do not count.

    Raises:
        ValueError: The table has no such column, or its time column does not tell its units apart.
    """
    table, unit = snapshot.table_name(), IntervalUnit(snapshot.node.interval_unit.value)
    types = adapter.columns(table)
    names = {name.lower() for name in types}
    if unknown := sorted(name for name in ignored if name.lower() not in names):
        raise ValueError(f"{table} has no column {unknown[0]}, which early_cut_off is to ignore")
    left_out = {name.lower() for name in ignored}
    content = [name for name in types if name.lower() not in left_out]
    parts = _parts(piece, unit)
    model = snapshot.model
    midnight = IntervalUnit("day").floor(piece.start)
    starts, day = (
        [model.convert_to_time_column(milliseconds(instant), types) for instant in instants]
        for instants in ((*(p.start for p in parts), piece.end), (midnight, unit.next(midnight)))
    )
    # SQLMesh writes from the first to the last value of an interval: of days, by the hour, each hour writes the whole day.
    if any(one == other for some in (starts, day) for one, other in pairwise(some)):
        column = model.time_column.column.name
        raise ValueError(f"{table} has one value of {column} for several of its intervals")
    query = digests_query(table, content, model.time_column.column, starts)
    found = {
        int(n): (int(count), int(first), int(second))
        for n, count, first, second in adapter.fetchall(query, quote_identifiers=True)
    }
    return {part: found.get(n, (0, 0, 0)) for n, part in enumerate(parts)}


def digests_query(
    table: str, content: Iterable[str], time: exp.Expression, bounds: list[exp.Expression]
) -> exp.Expression:
    """The statement of `digests`, in no engine's dialect; `bounds`: where each part begins, and where the last one ends."""
    which = exp.case()
    for n, end in enumerate(bounds[1:-1]):
        which = which.when(exp.LT(this=time.copy(), expression=end), exp.Literal.number(n))
    last = exp.Literal.number(len(bounds) - 2)
    rows = (
        exp.select(
            exp.alias_(which.else_(last) if len(bounds) > 2 else last, "part", quoted=True),
            exp.alias_(digest_of("", content), "digest", quoted=True),
        )
        .from_(exp.to_table(table))
        .where(
            exp.GTE(this=time.copy(), expression=bounds[0]), exp.LT(this=time.copy(), expression=bounds[-1])
        )
    )
    return sums(rows, "part")


def _parts(piece: Interval, unit: IntervalUnit) -> list[Interval]:
    units = list(unit.split(piece))
    size = -(-len(units) // _PARTS)
    return [
        Interval(units[n].start, units[min(n + size, len(units)) - 1].end) for n in range(0, len(units), size)
    ]
