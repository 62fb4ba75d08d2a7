"""What goes wrong in the shop, on demand: how often, and when."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, get_args

Kind = Literal[
    "late", "duplicates", "nulls", "negative", "orphans", "late_items", "schema_change", "burst", "outage"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
USUAL: dict[Kind, float] = {
    "late": 0.02,
    "duplicates": 0.02,
    "nulls": 0.01,
    "negative": 0.005,
    "orphans": 0.005,
    "late_items": 0.02,
    "schema_change": 1.0,
    "burst": 8.0,
    "outage": 1.0,
}
"""How often where nobody says: a share of the sales (of the slots, for items), or for a burst how many times as many."""
NEEDS_SPAN = ("burst", "outage")


@dataclass(frozen=True)
class Fault:
    """One sort of fault.

    Attributes:
        kind: `late`: sales reach the source up to three hours after they happened. `duplicates`: a receipt is sent twice, under
            two ids. `nulls`: a quantity or a currency is missing. `negative`: an amount is below zero. `orphans`: a line names an item,
            or a receipt a customer, that does not exist. `late_items`: a change of an item held before it was entered.
            `schema_change`: from its start on, `transactions` has another column. `burst`: many times as many sales. `outage`:
            nothing reaches the source; all of it comes in the five minutes after the end.
        amount: See `USUAL`.
        start: When it begins, UTC; None: with the data.
        end: When it is over, UTC, exclusive; None: never.
    """

    kind: Kind
    amount: float
    start: datetime | None = None
    end: datetime | None = None

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read a fault as it is written on the command line.

        Args:
            text: `KIND`, `KIND=AMOUNT`, each with or without `@START/END`, either of which may be left out:
                `late=0.05`, `outage@2026-01-06T10:00/2026-01-06T11:00`, `schema_change@2026-01-07/`.

        Raises:
            ValueError: It cannot be read, or would do nothing; says what is wrong.
        """
        found = re.fullmatch(r"(\w+)(?:=(\d+\.?\d*|\.\d+))?(?:@([^/]*)/([^/]*))?", text.strip())
        if found is None or found[1] not in KINDS:
            raise ValueError(
                f"{text!r} is no fault: write KIND, KIND=AMOUNT or KIND=AMOUNT@START/END, with KIND one of {', '.join(KINDS)}"
            )
        kind: Kind = found[1]
        fault = cls(
            kind,
            float(found[2]) if found[2] else USUAL[kind],
            instant(found[3]) if found[3] else None,
            instant(found[4]) if found[4] else None,
        )
        if kind in NEEDS_SPAN and (fault.start is None or fault.end is None):
            raise ValueError(f"{text!r} has no span: write {kind}@START/END")
        if fault.start is not None and fault.end is not None and fault.start >= fault.end:
            raise ValueError(f"{text!r} ends before it begins")
        if any(end is not None and end.timestamp() % 300 for end in (fault.start, fault.end)):
            raise ValueError(f"{text!r} begins or ends within five minutes: the shop lives by whole ones")
        if not fault.amount:
            raise ValueError(f"{text!r} does nothing: the amount of {kind} is above 0")
        if kind not in NEEDS_SPAN and not 0 < fault.amount <= 1:
            raise ValueError(f"{text!r}: the amount of {kind} is a share, above 0 and up to 1")
        return fault

    def at(self, instant: datetime) -> bool:
        """Whether it is on."""
        return (self.start is None or self.start <= instant) and (self.end is None or instant < self.end)


def instant(text: str) -> datetime:
    """Read an instant, UTC where it names no zone, or `now`.

    Raises:
        ValueError: It is none.
    """
    if text == "now":
        return datetime.now(UTC)
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no instant: write 2026-01-06T10:00, in UTC, or now") from None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
