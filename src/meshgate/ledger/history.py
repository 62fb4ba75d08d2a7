"""Everything that the ledger holds and remembers, row by row, for whoever derives it anew. Slow, and read only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from meshgate.interval import IntervalSet
from meshgate.ledger.ranges import to_interval, to_range, to_utc

if TYPE_CHECKING:
    from datetime import datetime

    from meshgate.db import Database
    from meshgate.interval import Interval


@attrs.frozen
class Change:
    """Time of a version that was made anew, and when; UTC."""

    revision: int
    at: datetime
    time: IntervalSet


class HistoryLedger:
    """The ledger as those use it who check it. Rows are dictionaries; `interval` is half-open, UTC."""

    database: Database

    def forgotten(self) -> int:
        """Up to which revision the history is gone, or tells too little."""
        return int(self.database.one("forgotten")["revision"])

    def history(self) -> list[dict[str, Any]]:
        """All events that are remembered, oldest first."""
        rows = self.database.rows("history")
        return [{**_timed(row), "at": to_utc(row["at"])} for row in rows]

    def changes(self, version_id: int, interval: Interval, revision: int) -> tuple[Change, ...]:
        """What of a version's time was made anew after a revision, as far as that is remembered, oldest first."""
        rows = self.database.rows(
            "changes", version_id=version_id, span=to_range(interval), revision=revision, again=True
        )
        return tuple(
            Change(row["revision"], to_utc(row["at"]), IntervalSet([to_interval(row["span"])]))
            for row in rows
        )

    def versions(self) -> list[dict[str, Any]]:
        """Every version: version_id, model, project, version, kind, as_of."""
        return self.database.rows("versions")

    def everything_recorded(self) -> list[dict[str, Any]]:
        """All rows of coverage, by version and time."""
        return [_timed(row) for row in self.database.rows("everything_recorded")]

    def dirty_spans(self) -> list[dict[str, Any]]:
        """Between which revisions each table held rows that nobody had judged."""
        return self.database.rows("dirty_spans")

    def run_environments(self) -> dict[int, str]:
        """The environment of each run."""
        return {row["run_id"]: row["environment"] for row in self.database.rows("run_environments")}

    def orphaned_claims(self) -> list[dict[str, Any]]:
        """Claims that live though their run has ended."""
        return [_timed(row) for row in self.database.rows("orphaned_claims")]


def _timed(row: dict[str, Any]) -> dict[str, Any]:
    span = row.pop("span")
    return {**row, "interval": None if span is None else to_interval(span)}
