"""Which of its parents' time a query reads, found in the query itself.

A query is rendered for a few intervals, and the literals that move with them are the interval's start and end. From what its
conditions say about the parents' time columns, with these literals, follows the earliest and the latest time of which a row
can touch the result: through CTEs, subqueries, joins, set operations, views. Where a condition is not understood the
answer is "unknown", never a guess: it may say that more is read than is, and not that less is.

Nothing is decided by it. What gates is what is declared; `beyond` tells where a query reads more than that.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import evolve, frozen
from sqlglot import exp

from meshgate.graph import Kind, window_of
from meshgate.interval import Interval, IntervalSet
from meshgate.windows.arithmetic import is_date_type
from meshgate.windows.columns import Var
from meshgate.windows.literals import (
    MICROSECOND,
    Rendering,
    ShapeError,
    bounds_to_render,
    laws_of,
    samples,
)
from meshgate.windows.places import Place, place_of
from meshgate.windows.predicates import Reader
from meshgate.windows.scopes import Builder, ModelQuery, Source, UnreadableError, Written, named_by
from meshgate.windows.solve import Reach, Solved, Solver

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from meshgate.graph import ModelNode, Window

__all__ = [
    "ModelQuery",
    "Place",
    "Reading",
    "Rendering",
    "Side",
    "beyond",
    "bounds_to_render",
    "infer",
    "unclear",
]

_DAY: Final = timedelta(days=1)
_BEGINNING: Final = datetime(1990, 1, 1, tzinfo=UTC)
_END: Final = datetime(2090, 1, 1, tzinfo=UTC)

_WRITTEN: Final = "_written"

Kept = Literal["known", "unbounded", "unknown"]


@frozen
class Side:
    """Where the time ends, at one side, that a query reads of a parent.

    Attributes:
        kept: `known`, `unbounded`, or `unknown`.
        offset: Of `known`: the furthest that it lies from the interval's start (of the side before) or end (of the side after).
        place: The condition that sets it, or the reference to the parent where nothing does.
        reason: Of `unknown`: why.
    """

    kept: Kept
    offset: timedelta | None = None
    place: Place | None = None
    reason: str | None = None


@frozen
class Reading:
    """What a query reads of one parent, with one of the ways to it.

    Attributes:
        parent: The table that is read in the end.
        through: What the query itself names: the parent, or the view in front of it.
        before: The side of the past.
        after: The side of the future.
        spans: For sample intervals of one unit of the reader: what is read, half-open, UTC; only where a side is known.
    """

    parent: str
    through: str
    before: Side
    after: Side
    spans: tuple[tuple[Interval, Interval], ...] = ()

    @property
    def unknown(self) -> str | None:
        """Why nothing, or not all, can be said; None where all is known."""
        return self.before.reason or self.after.reason


def infer(
    model: ModelQuery, nodes: Mapping[str, ModelNode], models: Mapping[str, ModelQuery]
) -> tuple[Reading, ...]:
    """What a model's query reads of its parents, relative to its interval.

    Args:
        model: The reader, with its renderings.
        nodes: Models as the graph knows them, by name: the reader, and what it reads.
        models: All models that it reads, and that stand behind its views, by name.

    Returns:
        One for each parent and each way to it, tables only; never the model itself.
    """
    node = nodes[model.name]
    names = tuple(name for name in model.parents if name != model.name)
    if not model.renderings:
        return tuple(_nothing_known(name, model.problem or "it has no SQL") for name in names)
    try:
        renderings = [_filtered(model, node, r) for r in model.renderings]
        laws = dict(laws_of(renderings))
        for part in _inlined(model, models):
            laws |= laws_of(part.renderings)
        builder = Builder(models)
        builder.build(model, renderings[0].query)
    except ShapeError:
        return tuple(_nothing_known(n, "its query is another one for each interval") for n in names)
    except UnreadableError as error:
        return tuple(_nothing_known(n, str(error)) for n in names)
    intervals = samples(node.unit)
    solver = Solver(Reader(laws, renderings[0].interval, models))
    found: dict[tuple[str, str], list[Reading]] = {}
    for source in builder.tables:
        if source.table is None or source.table == model.name:
            continue
        through = _through(source)
        found.setdefault((source.table, through), []).append(
            _reading(_datable(source.table, nodes, models), source, through, solver, intervals)
        )
    for name in _hidden(renderings[0].query, model, builder.seen):
        found.setdefault((name, name), []).append(
            _nothing_known(name, "it is read where no table is expected")
        )
    return tuple(_joined(readings) for readings in found.values())


def beyond(
    reading: Reading, child: ModelNode, parent: ModelNode, windows: Iterable[Window]
) -> tuple[Side | None, Side | None]:
    """Where a query reads more of a parent than its windows declare: before, and after; None where it does not.

    Where the reader is one whole, or looks the parent up (`latest`), or waits for nothing (`ungated`), it is declared that
    it reads what is there: then there is no beyond.

    Args:
        reading: What it reads.
        child: The reader.
        parent: What it reads.
        windows: As in `MeshGraph.gates`: all that are declared for this pair.
    """
    declared = [w for w in windows if w.mode in ("interval", "prefix")]
    if not declared or len(declared) < len(list(windows)):
        return None, None
    # Only the shape of the windows counts here: not since when there is any data.
    ever = evolve(parent, start=_BEGINNING, end=_END)
    early = late = False
    for interval, span in reading.spans:
        expected = IntervalSet.empty()
        for window in declared:
            expected |= window_of(child, ever, window, interval)
        hull = expected.hull
        missing = ever.unit.outward(IntervalSet([span])) - expected
        early = early or any(hull is None or piece.start < hull.start for piece in missing)
        late = late or any(hull is None or piece.end > hull.end for piece in missing)
    prefix = any(w.mode == "prefix" for w in declared)
    before, after = reading.before, reading.after
    open_before = before.kept == "unbounded" and not prefix
    open_after = after.kept == "unbounded" and not child.kind.as_of
    return (
        before if open_before or (early and before.kept == "known") else None,
        after if open_after or (late and after.kept == "known") else None,
    )


def unclear(reading: Reading, child: ModelNode, windows: Iterable[Window]) -> Side | None:
    """A side of which it is not known whether a query reads beyond its windows; None where none matters or all is known.

    Args:
        reading: What it reads.
        child: The reader.
        windows: As for `beyond`.
    """
    modes = {window.mode for window in windows}
    if not modes <= {"interval", "prefix"}:
        return None
    if reading.before.kept == "unknown" and "prefix" not in modes:
        return reading.before
    return reading.after if reading.after.kept == "unknown" and not child.kind.as_of else None


def _nothing_known(name: str, reason: str) -> Reading:
    edge = Side("unknown", reason=reason)
    return Reading(name, name, edge, edge)


def _filtered(model: ModelQuery, node: ModelNode, rendering: Rendering) -> Rendering:
    """The query with what SQLMesh puts around that of a model by time: only rows of the interval are written."""
    if node.kind is not Kind.INCREMENTAL_BY_TIME_RANGE or model.time_column is None:
        return rendering
    start, last = rendering.interval.start, rendering.interval.end - MICROSECOND
    low, high = (exp.Literal.string(f"{instant:%Y-%m-%d %H:%M:%S.%f}") for instant in (start, last))
    column = exp.column(model.time_column, table=_WRITTEN)
    around = exp.Select(
        expressions=[exp.Star()],
        from_=exp.From(this=exp.Subquery(this=rendering.query, alias=exp.TableAlias(this=exp.to_identifier(_WRITTEN)))),
        where=exp.Where(this=exp.Between(this=column, low=low, high=high)),
    )  # fmt: skip
    return evolve(rendering, query=around)


def _inlined(model: ModelQuery, models: Mapping[str, ModelQuery]) -> list[ModelQuery]:
    """The models whose queries become part of a model's own, but for those that stand behind a view too: that has an interval of its own."""
    own: set[str] = set()
    others: set[str] = set()
    left = [(name, own) for name in model.parents]
    while left:
        name, found = left.pop()
        part = models.get(name)
        if part is None or not part.transparent or name in found:
            continue
        found = found if part.inlined else others
        found.add(name)
        left += [(parent, found) for parent in part.parents]
    return [models[name] for name in sorted(own - others) if models[name].renderings]


def _through(source: Source) -> str:
    """What the reader's own query names on the way to a table."""
    here, name = source, source.table or ""
    while True:
        outer = here.home
        while outer.place != "source" and outer.outer is not None:
            outer = outer.outer
        if outer.source is None:
            return name
        here = outer.source
        if here.owner is not source.owner or here.scope is None or here.scope.owner is not here.owner:
            view = named_by(here.node, here.owner.parents) if isinstance(here.node, exp.Table) else None
            name = view or name


def _hidden(query: Any, model: ModelQuery, seen: set[int]) -> set[str]:
    """Parents that are named where the scopes do not reach."""
    tables = [
        t for t in query.find_all(exp.Table) if id(t) not in seen and isinstance(t.this, exp.Identifier)
    ]
    names = {named_by(table, model.parents) for table in tables}
    return {name for name in names if name is not None and name != model.name}


def _datable(
    name: str, nodes: Mapping[str, ModelNode], models: Mapping[str, ModelQuery]
) -> tuple[ModelQuery | None, str]:
    """A parent, if its rows have a time; else why not."""
    model, node = models.get(name), nodes.get(name)
    if model is None or model.time_column is None:
        return (
            None,
            "it is not partitioned by time" if model is not None else "its time column is not known here",
        )
    kind = {n.lower(): t for n, t in (model.columns or {}).items()}.get(model.time_column.lower())
    if is_date_type(kind) and node is not None and node.unit.approximate < _DAY:
        return None, "its time column is a date, and its intervals are shorter"
    return model, ""


def _reading(
    datable: tuple[ModelQuery | None, str], source: Source, through: str, solver: Solver, intervals: tuple[Interval, ...],
) -> Reading:  # fmt: skip
    table = str(source.table)
    parent, reason = datable
    if parent is None or parent.time_column is None:
        return evolve(_nothing_known(table, reason), through=through)
    column = parent.time_column.lower()
    solved = solver.solve(Var(source, column))
    here = place_of(Written(source.node, source.owner))
    spans: list[tuple[Interval, Interval]] = []
    early: list[tuple[timedelta, Reach]] = []
    late: list[tuple[timedelta, Reach]] = []
    for interval in intervals:
        # Of two that say the same, the one in the query rather than the one that SQLMesh puts around it.
        low = max(
            ((r.at(interval), not _is_filter(r.place), i) for i, r in enumerate(solved.lower)),
            default=(_BEGINNING, True, -1),
        )
        high = min(
            ((r.at(interval), _is_filter(r.place), i) for i, r in enumerate(solved.upper)),
            default=(_END - MICROSECOND, True, -1),
        )
        if low[0] > high[0]:
            continue
        # Half-open: a row at the last instant is read.
        spans.append((interval, Interval(max(low[0], _BEGINNING), min(high[0] + MICROSECOND, _END))))
        if solved.lower:
            early.append((low[0] - interval.start, solved.lower[low[2]]))
        if solved.upper:
            late.append((high[0] + MICROSECOND - interval.end, solved.upper[high[2]]))
    return Reading(
        table,
        through,
        _side(solved, min(early, key=lambda e: e[0], default=None), here, before=True),
        _side(solved, max(late, key=lambda e: e[0], default=None), here, before=False),
        tuple(spans),
    )


def _place(written: Written | None) -> Place | None:
    return None if written is None or _is_filter(written) else place_of(written)


def _is_filter(written: Written | None) -> bool:
    """Whether it is what `_filtered` puts around a query, not the query's own."""
    node = written.node if written is not None else None
    if isinstance(node, exp.Subquery):
        return bool(node.alias == _WRITTEN)
    return isinstance(node, exp.Between) and getattr(node.this, "table", "") == _WRITTEN


def _side(
    solved: Solved, found: tuple[timedelta, Reach] | None, here: Place, *, before: bool
) -> Side:  # fmt: skip
    limits = solved.lower if before else solved.upper
    doubt = solved.lower_doubt if before else solved.upper_doubt
    if limits:
        # Where no sample reads anything, the interval itself is as good as nothing.
        return Side("known", found[0], _place(found[1].place)) if found else Side("known", timedelta(0))
    if doubt is not None:
        return Side("unknown", None, _place(doubt.place), doubt.reason)
    return Side("unbounded", None, here)


def _joined(readings: list[Reading]) -> Reading:
    """One parent that is named several times: all that is read of it."""
    found = readings[0]
    for other in readings[1:]:
        found = evolve(
            found,
            before=_wider(found.before, other.before, before=True),
            after=_wider(found.after, other.after, before=False),
            spans=found.spans + other.spans,
        )
    return found


def _wider(one: Side, other: Side, *, before: bool) -> Side:
    for kept in ("unbounded", "unknown"):
        for edge in (one, other):
            if edge.kept == kept:
                return edge
    first, second = one.offset or timedelta(0), other.offset or timedelta(0)
    return one if (first <= second) == before or first == second else other
