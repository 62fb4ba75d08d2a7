"""What a refresh changed of the history that was there before it: the earliest instant of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from meshgate.interval import MIN_INSTANT
from meshgate.ledger import Past

if TYPE_CHECKING:
    from collections.abc import Mapping

    from meshgate.interval import IntervalSet, IntervalUnit

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_S = 86400
_FINE = timedelta(days=7)
_EVER = -(2**53)
"""Where the changes of rows that hold since ever are kept."""

Changes = dict[int, tuple[int, int, int]]


def past(seen: Mapping[int | None, tuple[int, int, int]], upto: datetime) -> Past:
    """What is to be remembered of a table's history before an instant: the last week as it was seen, the rest by days.

    Args:
        seen: Its changes, by the second since 1970 at which a bucket begins; None for rows that hold since ever.
        upto: Where its recorded time ends, UTC.
    """
    fine = _second(upto - _FINE)
    end = _second(upto)
    kept: Changes = {}
    for at, found in seen.items():
        second = _EVER if at is None else at
        if second >= end:
            continue
        if second != _EVER and second < fine:
            second -= second % _DAY_S
        before = kept.get(second, (0, 0, 0))
        kept[second] = (before[0] + found[0], before[1] + found[1], before[2] + found[2])
    return Past(upto, kept)


def compared(
    unit: IntervalUnit,
    covered: IntervalSet,
    known: Past | None,
    seen: Mapping[int | None, tuple[int, int, int]],
) -> tuple[datetime | None, Past]:
    """From when on a table tells another history than it did, as a boundary of its recorded time, and what it tells now.

    Args:
        unit: Of the model.
        covered: What of it is recorded, with what is being recorded now.
        known: Its history as it was recorded last; None where nobody has looked.
        seen: As it is now.
    """
    ends = covered.hull
    assert ends is not None  # noqa: S101 - something is being recorded
    changed = changed_from(known, seen) if known is not None else None
    if changed is not None:
        changed = max(ends.start, unit.floor(changed) if changed > MIN_INSTANT else changed)
    return changed, past(seen, ends.end)


def changed_from(known: Past, seen: Mapping[int | None, tuple[int, int, int]]) -> datetime | None:
    """From which instant on the history is another one than it was; None: it is the same. UTC.

    Args:
        known: As it was when it was recorded last; only what was before `known.upto` is compared.
        seen: As it is now.
    """
    if known.prints is None:
        return MIN_INSTANT
    present = past(seen, known.upto).prints or {}
    other = [at for at in {*present, *known.prints} if present.get(at) != known.prints.get(at)]
    if not other:
        return None
    return MIN_INSTANT if min(other) == _EVER else _EPOCH + timedelta(seconds=min(other))


def _second(instant: datetime) -> int:
    return int((instant - _EPOCH).total_seconds())
