"""The ledger, typed: what may be asked of it and told to it. The only caller of `sql/queries.sql`.

Each method that changes something is one SQL function, one statement, one transaction; the rules are in
`sql/schema.sql`. Instants are aware UTC datetimes, intervals half-open; a claim or a mark on a whole table
has the interval `[MIN_INSTANT, MAX_INSTANT)`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval
from meshgate.ledger.foreign import ForeignLedger
from meshgate.ledger.history import Change, HistoryLedger
from meshgate.ledger.holds import HoldLedger, Judged
from meshgate.ledger.maintenance import MaintenanceLedger
from meshgate.ledger.record import (
    CoverageRow,
    Hold,
    LiveClaim,
    Manifest,
    Mark,
    Newer,
    RecordLedger,
    Stale,
    VersionState,
)
from meshgate.ledger.requests import Observation, Pace, Request, RequestLedger
from meshgate.ledger.work import (
    BackOff,
    Begun,
    Busy,
    ClaimAnswer,
    Lease,
    Limits,
    LiveRun,
    Past,
    Refusal,
    WorkLedger,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

WHOLE = Interval(MIN_INSTANT, MAX_INSTANT)
"""The claim or mark of an as-of table: all of time."""


class Ledger(
    WorkLedger, RecordLedger, ForeignLedger, RequestLedger, HoldLedger, HistoryLedger, MaintenanceLedger
):
    """One ledger in one database."""

    @contextmanager
    def still(self) -> Iterator[Ledger]:
        """The ledger as it is at one instant, for reading only, whatever goes on."""
        with self.database.still() as database:
            yield Ledger(database)


__all__ = [
    "WHOLE",
    "BackOff",
    "Begun",
    "Busy",
    "Change",
    "ClaimAnswer",
    "CoverageRow",
    "Hold",
    "Judged",
    "Lease",
    "Ledger",
    "Limits",
    "LiveClaim",
    "LiveRun",
    "Manifest",
    "Mark",
    "Newer",
    "Observation",
    "Pace",
    "Past",
    "Refusal",
    "Request",
    "Stale",
    "VersionState",
]
