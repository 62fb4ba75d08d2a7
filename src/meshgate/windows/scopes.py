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
        dialect: SQLGlot's name of it, in which its SQL is shown.
        file: Where it is written, for people; empty where nobody knows.
        text: What that file says; for finding lines.
        transparent: Whether readers look through it: a view, an embedded model.
        inlined: Whether what it says of an interval is said of its reader's: an embedded model. Of a view it is said once for all.
        problem: Why there is no rendering.
    """

    name: str
    parents: tuple[str, ...] = ()
    renderings: tuple[Rendering, ...] = ()
    time_column: str | None = None
    columns: Mapping[str, str] | None = None
    dialect: str = ""
    file: str = ""
    text: str = ""
    transparent: bool = False
    inlined: bool = False
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
class Written:
    """Something of a query, and whose query it is."""

    node: Any
    owner: ModelQuery


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
        self,
        node: Any,
        ctes: Ctes,
        owner: ModelQuery,
        place: Place,
        outer: Scope | None,
        source: Source | None,
    ) -> Scope:
        self._count += 1
        if self._count > _MOST:
            raise UnreadableError("it is too large to be taken apart")
        sliced = False
        while isinstance(node, (exp.Subquery, exp.Paren)):
            if isinstance(node, exp.Subquery):
                sliced = sliced or any(
                    node.args.get(key) for key in ("limit", "offset", "sample", "pivots", "joins")
                )
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
        renamed = (
            tuple(c.name.lower() for c in (alias.args.get("columns") or ())) if alias is not None else ()
        )
        source = Source(named, scope, node, scope.owner, renamed=renamed)
        scope.sources.append(source)
        inner = node.this
        if isinstance(node, exp.Table) and isinstance(inner, exp.Identifier):
            self._table(source, node, ctes)
        elif isinstance(node, exp.Subquery) and isinstance(
            inner, (exp.Select, exp.SetOperation, exp.Subquery)
        ):
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
