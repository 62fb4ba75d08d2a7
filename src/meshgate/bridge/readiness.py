"""What SQLMesh tells a signal, in meshgate's terms."""

from __future__ import annotations

from datetime import UTC
from typing import TYPE_CHECKING, Any

import attrs
from sqlmesh.utils.date import now, to_datetime

from meshgate.bridge.scheduler import UNDER_LEDGER
from meshgate.bridge.translate import Promoted, interval, promoted
from meshgate.interval import Interval, IntervalSet

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime


@attrs.frozen
class Batch:
    """What a signal is asked about.

    Attributes:
        name: The model.
        units: The intervals, in the order in which they were asked for.
        plan: What SQLMesh is executing.
        made: What this execution is about to make for the model's parents; None where SQLMesh does not tell.
        now: The process's idea of the present, UTC.
    """

    name: str
    units: tuple[Interval, ...]
    plan: Promoted
    made: IntervalSet | None
    now: datetime

    @classmethod
    def of(cls, batch: Iterable[tuple[datetime, datetime]], context: Any, snapshot: Any) -> Batch:
        """From a signal's arguments."""
        present = to_datetime(now())
        made = getattr(context, "parent_intervals", None)
        return cls(
            snapshot.name,
            tuple(interval(start, end) for start, end in batch),
            promoted(list(context.snapshots.values()), plan_id=None, finalized=True, now=present),
            None if made is None else IntervalSet(interval(start, end) for start, end in made),
            present.astimezone(UTC),
        )


def under_ledger() -> bool:
    """Whether meshgate's own scheduler asks: its gate has spoken."""
    return UNDER_LEDGER.get()
