"""Where each column of a query comes from: which source it means, and what it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen
from sqlglot import exp

from meshgate.windows.scopes import Scope, Source, part

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    if source.scope is None:
        return [None]
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
    explicit = [p for p in scope.node.expressions if not _is_star(p) and p.alias_or_name.lower() == column]
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
