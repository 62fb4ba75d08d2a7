"""Who reads whom, and over which window: models, edges, and both directions of one relation.

`window_of` tells which of the parent's time an interval of the child reads; `readers_of` tells
which of the child's units read a given part of the parent's time. They are two sides of one law:

    a unit u of the child lies in readers_of(R)  if and only if  window_of(u) meets R

The gate asks with "what the parent lacks" for R, staleness with "what the parent recomputed". All
times are UTC and half-open; the grid is each model's own `IntervalUnit`.
"""

from __future__ import annotations

import difflib
import graphlib
import re
from datetime import datetime, timedelta
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, get_args

from attrs import Attribute, converters, evolve, field, frozen, validators

from meshgate.errors import GraphError, UnknownModelError
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval, IntervalSet, IntervalUnit, offset_by, utc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_ZERO: Final = timedelta(0)


class Kind(Enum):
    """What a model is, as far as intervals go. Values are SQLMesh's kind names in lower case; a standalone audit is one too."""

    INCREMENTAL_BY_TIME_RANGE = "incremental_by_time_range"
    INCREMENTAL_BY_UNIQUE_KEY = "incremental_by_unique_key"
    INCREMENTAL_BY_PARTITION = "incremental_by_partition"
    INCREMENTAL_UNMANAGED = "incremental_unmanaged"
    SCD_TYPE_2 = "scd_type_2"
    FULL = "full"
    VIEW = "view"
    SEED = "seed"
    EXTERNAL = "external"
    EMBEDDED = "embedded"
    AUDIT = "audit"
    CUSTOM = "custom"
    MANAGED = "managed"

    @classmethod
    def from_sqlmesh(cls, name: str) -> Kind:
        """The kind for a SQLMesh kind name: both sorts of SCD type 2 are one, dbt's custom is custom.

        Raises:
            GraphError: SQLMesh has learnt a kind that meshgate does not know.
        """
        lowered = name.lower()
        try:
            return cls.SCD_TYPE_2 if lowered.startswith("scd_type_2") else cls(lowered.removeprefix("dbt_"))
        except ValueError:
            raise GraphError(f"meshgate does not know the model kind {name}", kind=name) from None

    @property
    def time_partitioned(self) -> bool:
        """Whether each range of it has its own history."""
        return self in (Kind.INCREMENTAL_BY_TIME_RANGE, Kind.AUDIT)

    @property
    def as_of(self) -> bool:
        """Whether the table is one whole, refreshed up to an instant."""
        return self not in _NOT_AS_OF

    @property
    def transparent(self) -> bool:
        """Whether readers look through it to what it reads."""
        return self in (Kind.VIEW, Kind.EMBEDDED)

    @property
    def recorded(self) -> bool:
        """Whether SQLMesh records intervals for it."""
        return self not in (Kind.EXTERNAL, Kind.EMBEDDED)

    @property
    def reads_everything(self) -> bool:
        """Whether each refresh reads its parents from the beginning."""
        return self in (Kind.FULL, Kind.VIEW)

    @property
    def redoable(self) -> bool:
        """Whether evaluating an interval twice leaves the same rows as once."""
        return self is not Kind.INCREMENTAL_UNMANAGED


_NOT_AS_OF: Final = (Kind.INCREMENTAL_BY_TIME_RANGE, Kind.AUDIT, Kind.SEED, Kind.EXTERNAL, Kind.EMBEDDED)


def name_parts(name: str) -> tuple[str, ...]:
    """The parts of a qualified name, with or without SQLMesh's double quotes.

    Example:
        >>> name_parts('"lake"."silver"."orders.v2"')
        ('lake', 'silver', 'orders.v2')
    """
    parts = re.findall(r'"((?:[^"]|"")*)"|([^."]+)', name)
    return tuple(quoted.replace('""', '"') or bare.strip() for quoted, bare in parts)


def _at_least(minimum: int) -> Callable[[ModelNode, Attribute[int], int], None]:
    def check(node: ModelNode, attribute: Attribute[int], value: int) -> None:
        if value < minimum:
            raise GraphError(f"{node.display}: {attribute.name} is {value}", model=node.name)

    return check


@frozen
class ModelNode:
    """One model of the mesh, with what decides about its intervals.

    Attributes:
        name: Fully qualified and quoted, as SQLMesh names the snapshot: `"lake"."silver"."orders"`.
        project: The SQLMesh project that owns it.
        version: SQLMesh's snapshot version, which is one physical table.
        kind: What it is.
        unit: The grid of its intervals.
        cron: When it is due; an expression or an alias such as `@daily`.
        cron_tz: The IANA time zone in which the cron is read; intervals are in UTC all the same.
        start: Where its history begins (UTC, inclusive), or None if nothing says so.
        end: Where its history ends (UTC, exclusive), or None.
        lookback: How many units before new ones are evaluated again, for late rows.
        batch_size: The most units in one evaluation, or None.
        depends_on_past: Whether an interval needs the ones before it.
        allow_partials: Whether a unit may be evaluated before it is over.
        restate_cron: When it is computed again by itself: SQLMesh's `auto_restatement_cron`, read in UTC, or None.
        restate_units: How many units before a tick of that; None for all.

    Raises:
        GraphError: The end is not after the start, or a count is out of range.
        IntervalError: The start or end is not UTC.
    """

    name: str
    project: str
    version: str
    kind: Kind
    unit: IntervalUnit
    cron: str
    cron_tz: str = "UTC"
    start: datetime | None = field(default=None, converter=converters.optional(utc))
    end: datetime | None = field(default=None, converter=converters.optional(utc))
    lookback: int = field(default=0, validator=_at_least(0))
    batch_size: int | None = field(default=None, validator=validators.optional(_at_least(1)))
    depends_on_past: bool = False
    allow_partials: bool = False
    restate_cron: str | None = None
    restate_units: int | None = field(default=None, validator=validators.optional(_at_least(1)))

    def __attrs_post_init__(self) -> None:
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise GraphError(f"{self.display} ends at {self.end} but starts at {self.start}", model=self.name)

    @property
    def sequential(self) -> bool:
        """Whether an interval may only be evaluated once all earlier ones are."""
        return self.depends_on_past or (self.kind.as_of and not self.kind.reads_everything)

    @cached_property
    def life(self) -> Interval:
        """The time that it can ever cover: all units that [start, end) touches, as SQLMesh has it.

        With `allow_partials` the last unit stays cut. No start is `MIN_INSTANT`, no end `MAX_INSTANT`.
        """
        end = self.end or MAX_INSTANT
        start = self.unit.floor(self.start or MIN_INSTANT)
        return Interval(start, end if self.allow_partials else self.unit.ceil(end))

    @property
    def display(self) -> str:
        """The name for people: `schema.table`."""
        return ".".join(name_parts(self.name)[-2:])


Mode = Literal["interval", "latest", "prefix", "loaded", "ungated"]


@frozen
class Window:
    """Which of the parent's time an interval `[start, end)` of the child reads.

    Attributes:
        mode: `interval`: `[start + from_offset, end + to_offset)`, and whole units of the parent.
            `latest`: the last unit of the parent that is over at `end + to_offset` (a dimension).
            `prefix`: everything of the parent up to `end + to_offset`.
            `loaded`: the parent as it is, once there is something in it (a seed).
            `ungated`: none that meshgate waits for.
        from_offset: Added to the child's start; `-7d` for a rolling week. Only for `interval`.
        to_offset: Added to the child's end.

    Raises:
        GraphError: `from_offset` is greater than `to_offset`: neighbouring intervals would leave a
            gap between their windows, and what a batch reads would depend on its size.
    """

    mode: Mode = field(default="interval", validator=validators.in_(get_args(Mode)))
    from_offset: timedelta = _ZERO
    to_offset: timedelta = field(default=_ZERO)

    @to_offset.validator
    def _no_gaps(self, _attribute: Attribute[timedelta], to_offset: timedelta) -> None:
        if self.mode == "interval" and self.from_offset > to_offset:
            raise GraphError(
                f"a window from {self.from_offset} to {to_offset} leaves gaps between intervals",
                hint="`from` is added to the interval's start and `to` to its end; from must not exceed to",
            )

    @property
    def is_default(self) -> bool:
        """Whether it is the child's interval itself, as if nothing had been declared."""
        return self == _DEFAULT_WINDOW

    def through(self, inner: Window) -> Window:
        """The window on what stands behind a view: this one on the view, then the view's own."""
        outer_decides = inner.mode == "interval" or self.mode == "ungated"
        mode = self.mode if outer_decides else inner.mode
        from_offset = self.from_offset + inner.from_offset if mode == "interval" else _ZERO
        return Window(mode, from_offset=from_offset, to_offset=self.to_offset + inner.to_offset)


_DEFAULT_WINDOW: Final = Window()


@frozen
class Edge:
    """One model reads another.

    Attributes:
        child: Name of the reader.
        parent: Name of what is read.
        window: Which of the parent's time an interval of the child reads.
    """

    child: str
    parent: str
    window: Window = _DEFAULT_WINDOW


class MeshGraph:
    """All models of the mesh, whichever project owns them, and who reads whom.

    Args:
        nodes: Models by name.
        edges: At most one for each pair. Reading itself is no gate, but makes a model sequential.

    Raises:
        GraphError: An edge names an unknown model or is there twice, or models form a circle.
    """

    def __init__(self, nodes: Mapping[str, ModelNode], edges: Iterable[Edge]) -> None:
        self._nodes: Final = dict(nodes)
        self._parents: Final[dict[str, list[Edge]]] = {name: [] for name in self._nodes}
        self._children: Final[dict[str, list[Edge]]] = {name: [] for name in self._nodes}
        for name, node in self._nodes.items():
            if name != node.name:
                raise GraphError(f"the model {node.name} is filed under {name}", model=node.name)
        for edge in edges:
            said = f"the edge {edge.child} reads {edge.parent}"
            for end in (edge.child, edge.parent):
                if end not in self._nodes:
                    raise GraphError(f"{said} names the unknown model {end}", model=end)
            if any(other.parent == edge.parent for other in self._parents[edge.child]):
                raise GraphError(f"{said} is declared twice", child=edge.child, parent=edge.parent)
            self._parents[edge.child].append(edge)
            self._children[edge.parent].append(edge)
        self._order: Final = self._sorted()

    def _sorted(self) -> tuple[str, ...]:
        sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
        for name in sorted(self._nodes):
            sorter.add(name, *sorted(e.parent for e in self._parents[name] if e.parent != name))
        try:
            return tuple(sorter.static_order())
        except graphlib.CycleError as error:
            circle = " reads ".join(self._nodes[name].display for name in reversed(error.args[1]))
            raise GraphError(f"models read each other in a circle: {circle}") from None

    @property
    def nodes(self) -> Mapping[str, ModelNode]:
        """Models by name. Do not change it."""
        return self._nodes

    def __getitem__(self, name: str) -> ModelNode:
        """The model of exactly this name; `UnknownModelError` if there is none."""
        if name in self._nodes:
            return self._nodes[name]
        raise self._unknown(name)

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def parents(self, name: str) -> tuple[Edge, ...]:
        """The edges to what a model reads, itself included, as declared."""
        return tuple(self._parents[self[name].name])

    def children(self, name: str) -> tuple[Edge, ...]:
        """The edges from those who read a model, itself included, as declared."""
        return tuple(self._children[self[name].name])

    def order(self) -> tuple[str, ...]:
        """All names, parents before children; the same for the same graph."""
        return self._order

    def boundaries(self) -> tuple[Edge, ...]:
        """The edges between models of two projects, children in order."""
        edges = (edge for name in self._order for edge in self._parents[name])
        return tuple(e for e in edges if self._nodes[e.child].project != self._nodes[e.parent].project)

    def sequential(self, name: str) -> bool:
        """Whether a model's intervals must be evaluated in order: by its kind, or as it reads itself."""
        return self[name].sequential or any(edge.parent == name for edge in self._parents[name])

    def gates(self, name: str) -> tuple[Edge, ...]:
        """What a model waits for: edges to models with a state of their own, each with its final window.

        Views and embedded models are looked through to what stands behind them. External and
        ungated parents and the model itself are left out. Seeds are read as `loaded`. A model that
        is a whole reads a `prefix` where no window is declared, as it proves nothing about its parents.
        """
        node = self[name]
        gates: dict[tuple[str, Window], Edge] = {}
        for edge in self._behind(node):
            parent = self._nodes[edge.parent]
            if edge.parent == name or not parent.kind.recorded or edge.window.mode == "ungated":
                continue
            if parent.kind is Kind.SEED:
                edge = evolve(edge, window=Window("loaded"))  # noqa: PLW2901
            gates.setdefault((edge.parent, edge.window), edge)
        return tuple(gates.values())

    def _behind(self, node: ModelNode) -> Iterator[Edge]:
        """Edges from a model to what it reads, through views, each combination of windows once."""
        pending = list(reversed(self._parents[node.name]))
        if node.kind.as_of:
            prefix = Window("prefix")
            pending = [evolve(edge, window=prefix) if edge.window.is_default else edge for edge in pending]
        seen = set(pending)
        while pending:
            edge = pending.pop()
            if not self._nodes[edge.parent].kind.transparent or edge.window.mode == "ungated":
                yield edge
                continue
            for inner in reversed(self._parents[edge.parent]):
                through = Edge(node.name, inner.parent, edge.window.through(inner.window))
                if inner.parent != edge.parent and through not in seen:
                    seen.add(through)
                    pending.append(through)

    def resolve(self, name: str) -> str:
        """The name, as the graph knows it, of the model that a person means.

        Args:
            name: Fully qualified, with or without quotes, or its last parts, if no other model has them.

        Raises:
            UnknownModelError: There is none, or more than one; the hint names the nearest.
        """
        if name in self._nodes:
            return name
        wanted = name_parts(name)
        found = [known for known in self._order if wanted and name_parts(known)[-len(wanted) :] == wanted]
        # Fully qualified beats longer names that merely end in the same way.
        found = [known for known in found if name_parts(known) == wanted] or found
        if len(found) == 1:
            return found[0]
        if not found:
            raise self._unknown(name)
        names = [".".join(name_parts(known)) for known in found]
        said = f"{name} could be any of {', '.join(names)}"
        raise UnknownModelError(said, hint="write more of the name", candidates=names)

    def _unknown(self, name: str) -> UnknownModelError:
        spoken = ".".join(name_parts(name))
        known = [s for n in self._nodes.values() for s in (n.display, ".".join(name_parts(n.name)))]
        near = difflib.get_close_matches(spoken, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else None
        return UnknownModelError(f"there is no model {spoken}", hint=hint, model=name, candidates=near)


def window_of(child: ModelNode, parent: ModelNode, window: Window, interval: Interval) -> IntervalSet:
    """The parent's time that an interval of the child reads.

    It is made of whole units of the parent, and clipped to the parent's life. An interval of
    several units reads what its units read, so that nothing depends on the size of a batch; a part
    of a unit (`allow_partials`) counts as one unit.

    Args:
        child: The reader.
        parent: What is read.
        window: How the child reads it, as in `MeshGraph.gates`.
        interval: Of the child, UTC.

    Returns:
        UTC; empty for `loaded` and `ungated`, and where the parent's life is not touched. A `prefix`
        of a parent without a start cannot be told from "all the past": only the interval itself counts.
    """
    if window.mode in ("loaded", "ungated"):
        return IntervalSet.empty()
    # Units that are no longer than the parent's read neighbouring ones; calendar months may skip one.
    if window.mode == "latest" and child.unit.approximate > min(
        parent.unit.approximate, IntervalUnit.DAY.approximate
    ):
        pieces = (_latest(parent, parent.life, window, unit.end) for unit in child.unit.split(interval))
        return IntervalSet(piece for piece in pieces if piece is not None)
    return reach_of(child, parent, window, interval)


def reach_of(child: ModelNode, parent: ModelNode, window: Window, hull: Interval) -> IntervalSet:
    """One interval, or none, that holds `window_of`, at the same cost for a unit as for all time."""
    life = parent.life
    if window.mode == "latest":
        last = _latest(parent, life, window, hull.end)
        if last is None:
            return IntervalSet.empty()
        first = _latest(parent, life, window, min(child.unit.next(hull.start), hull.end))
        return IntervalSet.of(first.start if first is not None else life.start, last.end)
    end = parent.unit.ceil(offset_by(hull.end, window.to_offset))
    if window.mode == "prefix" and parent.start is not None:
        start = life.start
    else:
        start = parent.unit.floor(offset_by(hull.start, _from_offset(window)))
    return IntervalSet.of(max(start, life.start), min(end, life.end))


def _latest(parent: ModelNode, life: Interval, window: Window, end: datetime) -> Interval | None:
    """The last whole unit of the parent at an instant: after the end of its life, its last one."""
    boundary = min(parent.unit.floor(offset_by(end, window.to_offset)), life.end)
    return Interval(parent.unit.previous(boundary), boundary) if boundary > life.start else None


def readers_of(
    child: ModelNode, parent: ModelNode, window: Window, parent_range: IntervalSet, within: IntervalSet
) -> IntervalSet:
    """The child's units whose window meets a part of the parent's time: the other way round.

    It shifts and aligns the ends of ranges; no unit is visited, however many there are.

    Args:
        child: The reader.
        parent: What is read.
        window: How the child reads it, as in `MeshGraph.gates`.
        parent_range: Of the parent's time, UTC, aligned or not.
        within: Where to look, in the child's time, UTC. At an end that is not a boundary of the
            child, the part of the unit that lies inside is judged by what that part reads.

    Returns:
        A part of `within`.
    """
    if window.mode in ("loaded", "ungated") or not parent_range or not within:
        return IntervalSet.empty()
    life = parent.life
    touched = parent.unit.outward(parent_range.clip(life.start, life.end))
    if not (ranges := list(_reader_ranges(child, parent, window, touched))):
        return IntervalSet.empty()
    near = within.clip(ranges[0][0], child.unit.next(ranges[-1][1]))
    whole = child.unit.inward(near)
    shifted = IntervalSet(Interval(start, end) for start, end in ranges if start < end)
    parts = (part for piece in near - whole for part in child.unit.split(piece))
    return (shifted & whole) | IntervalSet(
        part for part in parts if window_of(child, parent, window, part) & touched
    )


def _reader_ranges(
    child: ModelNode, parent: ModelNode, window: Window, touched: IntervalSet
) -> Iterator[tuple[datetime, datetime]]:
    """For units of the parent: from which to which unit of the child they are read; maybe none."""
    life_end = parent.life.end
    from_offset = _from_offset(window)
    for piece in touched:
        end = MAX_INSTANT
        if window.mode == "latest":
            # The child's unit is named by its end: floor(end + to) lies in (piece.start, piece.end].
            low = offset_by(parent.unit.next(piece.start), -window.to_offset)
            start = child.unit.previous(child.unit.ceil(low))
            if piece.end < life_end:
                high = offset_by(parent.unit.next(piece.end), -window.to_offset)
                end = child.unit.previous(child.unit.ceil(high))
        else:
            start = child.unit.floor(offset_by(piece.start, -window.to_offset))
            if window.mode == "prefix" and parent.start is not None:
                yield start, end
                return
            end = child.unit.ceil(offset_by(piece.end, -from_offset))
        yield start, end


def _from_offset(window: Window) -> timedelta:
    """Where a range begins to be read; a prefix without a beginning is read like the interval itself."""
    return window.from_offset if window.mode == "interval" else min(_ZERO, window.to_offset)
