"""Writes the shop's rows into Postgres: each hour of them in one transaction, together with how far it has come.

So it can be killed at any moment and started again, and two that run at once take turns. Tables that are there stay as they are.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg2

from source.people_and_things import SLOT
from source.shop import DDL_OF_CHANGE, Shop, slots
from source.tables import DDL, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from source.faults import Fault

BEGINNING = datetime(2026, 1, 5, tzinfo=UTC)
PIECE = timedelta(hours=1)
_LOCK = 7355608


class SourceError(Exception):
    """The source cannot be written as asked; the text says why, and what to do."""


@dataclass(frozen=True)
class Written:
    """What a call did.

    Attributes:
        start: From where on, UTC.
        until: Up to where the source is written now, UTC, exclusive.
        rows: How many rows were inserted or changed.
        past: Faults whose time was over before `start`: nothing of them was written now.
    """

    start: datetime
    until: datetime
    rows: int
    past: tuple[Fault, ...] = ()


def generate(
    url: str,
    until: datetime,
    *,
    seed: str = "1",
    rate: float = 300.0,
    since: datetime | None = None,
    faults: Iterable[Fault] = (),
    tell: Callable[[datetime, datetime, datetime], None] | None = None,
) -> Written:
    """Write all that happens in the shop and is not written yet.

    Args:
        url: The source database.
        until: Up to when, UTC, exclusive; rounded down to whole five minutes.
        seed: Equal seeds write equal rows. It stays that of the first call.
        rate: Sales an hour, on average over the first week. It stays that of the first call.
        since: Where the history begins, UTC; by default `BEGINNING`, and later that of the first call.
        faults: What goes wrong in what is still to be written. Give the same ones until they are over.
        tell: Is told, after each hour: from where on, up to where, up to where in the end.

    Raises:
        SourceError: The source was begun otherwise, or orphans may not be written.
        psycopg2.Error: The database cannot be used.
    """
    until = _floor(until)
    faults = tuple(faults)
    with closing(psycopg2.connect(url)) as connection:
        first = start = _begun(connection, seed, rate, since, until)
        shop = Shop(seed, rate, _since(connection), faults)
        rows = 0
        while start < until:
            start, count = _piece(connection, shop, until)
            rows += count
            if tell is not None:
                tell(first, start, until)
    # The end of an outage is when all of it is written.
    past = [
        f for f in faults if f.end is not None and (f.end < first or (f.end == first and f.kind != "outage"))
    ]
    return Written(first, start, rows, tuple(past))


def create_tables(url: str) -> None:
    """Create what is missing of the shop's tables, empty; what is there stays as it is."""
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        cursor.execute(DDL)


def _floor(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise SourceError(f"{instant} has no time zone: it has to be UTC")
    return BEGINNING + (instant - BEGINNING) // SLOT * SLOT


def _begun(connection: Any, seed: str, rate: float, since: datetime | None, until: datetime) -> datetime:
    """Create what is missing, and see up to where it is written."""
    with connection, connection.cursor() as cursor:
        cursor.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        cursor.execute(DDL)
        cursor.execute("select seed, rate, since, written_until from shop.generator")
        known = cursor.fetchone()
        if known is None:
            start = _floor(since or BEGINNING)
            if start > until:
                raise SourceError(
                    f"there is nothing between {start:%Y-%m-%d %H:%M} and {until:%Y-%m-%d %H:%M}"
                )
            cursor.execute(
                "insert into shop.generator (seed, rate, since, written_until) values (%s, %s, %s, %s)",
                (seed, rate, start, start),
            )
            return start
        asked = (seed, Decimal(str(rate)), _floor(since) if since is not None else known[2])
        if asked != known[:3]:
            raise SourceError(
                f"this source was begun with seed {known[0]}, rate {float(known[1]):g} and since {known[2].astimezone(UTC):%Y-%m-%dT%H:%M}: go on with these, "
                "or use another database"
            )
        return known[3].astimezone(UTC)  # type: ignore[no-any-return]


def _since(connection: Any) -> datetime:
    with connection, connection.cursor() as cursor:
        cursor.execute("select since from shop.generator")
        return cursor.fetchone()[0].astimezone(UTC)  # type: ignore[no-any-return]


def _piece(connection: Any, shop: Shop, until: datetime) -> tuple[datetime, int]:
    """Write the next hour, or what is left of it: all or nothing."""
    with connection, connection.cursor() as cursor:
        # Whoever else writes has written the next hour when this returns.
        cursor.execute("select written_until from shop.generator for update")
        start = cursor.fetchone()[0].astimezone(UTC)
        end = min(start + PIECE, until)
        if start >= end:
            return start, 0
        if shop.changes_at is not None and end > shop.changes_at:
            cursor.execute(DDL_OF_CHANGE)
        if any(shop.orphans_at(slot) for slot in slots(start, end)):
            try:
                cursor.execute("set local session_replication_role = replica")
            except psycopg2.errors.InsufficientPrivilege:
                raise SourceError(
                    "orphans break the foreign keys, and this role may not switch them off: grant it "
                    "`SET ON PARAMETER session_replication_role`, or leave the fault out"
                ) from None
        count = write(cursor, (row for slot in slots(start, end) for row in shop.rows(slot)))
        cursor.execute("update shop.generator set written_until = %s", (end,))
    return end, count
