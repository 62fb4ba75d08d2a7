"""When whole tables were looked after. Each method is one statement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshgate.db import json
from meshgate.errors import LeaseLostError
from meshgate.ledger.ranges import to_utc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from meshgate.db import Database


class MaintenanceLedger:
    """The ledger as those use it who rewrite files and leave rows as they are."""

    database: Database

    def note_maintenance(
        self, run_id: int, version_id: int, operation: str, detail: Mapping[str, Any]
    ) -> None:
        """Remember that something was done to a whole table, which the run has reserved.

        Raises:
            LeaseLostError: Somebody else may have it by now; nothing is remembered.
        """
        found = self.database.one(
            "note_maintenance", run_id=run_id, version_id=version_id, operation=operation, detail=json(dict(detail))
        )  # fmt: skip
        if not found["noted"]:
            raise LeaseLostError(f"maintenance {run_id} has lost its lease", run_id=run_id)

    def longest_run(self) -> timedelta:
        """How long the longest run or deploy has taken that the ledger remembers, also one that lives."""
        found: timedelta = self.database.one("longest_run", again=True)["longest"]
        return found

    def maintained(self, version_ids: Iterable[int]) -> dict[tuple[int, str], datetime]:
        """When what was done to which version last, UTC; as far as the history goes back."""
        rows = self.database.rows("maintained", versions=list(version_ids), again=True)
        return {(row["version_id"], row["operation"]): to_utc(row["at"]) for row in rows}
