"""What differs between two versions of a model, and which columns of its parents a query reads.

SQLMesh says *that* a change is breaking; a reviewer wants to know which column. Both are read from rendered queries, so
that a changed macro shows where it is used.
"""

from __future__ import annotations

from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import attrs
from sqlglot import Dialect, exp
from sqlglot.optimizer.pushdown_projections import pushdown_projections
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import traverse_scope
from sqlmesh.core.dialect import Jinja, MacroFunc, normalize_mapping_schema

from meshgate.graph import name_parts

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from sqlmesh.core.model import Model
    from sqlmesh.core.snapshot import Snapshot

ALL_COLUMNS = "*"
"""In the place of the columns that a query reads where they cannot be told apart."""
_UNKNOWN = "UNKNOWN"  # as SQLMesh calls the type of a column that nothing declares
# Of a model's properties: what is compared as it is, and how it is called for people.
_PROPERTIES = {
    "cron": "cron",
    "cron_tz": "cron_tz",
    "interval_unit": "interval_unit",
    "start": "start",
    "end": "end",
    "lookback": "lookback",
    "batch_size": "batch_size",
    "forward_only": "forward_only",
    "disable_restatement": "disable_restatement",
}


@attrs.frozen
class Difference:
    """One thing that differs between two versions of a model.

    Attributes:
        what: `column_added`, `column_removed`, `column_retyped`, `column_redefined`, `query` (which rows it selects),
            `code` (a macro or Python function), `seed`, `kind`, `audits`, `statements`, one of a model's own properties
            (`cron`, `start`, ...), `star` (a `SELECT *` finds other columns), or `metadata`.
        name: Of the column, where it is about one.
        before: As text, where that is short enough to be told.
        after: The same.
    """

    what: str
    name: str | None = None
    before: str | None = None
    after: str | None = None


def differences(old: Snapshot, new: Snapshot) -> tuple[Difference, ...]:
    """What differs between two versions of a model, in a fixed order; nothing for what is only its parents' doing."""
    found = list(_differences(old.model, new.model))
    if not found and new.is_directly_modified(old):
        # Without a star it is only qualified differently: its parents' doing.
        if _selects_all(new.model):
            found.append(Difference("star"))
    elif not found and old.fingerprint.metadata_hash != new.fingerprint.metadata_hash:
        found.append(Difference("metadata"))
    return tuple(found)


def _selects_all(model: Model) -> bool:
    """Whether a query says `SELECT *` somewhere; also where nobody can tell."""
    query = _query(model, needs_optimization=False, start="1970-01-01")
    return query is None or any(
        isinstance(s.parent, (exp.Select, exp.Column)) for s in query.find_all(exp.Star)
    )


def _differences(old: Model, new: Model) -> Iterator[Difference]:
    if old.kind.name != new.kind.name:
        yield Difference("kind", before=old.kind.name.value, after=new.kind.name.value)
    yield from _columns(old, new)
    for attribute, what in _PROPERTIES.items():
        was, now = (_text(getattr(model, attribute, None)) for model in (old, new))
        if was != now:
            yield Difference(what, before=was, after=now)
    if old.kind.name == new.kind.name and old.time_column != new.time_column:
        yield Difference("kind", before=_text(old.time_column), after=_text(new.time_column))
    if old.is_seed and new.is_seed and _seed(old) != _seed(new):
        yield Difference("seed")
    if _code(old) != _code(new):
        yield Difference("code")
    if _statements(old) != _statements(new):
        yield Difference("statements")
    checked, checks = _audits(old), _audits(new)
    if checked != checks:
        yield Difference("audits", before=", ".join(sorted(checked)), after=", ".join(sorted(checks)))


def _columns(old: Model, new: Model) -> Iterator[Difference]:
    """Columns by name: those that are there, their types, and what they are made of."""
    was, now = columns_of(old), columns_of(new)
    retyped = {n for n in set(was) & set(now) if was[n] != now[n] and _UNKNOWN not in (was[n], now[n])}
    for name in sorted(set(was) ^ set(now) | retyped):
        what = "retyped" if name in retyped else "added" if name in now else "removed"
        yield Difference(f"column_{what}", name, was.get(name), now.get(name))
    if rendered_alike(old, new):
        return
    # As written, but for macros: what is qualified differs as soon as a parent's columns do.
    # (With a start, as SQLMesh would answer from its cache of qualified ones.)
    before, after = (_query(model, needs_optimization=False, start="1970-01-01") for model in (old, new))
    if before is None or after is None:
        return
    made, makes = _projections(before), _projections(after)
    if made is None or makes is None:
        rest = (before, after)
    else:
        rest = (_rest(before), _rest(after))
        for name in sorted(set(made) & set(makes) - retyped):
            if made[name] != makes[name]:
                yield Difference("column_redefined", name, made[name].text, makes[name].text)
    if rest[0] != rest[1]:
        yield Difference("query")


def rendered_alike(old: Model, new: Model) -> bool:
    """Whether two versions' queries are the same text in the same surroundings, so that nobody has to render them to compare.

    False says nothing. Macros may look at the columns of what is read, and at anything that the project defines.
    """
    if not old.is_sql or not new.is_sql:
        return False
    with suppress(AttributeError):  # another version of SQLMesh: then it is rendered
        before, after = _surroundings(old), _surroundings(new)
        # Of Jinja more than that may matter.
        return "JINJA" not in before[0] and before == after
    return False


def _surroundings(model: Any) -> tuple[Any, ...]:
    """What a query's rendering depends on: as text, since what is parsed on the way makes objects unequal."""
    return (
        model.query_.sql, model.dialect, model.default_catalog, model.python_env, model.jinja_macros.data_hash_values,
        model.mapping_schema, model.depends_on,
    )  # fmt: skip


def columns_of(model: Model) -> dict[str, str]:
    """A model's columns and their types, as far as they are known."""
    return {name: str(kind.sql(model.dialect)) for name, kind in (model.columns_to_types or {}).items()}


def _query(model: Model, **how: Any) -> exp.Expression | None:
    if not model.is_sql:
        return None
    # What cannot be rendered here, as a macro's package is missing, is compared by its code alone.
    with suppress(Exception):
        return model.render_query(**how)
    return None


@attrs.frozen
class _Made:
    """What a column is made of; `text` is for people, without the quotes that rendering puts around every name."""

    sql: str
    text: str = attrs.field(eq=False)


def _projections(query: Any) -> dict[str, _Made] | None:
    """What each column of a SELECT is made of."""
    if not isinstance(query, exp.Select) or query.is_star:
        return None
    found: dict[str, _Made] = {}
    for projection in query.selects:
        bare = projection.unalias().copy()
        sql = str(bare.sql(comments=False))
        for identifier in bare.find_all(exp.Identifier):
            identifier.args["quoted"] = False
        found[projection.alias_or_name] = _Made(sql, str(bare.sql(comments=False)))
    return found


def _rest(query: Any) -> str:
    """A query without the columns that it gives: which rows there are."""
    bare = query.copy()
    bare.set("expressions", [exp.Literal.number(1)])
    return str(bare.sql(comments=False))


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return str(getattr(value, "value", value))


def _seed(model: Model) -> Any:
    return model.column_hashes


def _code(model: Model) -> dict[str, str]:
    """Macros and Python functions that its data depends on."""
    found = {name: e.payload for name, e in model.python_env.items() if not e.is_metadata}
    return found | {
        f"jinja:{name}": macro.definition for name, macro in model.jinja_macros.root_macros.items()
    }


def _statements(model: Model) -> list[str]:
    return [s.sql(comments=False) for s in (*model.pre_statements, *model.post_statements)]


def _audits(model: Model) -> dict[str, str]:
    """Which audits, with which arguments, and what they ask where the project defines them itself."""
    found: dict[str, str] = {}
    for name, arguments in model.audits:
        told = [f"{key}={value.sql()}" for key, value in sorted(arguments.items())]
        own = model.audit_definitions.get(name)
        found[name] = "\n".join([*told, *([own.query.sql(comments=False), str(own.blocking)] if own else [])])
    return found


def reads(
    model: Model, gone: Mapping[str, Mapping[str, exp.DataType]] | None = None
) -> Mapping[str, frozenset[str]]:
    """The columns that a model's query reads of each parent, wherever they stand in it.

    What a star brings along counts only where something is made of it. A parent of which that cannot be told (a star over
    unknown columns, Python, Jinja that cannot be rendered) has `ALL_COLUMNS`.

    Args:
        model: With the columns of its parents as they are then.
        gone: Columns that parents had so far and have no more: whoever names one reads it still, wherever it came from.
    """
    unknown = dict.fromkeys(model.depends_on, frozenset((ALL_COLUMNS,)))
    query = _query(model)
    if query is None:
        return unknown
    found: Mapping[str, frozenset[str]] = unknown
    with suppress(Exception):  # SQL that the optimizer does not understand is no reason to know nothing else
        found = unknown | _read(model, query, model.mapping_schema)
    lost = {parent: columns for parent, columns in (gone or {}).items() if parent in model.depends_on}
    # As written: SQLMesh has filled in the stars of the other one, and they find nothing any more.
    written = _query(model, needs_optimization=False, start="1970-01-01") if lost else None
    if written is not None:
        with suppress(Exception):
            still = _read(model, written, _with(model.mapping_schema, lost), only=model.columns_to_types)
            said = {one.name for one in written.find_all(exp.Identifier)}
            kept = {parent: still.get(parent, frozenset()) & set(lost[parent]) & said for parent in lost}
            found = {**found, **{parent: found[parent] | kept[parent] for parent in lost}}
    return found


def named(model: Model) -> frozenset[str] | None:
    """What a model's query calls by name, columns and all else; None where macros or Jinja may name anything.

    Of the columns that it reads, the others come with a star: whether they are there makes no difference to it.
    """
    if not model.is_sql or any(model.query.find_all(MacroFunc, Jinja)):
        return None
    dialect = Dialect.get_or_raise(model.dialect)
    return frozenset(
        dialect.normalize_identifier(one.copy()).name for one in model.query.find_all(exp.Identifier)
    )


def _with(schema: Mapping[str, Any], more: Mapping[str, Mapping[str, exp.DataType]]) -> dict[str, Any]:
    """A schema in which tables have more columns."""
    found = deepcopy(dict(schema))
    for name, columns in more.items():
        place = found
        for part in name_parts(name):
            place = place.setdefault(f'"{part}"', {})
        for column, kind in columns.items():
            place.setdefault(column, kind)
    return found


def _read(
    model: Model, query: exp.Expression, columns: Mapping[str, Any], only: Collection[str] | None = None
) -> dict[str, frozenset[str]]:
    """What a query reads, given the columns of tables; `only`: the columns that it gives are these, whatever a star finds."""
    schema = normalize_mapping_schema(columns, dialect=model.dialect)
    qualified = qualify(
        query.copy(),
        dialect=model.dialect,
        schema=schema,
        validate_qualify_columns=False,
        # A column that is not there is what this has to find.
        allow_partial_qualification=True,
        infer_schema=True,
    )
    if only is not None:
        _keep(qualified, only)
    with suppress(Exception):  # then what a star brings along counts as read
        qualified = pushdown_projections(qualified.copy(), schema=schema, dialect=model.dialect)
    found: dict[str, set[str]] = {}
    for scope in traverse_scope(qualified):
        tables = {a: s for a, s in scope.sources.items() if isinstance(s, exp.Table)}
        # Columns of what stands inside of it are its own business, unless they say whose they are.
        bare = {c.name for c in scope.columns if not c.table and c.parent_select is scope.expression}
        for alias, table in tables.items():
            read = found.setdefault(_name(table), set())
            if any(isinstance(star.parent, (exp.Select, exp.Column)) for star in scope.stars):
                read.add(ALL_COLUMNS)
            read |= {c.name for c in scope.columns if c.table == alias}
            if len(scope.sources) == 1:
                read |= bare
    return {name: frozenset(columns) for name, columns in found.items() if name in model.depends_on}


def _keep(query: exp.Expression, columns: Collection[str]) -> None:
    """Leave out what a query gives besides some columns: they are those of its first SELECT, by name, else by place."""
    selects = [query]
    while any(isinstance(one, exp.SetOperation) for one in selects):
        selects = [
            side
            for one in selects
            for side in ((one.left, one.right) if isinstance(one, exp.SetOperation) else (one,))
        ]
        selects = [one.this if isinstance(one, exp.Subquery) else one for one in selects]
    kept = [place for place, name in enumerate(selects[0].named_selects) if name in columns]
    if not kept or len({len(one.selects) for one in selects}) > 1:
        return
    for one in selects:
        one.set("expressions", [one.selects[place] for place in kept])


def _name(table: exp.Table) -> str:
    return ".".join(f'"{part.name}"' for part in table.parts)
