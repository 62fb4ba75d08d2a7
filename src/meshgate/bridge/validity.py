"""From when to when the rows of a table hold, as its engine tells: what a late-arriving row changes of its history.

A row that holds from one instant to another is two changes: it comes, and it goes. The history of a table before an
instant is all changes before that instant, whatever becomes of the rows afterwards: that a row which held until further
notice has come to its end is no change of what was before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen
from sqlglot import exp

from meshgate.bridge.rows import digest_of, sums
from meshgate.interval import IntervalUnit

if TYPE_CHECKING:
    from datetime import timedelta

    from sqlmesh.core.engine_adapter import EngineAdapter
    from sqlmesh.core.snapshot import Snapshot

_DAY_S = 86400


@frozen
class Validity:
    """The columns of a table that tell from when to when a row holds.

    Attributes:
        since: The instant from which it holds; null: since ever.
        until: The instant at which it ends; null: not yet. None: there is no such column.
        known_since: What stands for `since` where that is SQLMesh's placeholder for "not known", the beginning of 1970.
    """

    since: str
    until: str | None = None
    known_since: str | None = None


def validity_of(snapshot: Snapshot, declared: tuple[str, str | None] | None) -> Validity | None:
    """The validity columns of a model: as declared, or as its kind has them; None where it has none.

    Args:
        snapshot: Of the model.
        declared: In `meshgate.yaml`: from and to; an empty name: it is not to be looked at.
    """
    if declared is not None:
        return Validity(*declared) if declared[0] else None
    kind = snapshot.model.kind
    if not kind.is_scd_type_2:
        return None
    since, until = kind.valid_from_name.name, kind.valid_to_name.name
    if kind.is_scd_type_2_by_time and not kind.updated_at_as_valid_from:
        return Validity(since, until, kind.updated_at_name.name)
    return Validity(since, until)


def history(
    adapter: EngineAdapter, snapshot: Snapshot, declared: tuple[str, str | None] | None
) -> dict[int | None, tuple[int, int, int]] | None:
    """What a table that was written as a whole tells of its past, see `changes`; None where it has no validity columns."""
    if snapshot.is_audit or snapshot.is_incremental_by_time_range or snapshot.is_seed or snapshot.is_view:
        return None
    validity = validity_of(snapshot, declared)
    if validity is None:
        return None
    unit = IntervalUnit(snapshot.node.interval_unit.value)
    return changes(adapter, snapshot.table_name(), validity, unit.approximate)


def changes(
    adapter: EngineAdapter, table: str, validity: Validity, unit: timedelta
) -> dict[int | None, tuple[int, int, int]]:
    """All changes of a table's history, by the bucket of time in which they happened, in one statement.

    Args:
        adapter: The engine.
        table: The table.
        validity: Its validity columns.
        unit: How long a bucket is; no longer than a day.

    Returns:
        How many changes, and two sums of digests of them, by the second since 1970 at which the bucket begins; None for
        rows that hold since ever. Equal sums: the same changes, as far as 64 bits of an MD5 tell.

    Raises:
        ValueError: The table has no such column.
    """
    columns = {name.lower(): name for name in adapter.columns(table)}
    for name in (validity.since, validity.until, validity.known_since):
        if name is not None and name.lower() not in columns:
            raise ValueError(
                f"{table} has no column {name}, which is to tell from when to when its rows hold"
            )
    since = columns[validity.since.lower()]
    until = columns[validity.until.lower()] if validity.until else None
    known = columns[validity.known_since.lower()] if validity.known_since else None
    bucket_s = min(int(unit.total_seconds()), _DAY_S)
    query = changes_query(
        table, [c for c in columns.values() if c not in (since, until)], since, until, known, bucket_s
    )
    return {
        None if at is None else int(at): (int(count), int(first), int(second))
        for at, count, first, second in adapter.fetchall(query, quote_identifiers=True)
    }


def changes_query(
    table: str, content: list[str], since: str, until: str | None, known_since: str | None, bucket_s: int
) -> exp.Expression:
    """The statement of `changes`, in no engine's dialect."""
    second = _second(since)
    if known_since is not None:
        second = exp.case().when(_second(since).eq(0), _second(known_since)).else_(second)
    events: Any = _events(table, second, "from", content, bucket_s)
    if until is not None:
        ended = _events(table, _second(until), "to", content, bucket_s).where(
            _column(until).is_(exp.null()).not_()
        )
        events = events.union(ended, distinct=False)
    return sums(events, "at")


def _events(table: str, second: exp.Expression, what: str, content: list[str], bucket_s: int) -> exp.Select:
    bucket = exp.Floor(this=exp.Div(this=exp.paren(second), expression=exp.Literal.number(bucket_s)))
    at = exp.cast(exp.Mul(this=bucket, expression=exp.Literal.number(bucket_s)), "bigint")
    return exp.select(
        exp.alias_(at, "at", quoted=True), exp.alias_(digest_of(what, content), "digest", quoted=True)
    ).from_(exp.to_table(table))


def _column(name: str) -> exp.Column:
    return exp.column(name, quoted=True)


def _second(name: str) -> exp.Expression:
    return exp.TimeToUnix(this=_column(name))
