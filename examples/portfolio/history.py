"""The history that `make demo` tells: what the schedulers, the shop and some people do, as data.

`demo.py` plays it with meshgate and tells it; `plain.py` plays the same with plain SQLMesh.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

import psycopg2
import source
from source.shop import Shop
from source.tables import LineItem

if TYPE_CHECKING:
    from collections.abc import Sequence

RATE, SEED = 2_000.0, "1"
MOST_HOURS = 5

What = Literal["chapter", "deploy", "run", "twice", "why", "correct", "colleague", "retry"]


@dataclass(frozen=True)
class Deed:
    """One thing that happens.

    Attributes:
        what: `chapter`: the story goes on. `deploy`: both projects. `run`: a scheduler starts a project. `twice`: two schedulers start it at
            once. `why`: somebody asks. `retry`: somebody says that what failed can be tried again. `correct`: the shop sends the wrong lines of the broken till again. `colleague`: somebody runs a
            project with plain SQLMesh.
        at: When, UTC.
        about: Which project or model, or the chapter's title.
    """

    what: What
    at: datetime
    about: str = ""


def at(hours: int, minutes: int = 0) -> datetime:
    """An instant of the story, UTC."""
    return source.BEGINNING + timedelta(hours=hours, minutes=minutes)


def told(hours: int = MOST_HOURS) -> list[Deed]:
    """The first so many hours of it, two at least, and two in which the shop is closed.

    Upstream does not tick every five minutes here, as each tick costs a second of whoever watches; it then takes all that is due.
    """
    deeds = [
        Deed("chapter", at(0), "Both projects are deployed at 00:05"),
        Deed("deploy", at(0, 5)),
        Deed("chapter", at(0, 5), "00:05-01:00  A normal hour"),
        *(Deed("run", at(0, minute), "upstream") for minute in (10, 15, 30, 60)),
        Deed("run", at(1), "downstream"),
        Deed("chapter", at(1), "01:00-02:00  Upstream is late: at 02:00 it has only reached 01:40. Downstream waits, and says for what. At 02:05 two schedulers start the same tick"),
        *(Deed("run", at(1, minute), "upstream") for minute in (20, 40)),
        Deed("run", at(2), "downstream"),
        Deed("why", at(2), "gold.fact_sales"),
        Deed("twice", at(2, 5), "upstream"),
        Deed("run", at(2, 5), "downstream"),
    ]  # fmt: skip
    if hours >= 4:
        deeds += [
            Deed("chapter", at(2, 5), "02:05-04:00  A till's software is broken for five minutes. Its own hour waits; the hour after it does not"),
            *(Deed("run", at(2, minute), "upstream") for minute in (30, 45)),
            *(Deed("run", at(3), project) for project in ("upstream", "downstream")),
            Deed("run", at(3, 30), "upstream"),
            *(Deed("run", at(4), project) for project in ("upstream", "downstream")),
            Deed("why", at(4), "gold.fact_sales"),
            Deed("correct", at(4, 5)),
            Deed("retry", at(4, 5), "bronze.line_items"),
            Deed("run", at(4, 5), "upstream"),
            Deed("run", at(4, 5), "downstream"),
        ]  # fmt: skip
    if hours >= 5:
        deeds += [
            Deed("chapter", at(4, 5), "04:05-05:00  Again two schedulers start a tick, twice; an item's new price is entered late; a colleague runs plain SQLMesh at 05:00, too early"),
            *(Deed("twice", at(4, minute), "upstream") for minute in (25, 45)),
            Deed("colleague", at(5), "downstream"),
            Deed("run", at(5), "downstream"),
            Deed("run", at(5), "upstream"),
            Deed("run", at(5), "downstream"),
        ]  # fmt: skip
    quiet = closes(hours).replace(minute=0) + timedelta(hours=1)
    return [
        *deeds,
        Deed("chapter", deeds[-1].at, "The shop is closed for two hours, in which what came late settles"),
        *(
            Deed("run", quiet + timedelta(hours=hour, minutes=minute), project)
            for hour in range(2)
            for minute, project in ((-30, "upstream"), (0, "upstream"), (0, "downstream"))
        ),
    ]


def closes(hours: int) -> datetime:
    """When the shop closes, UTC."""
    return at(5) if hours >= 5 else at(4, 5) if hours >= 4 else at(2, 5)


def faults() -> list[source.Fault]:
    """What goes wrong in the shop."""
    usual = [source.Fault.parse(text) for text in ("late", "duplicates", "nulls", "negative", "orphans")]
    usual.append(source.Fault.parse(f"late_items=1@{span(at(4, 30), at(4, 35))}"))
    return [*usual, broken_till(usual, SEED, RATE, at(2, 10), at(2, 40))]


def broken_till(
    others: Sequence[source.Fault], seed: str, rate: float, start: datetime, end: datetime
) -> source.Fault:
    """Find five minutes in which so many lines would be negative that the audit cannot let them pass, whatever comes late.

    Args:
        others: The other faults of the shop.
        seed: The shop's.
        rate: The shop's.
        start: Where to look, UTC.
        end: Up to where, exclusive.

    Raises:
        ValueError: Nowhere are there enough sales.
    """
    margins = {}
    while start < end:
        fault = source.Fault.parse(f"negative=1@{span(start, start + source.SLOT)}")
        shop = Shop(seed, rate, source.BEGINNING, [*others, fault])
        lines = [row for row in shop.rows(start) if isinstance(row, LineItem) and row.occurred_at >= start]
        if len(lines) >= 8:
            bad = sum(row.amount < 0 for row in lines)
            margins[bad - (len(lines) - bad), start] = fault
        start += source.SLOT
    if not margins or max(margins)[0] < 2:
        raise ValueError(
            "too few sales for five minutes that a person has to look at: a higher rate is needed"
        )
    return margins[max(margins)]


def correct(url: str, now: datetime) -> int:
    """The shop sends the lines of the broken till again, as they should have been; how many."""
    till = faults()[-1]
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "update shop.line_items set amount = -amount, updated_at = %s where amount < 0 and occurred_at >= %s and occurred_at < %s",
            (now, till.start, till.end),
        )
        return int(cursor.rowcount)


def sell(url: str, now: datetime) -> None:
    """All that reaches the source up to an instant."""
    source.generate(url, now, seed=SEED, rate=RATE, faults=faults())


def span(start: datetime, end: datetime) -> str:
    """A span as faults and commands write it."""
    return f"{start:%Y-%m-%dT%H:%M}/{end:%Y-%m-%dT%H:%M}"
