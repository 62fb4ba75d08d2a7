"""Models' queries as SQLMesh renders them: for looking at them, not for running them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
from sqlmesh.core.macros import RuntimeStage

from meshgate.bridge.failures import describe
from meshgate.interval import Interval, IntervalUnit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime
    from pathlib import Path

    from sqlmesh.core.model import Model

    Bounds = Callable[[IntervalUnit], Iterable[tuple[Interval, datetime]]]


@attrs.frozen(eq=False)
class Rendered:
    """What a model reads and how.

    Attributes:
        name: Fully qualified, as SQLMesh names the snapshot.
        parents: The names that its query reads.
        queries: SQLGlot's trees, each with the interval and the time of execution that it was rendered for; empty where
            nobody asked, or where there is none.
        time_column: By which its table is partitioned by time, or None.
        columns: The types of its columns, in SQLGlot's words; None where they are not known.
        transparent: Whether readers look through it.
        inlined: Whether its query becomes a part of its readers' queries, and is rendered for their intervals.
        dialect: SQLGlot's name of its dialect.
        file: Its file, relative to the project's folder if it is in there; empty where it is not known.
        text: What that file says.
        problem: Why it could not be rendered.
    """

    name: str
    parents: tuple[str, ...]
    queries: tuple[tuple[Interval, datetime, Any], ...]
    time_column: str | None
    columns: dict[str, str] | None
    transparent: bool
    inlined: bool
    dialect: str
    file: str
    text: str
    problem: str | None


def rendered(model: Model, folder: Path, bounds: Bounds | None) -> Rendered:
    """Look at one model.

    Args:
        model: As it is loaded.
        folder: The folder of its project.
        bounds: For which intervals, and which times of execution, to render it by its interval unit; None: not at all.
    """
    queries: tuple[tuple[Interval, datetime, Any], ...] = ()
    problem: str | None = None
    if not model.is_sql:
        problem = f"it is a {model.source_type} model"
    elif bounds is not None:
        try:
            queries = tuple(
                (interval, execution, _query(model, interval, execution))
                for interval, execution in bounds(_unit(model))
            )
        except Exception as error:  # noqa: BLE001 - macros may raise whatever they like
            problem = f"it cannot be rendered: {describe(error).get('message')}"
    file, text = _file(model, folder)
    return Rendered(
        name=model.fqn,
        parents=tuple(sorted(model.depends_on)),
        queries=queries,
        time_column=_time_column(model),
        columns=_columns(model),
        transparent=bool(model.kind.is_view or model.kind.is_embedded),
        inlined=bool(model.kind.is_embedded),
        dialect=model.dialect,
        file=file,
        text=text,
        problem=problem,
    )


def _unit(model: Model) -> IntervalUnit:
    """By which its intervals are cut: of what is inlined, as finely as any reader's, so that no rounding is taken for the interval's own end."""
    return IntervalUnit.FIVE_MINUTE if model.kind.is_embedded else IntervalUnit(model.interval_unit.value)


def _query(model: Model, interval: Interval, execution: datetime) -> Any:
    query = model.render_query_or_raise(
        start=interval.start,
        end=interval.end,
        execution_time=execution,
        runtime_stage=RuntimeStage.EVALUATING,
        needs_optimization=False,
    )
    return query.copy()  # SQLMesh may keep what it rendered


def _time_column(model: Model) -> str | None:
    if not model.kind.is_incremental_by_time_range or model.time_column is None:
        return None
    return str(model.time_column.column.name) or None


def _columns(model: Model) -> dict[str, str] | None:
    try:
        found = model.columns_to_types
    except Exception:  # noqa: BLE001 - to find them SQLMesh renders and optimises the query
        return None
    return (
        {name: str(getattr(kind.this, "name", kind.this)) for name, kind in found.items()} if found else None
    )


def _file(model: Model, folder: Path) -> tuple[str, str]:
    path = getattr(model, "_path", None)
    if path is None:
        return "", ""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path), text
