"""Intervals and instants as the driver wants them, and back: the ledger's seam to Postgres."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from meshgate.db import timestamp_range
from meshgate.interval import MAX_INSTANT, MIN_INSTANT, Interval


def to_range(interval: Interval | None) -> Any:
    """An interval as a parameter; the ends of time as open ends."""
    if interval is None:
        return None
    return timestamp_range(
        None if interval.start == MIN_INSTANT else interval.start,
        None if interval.end == MAX_INSTANT else interval.end,
    )


def to_utc(instant: datetime) -> datetime:
    """An aware instant in UTC."""
    return instant.astimezone(UTC)


def to_interval(found: Any) -> Interval:
    """A range that the driver read; open ends as the ends of time."""
    return Interval(
        to_utc(found.lower) if found.lower is not None else MIN_INSTANT,
        to_utc(found.upper) if found.upper is not None else MAX_INSTANT,
    )


def to_instant(text: str | None, default: datetime) -> datetime:
    """An instant out of a JSON answer."""
    return to_utc(datetime.fromisoformat(text)) if text else default
