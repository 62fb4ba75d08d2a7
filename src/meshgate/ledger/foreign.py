"""What somebody else did: SQLMesh's own record, compared with the ledger's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshgate.errors import ConfigError, LedgerError, SchemaVersionError
from meshgate.ledger.ranges import to_interval, to_range

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from meshgate.db import Database
    from meshgate.interval import Interval, IntervalSet


class ForeignLedger:
    """The ledger as reconciliation uses it."""

    database: Database

    def reconcile_version(
        self, version_id: int, state: IntervalSet, *, trusted: IntervalSet, gated: bool, read_at: datetime
    ) -> tuple[tuple[str, Interval], ...]:
        """Compare SQLMesh's record of one version, read at `read_at`, with the ledger's; what was found.

        Args:
            version_id: The version.
            state: What SQLMesh has recorded.
            trusted: What of it is taken as it is.
            gated: Whether it has gated parents.
            read_at: The database's instant just before `state` was read, UTC.

        Returns:
            Pairs of `added`, `suspect`, `removed` or `unmirrored`, and the range.
        """
        rows = self.database.rows(
            "reconcile_version", version_id=version_id, state=[to_range(i) for i in state],
            trusted=[to_range(i) for i in trusted], gated=gated, read_at=read_at,
        )  # fmt: skip
        return tuple((row["finding"], to_interval(row["span"])) for row in rows)

    def find_rewritten(
        self,
        version_id: int,
        *,
        again: IntervalSet,
        altered: datetime | None,
        explained: bool,
        suspect: bool,
        removed: Mapping[str, Interval],
    ) -> tuple[tuple[str, Interval], ...]:
        """What plain SQLMesh has computed a second time, as far as its record lets that be known.

        Args:
            version_id: The version.
            again: What an addition that was found is taken to have computed again besides.
            altered: When the table was written last, by SQLMesh's record, UTC.
            explained: Whether something that was added explains that.
            suspect: Whether a version that was rewritten, nobody knows where, is suspect as a whole.
            removed: What was removed from SQLMesh's record, as its log says now, by the log's keys.

        Returns:
            Pairs of `suspect` or `removed` and the range, and of `rewritten` and all of time.
        """
        rows = self.database.rows(
            "find_rewritten", version_id=version_id, redone=[to_range(i) for i in again], altered=altered,
            explained=explained, suspect=suspect, keys=list(removed), removed=[to_range(i) for i in removed.values()],
        )  # fmt: skip
        return tuple((row["finding"], to_interval(row["span"])) for row in rows)

    def has_unmirrored(self, environment: str) -> bool:
        """Whether a run ended between its record here and SQLMesh's."""
        return bool(self.database.one("has_unmirrored", environment=environment, again=True)["found"])

    def sqlmesh_fingerprint(self, schema: str, environment: str) -> str | None:
        """A cheap sign of SQLMesh's own tables in this database, or None where they are not here."""
        try:
            found = self.database.rows(
                "sqlmesh_fingerprint", schema=schema, environment=environment, again=True
            )
        except (LedgerError, SchemaVersionError, ConfigError):  # in another database, or not for this role
            return None
        return str(found[0]["fingerprint"])

    def set_fingerprint(self, environment: str, fingerprint: str | None) -> None:
        """Remember up to which state of SQLMesh's tables the environment was reconciled."""
        self.database.rows("set_fingerprint", environment=environment, fingerprint=fingerprint)
