"""What a query is made of: scopes, what each of them reads, and where each column comes from.

SQL is nested: a CTE, a subquery, a view is a scope of its own, and each place that names it is an instance of its own,
as each may be filtered in its own way. A table that a model makes is a source without a scope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from attrs import define, field, frozen
from sqlglot import exp

from meshgate.graph import name_parts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from meshgate.windows.literals import Rendering

Place = Literal["root", "source", "branch", "expression", "condition"]

_MOST: Final = 300
# What a SELECT may consist of without its rows depending on each other before WHERE has chosen among them.
_PLAIN: Final = {
    *("with_", "expressions", "from_", "joins", "laterals", "where", "group", "having", "qualify", "windows"),
    *("distinct", "order", "limit", "offset", "hint", "sort", "cluster", "distribute", "operation_modifiers"),
}


class UnreadableError(Exception):
    """A query that cannot be taken apart; its text is the reason."""


@frozen(eq=False)
class ModelQuery:
    """A model's query, as it is rendered.

    Attributes:
        name: The model, as the graph knows it.
        parents: The models and tables that it reads, likewise.
        renderings: For the intervals of `bounds_to_render`; empty where it has no SQL.
        time_column: By which its own table is partitioned by time, or None.
        columns: The types of its columns by their names; None where they are not known.
        text: Its file, or what the file is likely to say; for finding lines.
        transparent: Whether readers look through it: a view, an embedded model.
        problem: Why there is no rendering.
    """

    name: str
    parents: tuple[str, ...] = ()
    renderings: tuple[Rendering, ...] = ()
    time_column: str | None = None
    columns: Mapping[str, str] | None = None
    text: str = ""
    transparent: bool = False
    problem: str | None = None


@define(eq=False)
class Source:
    """Something that a scope reads, under one name.

    Attributes:
        alias: Its name in the scope, in lower case.
        home: The scope.
        node: Where it is written.
        owner: Whose query says so.
        scope: What it is made of: of subqueries, CTEs, views.
        table: Which model it is: of tables.
        columns: The names of its columns in lower case, where they are known and there is no scope.
        renamed: Names that an alias gives to its columns, in order.
        raw: Why no predicate says anything about its rows; None where predicates do.
    """

    alias: str
    home: Scope
    node: Any
    owner: ModelQuery
    scope: Scope | None = None
    table: str | None = None
    columns: frozenset[str] | None = None
    renamed: tuple[str, ...] = ()
    raw: str | None = None


@define(eq=False)
class Join:
    """How a source is joined to those before it."""

    source: Source
    how: Literal["inner", "left", "right", "full", "anti", "asof", "asof left"]
    on: Any
    using: tuple[str, ...]


@define(eq=False)
class Scope:
    """One SELECT, or one set operation.

    Attributes:
        node: SQLGlot's.
        owner: Whose query it belongs to.
        place: What it is to the scope around it: what a source is made of, a branch of a set operation, a subquery in an
            expression, or in the condition of a join.
        outer: The scope around it, in which columns may be looked up.
        source: Of the place `source`: which one.
        branches: Of a set operation.
        sources: Of a SELECT, in order.
        joins: Of its sources from the second on.
        raw: Why its WHERE says nothing about which rows count.
        sliced: Whether rows are taken by their number (LIMIT), and so depend on other rows.
    """

    node: Any
    owner: ModelQuery
    place: Place = "root"
    outer: Scope | None = None
    source: Source | None = None
    branches: list[Scope] = field(factory=list)
    by_name: bool = False
    sources: list[Source] = field(factory=list)
    joins: list[Join] = field(factory=list)
    raw: str | None = None
    sliced: bool = False

    def named(self, alias: str) -> Source | None:
        """The source of this name, or None."""
        return next((s for s in self.sources if s.alias == alias.lower()), None)


@frozen
class Var:
    """A column of a source."""

    source: Source
    column: str


@frozen
class Defined:
    """Of what a column of a scope is made: an expression in that scope."""

    expression: Any
    scope: Scope


Ctes = dict[str, tuple[Any, "Ctes"]]


def part(node: Any, name: str) -> Any:
    """An argument of a node, under whichever of its names SQLGlot has it."""
    return node.args.get(f"{name}_") if node.args.get(f"{name}_") is not None else node.args.get(name)


class Builder:
    """Takes a query apart.

    Args:
        models: All models whose queries may be looked into, by name.
    """

    def __init__(self, models: Mapping[str, ModelQuery]) -> None:
        self._models = models
        self._count = 0
        self.tables: list[Source] = []
        self.seen: set[int] = set()
        """The nodes of tables that were found where tables are expected, by `id`."""

    def build(self, model: ModelQuery, query: Any, source: Source | None = None) -> Scope:
        """The scope of a model's query.

        Raises:
            UnreadableError: It is too large, recursive, or no query.
        """
        return self._query(query, {}, model, "root" if source is None else "source", None, source)

    def _query(
        self, node: Any, ctes: Ctes, owner: ModelQuery, place: Place, outer: Scope | None, source: Source | None
    ) -> Scope:
        self._count += 1
        if self._count > _MOST:
            raise UnreadableError("it is too large to be taken apart")
        sliced = False
        while isinstance(node, (exp.Subquery, exp.Paren)):
            if isinstance(node, exp.Subquery):
                sliced = sliced or any(node.args.get(key) for key in ("limit", "offset", "sample", "pivots", "joins"))
                ctes = self._ctes(node, ctes)
            node = node.this
        if not isinstance(node, (exp.Select, exp.SetOperation)):
            raise UnreadableError(f"a {type(node).__name__.lower()} is no query that can be taken apart")
        scope = Scope(node, owner, place, outer, source)
        scope.sliced = sliced or bool(node.args.get("limit") or node.args.get("offset"))
        inner = self._ctes(node, ctes)
        if isinstance(node, exp.SetOperation):
            scope.by_name = bool(node.args.get("by_name"))
            for branch in (node.this, node.expression):
                scope.branches.append(self._query(branch, inner, owner, "branch", scope, None))
            return scope
        odd = sorted(key for key, value in node.args.items() if value and key not in _PLAIN)
        if odd:
            scope.raw = f"{odd[0].rstrip('_').upper()} is not understood"
        self._sources(scope, inner)
        self._nested(scope, inner)
        return scope

    def _ctes(self, node: Any, ctes: Ctes) -> Ctes:
        found = part(node, "with")
        if found is None:
            return ctes
        for cte in found.expressions:
            name = cte.alias.lower()
            names = {t.name.lower() for t in cte.this.find_all(exp.Table) if not t.args.get("db")}
            if found.args.get("recursive") and name in names:
                raise UnreadableError(f"{cte.alias} is recursive")
            ctes = {**ctes, name: (cte, ctes)}
        return ctes

    def _sources(self, scope: Scope, ctes: Ctes) -> None:
        start = part(scope.node, "from")
        if start is not None:
            self._source(scope, start.this, ctes)
        for join in scope.node.args.get("joins") or ():
            source = self._source(scope, join.this, ctes)
            side, kind, method = (str(join.args.get(key) or "").upper() for key in ("side", "kind", "method"))
            how: Any = {"LEFT": "left", "RIGHT": "right", "FULL": "full"}.get(side, "inner")
            if method == "ASOF":
                how = "asof left" if side == "LEFT" else "asof"
                if side not in ("", "LEFT"):
                    scope.raw = f"ASOF {side} JOIN is not understood"
            elif method not in ("", "HASH"):
                scope.raw = f"{method} JOIN is not understood"
            if kind == "ANTI":
                how = "anti"
            using = tuple(name.name.lower() for name in join.args.get("using") or ())
            scope.joins.append(Join(source, how, join.args.get("on"), using))
        for lateral in scope.node.args.get("laterals") or ():
            self._source(scope, lateral, ctes)

    def _source(self, scope: Scope, node: Any, ctes: Ctes) -> Source:
        alias = node.args.get("alias")
        named = str(node.alias_or_name or "").lower()
        renamed = tuple(c.name.lower() for c in (alias.args.get("columns") or ())) if alias is not None else ()
        source = Source(named, scope, node, scope.owner, renamed=renamed)
        scope.sources.append(source)
        inner = node.this
        if isinstance(node, exp.Table) and isinstance(inner, exp.Identifier):
            self._table(source, node, ctes)
        elif isinstance(node, exp.Subquery) and isinstance(inner, (exp.Select, exp.SetOperation, exp.Subquery)):
            source.scope = self._query(node, ctes, scope.owner, "source", scope, source)
        elif isinstance(node, exp.Lateral) and isinstance(inner, exp.Subquery):
            source.scope = self._query(inner, ctes, scope.owner, "source", scope, source)
        elif renamed:
            source.columns = frozenset(renamed)
        if node.args.get("pivots") or node.args.get("sample") or node.args.get("joins"):
            source.raw = "PIVOT, TABLESAMPLE and joins in parentheses are not understood"
        return source

    def _table(self, source: Source, node: Any, ctes: Ctes) -> None:
        self.seen.add(id(node))
        if not node.args.get("db") and node.name.lower() in ctes:
            cte, around = ctes[node.name.lower()]
            columns = cte.args["alias"].args.get("columns") or ()
            source.renamed = source.renamed or tuple(c.name.lower() for c in columns)
            source.scope = self._query(cte.this, around, source.owner, "source", None, source)
            return
        name = named_by(node, source.owner.parents)
        if name is None:
            return
        model = self._models.get(name)
        if model is not None and model.transparent and model.renderings:
            source.scope = self.build(model, model.renderings[0].query, source)
            return
        source.table = name
        if source.renamed:
            source.raw = "names that an alias gives to columns are not understood"
        if model is not None and model.columns is not None:
            source.columns = frozenset(column.lower() for column in model.columns)
        self.tables.append(source)

    def _nested(self, scope: Scope, ctes: Ctes) -> None:
        """Subqueries in expressions: EXISTS, IN, scalar ones."""
        for key, value in scope.node.args.items():
            if key in ("with_", "with", "from_", "from", "laterals"):
                continue
            for top in value if isinstance(value, list) else [value]:
                if key == "joins":
                    conditions = [top.args.get("on")]
                    place: Place = "condition"
                else:
                    conditions, place = [top], "expression"
                for condition in conditions:
                    for query in _queries(condition):
                        self._query(query, ctes, scope.owner, place, scope, None)


def named_by(node: Any, names: tuple[str, ...]) -> str | None:
    """Which of the names a table in a query means, or None."""
    wanted = tuple(part.name.lower() for part in node.parts)
    found = [n for n in names if tuple(p.lower() for p in name_parts(n))[-len(wanted) :] == wanted]
    exact = [n for n in found if len(name_parts(n)) == len(wanted)] or found
    return exact[0] if len(exact) == 1 else None


def _queries(node: Any) -> Iterator[Any]:
    """The outermost queries in an expression."""
    if not hasattr(node, "iter_expressions"):
        return
    if isinstance(node, (exp.Select, exp.SetOperation)):
        yield node
        return
    for child in node.iter_expressions():
        yield from _queries(child)


# Columns


def resolve(column: Any, scope: Scope) -> Var | None:
    """The source and the name that a column in a scope means; None where that is not certain."""
    name = column.name.lower()
    if column.table:
        around: Scope | None = scope
        while around is not None:
            source = around.named(column.table)
            if source is not None:
                return Var(source, name)
            around = around.outer
        return None
    around = scope
    while around is not None:
        found = _unqualified(name, around)
        if found is not None:
            return found
        if any(offered(s) is None for s in around.sources):
            return None
        around = around.outer
    return None


def _unqualified(name: str, scope: Scope) -> Var | None:
    if len(scope.sources) == 1:
        known = offered(scope.sources[0])
        return Var(scope.sources[0], name) if known is None or name in known else None
    for join in scope.joins:
        if name in join.using and all(j.how in ("inner", "left") for j in scope.joins):
            return Var(scope.sources[0], name) if len(scope.sources) == 2 else None
    known_to = [(source, offered(source)) for source in scope.sources]
    having = [source for source, names in known_to if names is not None and name in names]
    open_ended = [source for source, names in known_to if names is None]
    return Var(having[0], name) if len(having) == 1 and not open_ended else None


def offered(source: Source) -> frozenset[str] | None:
    """The names of a source's columns, in lower case; None where they are not all known."""
    if source.renamed:
        return frozenset(source.renamed) if source.scope is not None else None
    if source.scope is not None:
        names = output_names(source.scope)
        return None if names is None else frozenset(names)
    return source.columns


def output_names(scope: Scope) -> list[str] | None:
    """The names of a scope's columns in order; None where a star hides them."""
    if scope.branches:
        return output_names(scope.branches[0])
    names: list[str] = []
    for projection in scope.node.expressions:
        if not _is_star(projection):
            names.append(projection.alias_or_name.lower())
            continue
        return None
    return names


def definitions(source: Source, column: str) -> list[Defined | None]:
    """What a column of a source with a scope is made of: one for a SELECT, one for each branch of a set operation."""
    assert source.scope is not None
    if source.renamed:
        if column not in source.renamed:
            return [None]
        return _at(source.scope, source.renamed.index(column))
    return _named(source.scope, column)


def _named(scope: Scope, column: str) -> list[Defined | None]:
    if not scope.branches:
        return [_projected(scope, column)]
    if scope.by_name:
        return [found for branch in scope.branches for found in _named(branch, column)]
    names = output_names(scope)
    if names is not None:
        return _at(scope, names.index(column)) if names.count(column) == 1 else [None]
    # Only stars over one and the same source have their columns in one order.
    return [None]


def _at(scope: Scope, position: int) -> list[Defined | None]:
    if scope.branches:
        return [found for branch in scope.branches for found in _at(branch, position)]
    projections = scope.node.expressions
    if position >= len(projections) or any(map(_is_star, projections[: position + 1])):
        return [None]
    return [Defined(projections[position].unalias(), scope)]


def _projected(scope: Scope, column: str) -> Defined | None:
    explicit = [
        p for p in scope.node.expressions if not _is_star(p) and p.alias_or_name.lower() == column
    ]
    through = [found for p in scope.node.expressions if _is_star(p) for found in _starred(scope, p, column)]
    certain = [found for found in through if found is not None]
    if explicit and not through:
        return Defined(explicit[0].unalias(), scope) if len(explicit) == 1 else None
    if not explicit and len(through) == 1 and certain:
        return Defined(certain[0], scope)
    return None


def _starred(scope: Scope, star: Any, column: str) -> list[Any]:
    """What a star may give under a name: expressions, and None for each source of which that is not known."""
    inner = star.this if isinstance(star, exp.Column) else star
    if any(column == name for name in _names(part(inner, "except")) | _names(inner.args.get("rename"))):
        return []
    for replaced in inner.args.get("replace") or ():
        if replaced.alias_or_name.lower() == column:
            return [replaced.unalias()]
    if isinstance(star, exp.Column):
        source = scope.named(star.table)
        sources = [source] if source is not None else []
    else:
        sources = scope.sources
    found: list[Any] = []
    for source in sources:
        names = offered(source)
        if names is None and len(sources) > 1:
            found.append(None)
        elif names is None or column in names:
            found.append(exp.column(column, table=source.alias))
    using = {name for join in scope.joins for name in join.using}
    if column in using and all(join.how in ("inner", "left") for join in scope.joins):
        return found[:1]
    return found


def _names(values: Any) -> set[str]:
    return {str(value.alias_or_name).lower() for value in values or ()}


def _is_star(projection: Any) -> bool:
    return isinstance(projection, exp.Star) or (
        isinstance(projection, exp.Column) and isinstance(projection.this, exp.Star)
    )


def follows(scope: Scope, defined: Defined) -> bool:
    """Whether rows of other values in this column cannot touch a row that the scope gives out.

    Then a filter on the column, outside, is a filter on what the scope reads.
    """
    if scope.sliced or scope.raw or scope.node.args.get("qualify"):
        return False
    distinct = scope.node.args.get("distinct")
    group = scope.node.args.get("group")
    if (distinct is not None and distinct.args.get("on")) or (
        group is not None and any(group.args.get(key) for key in ("rollup", "cube", "grouping_sets"))
    ):
        return False
    own = defined.expression
    if any(own.find_all(exp.AggFunc, exp.Window, exp.Subquery, exp.Select)):
        return False
    return all(
        any(key.sql() == own.sql() for key in window.args.get("partition_by") or ())
        for projection in scope.node.expressions
        for window in _windows(projection)
    )


def _windows(node: Any) -> Iterator[Any]:
    if isinstance(node, (exp.Select, exp.SetOperation)):
        return
    if isinstance(node, exp.Window):
        yield node
    for child in node.iter_expressions():
        yield from _windows(child)
