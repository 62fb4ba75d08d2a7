"""What people decide about ranges: hold, release, accept. Each method is one SQL function, one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from meshgate.errors import ClaimConflictError
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval
from meshgate.ledger.ranges import to_instant, to_interval, to_range, to_utc
from meshgate.ledger.record import Hold

if TYPE_CHECKING:
    from meshgate.db import Database


@attrs.frozen
class Judged:
    """What a standalone audit has looked at.

    Attributes:
        version_id: Of a model that it reads.
        interval: Which time of it, UTC.
        held: Why a policy keeps it from its readers; None: it does not, nor what this audit made it hold there before.
    """

    version_id: int
    interval: Interval
    held: str | None


class HoldLedger:
    """The ledger as those use it who keep ranges from readers, or take them as they are."""

    database: Database

    def hold(self, model: str, interval: Interval, *, reason: str, by: str) -> int:
        """Keep a range of a model from its readers; the hold's key. The model's own evaluation goes on.

        Args:
            model: Its full name.
            interval: Which time, UTC.
            reason: Why.
            by: Who, for the history.

        Raises:
            LedgerError: No such model, or nothing is told.
        """
        return int(
            self.database.one(
                "hold_range", model=model, span=to_range(interval), reason=reason, by=by, again=True
            )["hold_id"]
        )

    def release(self, model: str, interval: Interval, *, by: str) -> tuple[Hold, ...]:
        """Let readers have a range again; what was held of it. The rest of a longer hold goes on."""
        # Not said again where the answer was lost: the second one would be that nothing was held.
        rows = self.database.rows("release_holds", model=model, span=to_range(interval), by=by)
        return tuple(
            Hold(to_interval(r["released"]), r["why"], r["held_by"], to_utc(r["since"])) for r in rows
        )

    def accept(
        self, version_id: int, interval: Interval, *, lookback: Interval | None, reason: str, by: str
    ) -> tuple[Interval, ...] | None:
        """Take a range as it is: what of it is missing or doubted counts as recorded from now on.

        Args:
            version_id: The version.
            interval: Which time of it, UTC; all of it is over.
            lookback: The units before it that have to be read again because of it.
            reason: Why.
            by: Who, for the history.

        Returns:
            What was recorded with the verdict `accepted`; of a table that is one whole, perhaps nothing but its doubt
            was ended. None where all of it is clean.

        Raises:
            ClaimConflictError: A run is writing there, or a lost one still may.
        """
        answer = self.database.one(
            "accept_range", version_id=version_id, span=to_range(interval), lookback=to_range(lookback),
            reason=reason, by=by,
        )["answer"]  # fmt: skip
        if busy := answer.get("busy"):
            raise _in_the_way(busy)
        if answer.get("clean"):
            return None
        return tuple(_interval(piece) for piece in answer["accepted"])

    def undo_accept(self, version_id: int, interval: Interval, *, by: str) -> tuple[Interval, ...]:
        """Make due again what was accepted; the ranges."""
        rows = self.database.rows(
            "undo_accept", version_id=version_id, span=to_range(interval), by=by, again=True
        )
        return tuple(to_interval(row["span"]) for row in rows)

    def adopt_accepted(self, run_id: int, version_id: int) -> tuple[Interval, ...]:
        """What was accepted of a version, and this run now has to write into SQLMesh's own record.

        Raises:
            LeaseLostError: The run may not write any more.
        """
        rows = self.database.rows("adopt_accepted", run_id=run_id, version_id=version_id)
        return tuple(to_interval(row["span"]) for row in rows)


def _interval(found: dict[str, Any]) -> Interval:
    return Interval(to_instant(found["start"], MIN_INSTANT), to_instant(found["end"], MAX_INSTANT))


def _in_the_way(busy: dict[str, Any]) -> ClaimConflictError:
    until = to_instant(busy["until"], MAX_INSTANT)
    run = f"run {busy['run_id']} of {busy['project']!r}"
    lost = busy["claim"] == "lost"
    did = (
        f"{run} was lost while it evaluated it, and may write until"
        if lost
        else f"{run} is evaluating it, its lease until"
    )
    return ClaimConflictError(
        f"{_interval(busy)} cannot be accepted: {did} {until:%Y-%m-%d %H:%M:%SZ}",
        hint="accept it afterwards; `meshgate lease` shows who works",
        run_id=busy["run_id"],
    )
