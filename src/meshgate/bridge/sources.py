"""What a source looks like, cheaply: rows and latest changes by time, in one statement of the engine's own dialect."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

if TYPE_CHECKING:
    from sqlmesh.core.engine_adapter import EngineAdapter

    from meshgate.interval import Interval


def prints(
    adapter: EngineAdapter,
    table: str,
    time_column: str,
    updated_at: str | None,
    time: Interval,
    bucket_s: int,
) -> dict[int, tuple[int, str | None]]:
    """See `SqlmeshProject.prints`."""
    column = exp.column(time_column, quoted=True)
    bucket = exp.Cast(
        this=exp.Floor(
            this=exp.Div(this=exp.TimeToUnix(this=column), expression=exp.Literal.number(bucket_s))
        ),
        to=exp.DataType.build("bigint"),
    )
    latest = exp.Max(this=exp.column(updated_at, quoted=True)) if updated_at else exp.null()
    query = (
        exp.select(
            bucket.as_("bucket"),
            exp.Count(this=exp.Star()).as_("found"),
            exp.cast(latest, exp.DataType.build("text")).as_("latest"),
        )
        .from_(exp.to_table(table))
        .where(column.copy() >= _instant(time.start), column.copy() < _instant(time.end))
        .group_by(bucket.copy())
    )
    return {int(at) * bucket_s: (int(found), latest) for at, found, latest in adapter.fetchall(query)}


def _instant(instant: object) -> exp.Expression:
    return exp.cast(exp.Literal.string(f"{instant:%Y-%m-%d %H:%M:%S}"), exp.DataType.build("timestamp"))
